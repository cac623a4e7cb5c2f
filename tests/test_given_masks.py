"""Masks that the user gives: their boxes, the patches that they show, and bad ones."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageDraw
from workflow import ROOT, Project

from mirage_steps import dataset, features, foreground, gather, pose_space, poses, settings
from mirage_steps.demo.renderer import cars
from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv, write_json
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.images import UnreadableImage, read_mask
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import read_windows
from mirage_steps.files.tokens import open_tokens
from mirage_steps.method.boxes import mask_shares
from mirage_steps.method.foreground import ForegroundModel, TokenBatch
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.settings import Folder, load
from mirage_steps.sources.checks import check_images

SIZE = (60, 40)
COVERED = (10, 4, 29, 19)  # the last pixels of the mask's rectangle
BOX = (10, 4, 30, 20)


def _mask(mode: str = "L", value: object = 255, size: tuple = SIZE, at: tuple = COVERED):
    image = Image.new(mode, size)
    ImageDraw.Draw(image).rectangle(at, fill=value)
    return image


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _folders(root: Path, masks: dict[str, Image.Image], photos: tuple[str, ...] = ()) -> Folder:
    """A photo for each mask and those named, and the masks."""
    for name in (*(f"{Path(mask).with_suffix('')}.jpg" for mask in masks), *photos):
        _save(root / "photos" / name, Image.new("RGB", SIZE, "gray"))
    for name, image in masks.items():
        _save(root / "masks" / name, image)
    return Folder(path=root / "photos", masks=root / "masks")


def _refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# Boxes


def test_the_box_of_a_photo_is_its_mask_s_in_any_format_and_scale(tmp_path):
    palette = _mask("P", 3)
    palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 0, 0, 1])
    transparent = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    ImageDraw.Draw(transparent).rectangle(COVERED, fill=(1, 0, 0, 255))
    masks = {
        "gray.png": _mask(),
        "one.png": _mask("1", 1),
        "faint.tif": _mask("L", 1),
        "sixteen.png": _mask("I;16", 1),
        "color.png": _mask("RGB", (0, 0, 7)),
        "opaque.png": _mask("RGBA", (0, 5, 0, 255)).convert("RGBA"),
        "transparent.png": transparent,
        "palette.png": palette,
        "below/it/half.png": _mask(size=(30, 20), at=(5, 2, 14, 9)),
        "double.v2.png": _mask(size=(120, 80), at=(20, 8, 59, 39)),
    }
    source = _folders(tmp_path, masks)
    dataset.main(source=source, out=tmp_path / "out")
    entries = read_manifest(tmp_path / "out/manifest.csv")
    assert len(entries) == len(masks)
    for entry in entries:
        assert entry.box == BOX, entry.image
        below = entry.path.relative_to(tmp_path / "photos").with_suffix("")
        assert entry.mask.relative_to(tmp_path / "masks").with_suffix("") == below


def test_photos_without_a_mask_are_told_once_and_have_no_box(tmp_path, caplog):
    source = _folders(tmp_path, {"a.png": _mask()}, ("b.jpg", "c/a.jpg"))
    dataset.main(source=source, out=tmp_path / "out")
    entries = read_manifest(tmp_path / "out/manifest.csv")
    assert [(one.path.name, one.box, bool(one.mask)) for one in entries] == [
        ("a.jpg", BOX, True), ("b.jpg", None, False), ("a.jpg", None, False),
    ]  # fmt: skip
    told = [one for one in caplog.messages if "source.masks" in one]
    assert len(told) == 1 and "2 of 3 photos have no mask" in told[0] and "b.jpg" in told[0]
    assert not read_csv(tmp_path / "out/rejected.csv")


def test_photos_whose_mask_is_bad_are_rejected_with_the_reason(tmp_path):
    source = _folders(tmp_path, {
        "good.png": _mask(),
        "empty.png": Image.new("L", SIZE),
        "shape.png": _mask(size=SIZE[::-1]),
        "lossy.jpg": _mask(),
        "twice.png": _mask(),
        "twice.webp": _mask(),
        "small.png": _mask(size=(12, 8), at=(0, 0, 3, 3)),
    })  # fmt: skip
    _folders(tmp_path, {}, ("damaged.jpg", "text.jpg"))
    whole = (tmp_path / "masks/good.png").read_bytes()
    (tmp_path / "masks/damaged.png").write_bytes(whole[:-40])
    (tmp_path / "masks/text.png").write_text("no image")
    dataset.main(source=source, out=tmp_path / "out")
    (entry,) = read_manifest(tmp_path / "out/manifest.csv")
    assert entry.path.name == "good.jpg"
    rejected = read_csv(tmp_path / "out/rejected.csv")
    found = {Path(row["image"]).stem: row["reason"] for row in rejected}
    expected = {
        "empty": "shows no object",
        "shape": "40x60 is not the aspect of 60x40",
        "lossy": "a JPEG, whose background is not quite black; save it as PNG",
        "twice": "has several masks",
        "small": "12x8 pixels are too few",
        "damaged": "",
        "text": "not an image",
    }
    assert found.keys() == expected.keys() and len(rejected) == len(expected)
    for name, reason in expected.items():
        assert reason in found[name] and f"masks/{name}." in found[name], found[name]


def test_a_mask_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    _mask(size=(600, 400)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(UnreadableImage, match="600x400 has more than max_pixels = 2400"):
        read_mask(tmp_path / "a.png", SIZE, 2400)


def test_masks_that_cannot_be_used_are_one_line(tmp_path):
    source = _folders(tmp_path, {"other.png": _mask()})
    (tmp_path / "photos/other.jpg").rename(tmp_path / "photos/car.jpg")
    told = _refused(lambda: dataset.main(source=source, out=tmp_path / "out"))
    assert "holds no mask of any photo" in told and f"{tmp_path}/masks/car.png" in told
    assert not (tmp_path / "out/manifest.csv").exists()
    gone = settings.Dataset(source=Folder(path=source.path, masks=tmp_path / "gone"))
    assert "gone: no such folder" in _refused(lambda: check_images(gone, tmp_path))
    # The photos of that folder are listed, but its masks were not asked for.
    write_json(tmp_path / "dataset.run.json", {"settings": {"path": str(source.path)}})
    assert "gone: no such folder" in _refused(lambda: check_images(gone, tmp_path))
    _save(tmp_path / "photos/masks/car.png", _mask())
    inside = settings.Dataset(source=Folder(path=source.path, masks=source.path / "masks"))
    assert "is in source.path" in _refused(lambda: check_images(inside, tmp_path))


@pytest.mark.parametrize("boxes", ["boxes.csv", "image"])
def test_boxes_and_masks_exclude_each_other(boxes):
    source = {"kind": "folder", "path": "photos", "masks": "masks", "boxes": boxes}
    told = _refused(lambda: load({"datasets": {"mine": {"source": source}}}))
    assert "datasets.mine.source: " in told and "remove boxes or masks" in told


# Patches


@pytest.mark.parametrize("scale", [1, 3])
def test_shares_of_patches_are_those_of_a_literal_computation(scale):
    """Literally: the area of every mask's pixel in every patch, one pair at a time."""
    rng = np.random.default_rng(scale)
    width, height, grid = 20, 14, 5
    mask = rng.random((height * scale, width * scale)) < 0.4
    window = (-3.3, -2.1, 15.9, 17.1)  # leaves the image at three sides
    step = (window[2] - window[0]) / grid

    def shared(patch: int, start: float, pixel: int) -> float:
        low, high = start + patch * step, start + (patch + 1) * step
        return max(0.0, min(high, (pixel + 1) / scale) - max(low, pixel / scale))

    expected = np.zeros((grid, grid))
    for row, column in np.ndindex(grid, grid):
        for y, x in zip(*np.nonzero(mask), strict=True):
            expected[row, column] += shared(row, window[1], y) * shared(column, window[0], x)
    found = mask_shares(mask, window, width, height, grid)
    np.testing.assert_allclose(found, expected / step**2, atol=1e-6)
    assert found.dtype == np.float32 and found.min() < 0.1 < 0.4 < found.max()


