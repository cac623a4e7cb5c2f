"""A photo from all sides with what a run stored: the class, the command and the rule."""

import json
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
from workflow import ENVIRONMENT, ROOT, errors

import mirage_steps
from mirage_steps import novel_views, settings
from mirage_steps.demo.renderer import cars
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.photos import distinct_stems, photos_of
from mirage_steps.run import Run
from mirage_steps.sources.procedural import _render

CARS = ROOT / "examples/cars"
FAST = settings.Views(steps=3, batch_size=16, precision="float32")


@pytest.fixture(scope="session")
def run(finished) -> Run:
    return Run.load(finished[""], device="cpu")


def _save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


# The way of the run's own images


def test_the_run_s_own_images_get_their_pose_and_crop(finished, run):
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
    path = CARS / "green.png"
    image = Image.open(path)
    expected = run.locate(path)
    for other in (str(path), image, np.asarray(image)):
        located = run.locate(other)
        assert (located.pose, located.distance) == (expected.pose, expected.distance)
        np.testing.assert_array_equal(located.crop, expected.crop)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # turn it back by a quarter
    np.testing.assert_array_equal(run.locate(turned).crop, expected.crop)
    grey, clear = run.locate(image.convert("L")), run.locate(image.convert("RGBA"))
    assert grey.crop.shape == expected.crop.shape
    np.testing.assert_array_equal(clear.crop, expected.crop)


@pytest.mark.parametrize(
    "photo", [np.zeros((40, 40, 3)), np.zeros((40, 40, 2), np.uint8), np.zeros(40, np.uint8)]
)
def test_an_array_that_is_no_photo_is_refused(run, photo):
    with pytest.raises(UserError, match=r"\(H, W, 3\) uint8"):
        run.locate(photo)


# What comes out


def test_own_pose_is_the_photo_and_the_rest_follows_the_settings(run):
    turned = run.turn(CARS / "green.png", views=FAST)
    own = turned.poses.index(turned.pose)
    assert turned.views.shape == (5, 32, 32, 3) and turned.views.dtype == np.uint8
    np.testing.assert_array_equal(turned.views[own], turned.located.crop)
    again = run.turn(CARS / "green.png", views=FAST)
    np.testing.assert_array_equal(turned.views, again.views)
    for change in (
        {"guidance": settings.Guidance(gamma=1.0)},
        {"novel_views": settings.NovelViews(phase_cutoff="none")},
        {"novel_views": settings.NovelViews(inversion_iterations=2)},
        {"novel_views": settings.NovelViews(stride=1)},
    ):
        other = run.turn(CARS / "green.png", views=FAST, **change)
        np.testing.assert_array_equal(other.views[own], turned.views[own])
        assert (other.views != turned.views).any(), change


def test_refinement_gives_the_photo_back_better_and_counts(run):
    views = FAST.model_copy(update={"steps": 10})
    found = [
        run.turn(
            CARS / "ochre.png",
            views=views,
            novel_views=settings.NovelViews(inversion_iterations=iterations),
        )
        for iterations in (1, 6)
    ]
    assert [turned.turned.evaluations for turned in found] == [10, 60]
    assert found[1].psnr_db > found[0].psnr_db + 10


def test_everything_is_written(run, tmp_path):
    turned = run.turn(CARS / "green.png", views=FAST)
    turned.save(tmp_path)
    (tmp_path / "green.views/pose_99.png").touch()  # of a run with more poses
    strip = turned.save(tmp_path)
    assert strip == tmp_path / "green.png"
    separate = {"crop.png", "reconstruction.png", *(f"pose_0{pose}.png" for pose in range(5))}
    assert {path.name for path in (tmp_path / "green.views").iterdir()} == separate
    for pose, view in enumerate(turned.views):
        pixels = np.asarray(Image.open(tmp_path / f"green.views/pose_0{pose}.png"))
        np.testing.assert_array_equal(pixels, view)
    with Image.open(tmp_path / "green.gif") as film:
        assert film.n_frames == 5
    about = json.loads((tmp_path / "green.json").read_text())
    assert about["pose"] == turned.pose and about["poses"] == list(range(5))
    assert about["distance"] == turned.located.distance
    assert about["reconstruction_psnr_db"] == turned.psnr_db
    assert about["inversion_evaluations"] == 3
    assert about["settings"]["gamma"] == 1.5 and about["settings"]["phase_cutoff"] == 6
    assert about["settings"]["backbone"]["name"] == "stand-in-dinov2-cars"
    assert about["colour_drift"] == [round(drift, 1) for drift in turned.colour_drift]
    assert set(about["seconds"]) == {"locate", "invert", "restore", "turn"}
    picture = np.asarray(Image.open(strip).convert("RGB")).astype(int)
    red = (picture[..., 0] > 200) & (picture[..., 1:].max(2) < 60)
    columns = np.flatnonzero(red.sum(0) > 90)
    # The frame stands around the photo's own column.
    assert columns.min() // (picture.shape[1] // 5) == turned.poses.index(turned.pose)


