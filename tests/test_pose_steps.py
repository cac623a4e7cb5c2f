"""From images to pose labels: the steps themselves, with a tiny random backbone."""

import contextlib
import csv
import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
)

from mirage_steps import (
    crops,
    dataset,
    features,
    foreground,
    pose_eval,
    pose_names,
    pose_space,
    poses,
    settings,
)
from mirage_steps.errors import UserError
from mirage_steps.files import plots
from mirage_steps.files.atomic import read_csv, write_csv
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import read_names, write_names
from mirage_steps.files.images import read_rgb
from mirage_steps.files.manifest import Entry, read_manifest
from mirage_steps.files.tables import read_poses, read_windows
from mirage_steps.files.tokens import Tokens, open_tokens
from mirage_steps.method.boxes import content_box, crop, letterbox, padded_share, square_window
from mirage_steps.method.foreground import ForegroundModel, TokenBatch, token_moments
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import Detection, PoseEstimator
from mirage_steps.method.poses import PoseModel
from mirage_steps.networks.backbone import Backbone

CPU = torch.device("cpu")


def _load(model, resolution: int) -> Backbone:
    return Backbone.load(settings.Backbone(model=str(model), resolution=resolution), CPU)


GRID, DIM, COUNT = 8, 32, 24
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
SHAPE = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _save_backbone(folder, registers: int = 0):
    torch.manual_seed(0)
    if registers:
        config = Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=registers)
        model = Dinov2WithRegistersModel(config)
    else:
        model = Dinov2Model(Dinov2Config(**SHAPE))
    model.save_pretrained(folder)
    return model.eval()