def test_patches_half_on_the_mask_are_shown_and_pca_1_decides_where_there_is_none():
    grid, dim, rng = 4, 6, np.random.default_rng(0)
    tokens = rng.normal(size=(3, grid**2, dim)).astype(np.float16)
    content = np.array([(0, 0, 1, 1), (0, 0.25, 1, 1), (0, 0, 1, 1)], np.float32)
    pca = Pca(np.zeros(dim), np.eye(dim)[:3], np.ones(3), np.ones(3))
    estimator = PoseEstimator({}, ForegroundModel(pca, 0, 1, 0.0), 0.06)
    masks = rng.random((3, grid**2)).astype(np.float32)
    masks[:2, 0], masks[0, 1] = 0.5, np.nextafter(np.float32(0.5), np.float32(0))
    masks[2] = np.nan
    batch = TokenBatch(slice(0, 3), tokens, tokens[:, 0], content)
    without = estimator.shown(batch)
    shown = estimator.shown(batch._replace(masks=masks))
    np.testing.assert_array_equal(shown[0], masks[0] >= 0.5)
    assert shown[0, 0] and not shown[0, 1]
    np.testing.assert_array_equal(shown[1], (masks[1] >= 0.5) & (np.arange(16) >= grid))
    np.testing.assert_array_equal(shown[2], without[2])
    assert (shown[:2] != without[:2]).any()