# Doubts


def test_a_photo_far_from_every_pose_is_doubted_with_the_numbers(run):
    located = replace(run, far=0.0).locate(CARS / "green.png")
    (doubt,) = located.doubts
    assert "far from every pose" in doubt.reason
    assert (doubt.value, doubt.limit) == (located.distance, 0.0)
    assert f"{located.distance:.3g}" in str(doubt)
    assert replace(run, far=9.0).locate(CARS / "green.png").doubts == ()


def test_the_limit_is_the_quantile_of_the_run_s_images(finished, run):
    distances = [float(row["distance"]) for row in read_csv(finished["poses/poses.csv"])]
    assert run.far == pytest.approx(np.quantile(distances, 0.99))


def test_a_photo_that_does_not_come_back_is_doubted(run):
    turned = run.turn(CARS / "green.png", views=FAST)
    poor, good = (
        replace(turned, turned=replace(turned.turned, psnr_db=quality)) for quality in (25.9, 26.0)
    )
    assert good.doubts == turned.located.doubts
    assert poor.doubts[:-1] == turned.located.doubts
    assert "gives the photo back poorly" in poor.doubts[-1].reason
    assert (poor.doubts[-1].value, poor.doubts[-1].limit) == (25.9, 26.0)


def test_another_colour_is_doubted_with_the_poses(run):
    turned = run.turn(CARS / "green.png", views=FAST)
    alike = replace(turned, colour_drift=(0.0, 80.0, None, 3.0, 4.0))
    other = replace(turned, colour_drift=(0.0, 80.1, None, 3.0, 93.0))
    (doubt,) = set(other.doubts) - set(alike.doubts)
    assert "another colour in 2 views: pose 1, 4" in doubt.reason
    assert (doubt.value, doubt.limit) == (93.0, 80.0)


