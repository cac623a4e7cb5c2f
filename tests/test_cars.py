"""Properties of the procedural cars."""

import numpy as np
import pytest

from mirage_steps.demo.renderer import cars


def _renderings_near(azimuth: float, count: int = 3) -> list[cars.Rendering]:
    """The first ``count`` cars of a set that are within 12 degrees of ``azimuth``."""
    found = []
    for index in range(400):
        # The azimuth is the first thing drawn, so that the others need not be rendered.
        drawn = np.random.default_rng([5, index]).uniform(0, 360)
        if abs((drawn - azimuth + 180) % 360 - 180) < 12:
            found.append(cars.render(5, index, cars.DEMO_FAMILIES, size=48))
            assert found[-1].azimuth_deg == drawn
        if len(found) == count:
            return found
    raise AssertionError(f"no cars near {azimuth} degrees")


def test_same_seed_and_index_give_the_same_car():
    one, two = (cars.render(3, 7, cars.DEMO_FAMILIES, size=32) for _ in range(2))
    for name in ("image", "mask", "part", "position"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    other = cars.render(3, 8, cars.DEMO_FAMILIES, size=32)
    assert one.azimuth_deg != other.azimuth_deg
    assert (one.image != other.image).any()


@pytest.mark.parametrize("azimuth, towards_left", [(90, 1), (270, -1)])
def test_at_90_degrees_the_front_is_at_image_left(azimuth, towards_left):
    for car in _renderings_near(azimuth):
        column = np.broadcast_to(np.arange(48), (48, 48))[car.mask > 0]
        x = car.position[..., 0][car.mask > 0]
        assert towards_left * np.corrcoef(-column, x)[0, 1] > 0.8


@pytest.mark.parametrize("azimuth, sign", [(0, 1), (180, -1)])
def test_front_and_rear_face_the_camera(azimuth, sign):
    front, rear = cars.PARTS.index("headlight"), cars.PARTS.index("taillight")
    for car in _renderings_near(azimuth):
        shown, hidden = (front, rear) if sign > 0 else (rear, front)
        assert (car.part == shown).any() and not (car.part == hidden).any()
        column = np.broadcast_to(np.arange(48), (48, 48))[car.mask > 0]
        # Seen from the front, the car's left is at image-right.
        assert sign * np.corrcoef(column, car.position[..., 1][car.mask > 0])[0, 1] > 0.8


def test_mask_part_and_position_agree():
    for index in range(8):
        car = cars.render(1, index, cars.DEMO_FAMILIES, size=40)
        on = car.mask > 0
        assert car.image.shape == (40, 40, 3) and car.image.dtype == np.uint8
        assert 0.05 < car.mask.mean() < 0.8 and car.mask.max() == 1
        np.testing.assert_array_equal(car.part > 0, on)
        assert car.part.max() < len(cars.PARTS)
        assert np.abs(car.position).max() <= 1 and not car.position[~on].any()
        wheels = car.part == cars.PARTS.index("wheel")
        assert car.position[..., 2][wheels].max() < 0.3


def test_cars_are_whole_and_fill_the_frame_as_promised():
    for index in range(12):
        on = cars.render(2, index, cars.DEMO_FAMILIES, size=64).mask > 0
        rows, columns = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert cars.SPAN[0] * 64 - 1 <= longest <= cars.SPAN[1] * 64 + 2
        border = np.ones_like(on)
        border[1:-1, 1:-1] = False
        assert not on[border].any()


def test_without_placement_cars_are_centered_and_alike_in_size():
    for index in range(6):
        on = cars.render(2, index, cars.DEMO_FAMILIES, size=64, placement=0.0).mask > 0
        for axis in (0, 1):
            places = np.flatnonzero(on.any(axis))
            assert abs(places.mean() - 31.5) <= 1


@pytest.mark.parametrize("overhang", [0.0, 0.1, 0.25])
def test_an_overhanging_car_is_cut_by_one_edge(overhang):
    sides = set()
    for index in range(10):
        # Large images of the small car, so that pixels do not matter.
        words = {"families": cars.DEMO_FAMILIES, "size": 96, "span": (0.4, 0.6)}
        free = cars.render(4, index, **words)
        cut = cars.render(4, index, **words, overhang=overhang)
        assert cut.azimuth_deg == free.azimuth_deg
        extents = [_extent(car.mask) for car in (free, cut)]
        at = [extents[1][0] <= 1, extents[1][1] <= 1, extents[1][2] >= 95, extents[1][3] >= 95]
        assert sum(at) == 1
        side = at.index(True)
        sides.add(side)
        whole, left = (extent[side % 2 + 2] - extent[side % 2] for extent in extents)
        assert left == pytest.approx((1 - overhang) * whole, abs=2)
        # Only the car's place changes, and along one axis alone.
        other = 1 - side % 2
        assert extents[0][other::2] == pytest.approx(extents[1][other::2], abs=1)
    assert len(sides) >= 3


def test_a_car_may_be_kept_near_an_edge_without_touching_it():
    for index in range(6):
        car = cars.render(4, index, cars.DEMO_FAMILIES, span=(0.25, 0.4), overhang=-0.2)
        extent = np.array(_extent(car.mask))
        room = np.minimum(extent[:2], 96 - extent[2:])
        lengths = extent[2:] - extent[:2]
        assert np.abs(room - 0.2 * lengths).min() <= 2 and room.min() > 0


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) of what a mask covers, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_families_of_demo_and_stand_ins_are_apart():
    assert not set(cars.DEMO_FAMILIES) & set(cars.STAND_IN_FAMILIES)
    assert set(cars.DEMO_FAMILIES) | set(cars.STAND_IN_FAMILIES) == set(cars.FAMILIES)