# The steps


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rendered cars in ``photos`` and their masks in ``masks``; the last two have none."""
    root = tmp_path_factory.mktemp("masked")
    for index in range(24):
        made = cars.render(0, index, KINDS["cars"].demo_families, 64)
        _save(root / f"photos/{index:02d}.png", Image.fromarray(made.image))
        if index < 22:
            scaled = Image.fromarray(np.uint8(made.mask > 0.5) * 255).resize((128, 128), 0)
            _save(root / f"masks/{index:02d}.png", scaled)
    return root


BACKBONE = settings.Backbone(
    model=str(ROOT / "weights/stand-in-dinov2-cars"), resolution=64, batch_size=4
)


@pytest.fixture(scope="module")
def found(data: Path) -> dict:
    """What the features of crops read, and the estimator."""
    out = data / "out"
    dataset.main(source=Folder(path=data / "photos", masks=data / "masks"), out=out)
    manifest, options = out / "manifest.csv", {"backbone": BACKBONE, "device": "cpu"}
    features.main(manifest=manifest, out=out / "features", **options)
    foreground.main(manifest=manifest, tokens=out / "features/tokens.h5", out=out / "foreground")
    windows = out / "foreground/foreground.csv"
    return {"manifest": manifest, "windows": windows, **options}


def test_crops_have_the_shares_of_their_masks_whatever_the_shards(found, tmp_path):
    features.main(**found, out=tmp_path)
    of = 6  # in the last of which hardly any photo has a mask
    for number in range(1, of + 1):
        features.main(**found, out=tmp_path, shard=f"{number}-of-{of}")
    gather.join(
        tuple(tmp_path / f"tokens.{number}-of-{of}.h5" for number in range(1, of + 1)),
        tmp_path / "joined.h5",
    )
    with h5py.File(tmp_path / "tokens.h5") as one, h5py.File(tmp_path / "joined.h5") as joined:
        masks = one["masks"][:]
        np.testing.assert_array_equal(masks, joined["masks"])
    images = read_windows(found["windows"], read_manifest(found["manifest"]), centered_on_box=True)
    assert len(masks) == len(images) and not np.isnan(masks[:22]).any()
    assert np.isnan(masks[22:]).all()
    grid = math.isqrt(masks.shape[1])
    for (entry, window), shares in zip(images[:22], masks, strict=False):
        # Literally, by points of a fine grid.
        mask = np.array(Image.open(entry.mask)) > 0
        places = np.linspace(0, 1, 32 * grid, endpoint=False) + 1 / 64 / grid
        x, y = (window[axis] + places * (window[2] - window[0]) for axis in (0, 1))
        inside = ((x >= 0) & (x < 64))[None] & ((y >= 0) & (y < 64))[:, None]
        x, y = (np.clip(one * 2, 0, 127).astype(int) for one in (x, y))
        literal = (mask[y][:, x] & inside).reshape(grid, 32, grid, 32).mean((1, 3))
        np.testing.assert_allclose(shares.reshape(grid, grid), literal, atol=0.05)


def test_poses_follow_from_the_patches_of_the_masks(found, tmp_path):
    features.main(**found, out=tmp_path)
    estimator = found["windows"].with_name(ESTIMATOR)
    pose_space.main(tokens=tmp_path / "tokens.h5", estimator=estimator, out=tmp_path)
    with open_tokens(tmp_path / "tokens.h5") as tokens:
        (batch,) = tokens
        first = load_estimator(estimator)
        given = first.shown(batch)
        np.testing.assert_array_equal(given[:22], batch.masks[:22] >= 0.5)
        assert (given[:22] != first.shown(batch._replace(masks=None))[:22]).any()
        chosen = batch.tokens[given].astype(float)
    model = load_estimator(tmp_path / ESTIMATOR, "pcas")
    np.testing.assert_allclose(model.pcas[0].mean, chosen.mean(0), atol=1e-6)
    with h5py.File(tmp_path / "maps.h5") as file:  # zero off the object
        np.testing.assert_array_equal((file["maps"][:] != 0).any(2), given)
    poses.main(
        maps=tmp_path / "maps.h5",
        estimator=tmp_path / ESTIMATOR,
        out=tmp_path / "poses",
        poses=settings.Poses(k=4, starts=1),
    )
    assert len(read_csv(tmp_path / "poses/poses.csv")) == 24


def test_a_mask_that_is_gone_after_the_listing_is_one_line(found, tmp_path):
    mask = read_manifest(found["manifest"])[3].mask
    content = mask.read_bytes()
    mask.unlink()
    try:
        told = _refused(lambda: features.main(**found, out=tmp_path))
    finally:
        mask.write_bytes(content)
    assert told.startswith(f"{mask}: was a mask") and "--forcerun dataset" in told
    assert not (tmp_path / "tokens.h5").exists()


@pytest.mark.slow
def test_the_graph_runs_to_the_poses_and_masks_are_asked_for_by_their_key(data, tmp_path):
    project = Project(tmp_path / "project")
    source = {"kind": "folder", "path": str(data / "photos")}
    project.settings(source=source | {"masks": str(data / "masks")}, fid={"samples": 6})
    project.run("--", "results/mini/poses/poses.csv")
    assert len(read_csv(project["poses/poses.csv"])) == 24
    record = json.loads(project["dataset.run.json"].read_text())
    assert record["settings"]["masks"] == str(data / "masks")
    assert not project.planned("results/mini/poses/poses.csv")
    project.settings(source=source)
    assert project.planned("results/mini/poses/poses.csv")["dataset"] == 1