def test_colours_are_the_means_of_the_foreground(run):
    turned = run.turn(CARS / "green.png", views=FAST)
    photo = turned.located.crop
    repainted = photo[..., ::-1].copy()
    grid, side = run.backbone.grid, len(photo)

    def literal(image) -> np.ndarray:
        shown = Image.fromarray(image).resize((run.backbone.resolution,) * 2, Image.BICUBIC)
        scores = run.foreground.scores(run._tokens(shown)[0])[0]
        chosen = [
            image[y, x]
            for y in range(side)
            for x in range(side)
            if scores[y * grid // side, x * grid // side] > run.foreground.threshold
        ]
        return np.mean(chosen, axis=0)

    found = run._colours(np.stack([photo, repainted]))
    np.testing.assert_allclose(found[0], literal(photo), atol=1e-6)
    np.testing.assert_allclose(found[1], literal(repainted), atol=1e-6)
    own = turned.poses.index(turned.pose)
    assert turned.colour_drift[own] == 0.0
    expected = np.linalg.norm(run._colours(turned.views) - found[0], axis=1)
    drift = [np.nan if value is None else value for value in turned.colour_drift]
    np.testing.assert_allclose(drift, expected)
    assert any("another colour" in d.reason for d in turned.doubts) == (np.nanmax(drift) > 80)


def test_without_foreground_there_is_no_colour(run):
    flat = np.full((1, 32, 32, 3), 128, np.uint8)
    blind = replace(run, foreground=replace(run.foreground, threshold=1e9))
    assert np.isnan(blind._colours(flat)).all()


def test_a_photo_without_object_is_turned_with_a_warning(run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    reasons = [doubt.reason for doubt in run.locate(noise).doubts]
    assert any("the foreground is undecided" in reason for reason in reasons)
    flat = run.locate(np.full((96, 96, 3), 128, np.uint8))
    assert flat.doubts
    high = replace(run.foreground, threshold=1e9)
    nothing = replace(run, foreground=high).turn(noise, views=FAST)
    assert nothing.located.box_by == "whole photo"
    assert nothing.located.box == (0, 0, 96, 96)
    reasons = " ".join(doubt.reason for doubt in nothing.doubts)
    assert "no object was found" in reasons and "no foreground" in reasons
    written = json.loads(nothing.save(tmp_path).with_suffix(".json").read_text())
    assert {row["reason"] for row in written["warnings"]} == {d.reason for d in nothing.doubts}


def test_two_objects_are_doubted(run):
    one = np.asarray(Image.open(CARS / "orange.png").resize((96, 96)))
    located = run.locate(np.concatenate([one, one[:, ::-1]], axis=1))
    assert any("several parts" in doubt.reason for doubt in located.doubts)


def test_a_small_object_is_doubted(run):
    small = Image.open(CARS / "green.png").resize((20, 20))
    assert any("small" in doubt.reason for doubt in run.locate(small).doubts)


# Boxes


def test_a_given_box_is_taken_and_clipped(run):
    found = run.locate(CARS / "orange.png")
    given = run.locate(CARS / "orange.png", box=found.box)
    assert given.box_by == "user" and given.box == found.box and given.window == found.window
    assert (given.pose, given.distance) == (found.pose, found.distance)
    assert run.locate(CARS / "orange.png", box=(-50, 20, 90, 999)).box == (0, 20, 90, 160)


@pytest.mark.parametrize("box", [(200, 0, 300, 50), (50, 50, 10, 90), (1, 1, 1.5, 1.5)])
def test_a_box_off_the_photo_is_refused(run, box):
    with pytest.raises(UserError, match=r"box .*no part of the photo of 160x160 pixels"):
        run.locate(CARS / "orange.png", box=box)


@pytest.mark.parametrize("box", [(float("nan"), 0, 50, 50), (1, 2, 3), ("a", 0, 50, 50)])
def test_a_box_that_is_none_is_refused(run, box):
    with pytest.raises(UserError, match="box"):
        run.locate(CARS / "orange.png", box=box)


# The command


def _words(finished, out: Path) -> dict:
    return {"run": finished[""], "out": out, "views": FAST, "device": "cpu"}


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> dict[str, Path]:
    """Files that cannot be turned, by what their line must say."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").touch()
    (folder / "a folder.jpg").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    whole = (CARS / "green.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    return {
        "not an image": folder / "text.jpg",
        "empty file": folder / "empty.jpg",
        "is a folder; give the photos in it": folder / "a folder.jpg",
        "1x1 pixels are too few": folder / "one.png",
        "20000x20000 has more than": folder / "huge.png",
        "torn.png: cannot be turned": folder / "torn.png",
        "no such file": folder / "absent.jpg",
    }


def test_bad_photos_get_a_line_each_and_the_good_one_is_turned(finished, bad, tmp_path, caplog):
    photos = (*bad.values(), CARS / "green.png")
    assert novel_views.main(photos, **_words(finished, tmp_path / "out")) == ["green"]
    for told, path in bad.items():
        (line,) = [r.getMessage() for r in caplog.records if str(path) in r.getMessage()]
        assert told in line and "\n" not in line
    assert "1 of 8 photos were turned" in caplog.text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"green.views", "green.png", "green.gif", "green.json"}


@pytest.mark.parametrize("told", ["not an image", "1x1 pixels", "20000x20000", "is a folder"])
def test_a_single_bad_photo_is_an_error_and_leaves_nothing(finished, bad, tmp_path, told):
    (path,) = [path for key, path in bad.items() if told in key]
    with pytest.raises(UserError, match=told):
        novel_views.main((path,), **_words(finished, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_words_that_cannot_be_meant_are_refused(finished, tmp_path):
    words = _words(finished, tmp_path / "out")
    two = (CARS / "green.png", CARS / "ochre.png")
    for photos, more, told in (
        ((), {}, "no photos"),
        (two, {"box": (0, 0, 9, 9)}, "--box: belongs to one photo, 2 are given"),
        (two, {"name": "x"}, "--name: belongs to one photo"),
        ((two[0], two[0]), {}, "green.png: the outputs of both would be called green.png"),
    ):
        with pytest.raises(UserError, match=told):
            novel_views.main(photos, **words, **more)


def test_no_photo_is_written_over(finished, tmp_path):
    photo = tmp_path / "mine.png"
    photo.write_bytes((CARS / "green.png").read_bytes())
    with pytest.raises(UserError, match="would write over"):
        novel_views.main((photo,), **_words(finished, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    # Under another suffix there is no danger.
    other = _save(tmp_path / "other.jpg", np.asarray(Image.open(photo)))
    assert novel_views.main((other,), **_words(finished, tmp_path)) == ["other"]


def test_files_of_others_stay(run, finished, tmp_path):
    turned = run.turn(CARS / "green.png", views=FAST)
    for name in ("green.json", "green.gif", "green.views"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name}: is in the way"):
            turned.save(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "mine"
    for stem in ("", ".", "..", "a/b", "/abs"):
        with pytest.raises(UserError, match="cannot be the name"):
            turned.save(tmp_path / "out", stem)


def test_a_folder_without_a_name_is_refused(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a folder; give the photos in it"):
        novel_views.main((Path("."),), **_words(finished, tmp_path / "out"))


def _command(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mirage_steps.novel_views", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_command_works_from_any_folder_and_ends_with_one_line(finished, tmp_path):
    out = tmp_path / "out"
    words = ("--run", finished[""], "--out", out, "--steps", 2)
    done = _command(*words, CARS / "green.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "green.run.json").read_text())
    assert record["step"] == "mirage_steps.novel_views" and record["settings"]["steps"] == 2
    assert record["inputs"]["photos"][0]["sha256"]
    (tmp_path / "text.jpg").write_text("no")
    failed = _command(*words, "text.jpg", cwd=tmp_path)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert errors(failed.stderr) == ["error: text.jpg: cannot be turned: not an image"]


def test_names_of_outputs_tell_photos_apart(tmp_path):
    paths = [Path("x/a.jpg"), Path("y/a.png"), Path("b.v2.jpg")]
    assert distinct_stems(paths) == ["a.jpg", "a.png", "b.v2"]
    usual = ("a.jpg", "a.png", "below/a.jpg", ".hidden.jpg", "c d.jpeg", "x.jpg", "x.run.jpg")
    for name in (*usual, "b.jpg", "b.png", "b.jpg.png", "d{1}.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    found, rejected = photos_of(tmp_path)
    assert set(found) == {"a.jpg", "a.png", "below/a", "c d", "x", "x.run.jpg", "b.png"}
    assert found["below/a"] == tmp_path / "below/a.jpg"
    reasons = dict(rejected)
    assert set(reasons) == {"b.jpg", "b.jpg.png", "d{1}.png", "notes.txt"}
    assert reasons["notes.txt"] == "not an image" and "rename it" in reasons["d{1}.png"]
    with pytest.raises(UserError, match="no such folder"):
        photos_of(tmp_path / "absent")


# Runs that are not whole


@pytest.mark.parametrize(
    "name",
    [
        "training/model.safetensors",
        "features/features.run.json",
        "foreground/pca1.npz",
        "pose_space/pca2.npz",
        "poses/poses.npz",
        "poses/poses.csv",
    ],
)
def test_a_missing_or_damaged_file_is_one_line(changed, name):
    content = changed[name].read_bytes()
    changed[name].unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file; .*run"):
        Run.load(changed[""])
    changed[name].write_bytes(content[: len(content) // 2] if name[-3:] != "csv" else b"a\n1\n")
    with pytest.raises(UserError, match="damaged|not a trained model"):
        Run.load(changed[""])


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="run .*absent: no such folder"):
        Run.load(tmp_path / "absent")
    with pytest.raises(UserError, match="training/config.json: no such file"):
        Run.load(tmp_path)


def test_parts_of_two_runs_are_refused(changed):
    path = changed["poses/poses.npz"]
    with np.load(path) as arrays:
        np.savez(path, centroids=arrays["centroids"][:, :4], means=arrays["means"])
    with pytest.raises(UserError, match=r"knows 5 poses, poses/poses.npz has 4; finish the run"):
        Run.load(changed[""])


def test_another_backbone_is_refused(changed, tmp_path):
    source = ROOT / "weights/stand-in-dinov2-cars"
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (other / name).write_bytes((source / name).read_bytes())
    state = load_file(source / "model.safetensors")
    state["layernorm.bias"] += 1
    save_file(state, other / "model.safetensors")
    with pytest.raises(UserError, match="not the weights that the run's features were made with"):
        Run.load(changed[""], backbone=other)
    (other / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    assert Run.load(changed[""], backbone=other).backbone.dim == 128
    with pytest.raises(UserError, match=r"absent: not here, .*--backbone"):
        Run.load(changed[""], backbone=tmp_path / "absent")


# In Python


def test_the_package_offers_the_run_without_making_steps_wait():
    assert mirage_steps.Run is Run and mirage_steps.UserError is UserError
    with pytest.raises(AttributeError):
        _ = mirage_steps.nothing
    code = "import sys, mirage_steps.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_turning_needs_no_slow_import(finished):
    slow = ("transformers", "sklearn", "matplotlib", "huggingface_hub")
    code = (
        f"import sys; from mirage_steps import Run; Run.load(sys.argv[1]).locate(sys.argv[2]); "
        f"sys.exit(any(name in sys.modules for name in {slow}))"
    )
    command = [sys.executable, "-c", code, str(finished[""]), str(CARS / "green.png")]
    assert subprocess.run(command, env=ENVIRONMENT).returncode == 0


def test_a_notebook_shows_the_strip(run, tmp_path):
    turned = run.turn(CARS / "green.png", views=FAST)
    (tmp_path / "shown.png").write_bytes(turned._repr_png_())
    shown = Image.open(tmp_path / "shown.png")
    assert shown.size == turned.strip().size


def test_the_documented_example_runs(changed, monkeypatch, tmp_path):
    import doctest

    (changed.folder / "results/demo").symlink_to(changed[""])
    monkeypatch.chdir(changed.folder)
    text = (ROOT / "docs/novel_views.md").read_text()
    examples = doctest.DocTestParser().get_examples(text)
    assert len(examples) > 5
    names: dict = {}
    for example in examples:
        exec(example.source, names)  # noqa: S102
    assert names["turned"].views.shape == (5, 32, 32, 3)
    assert (changed.folder / "out/green.png").exists()


# The rule


def test_photos_of_the_configured_folder_are_turned(finished):
    for name in ("green", "below/an 'öchre' car.v2"):
        about = json.loads(finished[f"novel_views/{name}.json"].read_text())
        assert about["settings"]["steps"] == 3 and len(about["poses"]) == 5
        for suffix in ("png", "gif", "run.json"):
            assert finished[f"novel_views/{name}.{suffix}"].stat().st_size > 100
        assert finished[f"novel_views/{name}.views/crop.png"].exists()


def test_only_a_new_photo_is_turned(changed):
    folder = changed.folder / "photos to turn"
    (folder / "new.png").write_bytes((CARS / "orange.png").read_bytes())
    assert changed.planned(*TARGETS) == {"novel_views": 1, "overview": 1}
    output = changed.run("--dry-run", "--", "results/mini/novel_views/absent.png", ok=False)
    (line,) = errors(output)
    assert "datasets.mini.photos: has no photo absent; it has below/an" in line
    (folder / "notes.txt").write_text("no photo")
    assert "photos: notes.txt is left out: not an image" in changed.run("--dry-run", "--", *TARGETS)
    path = changed.folder / "mini.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"]["mini"]["photos"] = "nowhere"
    path.write_text(yaml.safe_dump(config))
    (line,) = errors(changed.run("--dry-run", "--", *TARGETS, ok=False))
    assert "datasets.mini.photos nowhere: no such folder" in line


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


def test_torch_is_not_left_in_another_mode(run):
    run.turn(CARS / "green.png", views=FAST)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
