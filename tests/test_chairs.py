"""Properties of the procedural chairs, and of data sets that mix them with cars."""

import numpy as np
import pytest
from PIL import Image

from mirage_steps.demo.renderer import cars, chairs
from mirage_steps.demo.renderer.chair_shapes import BACK, SEAT, build_mesh, draw_shape
from mirage_steps.settings import Procedural
from mirage_steps.sources import procedural

SIZE = 48


@pytest.fixture(scope="module")
def many() -> list[chairs.Rendering]:
    return [chairs.render(5, index, SIZE) for index in range(120)]


def _near(many: list[chairs.Rendering], azimuth: float) -> list[chairs.Rendering]:
    """Those of ``many`` that are within 20 degrees of ``azimuth``, at least three."""
    found = [c for c in many if abs((c.azimuth_deg - azimuth + 180) % 360 - 180) < 20]
    assert len(found) >= 3
    return found


def _correlation(chair: chairs.Rendering, axis: int, along: int) -> float:
    """Between pixel coordinate (0 row, 1 column) and coordinate of the chair (0 x, 1 y, 2 z)."""
    on = chair.mask > 0
    return float(np.corrcoef(np.indices(on.shape)[axis][on], chair.position[on, along])[0, 1])


def test_a_chair_depends_on_its_seed_and_index_alone():
    one, two = chairs.render(3, 7, 32), chairs.render(3, 7, 32)
    for name in ("image", "mask", "part", "position"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    azimuths = {chairs.render(*key, 16).azimuth_deg for key in ((3, 7), (3, 8), (4, 7), (7, 3))}
    assert len(azimuths) == 4
    # A chair is no companion of the car of its number.
    assert cars.render(3, 7, cars.DEMO_FAMILIES, 16).azimuth_deg != one.azimuth_deg


def test_azimuths_are_spread_over_the_circle(many):
    counts = np.histogram([chair.azimuth_deg for chair in many], 4, (0, 360))[0]
    assert counts.min() >= 15


@pytest.mark.parametrize("azimuth, towards_left", [(90, 1), (270, -1)])
def test_at_90_degrees_the_front_is_at_image_left(many, azimuth, towards_left):
    for chair in _near(many, azimuth):
        # The back, which stands at the rear, is then at image-right.
        columns = [np.nonzero(shown)[1].mean() for shown in (chair.part == BACK, chair.mask > 0)]
        assert towards_left * (columns[0] - columns[1]) > 2
        assert towards_left * _correlation(chair, axis=1, along=0) < -0.6


def test_from_the_front_the_back_is_behind_the_seat(many):
    for chair in _near(many, 0):
        # Both are in view, the back higher up in the image and further away.
        (seat_row, seat_x), (back_row, back_x) = (
            (np.nonzero(chair.part == part)[0].mean(), chair.position[chair.part == part, 0].mean())
            for part in (SEAT, BACK)
        )
        assert back_row < seat_row - 4 and back_x < seat_x - 0.5
        # Seen from the front, its left is at image-right.
        assert _correlation(chair, axis=1, along=1) > 0.6


def test_from_the_rear_the_back_hides_what_is_before_it(many):
    front = np.mean([_share_in_front(chair) for chair in _near(many, 0)])
    for chair in _near(many, 180):
        assert (chair.part == BACK).any()
        assert _share_in_front(chair) < 0.6 * front
        assert _correlation(chair, axis=1, along=1) < -0.6


def _share_in_front(chair: chairs.Rendering) -> float:
    """Share of the chair's pixels that show its front half."""
    return float((chair.position[chair.mask > 0, 0] > 0).mean())


def test_mask_part_and_position_agree(many):
    for chair in many[:40]:
        on = chair.mask > 0
        assert chair.image.shape == (SIZE, SIZE, 3) and chair.image.dtype == np.uint8
        assert 0.02 < chair.mask.mean() < 0.8 and chair.mask.max() == 1
        np.testing.assert_array_equal(chair.part > 0, on)
        assert chair.part.max() < len(chairs.PARTS)
        assert np.abs(chair.position).max() <= 1 and not chair.position[~on].any()
        # Upright: rows count downwards.
        assert _correlation(chair, axis=0, along=2) < -0.7


def test_the_mask_covers_what_differs_from_the_surroundings():
    sharp_edges = 0
    for index in range(20):
        chair = chairs.render(5, index, 96)
        # Along a row, ground, sky and shadow are smooth: a sharp edge belongs to the chair.
        sharp = np.abs(np.diff(chair.image.astype(float), axis=1)).max(-1) > 60
        near = np.maximum(chair.mask[:, 1:], chair.mask[:, :-1]) > 0
        assert near[sharp].all()
        sharp_edges += sharp.sum()
    assert sharp_edges > 1000


@pytest.mark.parametrize("placement", [0.0, 1.0])
def test_chairs_are_whole_and_fill_the_frame_as_promised(placement):
    for index in range(20):
        on = chairs.render(2, index, 64, placement).mask > 0
        places = [np.flatnonzero(on.any(axis)) for axis in (0, 1)]
        longest = max(map(np.ptp, places)) + 1
        low, high = chairs.SPAN if placement else [np.mean(chairs.SPAN)] * 2
        assert low * 64 - 2 <= longest <= high * 64 + 2
        assert min(place[0] for place in places) > 0 and max(place[-1] for place in places) < 63
        if not placement:
            assert all(abs(place.mean() - 31.5) <= 1.5 for place in places)


def test_sides_of_boxes_face_outwards():
    for seed in range(10):
        mesh = build_mesh(draw_shape(np.random.default_rng(seed)))
        # Each box has six sides of four corners, its own.
        boxes = mesh.vertices.reshape(-1, 24, 3)
        centers = boxes.mean(1).repeat(12, axis=0)
        corners = mesh.vertices[mesh.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.sum(normals * (corners.mean(1) - centers), axis=1) > 0).all()
        assert (np.sum(normals[:, None] * mesh.normals[mesh.faces], axis=2) > 0).all()
        assert mesh.vertices[:, 2].min() == 0


def test_cars_and_chairs_alternate(tmp_path):
    source = Procedural(objects="cars-and-chairs", images=6, size=32, seed=9)
    entries, rejected = procedural.list_images(source, tmp_path, lambda items, total: items)
    assert not rejected
    assert [entry.category for entry in entries] == ["car", "chair"] * 3
    for index, entry in enumerate(entries):
        if index % 2:
            made = chairs.render(9, index, 32)
        else:
            made = cars.render(9, index, cars.DEMO_FAMILIES, 32)
        assert entry.azimuth_deg == made.azimuth_deg
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / entry.image)), made.image)


@pytest.mark.parametrize("objects", ["cars", "chairs"])
def test_images_of_one_category_have_no_category(tmp_path, objects):
    source = Procedural(objects=objects, images=2, size=32, seed=9)
    entries, _ = procedural.list_images(source, tmp_path, lambda items, total: items)
    assert [entry.category for entry in entries] == [None, None]
    made = [chairs.render(9, i, 32) for i in range(2)]
    if objects == "cars":
        made = [cars.render(9, i, cars.DEMO_FAMILIES, 32) for i in range(2)]
    assert [entry.azimuth_deg for entry in entries] == [m.azimuth_deg for m in made]
    mask = np.array(Image.open(tmp_path / "true_masks" / "000001.png"))
    np.testing.assert_array_equal(mask, np.round(made[1].mask * 255))