def _draw(path, number: int) -> None:
    """A bright ellipse on dim noise, in one of several sizes and aspects."""
    rng = np.random.default_rng(number)
    width, height = [(60, 60), (90, 45), (40, 80), (33, 32), (100, 20)][number % 5]
    image = Image.fromarray(rng.integers(0, 60, (height, width, 3), dtype=np.uint8))
    cx, cy = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7)
    rx, ry = width * rng.uniform(0.15, 0.3), height * rng.uniform(0.15, 0.3)
    color = tuple(int(value) for value in rng.integers(170, 256, 3))
    ImageDraw.Draw(image).ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=color)
    image.save(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> SimpleNamespace:
    """Every step run once, one after the other."""
    root = tmp_path_factory.mktemp("steps")
    model = _save_backbone(root / "backbone")
    (root / "photos").mkdir()
    # Sorted by name, which is not the order of drawing.
    for number in range(COUNT):
        _draw(root / "photos" / f"{(number * 7) % COUNT:02d}.png", number)
    backbone = settings.Backbone(model=str(root / "backbone"), resolution=32, batch_size=5)
    manifest = root / "manifest.csv"
    dataset.main(source=settings.Folder(path=root / "photos"), out=root)
    features.main(manifest=manifest, out=root / "whole", backbone=backbone, device="cpu")
    foreground.main(manifest=manifest, tokens=root / "whole/tokens.h5", out=root / "found")
    windows = root / "found/foreground.csv"
    crops.main(manifest=manifest, windows=windows, out=root / "crops", image_size=16)
    features.main(
        manifest=manifest, out=root / "cropped", windows=windows, backbone=backbone, device="cpu"
    )
    pose_space.main(
        tokens=root / "cropped/tokens.h5", estimator=root / "found" / ESTIMATOR, out=root / "space"
    )
    poses.main(
        maps=root / "space/maps.h5",
        estimator=root / "space" / ESTIMATOR,
        out=root / "poses",
        poses=settings.Poses(k=4, starts=2),
    )
    pose_names.main(
        poses=root / "poses/poses.csv",
        crops=root / "crops/crops.h5",
        estimator=root / "poses" / ESTIMATOR,
        out=root / "poses",
    )
    with open(root / "labels.csv", "w", newline="") as out:
        rows = [(f"{number:02d}.png", number * 15) for number in range(COUNT)]
        csv.writer(out).writerows([("image", "azimuth_deg"), *rows])
    pose_eval.main(
        manifest=manifest,
        poses=root / "poses/poses.csv",
        out=root / "poses",
        labels=root / "labels.csv",
    )
    return SimpleNamespace(
        root=root,
        manifest=manifest,
        entries=read_manifest(manifest),
        model=model,
        backbone=backbone,
        windows=[row for row in read_csv(windows) if row["found"] == "1"],
    )


def _direct(model, squares: list[Image.Image]) -> np.ndarray:
    """The model's own last hidden states."""
    pixels = np.stack([np.asarray(square, np.float32) / 255 for square in squares])
    pixels = torch.from_numpy((pixels - MEAN) / STD).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return model(pixel_values=pixels).last_hidden_state.numpy()


def _names(file: h5py.File) -> list[str]:
    return [name.decode() for name in file["image"][:]]


def _window(row: dict) -> tuple:
    return tuple(float(row[f"window_{key}"]) for key in ("x0", "y0", "x1", "y1"))


# Tokens


def test_tokens_have_their_shapes_types_and_order(done):
    with h5py.File(done.root / "whole/tokens.h5") as file:
        assert file["patch_tokens"].shape == (COUNT, GRID**2, DIM)
        assert file["patch_tokens"].dtype == file["cls_token"].dtype == np.float16
        assert file["patch_tokens"].chunks == (1, GRID**2, DIM)
        assert file["cls_token"].shape == (COUNT, DIM)
        assert file["content"].shape == (COUNT, 4) and file["content"].dtype == np.float32
        assert _names(file) == [entry.image for entry in done.entries]
        about = json.loads(file.attrs["backbone"])
        weights = (done.root / "backbone/model.safetensors").read_bytes()
        assert about == {
            "model": str(done.root / "backbone"),
            "resolution": 32,
            "levels": [16, 32],
            "token_precision": "float32",
            "weights": settings.WEIGHTS,
            "sha256": {"model.safetensors": hashlib.sha256(weights).hexdigest()},
        }
        for step in ("found", "space", "poses"):
            assert load_estimator(done.root / step / ESTIMATOR).backbone == about
        expected = [content_box(entry.width, entry.height) for entry in done.entries]
        np.testing.assert_allclose(file["content"][:], expected, atol=1e-6)


def test_tokens_are_those_of_a_direct_forward_pass(done):
    fill = tuple(round(255 * float(value)) for value in MEAN)
    squares = [letterbox(read_rgb(entry.path), 32, fill) for entry in done.entries]
    hidden = _direct(done.model, squares)
    with h5py.File(done.root / "whole/tokens.h5") as file:
        np.testing.assert_allclose(file["patch_tokens"][:], hidden[:, 1:], atol=4e-3)
        np.testing.assert_allclose(file["cls_token"][:], hidden[:, 0], atol=4e-3)


def test_tokens_of_crops_are_those_of_windows_with_the_object_in_the_middle(done):
    by_name = {entry.image: entry for entry in done.entries}
    windows = []
    for row in done.windows:
        half = (float(row["window_x1"]) - float(row["window_x0"])) / 2
        x, y = ((float(row[f"{a}0"]) + float(row[f"{a}1"])) / 2 for a in "xy")
        windows.append((x - half, y - half, x + half, y + half))
    squares = [
        crop(read_rgb(by_name[row["image"]].path), window, 32)
        for row, window in zip(done.windows, windows, strict=True)
    ]
    hidden = _direct(done.model, squares)
    with h5py.File(done.root / "cropped/tokens.h5") as file:
        assert _names(file) == [row["image"] for row in done.windows]
        # The windows are equal but for rounding, which may change a pixel by one gray level.
        np.testing.assert_allclose(file["patch_tokens"][:], hidden[:, 1:], atol=2e-2)
        content = file["content"][:]
    moved = 0
    for row, window, box in zip(done.windows, windows, content, strict=True):
        entry = by_name[row["image"]]
        share = float(1 - (box[2] - box[0]) * (box[3] - box[1]))
        expected = padded_share(window, entry.width, entry.height)
        assert share == pytest.approx(expected, abs=2e-3)
        moved += window != pytest.approx(_window(row), abs=0.5)
    assert moved


@pytest.mark.parametrize("registers", [1, 4])
def test_registers_are_dropped(tmp_path, registers):
    model = _save_backbone(tmp_path / "b", registers)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    patches, cls = _load(tmp_path / "b", 32).tokens(images)
    hidden = _direct(model, list(images))
    assert hidden.shape[1] == 1 + registers + GRID**2
    np.testing.assert_allclose(patches, hidden[:, 1 + registers :], atol=1e-5)
    np.testing.assert_allclose(cls, hidden[:, 0], atol=1e-5)


def test_other_resolutions_interpolate_positions_and_pixels(tmp_path):
    model = _save_backbone(tmp_path / "b")
    network = _load(tmp_path / "b", 48)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    patches, _ = network.tokens(images)
    assert network.grid == 12 and patches.shape == (2, 144, DIM)
    np.testing.assert_allclose(patches, _direct(model, list(images))[:, 1:], atol=1e-5)
    flat = np.full((1, 20, 20, 3), 90, np.uint8)
    np.testing.assert_allclose(
        network.tokens(flat)[0], network.tokens(np.full((1, 48, 48, 3), 90, np.uint8))[0], atol=1e-4
    )


def test_the_model_s_own_normalization_is_used(tmp_path):
    _save_backbone(tmp_path / "b")
    preprocessor = tmp_path / "b" / "preprocessor_config.json"
    preprocessor.write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    network = _load(tmp_path / "b", 32)
    assert network.mean == (0.5, 0.4, 0.3) and network.std == (0.1, 0.2, 0.3)
    preprocessor.write_text("{}")
    assert _load(tmp_path / "b", 32).mean == tuple(map(pytest.approx, MEAN))


# Foreground


def _literal_valid(entry) -> np.ndarray:
    """Patches of the letterbox whose middle lies on the image."""
    side = max(entry.width, entry.height)
    valid = np.zeros((GRID, GRID), bool)
    for y in range(GRID):
        for x in range(GRID):
            px, py = (x + 0.5) / GRID * side, (y + 0.5) / GRID * side
            left, top = (side - entry.width) / 2, (side - entry.height) / 2
            valid[y, x] = left < px < left + entry.width and top < py < top + entry.height
    return valid


def _literal_center(entry: Entry) -> np.ndarray:
    """Patches whose center is within a quarter of the image's sides from its center."""
    side = max(entry.width, entry.height)
    center = np.zeros((GRID, GRID), bool)
    for y in range(GRID):
        for x in range(GRID):
            px, py = ((place + 0.5) / GRID * side - side / 2 for place in (x, y))
            center[y, x] = np.hypot(px / entry.width, py / entry.height) < 0.25
    return center


def test_padding_is_left_out_of_the_moments(done):
    kept, edge, middle = [], [], []
    with h5py.File(done.root / "whole/tokens.h5") as file:
        tokens = Tokens(file, _names(file), {})
        everything, border, center = token_moments(tokens)
        for entry, tokens in zip(done.entries, file["patch_tokens"][:], strict=True):
            valid = _literal_valid(entry)
            framed = np.pad(valid, 1)
            neighbors = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
            kept.append(tokens[valid.ravel()].astype(float))
            edge.append(tokens[(valid & ~neighbors).ravel()].astype(float))
            near = valid & neighbors & _literal_center(entry)
            middle.append(tokens[near.ravel()].astype(float))
        assert any(len(tokens) < GRID**2 for tokens in kept)
    kept, edge, middle = map(np.concatenate, (kept, edge, middle))
    assert everything.count == len(kept) and border.count == len(edge)
    assert 0 < center.count == len(middle) < len(kept) / 3
    np.testing.assert_allclose(everything.mean, kept.mean(0), atol=1e-9)
    np.testing.assert_allclose(everything.covariance, np.cov(kept.T), atol=1e-9)
    np.testing.assert_allclose(border.mean, edge.mean(0), atol=1e-9)
    np.testing.assert_allclose(center.mean, middle.mean(0), atol=1e-9)


def test_boxes_and_windows_fit_their_images(done):
    assert len(done.windows) > COUNT // 2
    rows = read_csv(done.root / "found/foreground.csv")
    assert [row["image"] for row in rows] == [entry.image for entry in done.entries]
    for entry, row in zip(done.entries, rows, strict=True):
        if row["found"] == "0":
            assert not any(row[key] for key in ("x0", "window_x0", "padded_share"))
            continue
        x0, y0, x1, y1 = (float(row[key]) for key in ("x0", "y0", "x1", "y1"))
        assert 0 <= x0 < x1 <= entry.width and 0 <= y0 <= y1 <= entry.height
        window = _window(row)
        assert window[2] - window[0] == pytest.approx(window[3] - window[1], abs=2e-3)
        share = padded_share(window, entry.width, entry.height)
        assert float(row["padded_share"]) == pytest.approx(share, abs=2e-3)
        assert 0 < float(row["foreground_share"]) <= 1
    summary = json.loads((done.root / "found/foreground.json").read_text())
    assert summary["images"] == COUNT
    assert summary["images_without_object"] == COUNT - len(done.windows)
    assert summary["sign"] in (-1, 1) and summary["component"] in (1, 2, 3)
    model = load_estimator(done.root / "found" / ESTIMATOR).foreground
    assert model.threshold == summary["threshold"] and model.component + 1 == summary["component"]


def test_the_paper_s_rule_takes_the_first_component_at_zero(done, tmp_path):
    foreground.main(
        manifest=done.manifest,
        tokens=done.root / "whole/tokens.h5",
        out=tmp_path,
        foreground=settings.Foreground(rule="first-component", threshold="zero"),
    )
    model = load_estimator(tmp_path / ESTIMATOR).foreground
    assert model.component == 0 and model.threshold == 0.0


def test_tokens_of_other_images_are_refused(done, tmp_path):
    lines = done.manifest.read_text().splitlines(keepends=True)
    (tmp_path / "manifest.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"tokens\.h5: holds other images than the manifest"):
        foreground.main(
            manifest=tmp_path / "manifest.csv",
            tokens=done.root / "whole/tokens.h5",
            out=tmp_path / "out",
        )
    with pytest.raises(UserError, match=r"foreground\.csv: lists other images"):
        crops.main(
            manifest=tmp_path / "manifest.csv",
            windows=done.root / "found/foreground.csv",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_a_set_without_any_object_is_told(done, tmp_path):
    rows = read_csv(done.root / "found/foreground.csv")
    with open(tmp_path / "foreground.csv", "w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows({**row, "found": "0"} for row in rows)
    with pytest.raises(UserError, match="no object was found in any image"):
        crops.main(
            manifest=done.manifest, windows=tmp_path / "foreground.csv", out=tmp_path / "out"
        )


# Results that are not to be trusted


def test_tokens_that_are_not_finite_are_refused_by_the_image_s_name(done, tmp_path):
    """Beyond float16 counts: stored, they would be infinite."""
    shutil.copytree(done.root / "backbone", tmp_path / "hot")
    state = load_file(tmp_path / "hot/model.safetensors")
    state["layernorm.weight"] *= 1e5
    save_file(state, tmp_path / "hot/model.safetensors")
    hot = done.backbone.model_copy(update={"model": str(tmp_path / "hot")})
    told = r"/00\.png: its tokens and those of 4 others are not finite; check backbone\.model .*hot"
    with pytest.raises(UserError, match=told):
        features.main(manifest=done.manifest, out=tmp_path / "out", backbone=hot, device="cpu")
    assert not list((tmp_path / "out").iterdir())


def _with_nan(path, target, name: str):
    """A copy of an HDF5 file with a NaN in its row 2."""
    shutil.copy(path, target)
    with h5py.File(target, "r+") as file:
        row = file[name][2]
        row.flat[5] = np.nan
        file[name][2] = row
    return target


def test_stored_values_that_are_not_finite_are_refused_by_name(done, tmp_path):
    estimator = done.root / "space" / ESTIMATOR
    whole = _with_nan(done.root / "whole/tokens.h5", tmp_path / "whole.h5", "patch_tokens")
    with pytest.raises(UserError, match=r"/02\.png: its tokens are not finite; .*features"):
        foreground.main(manifest=done.manifest, tokens=whole, out=tmp_path / "out")
    cropped = _with_nan(done.root / "cropped/tokens.h5", tmp_path / "cropped.h5", "cls_token")
    with pytest.raises(UserError, match=r"\.png: its tokens are not finite"):
        pose_space.main(tokens=cropped, estimator=estimator, out=tmp_path / "out")
    maps = _with_nan(done.root / "space/maps.h5", tmp_path / "maps.h5", "maps")
    with pytest.raises(UserError, match=r"\.png: its map is not finite; .*--forcerun pose_space"):
        poses.main(maps=maps, estimator=estimator, out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def _at_quantile(done, path, share: float) -> dict:
    """The foreground step with a stored estimator that finds ``share`` of the objects."""
    estimator = load_estimator(done.root / "found" / ESTIMATOR)
    with open_tokens(done.root / "whole/tokens.h5") as tokens:
        best = [estimator.foreground.scores(batch.tokens).max((1, 2)) for batch in tokens]
    threshold = float(np.quantile(np.concatenate(best), 1 - share)) + 1e-3
    model = replace(estimator.foreground, threshold=threshold)
    save_estimator(path / "stored.safetensors", replace(estimator, foreground=model))
    tokens, stored = done.root / "whole/tokens.h5", path / "stored.safetensors"
    foreground.main(manifest=done.manifest, tokens=tokens, out=path / "out", stored=stored)
    return json.loads((path / "out/foreground.json").read_text())


def test_a_foreground_in_few_images_is_warned_of_with_its_share(done, tmp_path, caplog):
    about = _at_quantile(done, tmp_path, 0.25)
    found = COUNT - about["images_without_object"]
    assert 0 < found < COUNT / 2
    (warning,) = (one for one in about["warnings"] if "padding" not in one)
    told = f"an object was found in only {found} of {COUNT} images ({found / COUNT:.0%})"
    assert told in warning and told in caplog.text
    sound = json.loads((done.root / "found/foreground.json").read_text())
    assert not any("found in only" in warning for warning in sound["warnings"])


def test_a_box_that_is_not_searched_is_not_judged(done, tmp_path):
    """Of a run on cropped photos, also where a new one shows no foreground at all."""
    estimator = load_estimator(done.root / "found" / ESTIMATOR)
    for threshold in (estimator.foreground.threshold, 1e6):
        model = replace(estimator.foreground, threshold=threshold)
        stored = tmp_path / "stored.safetensors"
        save_estimator(stored, replace(estimator, foreground=model, whole=True))
        tokens = done.root / "whole/tokens.h5"
        foreground.main(manifest=done.manifest, tokens=tokens, out=tmp_path, stored=stored)
        about = json.loads((tmp_path / "foreground.json").read_text())
        assert about["images_filled_by_their_box"] == about["images_without_object"] == 0
        for row in read_csv(tmp_path / "foreground.csv"):
            assert (row["found"], row["separation"], row["x0"]) == ("1", "", "0.000")


@pytest.mark.parametrize("value", [None, "1.0"])
def test_a_table_of_windows_that_was_edited_badly_is_one_line(done, tmp_path, value):
    rows = read_csv(done.root / "found/foreground.csv")
    for row in rows:
        row["found"] = value
    columns = [name for name in rows[0] if value or name != "found"]
    table = [[row[name] for name in columns] for row in rows]
    write_csv(tmp_path / "foreground.csv", columns, table)
    with pytest.raises(UserError, match=r"foreground\.csv, image .*00\.png: damaged .*found"):
        read_windows(tmp_path / "foreground.csv", read_manifest(done.manifest))


def test_a_rare_category_has_its_share_of_the_images_fitted_on(done, tmp_path):
    estimator = load_estimator(done.root / "space" / ESTIMATOR, "pcas")
    save_estimator(tmp_path / ESTIMATOR, replace(estimator, pcas=estimator.pcas * 2))
    with h5py.File(done.root / "space/maps.h5") as file:
        rows = [(name, int(number >= COUNT - 3), 1) for number, name in enumerate(read_names(file))]
    write_csv(tmp_path / "categories.csv", ("image", "category", "probability"), rows)
    poses.main(
        maps=done.root / "space/maps.h5",
        estimator=tmp_path / ESTIMATOR,
        out=tmp_path / "out",
        categories=tmp_path / "categories.csv",
        poses=settings.Poses(k=3, starts=1, fitted_images=10),
    )
    assert json.loads((tmp_path / "out/poses.json").read_text())["images"][3:] == [1, 1, 1]


def _detection(entry: Entry) -> Detection:
    window = square_window(entry.box, entry.width, entry.height, 0.06)
    return Detection(entry.box, window, None, np.zeros((GRID, GRID)))


def test_much_padding_is_warned_of_with_its_share(done):
    for height, warned in ((40, True), (76, False)):
        entries = [
            replace(entry, width=80, height=height, box=(5.0, 5.0, 75.0, 35.0))
            for entry in done.entries
        ]
        rows = [foreground._row(one, _detection(one), 0.0, "") for one in entries]
        about = foreground._add_counts({"warnings": []}, rows, entries)
        share = padded_share(rows[0][6:10], 80, height)
        assert about["padded_share"] == pytest.approx(share, abs=1e-4)
        assert about["images_with_padded_crop"] == COUNT
        told = f"{share:.0%} of the pixels of the crops are padding (up to {share:.0%} in one"
        assert [told in one for one in about["warnings"]] == [True] * warned


def test_the_picture_shows_the_whole_window_with_its_padding_hatched(tmp_path, monkeypatch):
    drawn = []

    @contextlib.contextmanager
    def plot(path, size, grid):
        drawn.append(Figure().subplots(*grid, squeeze=False))
        yield drawn[-1]

    monkeypatch.setattr(plots, "_plot", plot)
    Image.new("RGB", (90, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (90, 90)).save(tmp_path / "b.png")
    entries = [
        Entry("a.png", tmp_path / "a.png", 90, 40, box=(5.0, 5.0, 85.0, 35.0)),
        Entry("b.png", tmp_path / "b.png", 90, 90, box=(20.0, 20.0, 60.0, 60.0)),
        Entry("b.png", tmp_path / "b.png", 90, 90),
    ]
    nothing = Detection(None, None, None, np.zeros((GRID, GRID)))
    examples = [*zip(entries, [*map(_detection, entries[:2]), nothing], strict=True)]
    plots.foreground(tmp_path / "picture.png", examples, 0.5)
    padded, whole, empty = drawn[0][0]
    side = 80 / 0.88
    assert padded.get_xlim() == pytest.approx((min(0, 45 - side / 2), max(90, 45 + side / 2)))
    assert padded.get_ylim() == pytest.approx((20 + side / 2, 20 - side / 2))
    assert whole.get_xlim() == (0, 90) and whole.get_ylim() == (90, 0)
    (hatched,) = (one for one in padded.patches if one.get_hatch())
    window = examples[0][1].window
    assert hatched.get_bbox().extents == pytest.approx(window)
    # The photo covers all of it but the padding.
    assert hatched.get_zorder() < padded.images[0].get_zorder()
    assert tuple(padded.images[0].get_extent()) == (0, 90, 40, 0)
    assert not empty.patches and empty.get_xlim() == (0, 90)


def test_a_foreground_in_no_image_is_an_error(done, tmp_path):
    with pytest.raises(UserError, match=f"no object was found in any of {COUNT} images"):
        _at_quantile(done, tmp_path, 0.0)
    assert not (tmp_path / "out").exists()


def test_fewer_distinct_images_than_poses_are_refused(done, tmp_path, recwarn):
    """K-Means leaves clusters empty, whose poses the model would be asked for but never see."""
    with h5py.File(tmp_path / "maps.h5", "w") as out:
        with h5py.File(done.root / "space/maps.h5") as file:
            chosen = np.arange(len(file["maps"])) % 3
            out["maps"], out["valid"] = file["maps"][:][chosen], file["valid"][:][chosen]
            write_names(out, read_names(file))
    told = r"poses\.k = 4, but there are only 3 distinct maps.*lower poses\.k to at most 3"
    with pytest.raises(UserError, match=told):
        poses.main(
            maps=tmp_path / "maps.h5",
            estimator=done.root / "space" / ESTIMATOR,
            out=tmp_path / "out",
            poses=settings.Poses(k=4, starts=2),
        )
    assert not (tmp_path / "out").exists() and not list(recwarn)


def test_crops_without_any_foreground_are_an_error(done, tmp_path):
    estimator = load_estimator(done.root / "space" / ESTIMATOR)
    blind = replace(estimator, foreground=replace(estimator.foreground, threshold=1e9))
    save_estimator(tmp_path / ESTIMATOR, blind)
    tokens, stored = done.root / "cropped/tokens.h5", tmp_path / ESTIMATOR
    with pytest.raises(UserError, match="no crop of .* shows foreground"):
        pose_space.main(tokens=tokens, estimator=stored, stored=stored, out=tmp_path / "out")


# Crops and maps


def test_crops_are_the_windows_in_the_manifest_s_order(done):
    by_name = {entry.image: entry for entry in done.entries}
    with h5py.File(done.root / "crops/crops.h5") as file:
        assert file["images"].shape == (len(done.windows), 16, 16, 3)
        assert file["images"].dtype == np.uint8
        assert _names(file) == [row["image"] for row in done.windows]
        for row, pixels in zip(done.windows, file["images"][:], strict=True):
            expected = crop(read_rgb(by_name[row["image"]].path), _window(row), 16)
            np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_maps_are_projections_of_foreground_tokens_of_length_one(done):
    model = load_estimator(done.root / "found" / ESTIMATOR).foreground
    with h5py.File(done.root / "cropped/tokens.h5") as file:
        tokens = file["patch_tokens"][:].astype(np.float64)
    with h5py.File(done.root / "space/maps.h5") as file:
        maps, valid, names = file["maps"][:], file["valid"][:], _names(file)
    assert maps.shape == (len(done.windows), GRID**2, 3) and maps.dtype == np.float32
    assert valid.shape == maps.shape[:2] and valid.dtype == bool
    assert names == [row["image"] for row in done.windows]
    row = model.sign * model.pca.components[model.component]
    front = (tokens - model.pca.mean) @ row > model.threshold
    chosen = tokens[front & valid]
    (pca,) = load_estimator(done.root / "space" / ESTIMATOR).pcas
    np.testing.assert_allclose(pca.mean, chosen.mean(0), atol=1e-3)
    # The sign of each axis is free.
    axes = np.linalg.eigh(np.cov(chosen.T))[1][:, ::-1][:, :3].T
    expected = (tokens - chosen.mean(0)) @ axes.T * (front & valid)[..., None]
    expected /= np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    assert 0.1 < front.mean() < 0.9
    signs = np.sign((expected * maps).sum((0, 1)))
    np.testing.assert_allclose(maps, expected * signs, atol=2e-2)


def test_padding_and_other_objects_are_left_out_of_pose_space():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(5, GRID**2, DIM))
    # An object, one less patch at the other side, and a larger one on the padding.
    object_, other, hidden = np.zeros((3, GRID, GRID), bool)
    object_[2:5, 1:4], other[3:6, 6:8], hidden[6:] = True, True, True
    tokens[..., 0] = np.where((object_ | other | hidden).ravel(), 9, -9)
    tokens = tokens.astype(np.float16)
    content = np.array([(0, 0.25, 1, 0.75)] * 5, np.float32)
    pca = Pca(np.zeros(DIM), np.eye(DIM)[:3], np.ones(3), np.ones(3))
    model = ForegroundModel(pca, component=0, sign=1, threshold=0.1)
    batch = TokenBatch(slice(0, 5), tokens, np.zeros((5, DIM), np.float16), content)
    estimator = PoseEstimator({}, model, 0.06)
    shown = estimator.shown(batch).reshape(5, GRID, GRID)
    np.testing.assert_array_equal(shown, [object_] * 5)
    (found,) = estimator.fit_pose_space([batch], np.zeros(5, int), settings.PoseSpace()).pcas
    chosen = tokens[:, object_.ravel()].reshape(-1, DIM).astype(float)
    np.testing.assert_allclose(found.mean, chosen.mean(0), atol=1e-9)
    covariance = np.cov(chosen.T)
    expected = [row @ covariance @ row for row in found.components]
    np.testing.assert_allclose(found.variance, expected, rtol=1e-6)


@pytest.mark.parametrize("mask_background", [True, False])
def test_maps_are_centered_at_each_patch_before_they_are_scaled(mask_background):
    """Literally: the mean of all projections at a patch is subtracted from each."""
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(7, GRID**2, DIM)) + rng.normal(size=(GRID**2, DIM))
    tokens[..., 0] = np.where(rng.random((7, GRID**2)) < 0.8, 9, -9)
    tokens[:, 0, 0] = -9  # a patch that never shows the object
    content = np.array([(0, 0.25, 1, 0.75)] * 3 + [(0, 0, 1, 1)] * 4, np.float32)
    pca = Pca(np.zeros(DIM), np.eye(DIM)[:3], np.ones(3), np.ones(3))
    model = ForegroundModel(pca, component=0, sign=1, threshold=0.1)
    batch = TokenBatch(slice(0, 7), tokens.astype(np.float16), None, content)
    chosen = settings.PoseSpace(center=True, components=5, mask_background=mask_background)
    none = np.zeros(7, int)
    fitted = PoseEstimator({}, model, 0.06).fit_pose_space([batch], none, chosen)
    maps, valid, shown = fitted.maps(batch, none)
    assert maps.shape == (7, GRID**2, 5)
    projected, kept = fitted.pcas[0].project(batch.tokens), shown if mask_background else valid
    for patch in range(GRID**2):
        if kept[:, patch].any():
            projected[:, patch] -= projected[kept[:, patch], patch].mean(0)
    for index, one in enumerate(maps):
        expected = np.where(kept[index][:, None], projected[index], 0)
        np.testing.assert_allclose(one, expected / np.linalg.norm(expected), atol=1e-4)
    with pytest.raises(UserError, match="pose_space.components 200: "):
        chosen = chosen.model_copy(update={"components": 200})
        PoseEstimator({}, model, 0.06).fit_pose_space([batch], none, chosen)


# Poses


def test_each_image_has_the_pose_of_its_nearest_centroid(done):
    rows = read_csv(done.root / "poses/poses.csv")
    assert [row["image"] for row in rows] == [row["image"] for row in done.windows]
    estimator = load_estimator(done.root / "poses" / ESTIMATOR, "poses")
    (model,) = estimator.poses
    with h5py.File(done.root / "space/maps.h5") as file:
        maps = np.where(file["valid"][:][..., None], file["maps"][:], model.means)
    assert model.centroids.shape == (4, GRID**2 * 3)
    gaps = np.linalg.norm(maps.reshape(len(maps), 1, -1) - model.centroids, axis=2)
    assert [int(row["pose"]) for row in rows] == gaps.argmin(1).tolist()
    np.testing.assert_allclose([float(row["distance"]) for row in rows], gaps.min(1), rtol=1e-4)
    assert estimator.far == pytest.approx(np.quantile(gaps.min(1), 0.99), rel=1e-4)
    counts = json.loads((done.root / "poses/poses.json").read_text())
    images = np.bincount(gaps.argmin(1), minlength=4).tolist()
    assert counts == {"k": 4, "categories": 1, "images": images}


def test_poses_fitted_on_some_images_are_assigned_to_all(done, tmp_path):
    """As to new photos; with as many as there are, the clusters are those of all."""
    maps, estimator = done.root / "space/maps.h5", done.root / "space" / ESTIMATOR

    def table(name: str, count: int) -> tuple[bytes, PoseModel]:
        chosen = settings.Poses(k=4, starts=2, fitted_images=count)
        poses.main(maps=maps, estimator=estimator, out=tmp_path / name, poses=chosen)
        model = load_estimator(tmp_path / name / ESTIMATOR, "poses").poses[0]
        return (tmp_path / name / "poses.csv").read_bytes(), model

    everything, _ = table("all", COUNT)
    assert everything == (done.root / "poses/poses.csv").read_bytes()
    some, model = table("some", COUNT // 2)
    with h5py.File(maps) as file:
        filled = np.where(file["valid"][:][..., None], file["maps"][:], model.means)
    flat = filled.reshape(COUNT, -1)
    gaps = np.linalg.norm(flat[:, None] - model.centroids, axis=2)
    rows = csv.DictReader(some.decode().splitlines())
    assert [int(row["pose"]) for row in rows] == gaps.argmin(1).tolist()
    # Means of the images that were drawn, not of all.
    drawn = np.random.default_rng(0).permutation(COUNT)[: COUNT // 2]
    labels = gaps[drawn].argmin(1)
    means = np.stack([flat[drawn][labels == pose].mean(0) for pose in range(4)])
    np.testing.assert_allclose(means, model.centroids, atol=1e-5)


def test_the_evaluation_counts_every_labelled_image(done):
    scores = json.loads((done.root / "poses/pose_eval.json").read_text())
    assert scores["images"] == len(done.windows)
    assert sum(pose["images"] for pose in scores["poses"]) == len(done.windows)


def test_more_poses_than_images_are_refused(done, tmp_path):
    with pytest.raises(UserError, match=r"poses\.k = 25, but an object was found in only"):
        poses.main(
            maps=done.root / "space/maps.h5",
            estimator=done.root / "space" / ESTIMATOR,
            out=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_steps_run_again_give_the_same_poses_and_pictures(done, tmp_path):
    poses.main(
        maps=done.root / "space/maps.h5",
        estimator=done.root / "space" / ESTIMATOR,
        out=tmp_path,
        poses=settings.Poses(k=4, starts=2),
    )
    assert (tmp_path / "poses.csv").read_text() == (done.root / "poses/poses.csv").read_text()
    for picture in ("found/foreground.png", "poses/poses.png", "poses/pose_eval.png"):
        with Image.open(done.root / picture) as image:
            assert min(image.size) > 50


def test_no_temporary_files_are_left(done):
    assert not [path for path in done.root.rglob(".*")]


# Backbones that do not load


def _refused(model, resolution: int = 32) -> str:
    with pytest.raises(UserError) as error:
        _load(model, resolution)
    message = str(error.value)
    assert "\n" not in message and message.startswith("backbone.")
    return message


def test_a_missing_backbone_is_told_with_remedies(tmp_path):
    message = _refused(tmp_path / "gone")
    assert "no such file or folder, and no owner/name of the Hugging Face hub" in message


@pytest.mark.parametrize("content", ["[]", '{"image_mean": 0.5}', '{"image_std": [1, 2]}', "{"])
def test_a_damaged_preprocessor_is_told(tmp_path, content):
    config = Dinov2Config(
        image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "m")
    assert _load(tmp_path / "m", 32).std == pytest.approx(STD)
    (tmp_path / "m/preprocessor_config.json").write_text(content)
    assert "not a transformers model folder" in _refused(tmp_path / "m")


def test_a_folder_that_is_no_model_is_told(tmp_path):
    (tmp_path / "photos").mkdir()
    message = _refused(tmp_path / "photos")
    assert "not a transformers model folder" in message and "config.json" in message


@pytest.mark.parametrize("resolution, near", [(33, 32), (30, 32), (17, 16)])
def test_a_wrong_resolution_is_told_with_a_right_one(tmp_path, resolution, near):
    _save_backbone(tmp_path / "b")
    message = _refused(tmp_path / "b", resolution)
    assert f"resolution {resolution} is not a multiple of the patch size 4" in message
    assert message.endswith(f"use {near}")


def test_a_network_without_patches_is_refused(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    ResNetModel(config).save_pretrained(tmp_path / "r")
    assert "has no patch tokens" in _refused(tmp_path / "r")


def _cut(path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "name, damage",
    [
        ("model.safetensors", _cut),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("model.safetensors", lambda path: path.unlink()),
        ("config.json", lambda path: path.write_text("{")),
        ("config.json", lambda path: path.write_text('{"model_type": "unheard-of"}')),
        ("preprocessor_config.json", lambda path: path.write_text("{")),
        (
            "config.json",
            lambda path: path.write_text(
                json.dumps({**json.loads(path.read_text()), "hidden_size": 64})
            ),
        ),
    ],
    ids=["cut", "empty", "no weights", "json", "unknown", "preprocessor", "other shape"],
)
def test_a_damaged_model_folder_is_one_line(tmp_path, name, damage):
    _save_backbone(tmp_path / "b")
    damage(tmp_path / "b" / name)
    assert "not a transformers model folder" in _refused(tmp_path / "b")


def test_weights_that_are_not_in_the_file_are_not_drawn_at_random(tmp_path):
    _save_backbone(tmp_path / "b")
    weights = tmp_path / "b" / "model.safetensors"
    state = load_file(weights)
    kept = {key: value for key, value in state.items() if "layer.1." not in key}
    assert 0 < len(kept) < len(state)
    save_file(kept, weights, metadata={"format": "pt"})
    assert "weights missing, as encoder.layer.1." in _refused(tmp_path / "b")


@pytest.mark.parametrize("pose", ["q", "", "-1", "4"])
def test_a_damaged_pose_is_one_line(tmp_path, pose):
    (tmp_path / "poses.csv").write_text(f"image,pose\na.png,0\nb.png,{pose}\n")
    (tmp_path / "poses.json").write_text('{"k": 4, "categories": 1}')
    with pytest.raises(UserError, match=r"poses\.csv: not a table of poses .*--forcerun poses"):
        read_poses(tmp_path / "poses.csv")
