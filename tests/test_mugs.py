"""Properties of the procedural mugs, and of the demo that shows them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trimesh
import yaml
from PIL import Image
from scipy import ndimage

from mirage_steps import settings, turntables
from mirage_steps.demo.renderer import cars, mugs
from mirage_steps.demo.renderer.mug_shapes import BODY, HANDLE, build_mesh, draw_shape
from mirage_steps.sources import procedural

ROOT = Path(__file__).parents[1]
SIZE = 48
PRINT, INSIDE, HANDLE_PART = (mugs.PARTS.index(name) for name in ("print", "inside", "handle"))

render = partial(mugs.render, families=mugs.DEMO_FAMILIES, size=SIZE)


def test_a_mug_depends_on_its_seed_and_index_alone():
    one, two = render(3, 7), render(3, 7)
    for name in ("image", "mask", "part", "position"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    azimuths = {render(*key).azimuth_deg for key in ((3, 7), (3, 8), (4, 7), (7, 3))}
    assert len(azimuths) == 4
    assert cars.render(3, 7, cars.DEMO_FAMILIES, 16).azimuth_deg != one.azimuth_deg


def test_families_of_demo_and_stand_ins_are_apart():
    assert not set(mugs.DEMO_FAMILIES) & set(mugs.STAND_IN_FAMILIES)
    assert set(mugs.DEMO_FAMILIES) | set(mugs.STAND_IN_FAMILIES) == set(mugs.FAMILIES)


@pytest.mark.parametrize("family", mugs.FAMILIES)
def test_body_and_handle_are_closed_and_the_ends_of_the_handle_are_in_the_wall(family):
    for seed in range(10):
        shape = draw_shape(mugs.FAMILIES[family], np.random.default_rng(seed))
        mesh = build_mesh(shape)
        body, handle = (
            trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.components == component])
            for component in (BODY, HANDLE)
        )
        for closed in (body, handle):
            assert closed.is_watertight and closed.is_winding_consistent and closed.volume > 0
            assert closed.euler_number == 2
        assert mesh.vertices[:, 2].min() == 0
        # The handle meets the wall around its two ends and nowhere else: a mug has one hole.
        radius = np.hypot(*handle.vertices.T[:2])
        depth = (shape.radius(handle.vertices[:, 2]) - radius) / shape.wall
        assert depth.max() < 0.9
        sunk = handle.vertices[depth > 0, 2]
        middle = np.mean(shape.ends)
        assert (sunk < middle).any() and (sunk > middle).any()
        assert np.abs(sunk - middle).min() > 0.3 * np.ptp(shape.ends)


@pytest.mark.parametrize("azimuth", [0, 180])
def test_the_hole_of_the_handle_is_open(azimuth):
    for index in range(12):
        off = render(5, index, azimuth=azimuth).mask < 0.5
        assert ndimage.label(off)[1] == 2


def test_the_handle_turns_with_the_mug():
    for index in range(12):
        seen = {azimuth: render(5, index, azimuth=azimuth) for azimuth in (0, 90, 180, 270)}
        offsets = {azimuth: _offset(mug) for azimuth, mug in seen.items() if azimuth != 270}
        assert offsets[0] > 8 and offsets[180] < -8 and abs(offsets[90]) < 4
        # Behind the mug only what sticks out above the rim could be seen.
        shown = {azimuth: (mug.part == HANDLE_PART).sum() for azimuth, mug in seen.items()}
        assert shown[270] < 0.1 * shown[90]


def _offset(mug: mugs.Rendering) -> float:
    """Columns from the middle of the rest to the middle of the handle."""
    handle = mug.part == HANDLE_PART
    columns = [np.nonzero(shown)[1].mean() for shown in (handle, (mug.mask > 0) & ~handle)]
    return columns[0] - columns[1]


def test_print_or_handle_are_seen_from_everywhere():
    for index in range(2):
        for azimuth in range(0, 360, 15):
            mug = render(5, index, size=96, azimuth=azimuth)
            assert np.isin(mug.part, (PRINT, HANDLE_PART)).sum() >= 8, (index, azimuth)
            assert azimuth not in (165, 180, 195) or not (mug.part == PRINT).any()


def test_mask_part_and_position_agree():
    inside = 0
    for index in range(20):
        mug = render(5, index)
        on = mug.mask > 0
        assert mug.image.shape == (SIZE, SIZE, 3) and mug.image.dtype == np.uint8
        assert 0.05 < mug.mask.mean() < 0.8 and mug.mask.max() == 1
        np.testing.assert_array_equal(mug.part > 0, on)
        assert mug.part.max() < len(mugs.PARTS)
        assert np.abs(mug.position).max() <= 1 and not mug.position[~on].any()
        # The print is on the side at azimuth 0, the handle at 90 degrees.
        assert (mug.position[mug.part == PRINT, 0] > 0).all()
        assert (mug.position[mug.part == HANDLE_PART, 1] > 0).all()
        inside += (mug.part == INSIDE).any()
    assert inside >= 10


def test_a_source_of_mugs_renders_them_and_turns_them(tmp_path):
    source = settings.Procedural(objects="mugs", images=2, size=32, seed=9)
    entries, _ = procedural.list_images(source, tmp_path, lambda items, total: items)
    for index, entry in enumerate(entries):
        made = mugs.render(9, index, mugs.DEMO_FAMILIES, 32)
        assert (entry.azimuth_deg, entry.category) == (made.azimuth_deg, None)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / entry.image)), made.image)
    views = turntables._render("mugs", 32, 1.0, 9, (90.0,), 1)
    np.testing.assert_array_equal(views[0].image, made.image)
    assert views[1].azimuth_deg == 90


def test_the_demo_of_mugs_has_networks_and_photos_of_its_own():
    demo = settings.load(yaml.safe_load((ROOT / "config/config.yaml").read_text())).dataset("mugs")
    assert demo.renders and demo.source.objects == "mugs" and demo.source.seed != 2026
    for folder in (demo.backbone.model, demo.masks.sam):
        assert (ROOT / folder / "model.safetensors").is_file() and "mugs" in folder
    numbers = {"lime": 0, "red": 6, "green": 7, "black": 11}
    photos = ROOT / demo.photos
    assert {path.stem for path in photos.glob("*.png")} == set(numbers)
    for name, number in numbers.items():
        made = mugs.render(2026, number, mugs.DEMO_FAMILIES, 160)
        np.testing.assert_array_equal(np.asarray(Image.open(photos / f"{name}.png")), made.image)
