"""Another method's images: checked, taken into a set, and shown above ours."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from workflow import Project, errors

from mirage_steps import baseline, comparison, settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.h5 import create_h5, open_h5
from mirage_steps.files.image_set import OWN_WHITE
from mirage_steps.files.renderings import by_object
from mirage_steps.tools import check_baseline

COUNT, SIDE = 12, 24


@pytest.fixture
def folder(tmp_path):
    """Square images of noise, some of them deeper in."""
    root = tmp_path / "theirs"
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = root / ("deep/er" if number % 3 else "") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return root


def _take(
    folder,
    out,
    samples: int,
    seed: int = 0,
    background: str = "kept",
    image_size: int = 16,
    views: int | None = None,
) -> tuple[np.ndarray, dict]:
    """Images and attributes of the written set."""
    baseline.main(
        baseline=settings.Baseline(path=folder, background=background, views=views),
        out=out,
        fid=settings.Fid(samples=samples, seed=seed),
        image_size=image_size,
    )
    with open_h5(out / "images.h5") as file:
        return file["images"][:], dict(file.attrs)


def _resized(folder, size: int) -> dict[bytes, str]:
    """Name of every readable image by its pixels as Pillow resizes it."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((size, size), Image.BICUBIC))
        found[pixels.tobytes()] = path.name
    return found


def _names(folder, images: np.ndarray) -> list[str]:
    known = _resized(folder, images.shape[1])
    return [known[image.tobytes()] for image in images]


@pytest.mark.parametrize("size", [16, 24, 40])
def test_images_are_those_of_the_folder_resized_each_once(folder, tmp_path, size):
    images, about = _take(folder, tmp_path / "gan", COUNT, image_size=size)
    assert images.shape == (COUNT, size, size, 3) and images.dtype == np.uint8
    names = _names(folder, images)
    assert sorted(names) == [f"{number:02d}.png" for number in range(COUNT)]
    assert "sam" not in about
    assert read_csv(tmp_path / "gan/rejected.csv") == []
    with Image.open(tmp_path / "gan/images.png") as picture:
        assert picture.width > 10 * size


