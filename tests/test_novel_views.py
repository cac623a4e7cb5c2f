"""A photo from all sides with what a run stored: the class, the command and the rule."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import TARGETS
from PIL import Image
from safetensors.torch import load_file, save_file
from snakemake.target_jobs import parse_target_jobs_cli_args
from workflow import ENVIRONMENT, ROOT, Project, errors

import mirage_steps
from mirage_steps import novel_views, sampling, settings
from mirage_steps.demo.renderer import cars
from mirage_steps.errors import Incomplete, UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.command import run as run_step
from mirage_steps.files.estimator import load_estimator, save_estimator
from mirage_steps.files.file_cache import FileCache
from mirage_steps.files.images import UnreadableImage
from mirage_steps.files.names import decoded
from mirage_steps.files.photo_views import PhotoViews
from mirage_steps.files.photos import photos_of
from mirage_steps.method import boxes
from mirage_steps.method.foreground import TokenBatch
from mirage_steps.method.unet import build, preset
from mirage_steps.run import Run, _pose_warnings, _view_warnings, crop_views
from mirage_steps.sources.procedural import _render

CARS = ROOT / "examples/cars"
GREEN, OCHRE, ORANGE = (CARS / f"{name}.png" for name in ("green", "ochre", "orange"))
FAST = settings.Views(steps=3, batch_size=16, precision="float32")
ESTIMATOR = "poses/pose_estimator.safetensors"


@pytest.fixture(scope="session")
def run(finished) -> Run:
    return Run.load(finished[""], device="cpu")


@pytest.fixture(scope="module")
def green(run) -> PhotoViews:
    """A photo in all poses, with few steps."""
    return run.novel_views(GREEN, views=FAST)


@pytest.fixture
def bare(finished, tmp_path) -> Path:
    """All files of a run that novel views need, in a folder that a test may change."""
    for name in ("training/config.json", "training/model.safetensors", ESTIMATOR):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(finished[name], tmp_path / "run" / name)
    return tmp_path / "run"


def _with_threshold(run: Run, threshold: float) -> Run:
    foreground = replace(run.estimator.foreground, threshold=threshold)
    return replace(run, estimator=replace(run.estimator, foreground=foreground))


# The preprocessing of the training images


def test_training_images_get_their_pose_and_crop(finished, run):
    rows = read_csv(finished["poses/poses.csv"])
    with h5py.File(finished["crops/crops.h5"]) as file:
        crops = file["images"][:]
    assert len(rows) > 30
    for row, crop in zip(rows, crops, strict=True):
        located = run.locate(finished[row["image"]])
        np.testing.assert_array_equal(located.crop, crop)
        # The batch's other size may round a token otherwise.
        assert located.distance == pytest.approx(float(row["distance"]), abs=1e-3)
        assert located.pose == int(row["pose"])


def test_a_photo_is_a_file_an_image_or_an_array(run):
    image = Image.open(GREEN)
    expected = run.locate(GREEN)
    rotated = image.transpose(Image.Transpose.ROTATE_90)
    rotated.getexif()[0x0112] = 6  # upright after a quarter turn
    clear = image.convert("RGBA")
    for other in (str(GREEN), image, np.asarray(image), rotated, clear):
        located = run.locate(other)
        assert (located.pose, located.distance) == (expected.pose, expected.distance)
        np.testing.assert_array_equal(located.crop, expected.crop)
    assert run.locate(image.convert("L")).crop.shape == expected.crop.shape


# What comes out


def test_own_pose_is_the_photo_and_the_rest_follows_the_settings(run, green):
    own = green.poses.index(green.pose)
    assert green.views.shape == (5, 32, 32, 3) and green.views.dtype == np.uint8
    np.testing.assert_array_equal(green.views[own], green.crop)
    np.testing.assert_array_equal(run.novel_views(GREEN, views=FAST).views, green.views)
    for change in (
        {"guidance": settings.Guidance(gamma=1.0)},
        {"novel_views": settings.NovelViews(phase_cutoff="none")},
        {"novel_views": settings.NovelViews(inversion_iterations=2)},
    ):
        other = run.novel_views(GREEN, views=FAST, **change)
        np.testing.assert_array_equal(other.views[own], green.views[own])
        assert (other.views != green.views).any(), change
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


STORED = settings.Sampling(
    views=settings.Views(steps=3, precision="float32"),
    guidance=settings.Guidance(gamma=2.5),
    novel_views=settings.NovelViews(phase_cutoff="none"),
)


@pytest.fixture
def stored(bare) -> Path:
    """A run whose settings are not the defaults, as its rule stores them."""
    sampling.main(out=bare / "training", **dict(STORED))
    return bare


def _used(path: Path) -> dict:
    about = json.loads(path.read_text())["settings"]
    return {key: about[key] for key in ("steps", "gamma", "phase_cutoff")}


def test_settings_that_are_not_given_are_those_of_the_run(stored, tmp_path):
    own = {"steps": 3, "gamma": 2.5, "phase_cutoff": "none"}
    run = Run.load(stored, device="cpu")
    assert run.sampling == STORED
    given = run.sampling.views.model_copy(update={"steps": 4})
    for change, expected in (({}, own), ({"views": given}, {**own, "steps": 4})):
        found = run.novel_views(GREEN, **change).settings
        assert {key: found[key] for key in own} == expected
    novel_views.main((GREEN,), run=stored, out=tmp_path / "out", device="cpu")
    assert _used(tmp_path / "out/green.json") == own


@pytest.mark.parametrize(
    ("words", "steps", "gamma"),
    [(["--steps", "4"], 4, 2.5), (["--gamma", "1.5"], 3, 1.5), (["--gamma=1"], 3, 1.0)],
)
def test_a_flag_wins_over_the_setting_of_the_run(
    stored, tmp_path, monkeypatch, words, steps, gamma
):
    """Also one that has the default's value; all other settings stay the run's."""
    command = [str(GREEN), "--run", str(stored), f"--out={tmp_path / 'out'}", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["novel_views", *command, *words])
    run_step(novel_views.main, novel_views.of_the_run)
    used = {"steps": steps, "gamma": gamma, "phase_cutoff": "none"}
    assert _used(tmp_path / "out/green.json") == used
    record = json.loads((tmp_path / "out/green.run.json").read_text())
    assert record["settings"]["gamma"] == gamma


def test_a_run_that_stored_no_settings_has_the_defaults(bare):
    assert Run.load(bare).sampling == settings.Sampling()
    (bare / "training/sampling.json").write_text('{"views": {"steps": "many"}}')
    told = r"sampling.json: damaged or of another version; run snakemake with --forcerun sampling"
    with pytest.raises(UserError, match=told):
        Run.load(bare)


def test_refined_inversion_reconstructs_better_and_counts_its_evaluations(run):
    views = FAST.model_copy(update={"steps": 10})
    plain, refined = (
        run.novel_views(
            OCHRE, views=views, novel_views=settings.NovelViews(inversion_iterations=iterations)
        )
        for iterations in (1, 6)
    )
    assert (plain.inversion_evaluations, refined.inversion_evaluations) == (10, 60)
    assert refined.reconstruction_psnr_db > plain.reconstruction_psnr_db + 10


def test_everything_is_written(green, tmp_path):
    green.save(tmp_path)
    (tmp_path / "green.views/pose_99.png").touch()  # of a run with more poses
    strip = green.save(tmp_path)
    assert strip == tmp_path / "green.png"
    separate = {"crop.png", "reconstruction.png", *(f"pose_0{pose}.png" for pose in range(5))}
    separate |= {f"pose_0{pose}.mask.png" for pose in range(5)}
    assert {path.name for path in (tmp_path / "green.views").iterdir()} == separate
    for pose, view in enumerate(green.views):
        pixels = np.asarray(Image.open(tmp_path / f"green.views/pose_0{pose}.png"))
        np.testing.assert_array_equal(pixels, view)
    with Image.open(tmp_path / "green.gif") as animation:
        assert animation.n_frames == 5
    picture = np.asarray(Image.open(strip).convert("RGB")).astype(int)
    red = (picture[..., 0] > 200) & (picture[..., 1:].max(2) < 60)
    columns = np.flatnonzero(red.sum(0) > 90)
    # The frame stands around the photo's own column.
    assert columns.min() // (picture.shape[1] // 5) == green.poses.index(green.pose)
    assert green._repr_jpeg_().startswith(b"\xff\xd8")


@pytest.mark.parametrize("failing", ["turntable", "save_image"])
def test_a_failed_write_leaves_all_files_of_the_run_before(green, tmp_path, monkeypatch, failing):
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(path: Path, _: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    other = replace(green, views=green.views[::-1], distance=7.0)
    with monkeypatch.context() as context:
        context.setattr(tiles, failing, full)
        with pytest.raises(OSError, match="No space left") as error:
            green.save(tmp_path)
        assert error.value.filename == str(tmp_path / "green.json") and not content()
    green.save(tmp_path)
    (tmp_path / "green.run.json").write_text("{}")
    before = content()
    with monkeypatch.context() as context:
        context.setattr(tiles, failing, full)
        with pytest.raises(OSError, match="No space left"):
            other.save(tmp_path)
        assert content() == before
    other.save(tmp_path)
    changed = {path.name for path, value in content().items() if value != before[path]}
    assert {"green.json", "green.gif", "green.png", "pose_00.png"} <= changed
    assert not (tmp_path / "green.run.json").exists()


def test_the_record_holds_all_but_the_pixels(green, tmp_path):
    record = json.loads(green.save(tmp_path).with_suffix(".json").read_text())
    assert set(record) == {
        "photo", "size", "box", "box_by", "window", "pose", "category", "poses", "distance",
        "foreground_separation", "reconstruction_psnr_db", "inversion_evaluations", "color_drift",
        "view_poses", "names", "warnings", "settings", "seconds", "path", "sha256",
    }  # fmt: skip
    assert record["photo"] == "green.png" and record["size"] == [160, 160]
    assert record["pose"] == green.pose and record["poses"] == list(range(5))
    assert record["distance"] == green.distance and record["inversion_evaluations"] == 3
    assert record["settings"]["gamma"] == 1.5 and record["settings"]["phase_cutoff"] == 6
    assert record["settings"]["backbone"]["name"] == "stand-in-dinov2-cars"
    assert record["color_drift"] == list(green.color_drift)
    assert set(record["seconds"]) == {"locate", "invert", "sample"}


# Warnings


def test_a_photo_far_from_every_pose_is_warned_of_with_the_numbers(finished, run):
    distances = [float(row["distance"]) for row in read_csv(finished["poses/poses.csv"])]
    assert run.estimator.far == pytest.approx(np.quantile(distances, 0.99), abs=1e-5)
    near, far = (
        replace(run, estimator=replace(run.estimator, far=limit)).locate(GREEN) for limit in (9, 0)
    )
    assert near.warnings == ()
    (warning,) = far.warnings
    assert "far from every pose" in warning.reason
    assert (warning.value, warning.limit) == (far.distance, 0)
    assert f"{far.distance:.3g}" in str(warning)


def test_a_poor_reconstruction_and_another_color_are_warned_of(green):
    made = replace(green, reconstruction_psnr_db=26.0)
    assert not list(_view_warnings(made, (0.0, 80.0, None, 3.0, 4.0)))
    made = replace(green, reconstruction_psnr_db=25.9)
    poor, other = _view_warnings(made, (0.0, 80.1, None, 3.0, 93.0))
    assert "poorly reconstructed" in poor.reason
    assert (poor.value, poor.limit) == (25.9, 26.0)
    assert "another color in 2 views: pose 1, 4" in other.reason
    assert (other.value, other.limit) == (93.0, 80.0)


def test_a_small_network_inverts_a_photo_by_one_thread_whatever_their_number():
    model = build(preset("small", 32, 4, 0.0), 0).eval().requires_grad_(False)
    model.conv_out.weight.copy_(torch.randn_like(model.conv_out.weight) * 0.1)
    seen, made, before = [], [], torch.get_num_threads()
    model.conv_in.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    views = settings.Views(steps=2, solver="ddim", precision="float32")
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            made.append(
                crop_views(model, pixels, 1, views, settings.Guidance(), settings.NovelViews())
            )
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert seen[:6] == [1, 1, 1, 1, 2, 2]  # inversion, reconstruction, views
    assert (made[0].reconstruction == made[1].reconstruction).all()


def _pose_reasons(asked, shown, distances=(0.0,)) -> list[str]:
    asked, shown = np.array(asked), np.array(shown)
    distances = np.resize(distances, len(shown))
    return [warning.reason for warning in _pose_warnings(asked, shown, distances, 1.0)]


def test_views_that_do_not_turn_are_warned_of():
    circle = np.roll(np.arange(12), -4)  # of a photo in pose 4
    assert not _pose_reasons(circle, circle[1:])
    assert not _pose_reasons(circle, (circle[1:] + 1) % 12)
    # Two next to the photo's pose are right by chance.
    few, same = _pose_reasons(circle, np.full(11, 4))
    assert "few views show the requested pose" in few and "few different poses in the views" in same
    (few,) = _pose_reasons(circle, (circle[1:] + 6) % 12)
    assert "few views" in few
    # The same numbers of another category are no right poses.
    (few,) = _pose_reasons(circle, circle[1:] + 12)
    assert "few views" in few
    # Chance depends on the number of poses.
    assert len(_pose_reasons(range(4), [0, 0, 0])) == 2
    assert not _pose_reasons(range(4), [1, 2, 3])


def test_views_far_from_every_pose_are_warned_of():
    circle = np.arange(12)
    assert not _pose_reasons(circle, circle[1:], np.array([2.0] * 9 + [0.5, 0.5]))
    (far,) = _pose_reasons(circle, circle[1:], np.array([2.0] * 11))
    assert "the views are far from every pose" in far


def test_the_poses_of_the_views_are_the_estimator_s(run, green):
    """An object that does not turn is told, and costs no other pass of the backbone."""
    for view, pose in zip(green.views, green.view_poses, strict=True):
        tokens = run._tokens(boxes.crop(Image.fromarray(view), (0, 0, 32, 32), 64))
        assert run.estimator.estimate(tokens).poses[0] == pose


def test_a_model_that_does_not_turn_the_object_is_told(run, monkeypatch):
    original = mirage_steps.run.crop_views

    def stuck(*arguments):
        made = original(*arguments)
        return replace(made, views=np.stack([arguments[1]] * len(made.views)))

    monkeypatch.setattr(mirage_steps.run, "crop_views", stuck)
    told = " ".join(warning.reason for warning in run.novel_views(GREEN, views=FAST).warnings)
    assert "few views show the requested pose" in told and "few different poses" in told


def test_too_little_memory_names_the_batch(run, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(mirage_steps.run, "crop_views", run_out)
    with pytest.raises(UserError, match=r"^views\.batch_size 16: .*lower it"):
        run.novel_views(GREEN, views=FAST)


def test_color_drift_compares_the_means_of_the_foreground(run, green):
    grid, side = run.backbone.grid, len(green.crop)

    def literal(image: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(image).resize((run.backbone.resolution,) * 2, Image.BICUBIC)
        tokens = run.backbone.half_tokens(np.asarray(resized)[None])
        whole = np.array([(0, 0, 1, 1)], np.float32)
        shown = run.estimator.shown(TokenBatch(slice(0, 1), *tokens, whole)).reshape(grid, grid)
        places = np.arange(side) * grid // side
        return image[shown[places][:, places]].mean(0)

    expected = [np.linalg.norm(literal(view) - literal(green.crop)) for view in green.views]
    np.testing.assert_allclose(green.color_drift, expected, atol=0.051)
    assert green.color_drift[green.poses.index(green.pose)] == 0.0


def test_a_photo_without_object_is_shown_with_a_warning(run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    reasons = [warning.reason for warning in run.locate(noise).warnings]
    assert any("the foreground is undecided" in reason for reason in reasons)
    assert run.locate(np.full((96, 96, 3), 128, np.uint8)).warnings
    nothing = _with_threshold(run, 1e9).novel_views(noise, views=FAST)
    assert nothing.box_by == "whole photo" and nothing.box == (0, 0, 96, 96)
    assert set(nothing.color_drift) == {None}
    reasons = " ".join(warning.reason for warning in nothing.warnings)
    assert "no object was found" in reasons and "no foreground" in reasons
    record = json.loads(nothing.save(tmp_path).with_suffix(".json").read_text())
    assert [row["reason"] for row in record["warnings"]] == [w.reason for w in nothing.warnings]


def test_several_and_small_objects_are_warned_of(run):
    one = np.asarray(Image.open(ORANGE).resize((96, 96)))
    several = run.locate(np.concatenate([one, one[:, ::-1]], axis=1))
    assert any("several parts" in warning.reason for warning in several.warnings)
    small = run.locate(Image.open(GREEN).resize((20, 20)))
    assert any("small" in warning.reason for warning in small.warnings)


# Boxes


def test_a_given_box_is_taken_and_clipped(run):
    found = run.locate(ORANGE)
    given = run.locate(ORANGE, box=found.box)
    assert given.box_by == "user" and given.box == found.box
    # Its window may differ in the last decimal: the found box is rounded.
    np.testing.assert_allclose(given.window, found.window, atol=2e-3)
    assert given.pose == found.pose
    assert given.distance == pytest.approx(found.distance, abs=1e-2)
    assert run.locate(ORANGE, box=(-50, 20, 90, 999)).box == (0, 20, 90, 160)


@pytest.mark.parametrize(
    "box",
    [(200, 0, 300, 50), (50, 50, 10, 90), (1, 1, 1.5, 1.5), (float("nan"), 0, 50, 50), (1, 2, 3),
     ("a", 0, 50, 50)],
)  # fmt: skip
def test_a_box_that_is_none_or_off_the_photo_is_refused(run, box):
    with pytest.raises(UserError, match=r"box .*outside the photo of 160x160 pixels; give x0"):
        run.locate(ORANGE, box=box)


# The command


def _arguments(finished, out: Path) -> dict:
    return {"run": finished[""], "out": out, "views": FAST, "device": "cpu"}


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> dict[str, Path]:
    """Files that cannot be used, by what their line must say."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").touch()
    (folder / "a folder.jpg").mkdir()
    (folder / "endless.jpg").symlink_to("/proc/kmsg")  # a regular file in which reading waits
    os.mkfifo(folder / "pipe.jpg")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    whole = GREEN.read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    return {
        "not an image": folder / "text.jpg",
        "empty file": folder / "empty.jpg",
        "is a folder; give the photos in it": folder / "a folder.jpg",
        "1x1 pixels are too few": folder / "one.png",
        "20000x20000 has more than": folder / "huge.png",
        "torn.png: cannot be used": folder / "torn.png",
        "no such file": folder / "absent.jpg",
        "endless.jpg: cannot be used: empty file": folder / "endless.jpg",
        "not a regular file": folder / "pipe.jpg",
    }