def test_the_seed_fixes_the_choice_and_its_order(folder, tmp_path):
    one, same, other = (
        _take(folder, tmp_path / name, 6, seed=seed)[0]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    np.testing.assert_array_equal(one, same)
    assert set(_names(folder, one)) != set(_names(folder, other))
    assert len(set(_names(folder, one))) == 6
    # Sorted names are not a choice: what a method made first may be of one kind.
    assert _names(folder, one) != sorted(_names(folder, one))


def test_more_samples_of_one_seed_go_on_where_fewer_stopped(folder, tmp_path):
    few, many = (_take(folder, tmp_path / str(n), n, seed=1)[0] for n in (4, 9))
    np.testing.assert_array_equal(many[:4], few)


def test_unreadable_and_oblong_files_are_listed_and_passed_over(folder, tmp_path):
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.jpg").touch()
    Image.new("RGB", (30, 20)).save(folder / "wide.jpg")
    known = {
        str(folder / "notes.txt"): "not an image",
        str(folder / "empty.jpg"): "empty file",
        str(folder / "wide.jpg"): "not square: 30x20; crop it first",
    }
    listed: dict[str, str] = {}
    for seed in range(6):
        out = tmp_path / f"gan{seed}"
        images, _ = _take(folder, out, COUNT, seed=seed)
        assert len(set(_names(folder, images))) == COUNT
        listed |= {row["image"]: row["reason"] for row in read_csv(out / "rejected.csv")}
    # Of each choice those that lie before the last image it needed.
    assert listed == known


def test_rejected_names_that_are_no_utf_8_are_printable(folder, tmp_path):
    try:
        with open(os.fsencode(folder) + b"/\xff.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    listed = []
    for seed in range(6):
        out = tmp_path / f"gan{seed}"
        _take(folder, out, COUNT, seed=seed)
        listed += [row["image"] for row in read_csv(out / "rejected.csv")]
    assert set(listed) == {f"{folder}/%FF.png"}


def test_linked_folders_count_and_what_is_passed_over_is_listed(folder, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all/linked").symlink_to(folder)
    (folder / "@eaDir").mkdir()
    images, _ = _take(tmp_path / "all", tmp_path / "gan", COUNT)
    assert len(images) == COUNT
    (row,) = read_csv(tmp_path / "gan/rejected.csv")
    assert row["image"].endswith("linked/@eaDir") and row["reason"] == "copies of photos"


def test_gray_and_transparent_images_become_rgb_on_white(tmp_path):
    (tmp_path / "theirs").mkdir()
    Image.new("L", (18, 18), 77).save(tmp_path / "theirs/gray.png")
    Image.new("RGBA", (18, 18), (0, 0, 0, 0)).save(tmp_path / "theirs/clear.png")
    images, _ = _take(tmp_path / "theirs", tmp_path / "gan", 2)
    assert sorted({int(image.min()) for image in images}) == [77, 255]
    assert all(image.min() == image.max() for image in images)


@pytest.mark.parametrize("background", ["kept", "removed", "remove"])
def test_only_images_that_came_on_white_are_said_to_be(folder, tmp_path, background):
    _, about = _take(folder, tmp_path / "gan", 2, background=background)
    assert about.get("sam") == (OWN_WHITE if background == "removed" else None)


def test_too_few_images_are_one_line_with_numbers_and_key(folder, tmp_path):
    def told() -> str:
        with pytest.raises(UserError) as error:
            _take(folder, tmp_path / "out/gan", COUNT + 1)
        assert not list((tmp_path / "out/gan").rglob("*.*"))
        return str(error.value)

    where = f"baselines.gan.path {folder}: "
    assert told() == (
        f"{where}{COUNT} usable images of {COUNT} files, fid.samples = {COUNT + 1}; "
        "every row needs as many"
    )
    Image.new("RGB", (30, 20)).save(folder / "wide.jpg")
    message = told()
    assert message.startswith(f"{where}{COUNT} usable images of {COUNT + 1} files, ")
    assert message.endswith(f"; the first, {folder / 'wide.jpg'}: not square: 30x20; crop it first")


def test_a_missing_folder_is_one_line_with_the_key(tmp_path):
    expected = f"baselines.gan.path {tmp_path / 'gone'}: no such folder"
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        _take(tmp_path / "gone", tmp_path / "gan", 2)
    assert "\n" not in str(error.value) and not (tmp_path / "gan").exists()


# Objects and views


OBJECTS, VIEWS = 5, 4


def _draw(path: Path, seed: int, size: tuple[int, int] = (SIDE, SIDE), edge: int = 255) -> None:
    """Noise within a border of one gray value."""
    pixels = np.full((size[1], size[0], 3), edge, np.uint8)
    inside = pixels[4:-4, 4:-4]
    inside[:] = np.random.default_rng(seed).integers(0, 256, inside.shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def renderings(tmp_path):
    """Objects on white in four views, of which each has its own pixels."""
    root = tmp_path / "theirs"
    for number in range(OBJECTS * VIEWS):
        _draw(root / f"car-{number // VIEWS}_{number % VIEWS}.png", number)
    return root


def test_the_number_at_the_end_is_the_view_and_the_rest_of_the_path_the_object():
    names = [
        "a_10.png", "a_9.png", "a_090.jpg", "cars/7/2.png", "cars/7/10.png", "x/view-1.png",
        "17.png", "car.png", "a_front.png", "x/rear.png", "a_9.json", "a_10.npy",
    ]  # fmt: skip
    found = by_object([Path("/r", name) for name in names], Path("/r"))
    assert {key: [path.name for path in views] for key, views in found.items()} == {
        "a": ["a_9.png", "a_10.png", "a_090.jpg"],
        "cars/7": ["2.png", "10.png"],
        "x/view": ["view-1.png"],
    }


def _check(folder: Path, capsys, **options) -> tuple[str, str]:
    """What the check prints, and its error; the protocol in miniature."""
    options = {"objects": OBJECTS, "views": VIEWS, "image_size": 16, **options}
    error = ""
    try:
        check_baseline.main(folder, **options)
    except UserError as raised:
        error = str(raised)
    return capsys.readouterr().out, error


def test_renderings_that_follow_the_protocol_get_their_configuration(renderings, capsys):
    text, error = _check(renderings, capsys, name="monnier")
    assert not error and "NOT MET" not in text
    assert re.search("^objects with 4 views +>= 5 +5  met$", text, re.M)
    assert re.search("^reconstructions .*not given  not checked$", text, re.M)
    lines = yaml.safe_load(text[text.index("datasets:") :])
    section = lines["datasets"]["NAME"]["baselines"]["monnier"]
    assert section == {"path": str(renderings), "background": "removed", "views": VIEWS}
    settings.Baseline(**section)


def test_folders_of_objects_are_as_good(tmp_path, capsys):
    for number in range(OBJECTS * VIEWS):
        _draw(tmp_path / f"theirs/{number // VIEWS}/{number % VIEWS}.png", number)
    assert not _check(tmp_path / "theirs", capsys)[1]


def _short(root: Path) -> None:
    (root / "car-2_1.png").unlink()


def _text(root: Path) -> None:
    (root / "car-2_1.png").write_text("hello")


NONE = "objects with fewer or more views"


@pytest.mark.parametrize(
    ("spoil", "options", "unmet", "told"),
    [
        (None, {"objects": 6}, ["objects with 4 views"], ""),
        (_short, {"objects": 4}, [NONE], f"{NONE}: car-2: 3 usable views"),
        (_text, {"objects": 4}, [NONE, "unreadable"], "car-2_1.png: not an image"),
        (lambda root: _draw(root / "car-2_4.png", 99), {"objects": 4}, [NONE], "5 usable views"),
        (lambda root: _draw(root / "car-2_1.png", 99, (24, 30)), {"objects": 4},
         [NONE, "not square"], "car-2_1.png: not square: 24x30"),
        (lambda root: _draw(root / "17.png", 99), {}, ["without object and view"],
         "17.png: name it NAME_VIEW or NAME/VIEW"),
        (lambda root: _draw(root / "car-2_1.png", 99, (20, 20)), {"image_size": 24},
         ["smaller than 24 pixels", "not of 24 pixels, as most"], "car-2_1.png: 20 pixels"),
        (lambda root: _draw(root / "car-2_1.png", 8), {}, ["the same pixels as another"],
         "car-2_1.png: as car-2_0.png"),
        (lambda root: _draw(root / "car-2_1.png", 99, edge=90), {}, ["not on white"],
         "car-2_1.png: 0% of the border is white"),
        (None, {"background": "kept"}, ["on white"], ""),
        (None, {"meshes": True, "reconstructions": 3}, ["reconstructions (--meshes)"], ""),
    ],
)  # fmt: skip
def test_each_check_fails_when_it_should(renderings, tmp_path, capsys, spoil, options, unmet, told):
    if spoil is not None:
        spoil(renderings)
    if "meshes" in options:
        (tmp_path / "meshes").mkdir()
        for name in ("a_mesh.obj", "a_mesh.gif", "b_mesh.obj"):
            (tmp_path / "meshes" / name).touch()
        options = options | {"meshes": tmp_path / "meshes"}
    text, error = _check(renderings, capsys, **options)
    assert error == f"{renderings}: not met: {', '.join(unmet)}"
    assert text.count("NOT MET") == len(unmet) and told in text


def test_single_images_are_told_to_have_no_comparison(folder, capsys):
    text, error = _check(folder, capsys, background="kept")
    assert "objects with 4 views, " in error and "no comparison.png" in text
    lines = yaml.safe_load(text[text.index("datasets:") :])
    assert "views" not in lines["datasets"]["NAME"]["baselines"]["theirs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "gone"}, "FOLDER gone: no such folder"),
        ({"folder": "empty"}, "FOLDER empty: holds no files"),
        ({"folder": "a"}, "FOLDER a: is a file"),
        ({"folder": ".", "meshes": Path("gone")}, "--meshes gone: no such folder"),
        ({"folder": ".", "views": 1}, "--views 1: must be at least 2"),
        ({"folder": ".", "objects": 0}, "--objects 0: must be at least 1"),
    ],
)
def test_bad_arguments_of_the_check_are_one_line(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a").touch()
    with pytest.raises(UserError) as error:
        check_baseline.main(Path(options.pop("folder")), **options)
    assert str(error.value) == message


def test_a_set_keeps_whole_objects_and_its_choice_of_images(renderings, tmp_path):
    _short(renderings)
    images, _ = _take(renderings, tmp_path / "a", 12)
    again, _ = _take(renderings, tmp_path / "b", 12, views=VIEWS)
    np.testing.assert_array_equal(images, again)
    with open_h5(tmp_path / "b/images.h5", "objects") as file:
        objects = file["objects"][:]
    assert objects.shape == (3, VIEWS, 16, 16, 3)
    names = [_names(renderings, views) for views in objects]
    shown = [name[0].partition("_")[0] for name in names]
    assert names == [[f"{one}_{view}.png" for view in range(VIEWS)] for one in shown]
    assert len(set(shown)) == 3 and "car-2" not in shown


def test_views_that_no_object_has_are_one_line(renderings, tmp_path):
    with pytest.raises(UserError) as error:
        _take(renderings, tmp_path / "gan", 12, views=3)
    assert str(error.value) == (
        f"baselines.gan.path {renderings}: none of 5 objects has 3 usable views; name the files "
        "NAME_VIEW.png or NAME/VIEW.png, or leave the key views out"
    )
    assert not list((tmp_path / "gan").rglob("*.*"))


def test_their_objects_stand_above_ours_with_evenly_spaced_views(tmp_path, monkeypatch):
    drawn = {}

    def contact_sheet(rows, *_, labels):
        drawn.update(zip(("rows", "labels"), (rows, labels), strict=True))
        return sheet(rows, *_, labels=labels)

    sheet = comparison.tiles.contact_sheet
    monkeypatch.setattr(comparison.tiles, "contact_sheet", contact_sheet)
    sets = {"few": (2, 3), "many": (1, 10)}
    for name, (count, views) in {**sets, "sheet": (4, 6)}.items():
        values = np.arange(count * views, dtype=np.uint8).reshape(count, views, 1, 1, 1)
        with create_h5(tmp_path / name / "images.h5") as file:
            file["images" if name == "sheet" else "objects"] = np.tile(values, (1, 1, 16, 16, 3))
    comparison.main(
        theirs=tuple(tmp_path / name / "images.h5" for name in sets),
        objects=tmp_path / "sheet/images.h5",
        out=tmp_path,
    )
    assert drawn["labels"] == ["few", "few", "many", "ours", "ours"]
    white = [255] * 3
    assert drawn["rows"][:, :, 0, 0, 0].tolist() == [
        [0, 1, 2, *white], [3, 4, 5, *white],
        [0, 1, 3, 5, 6, 8],
        [0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11],
    ]  # fmt: skip
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.height > 5 * 16 * 6 and picture.width > 6 * 16 * 6


def test_the_overview_has_the_comparison_where_a_baseline_has_objects(tmp_path):
    project = Project(tmp_path / "new")
    (project.folder / "theirs").mkdir()
    path = project.folder / "mini.yaml"
    config = yaml.safe_load(path.read_text())
    mini = config["datasets"]["mini"]
    mini["baselines"] = {"single": {"path": "theirs"}}
    path.write_text(yaml.safe_dump(config))
    target = "results/mini/comparison.png"
    (line,) = errors(project.run("--dry-run", "--", target, ok=False))
    assert "datasets.mini.baselines: none has objects" in line and "set views" in line
    mini["baselines"]["gan"] = {"path": "theirs", "views": 4}
    config["datasets"]["mine"] = {"use": "mini", "guidance": {"gamma": 3}}
    path.write_text(yaml.safe_dump(config))
    targets = [f"results/{name}/overview.txt" for name in ("mini", "mine")]
    output = project.run("--dry-run", "--printshellcmds", "--", *targets)
    commands = re.findall(r"mirage_steps\.comparison .*?(?= 2>&1)", output)
    assert sorted(commands) == [
        f"mirage_steps.comparison --theirs results/mini/sets/gan/images.h5 "
        f"--objects results/{name}/sheet/objects.h5 --out results/{name}"
        for name in ("mine", "mini")
    ]