def test_bad_photos_get_a_line_each_and_the_good_one_is_done(finished, bad, tmp_path, caplog):
    photos = (*bad.values(), GREEN)
    with pytest.raises(Incomplete, match="1 of 10 photos were done") as error:
        novel_views.main(photos, **_arguments(finished, tmp_path / "out"))
    assert error.value.done == ["green"]
    for told, path in bad.items():
        (line,) = [r.getMessage() for r in caplog.records if str(path) in r.getMessage()]
        assert told in line and "\n" not in line
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"green.views", "green.png", "green.gif", "green.json", "green.html"}


@pytest.mark.parametrize("told", ["not an image", "1x1 pixels", "20000x20000", "is a folder"])
def test_a_single_bad_photo_is_an_error_and_leaves_nothing(finished, bad, tmp_path, told):
    (path,) = [path for key, path in bad.items() if told in key]
    with pytest.raises(UserError, match=told):
        novel_views.main((path,), **_arguments(finished, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_arguments_that_cannot_be_meant_are_refused(finished, tmp_path, monkeypatch):
    arguments = _arguments(finished, tmp_path / "out")
    two, other = (GREEN, OCHRE), tmp_path / "below/green.png"
    other.parent.mkdir()
    shutil.copy(GREEN, other)
    for photos, more, told in (
        ((), {}, "no photos"),
        (two, {"box": (0, 0, 9, 9)}, "--box: is for a single photo, 2 are given"),
        (two, {"name": "x"}, "--name: is for a single photo"),
        ((GREEN, other), {}, f"^{other}: its outputs .* as those of {GREEN}; process the two in"),
        ((GREEN,), {"name": "a/b"}, "'a/b': not a name for outputs"),
        ((GREEN,), {"box": (500, 0, 600, 9)}, "empty or outside the photo"),
        ((GREEN,), {"views": settings.Views(steps=1)}, r"^views\.steps 1: too few to judge"),
    ):
        with pytest.raises(UserError, match=told):
            # All without waiting for the run.
            novel_views.main(photos, **arguments | {"run": tmp_path / "absent"} | more)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a folder; give the photos in it"):
        novel_views.main((Path("."),), **arguments)


def test_a_photo_that_is_given_twice_is_shown_once(finished, tmp_path, monkeypatch):
    (tmp_path / "link.png").symlink_to(OCHRE)
    monkeypatch.chdir(CARS)
    photos = (OCHRE, GREEN, Path("ochre.png"), CARS / "../cars/green.png", tmp_path / "link.png")
    assert novel_views.main(photos, **_arguments(finished, tmp_path)) == ["ochre", "green"]


def test_a_name_of_outputs_is_spelled_as_those_of_photos(finished, tmp_path):
    for given, expected in (
        ("a\nb$c\udcff", "a=0Ab=24c=FF"), ("an =27öchre=27 car.v2", "an =27öchre=27 car.v2"),
        (".run", "=2Erun"), ("x.views", "x=2Eviews"),
    ):  # fmt: skip
        arguments = _arguments(finished, tmp_path)
        assert novel_views.main((GREEN,), **arguments, name=given) == [expected]
        assert (tmp_path / f"{expected}.json").exists()


def test_one_step_cannot_be_judged(run):
    with pytest.raises(UserError, match=r"^views\.steps 1: too few"):
        run.novel_views(GREEN, views=settings.Views(steps=1))


def test_no_photo_is_written_over(finished, tmp_path):
    photo = shutil.copy(GREEN, tmp_path / "mine.png")
    with pytest.raises(UserError, match=r"mine.png: exists already; give another --out"):
        novel_views.main((photo,), **_arguments(finished, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    # Under another suffix there is no danger.
    Image.open(photo).save(tmp_path / "other.jpg")
    assert novel_views.main((tmp_path / "other.jpg",), **_arguments(finished, tmp_path))
    # Outputs may be written again, unless they are the photo itself.
    assert novel_views.main((tmp_path / "other.jpg",), **_arguments(finished, tmp_path))
    for own, name in (("other.png", None), ("other.views/crop.png", "other")):
        with pytest.raises(UserError, match="exists already"):
            novel_views.main((tmp_path / own,), **_arguments(finished, tmp_path), name=name)


def test_files_of_others_stay(green, tmp_path):
    for name in ("green.json", "green.gif", "green.views"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name}: exists already"):
            green.save(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "mine"
    for stem in ("", ".", "..", "a/b", "/abs"):
        with pytest.raises(UserError, match="not a name for outputs"):
            green.save(tmp_path / "out", stem)


def _command(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mirage_steps.novel_views", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_command_works_from_any_folder_and_ends_with_one_line(finished, tmp_path):
    out = tmp_path / "out"
    words = ("--run", finished[""], "--out", out, "--steps", 2)
    done = _command(*words, GREEN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "green.run.json").read_text())
    assert record["step"] == "mirage_steps.novel_views" and record["settings"]["steps"] == 2
    assert record["inputs"]["photos"][0]["sha256"]
    (tmp_path / "text.jpg").write_text("no")
    failed = _command(*words, "text.jpg", OCHRE, cwd=tmp_path)
    assert failed.returncode == 1 and (out / "ochre.run.json").is_file()
    assert errors(failed.stderr) == [
        "error: 1 of 2 photos were done, the others cannot be used, for the reasons above"
    ]
    failed = _command(*words, "text.jpg", cwd=tmp_path)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert errors(failed.stderr) == ["error: text.jpg: cannot be used: not an image"]


def test_photos_of_a_folder_have_names_and_the_rest_reasons(tmp_path):
    usual = ("a.jpg", "a.png", "below/a.jpg", ".hidden.jpg", "c d.jpeg", "x.jpg", "x.run.jpg")
    for name in (*usual, "b.jpg", "b.png", "b.jpg.png", "d{1}.png", "x.views/pose_00.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-20])
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "a%41.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "a%2541.png")
    cache = FileCache(tmp_path / ".files.json")
    found, rejected, passed_over = photos_of(tmp_path, 1000, cache)
    (hashed,) = [name for name in found if name.startswith("b.jpg=")]
    assert set(found) == {
        "a.jpg", "a.png", "below/a", "c d", "x", "x=2Erun", hashed, "b.png", "b.jpg.png",
        "d=7B1=7D", "x=2Eviews/pose_00", "a=252541",
    }  # fmt: skip
    assert found["below/a"] == tmp_path / "below/a.jpg" and found[hashed].name == "b.jpg"
    reasons = {Path(name).name: reason for name, reason in rejected}
    assert set(reasons) == {"notes.txt", "cut.jpg", "small.png", "large.png", "a%2541.png"}
    assert "truncated" in reasons["cut.jpg"] and "too few" in reasons["small.png"]
    assert [Path(name).name for name, _ in passed_over] == [".hidden.jpg"]
    with pytest.raises(UserError, match="no such folder"):
        photos_of(tmp_path / "absent", 1000, cache)


def test_a_photo_is_decoded_again_only_if_it_changed(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        shutil.copy(GREEN, photos / f"{name}.png")
    cache = FileCache(tmp_path / ".files.json")
    before = photos_of(photos, 10**6, cache)
    cache.save()
    decoded = []
    monkeypatch.setattr(
        "mirage_steps.files.photos.upright_size", lambda path, _: decoded.append(path)
    )
    again = FileCache(tmp_path / ".files.json")
    assert photos_of(photos, 10**6, again) == before and not decoded
    shutil.copy(OCHRE, photos / "b.png")
    photos_of(photos, 10**6, again)
    assert [path.name for path in decoded] == ["b.png"]


def test_a_reason_against_a_photo_is_not_kept(tmp_path, monkeypatch):
    """Another permission or library may mend it, which changes neither size nor time."""
    (tmp_path / "photos").mkdir()
    shutil.copy(GREEN, tmp_path / "photos/a.png")

    def refused(path: Path, _: int) -> None:
        raise UnreadableImage("cannot be read: Permission denied")

    cache = FileCache(tmp_path / ".files.json")
    with monkeypatch.context() as context:
        context.setattr("mirage_steps.files.photos.upright_size", refused)
        found, (unusable,), _ = photos_of(tmp_path / "photos", 10**6, cache)
    assert not found and unusable[1] == "cannot be read: Permission denied"
    assert list(photos_of(tmp_path / "photos", 10**6, cache)[0]) == ["a"]


def test_another_photo_of_the_same_name_is_never_written_over(finished, run, tmp_path):
    for name, car in (("a", GREEN), ("b", OCHRE)):
        (tmp_path / name).mkdir()
        shutil.copy(car, tmp_path / name / "IMG_1.png")
    arguments, a, b = _arguments(finished, tmp_path / "out"), *(tmp_path / n for n in "ab")
    novel_views.main((a / "IMG_1.png",), **arguments)
    before = (tmp_path / "out/IMG_1.png").read_bytes()
    told = f"has the views of {a}/IMG_1.png; give another --out, or a --name"
    with pytest.raises(UserError, match=re.escape(told)):
        novel_views.main((b / "IMG_1.png",), **arguments)
    assert (tmp_path / "out/IMG_1.png").read_bytes() == before
    assert novel_views.main((b / "IMG_1.png",), **arguments, name="other") == ["other"]
    # The same file, a copy of it, and the same path with another content may be.
    novel_views.main((a / "IMG_1.png",), **arguments)
    (a / "IMG_1.png").rename(tmp_path / "IMG_1.png")
    novel_views.main((tmp_path / "IMG_1.png",), **arguments)
    shutil.copy(OCHRE, tmp_path / "IMG_1.png")
    novel_views.main((tmp_path / "IMG_1.png",), **arguments)
    pixels = [np.asarray(Image.open(car)) for car in (GREEN, OCHRE)]
    shown = [run.novel_views(image, views=FAST) for image in pixels]
    shown[0].save(tmp_path)
    shown[0].save(tmp_path)
    with pytest.raises(UserError, match="has the views of another photo"):
        shown[1].save(tmp_path)


def test_every_file_name_can_be_shown(finished, tmp_path):
    names = ["a\nb\r.png", "$(x) `y` {z}.png", os.fsdecode(b"\xff.png"), "x" * 251 + ".png"]
    for name in names:
        shutil.copy(GREEN, tmp_path / name)
    arguments = _arguments(finished, tmp_path / "out")
    done = novel_views.main(tuple(tmp_path / name for name in names), **arguments)
    assert done[:3] == ["a=0Ab=0D", "=24(x) =60y=60 =7Bz=7D", "=FF"]
    for name, stem in zip(names, done, strict=True):
        record = json.loads((tmp_path / f"out/{stem}.json").read_text())
        assert decoded(record["path"]) == str(tmp_path / name)
    # As messages and tables spell it.
    assert novel_views.main((tmp_path / "a%0Ab%0D.png",), **arguments) == ["a=0Ab=0D"]


def test_a_large_photo_is_shown_if_the_limit_is_raised(finished, tmp_path):
    Image.open(GREEN).resize((300, 300)).save(tmp_path / "large.png")
    arguments = _arguments(finished, tmp_path / "out")
    low, high = (settings.NovelViews(max_pixels=limit) for limit in (80_000, 90_000))
    with pytest.raises(UserError, match="has more than max_pixels = 80000 .* by --max-pixels"):
        novel_views.main((tmp_path / "large.png",), **arguments, novel_views=low)
    assert novel_views.main((tmp_path / "large.png",), **arguments, novel_views=high)


# Runs that are not whole


def test_a_run_needs_its_model_and_its_pose_estimator_alone(bare):
    assert Run.load(bare).locate(GREEN).crop.shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["training/model.safetensors", ESTIMATOR])
def test_a_missing_or_damaged_file_is_one_line(bare, name):
    content = (bare / name).read_bytes()
    (bare / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be used|not a trained model"):
        Run.load(bare)
    (bare / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file; run .*"):
        Run.load(bare)


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="run .*absent: no such file or folder"):
        Run.load(tmp_path / "absent")
    with pytest.raises(UserError, match="training/config.json: no such file"):
        Run.load(tmp_path)


def test_a_pose_estimator_of_another_run_is_refused(bare):
    estimator = load_estimator(bare / ESTIMATOR)
    (model,) = estimator.poses
    fewer = replace(estimator, poses=(replace(model, centroids=model.centroids[:4]),))
    save_estimator(bare / ESTIMATOR, fewer)
    with pytest.raises(
        UserError, match=r"has 4 poses, the model was trained with 5; run snakemake again"
    ):
        Run.load(bare)


def test_another_backbone_is_refused(bare, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "weights/stand-in-dinov2-cars", other)
    assert Run.load(bare, backbone=other).backbone.dim == 128
    state = load_file(other / "model.safetensors")
    state["layernorm.bias"] += 1
    save_file(state, other / "model.safetensors")
    with pytest.raises(UserError, match="not the weights that the run's features were made with"):
        Run.load(bare, backbone=other)
    with pytest.raises(UserError, match=r"absent: not here, .*--backbone"):
        Run.load(bare, backbone=tmp_path / "absent")


def test_the_backbone_is_looked_for_here_above_the_run_and_in_the_project(
    bare, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert Run.load(bare).backbone.dim == 128
    monkeypatch.setattr("mirage_steps.networks.backbone.PROJECT", tmp_path / "none")
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere, tmp_path / "disk"):
        folder.mkdir()
    bare.rename(tmp_path / "disk/demo")
    (project / "results").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(elsewhere)

    def no_network(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mirage_steps.networks.fetching._obtain", no_network)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"cars: not here, nor above .*; give its folder by --backbone$"
        ):
            Run.load(project / "results/demo")
    assert not list(elsewhere.iterdir())
    (project / "weights").symlink_to(ROOT / "weights")
    assert Run.load(project / "results/demo").backbone.dim == 128
    # As a network that was fetched.
    (project / "weights").unlink()
    (project / "weights/published/weights").mkdir(parents=True)
    name = "stand-in-dinov2-cars"
    (project / "weights/published/weights" / name).symlink_to(ROOT / "weights" / name)
    assert Run.load(project / "results/demo").backbone.name == name
    assert not list(elsewhere.iterdir())


# In Python


def test_the_package_offers_the_run_without_making_steps_wait():
    assert mirage_steps.Run is Run and mirage_steps.UserError is UserError
    with pytest.raises(AttributeError):
        _ = mirage_steps.nothing
    code = "import sys, mirage_steps.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_novel_views_need_no_slow_import(finished):
    slow = ("transformers", "sklearn", "matplotlib", "huggingface_hub")
    code = (
        f"import sys; from mirage_steps import Run; Run.load(sys.argv[1]).locate(sys.argv[2]); "
        f"sys.exit(any(name in sys.modules for name in {slow}))"
    )
    command = [sys.executable, "-c", code, str(finished[""]), str(GREEN)]
    assert subprocess.run(command, env=ENVIRONMENT).returncode == 0


def test_the_documented_example_runs(finished, monkeypatch, tmp_path):
    import doctest

    (tmp_path / "results").mkdir()
    (tmp_path / "results/demo").symlink_to(finished[""])
    for name in ("examples", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/novel_views.md").read_text()
    examples = doctest.DocTestParser().get_examples(text)
    assert len(examples) > 5
    names: dict = {}
    for example in examples:
        exec(example.source, names)  # noqa: S102
    assert names["result"].views.shape == (5, 32, 32, 3)
    assert (tmp_path / "out/green.png").exists()


# The rule


def test_photos_of_the_configured_folder_are_shown(finished):
    for name in ("green", "below/an =27öchre=27 car.v2"):
        about = json.loads(finished[f"novel_views/{name}.json"].read_text())
        assert about["settings"]["steps"] == 3 and len(about["poses"]) == 5
        assert Run.load(finished[""]).sampling.views.steps == 3
        for suffix in ("png", "gif", "run.json"):
            assert finished[f"novel_views/{name}.{suffix}"].stat().st_size > 100
        assert finished[f"novel_views/{name}.views/crop.png"].exists()


def test_only_a_new_photo_is_done(changed):
    folder = changed.folder / "my photos"
    (folder / "new.png").write_bytes((CARS / "orange.png").read_bytes())
    assert changed.planned(*TARGETS) == {"novel_views": 1, "report": 1, "overview": 1}
    output = changed.run("--dry-run", "--", "results/mini/novel_views/absent.png", ok=False)
    (line,) = errors(output)
    assert "datasets.mini.photos: has no photo absent; it has below/an" in line
    whole = (CARS / "orange.png").read_bytes()
    Image.open(CARS / "orange.png").save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-30])
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    (folder / "green.views").mkdir()
    (folder / "green.views/pose_00.png").write_bytes(whole)
    output = changed.run("--dry-run", "--", *TARGETS)
    for told in (
        "cut.jpg is left out: OSError: image file is truncated",
        "small.png is left out: 8x8",
    ):
        assert f"datasets.mini.photos: {folder}/{told}" in output
    assert changed.planned(*TARGETS) == {"novel_views": 2, "report": 1, "overview": 1}
    path = changed.folder / "mini.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"]["mini"]["photos"] = "nowhere"
    path.write_text(yaml.safe_dump(config))
    (line,) = errors(changed.run("--dry-run", "--", *TARGETS, ok=False))
    assert "datasets.mini.photos nowhere: no such folder" in line


SBATCH = """#!/bin/bash
for word; do case $word in --wrap=*) printf '%s\\0' "${word#--wrap=}" >> wraps;; esac; done
exit 1
"""


def test_no_name_of_a_photo_reaches_a_shell_of_a_cluster(tmp_path):
    names = [
        "cost $9 $(touch ran1)", "back`touch ran2`tick", "a'b\",c", "{name} <results>", "a\nb; c",
        os.fsdecode(b"\xff"), "%j", "-x", "a\\", "x" * 251, "own.views/pose_00", "Tür (1)",
    ]  # fmt: skip
    project = Project(tmp_path / "project")
    folder = project.folder / "my $(touch ran3) 'photos'"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GREEN, folder / f"{name}.png")
    path = project.folder / "mini.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"]["mini"]["photos"] = folder.name
    path.write_text(yaml.safe_dump(config))
    poses = (ESTIMATOR, "poses/names.json")
    for name in ("training/model.safetensors", "training/config.json", *poses):
        project[name].parent.mkdir(parents=True, exist_ok=True)
        project[name].touch()
    fake = project.folder / "fake"
    fake.mkdir()
    for name in ("sbatch", "sacct", "squeue", "scancel", "sinfo", "sacctmgr", "scontrol"):
        (fake / name).write_text(SBATCH if name == "sbatch" else "#!/bin/bash\nexit 0\n")
        (fake / name).chmod(0o755)
    # Empty files are taken as they are: only this rule may run.
    words = ("--profile", "profiles/slurm", "--retries", "0", "--allowed-rules", "novel_views")
    words += ("--slurm-init-seconds-before-status-checks", "1")
    found, rejected, _ = photos_of(folder, 10**6, FileCache(tmp_path / "none.json"))
    assert len(found) == len(names) and not rejected
    targets = [f"results/mini/novel_views/{name}.png" for name in found]
    environment = {**ENVIRONMENT, "PATH": f"{fake}:{os.environ['PATH']}"}
    output = project.run(*words, "--", *targets, ok=False, env=environment)
    assert "Traceback" not in output and "Logging error" not in output, output
    submitted = set()
    for wrap in (project.folder / "wraps").read_text().split("\0")[:-1]:
        command = ["sh", "-c", f"printf '%s\\0' {wrap}"]
        done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
        given = done.stdout.split("\0")
        (job,) = parse_target_jobs_cli_args([given[given.index("--target-jobs") + 1]])
        submitted.add(job.wildcards_dict["name"])
    assert submitted == set(found)
    assert not list(project.folder.rglob("ran?"))


# The embedded photos


def test_the_embedded_photos_are_rendered_and_unseen():
    numbers = {"green": 10, "turquoise": 12, "ochre": 17, "orange": 20}
    assert {path.stem for path in CARS.glob("*.png")} == set(numbers)
    for name, number in numbers.items():
        made = cars.render(2026, number, cars.DEMO_FAMILIES, 160, 1.0)
        np.testing.assert_array_equal(np.asarray(Image.open(CARS / f"{name}.png")), made.image)
    demo = yaml.safe_load((ROOT / "config/config.yaml").read_text())["datasets"]["demo"]
    assert demo["photos"] == "examples/cars" and demo["source"]["seed"] != 2026
    assert _render(settings.Procedural(seed=2026, size=160), 10).azimuth_deg == pytest.approx(
        cars.render(2026, 10, cars.DEMO_FAMILIES, 160, 1.0).azimuth_deg
    )
