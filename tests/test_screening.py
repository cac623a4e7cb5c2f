"""Photos as people have them: near-duplicates, warnings, boxes, a component, added files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mirage_steps import dataset, duplicates, foreground, screening
from mirage_steps.demo.renderer import cars
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv, write_json
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import create_h5, write_names
from mirage_steps.files.manifest import Entry, read_manifest, write_manifest
from mirage_steps.method.boxes import content_box
from mirage_steps.method.duplicates import (
    MOST,
    SIDE,
    duplicate_limit,
    near_duplicates,
    nearest_images,
)
from mirage_steps.method.foreground import choose
from mirage_steps.method.pose_estimator import Detection
from mirage_steps.method.reliability import Clearness
from mirage_steps.settings import Dataset, Folder, Foreground
from mirage_steps.sources.checks import added_images, check_dataset

# Near-duplicates


def _duplicates(folder: Path) -> dict[str, str]:
    """What repeats what in a folder, by names without their suffix."""
    dataset.main(source=Folder(path=folder), out=folder.parent)
    duplicates.main(manifest=folder.parent / "manifest.csv", out=folder.parent / "out")
    rows = read_csv(folder.parent / "out/duplicates.csv")
    assert all(0.9 < float(row["similarity"]) <= 1 for row in rows)
    return {Path(row["image"]).stem: Path(row["of"]).stem for row in rows}


def _car(number: int, azimuth: float | None = None) -> Image.Image:
    made = cars.render(7, number, cars.DEMO_FAMILIES, 64, 1.0, azimuth=azimuth)
    return Image.fromarray(made.image)


def test_copies_of_photos_are_found_and_other_cars_and_sides_are_not(tmp_path):
    (tmp_path / "photos").mkdir()
    expected = {}
    for number in range(30):
        name, car = f"{number:02d}", _car(number)
        car.save(tmp_path / f"photos/{name}.png")
        if number < 6:
            copies = {"a": car, "b": car.resize((32, 32)), "c": car.resize((21, 21)), "d": car}
            for key, image in copies.items():
                options = {"suffix": "jpg", "quality": 60} if key == "d" else {"suffix": "png"}
                suffix = options.pop("suffix")
                image.save(tmp_path / f"photos/{name}{key}.{suffix}", **options)
                expected[f"{name}{key}"] = name
    # A turntable, whose frames are ten degrees apart.
    for step in range(12):
        _car(99, 10.0 * step).save(tmp_path / f"photos/turn{step:02d}.png")
    assert _duplicates(tmp_path / "photos") == expected
    groups = read_csv(tmp_path / "out/duplicates.csv")
    assert {row["image"][-7:-5]: row["group"] for row in groups if "a." in row["image"]} == {
        f"{number:02d}": str(number) for number in range(6)
    }


def _thumbnails(count: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures, far from each other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3))
    return coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2).astype(np.uint8)


def test_the_first_of_each_group_is_that_of_a_comparison_of_all_with_all():
    rng = np.random.default_rng(1)
    pictures = _thumbnails(40)[rng.integers(0, 40, 1300)].astype(int)
    noise = rng.integers(-2, 3, pictures.shape)
    brighter = rng.integers(-9, 10, (1300, 1, 1, 3))  # exposure and white balance do not count
    pictures = np.clip(pictures // 2 + 50 + noise + brighter, 0, 255).astype(np.uint8)
    limit = duplicate_limit(pictures)
    assert limit == MOST
    of, similarity = near_duplicates(pictures, limit)
    vectors = pictures - pictures.mean((1, 2), keepdims=True)
    firsts, expected = [], []
    for index, one in enumerate(vectors):
        near = [first for first in firsts if np.sqrt(((one - vectors[first]) ** 2).mean()) <= limit]
        firsts += [] if near else [index]
        expected.append(near[0] if near else index)
    assert len(firsts) == 40
    np.testing.assert_array_equal(of, expected)
    assert (similarity > 0.99).all()


def test_a_slow_turn_is_no_chain_and_images_that_are_alike_have_a_smaller_limit():
    start, end = _thumbnails(2).astype(float)
    steps = np.linspace(0, 1, 200)[:, None, None, None]
    turn = np.round(start + steps * (end - start)).astype(np.uint8)
    limit = duplicate_limit(turn)
    assert limit < MOST / 2
    of, _ = near_duplicates(turn, MOST)
    assert len(np.unique(of)) > 5
    vectors = turn - turn.mean((1, 2), keepdims=True)
    apart = np.sqrt(((vectors - vectors[of]) ** 2).mean((1, 2, 3)))
    assert apart.max() <= MOST + 0.01


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_or_only_copies_are_no_special_case(count):
    same = _thumbnails(1).repeat(count, 0)
    of, _ = near_duplicates(same, duplicate_limit(same))
    np.testing.assert_array_equal(of, 0)
    other = _thumbnails(count)
    np.testing.assert_array_equal(near_duplicates(other, duplicate_limit(other))[0], range(count))
    # Everything twice: the distance to the nearest image is that of two originals all the same.
    twice = _thumbnails(40).repeat(2, 0)
    assert duplicate_limit(twice) == MOST


def test_the_nearest_of_others_is_that_of_all_differences():
    some, others = _thumbnails(7, 1), _thumbnails(50, 2)
    others[:7] = some  # themselves, which do not count
    vectors = [values - values.mean((1, 2), keepdims=True) for values in (some, others)]
    apart = np.sqrt(((vectors[0][:, None] - vectors[1]) ** 2).mean((2, 3, 4)))
    batches = [others[:20], others[20:45], others[45:]]
    rows, distances = nearest_images(some, batches)
    np.testing.assert_array_equal(rows, np.arange(7))
    np.testing.assert_allclose(distances, 0, atol=0.05)
    apart[np.arange(7), np.arange(7)] = np.inf
    rows, distances = nearest_images(some, batches, np.arange(7))
    np.testing.assert_array_equal(rows, apart.argmin(1))
    np.testing.assert_allclose(distances, apart.min(1), rtol=1e-4)


# What is left out, and what is warned of

GRID, COUNT = 8, 24


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> list[tuple]:
    """What foreground.png would show; drawing takes seconds."""
    calls = []
    monkeypatch.setattr(foreground.plots, "foreground", lambda *given: calls.append(given))
    return calls


def _write(folder: Path, scores: np.ndarray) -> Path:
    """Manifest, images and tokens, whose first number is the score of each patch (n, g, g)."""
    rng, entries = np.random.default_rng(0), []
    tokens = rng.normal(scale=0.05, size=(len(scores), GRID**2, 6))
    tokens[..., 0] += 3 * scores.reshape(len(scores), -1)
    folder.mkdir()
    for number in range(len(scores)):
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        entries.append(Entry(path.name, path, 40, 40))
    write_manifest(folder / "manifest.csv", entries)
    with create_h5(folder / "tokens.h5") as file:
        file.attrs["backbone"] = "{}"
        file["patch_tokens"] = tokens.astype(np.float16)
        file["cls_token"] = np.zeros((len(scores), 4), np.float16)
        file["content"] = np.array([content_box(40, 40)] * len(scores), np.float32)
        write_names(file, [entry.image for entry in entries])
    return folder


def _objects() -> np.ndarray:
    scores = np.full((COUNT, GRID, GRID), -1.0)
    scores[:, 2:6, 2:6] = 1
    return scores


def _found(folder: Path, **options: object) -> dict[str, dict[str, str]]:
    manifest, tokens = folder / "manifest.csv", folder / "tokens.h5"
    foreground.main(manifest=manifest, tokens=tokens, out=folder / "out", **options)
    return {row["image"][:2]: row for row in read_csv(folder / "out/foreground.csv")}


def _write_csv(path: Path, *rows: tuple) -> Path:
    with open(path, "w", newline="") as out:
        csv.writer(out).writerows(rows)
    return path


def test_dropped_near_duplicates_fit_nothing_and_have_their_reason(tmp_path):
    scores = _objects()
    scores[20:] = -scores[20:] * 9  # nothing like the others
    # The same noise makes the tokens of the first 20 images in both.
    expected = _found(_write(tmp_path / "kept", scores[:20]))
    spoiled = _found(_write(tmp_path / "whole", scores))
    assert spoiled["00"] != expected["00"]
    rows = [(f"{number:02d}.png", "01.png", 1, 0) for number in range(20, 24)]
    table = _write_csv(tmp_path / "d.csv", ("image", "of", "similarity", "group"), *rows)
    found = _found(tmp_path / "whole", duplicates=table)
    left_out = {one: row for one, row in found.items() if one not in expected}
    assert {one: row for one, row in found.items() if one in expected} == expected
    assert {(row["found"], row["left_out"]) for row in left_out.values()} == {
        ("0", "repeats 01.png")
    }
    about = json.loads((tmp_path / "whole/out/foreground.json").read_text())
    assert (about["near_duplicates_left_out"], about["images_without_object"]) == (4, 0)


def _screened(folder: Path, poses: dict[str, float], *repeats: tuple) -> dict[str, set[str]]:
    """Reasons by image; ``far`` is 1."""
    estimator = load_estimator(folder / "out" / ESTIMATOR)
    save_estimator(folder / ESTIMATOR, replace(estimator, far=1.0))
    rows = [(f"{image}.png", 0, distance) for image, distance in poses.items()]
    header = ("image", "of", "similarity", "group")
    screening.main(
        manifest=folder / "manifest.csv",
        windows=folder / "out/foreground.csv",
        poses=_write_csv(folder / "poses.csv", ("image", "pose", "distance"), *rows),
        estimator=folder / ESTIMATOR,
        duplicates=_write_csv(folder / "duplicates.csv", header, *repeats),
        out=folder / "screened",
    )
    found = {}
    for row in read_csv(folder / "screened/warnings.csv"):
        assert np.isfinite([float(row["value"]), float(row["limit"])]).all()
        found.setdefault(row["image"][:2], set()).add(row["reason"].partition(";")[0])
    return found


def test_each_warning_is_listed_with_its_reason_and_nothing_else(tmp_path):
    scores = _objects()
    scores[3] = -1  # nothing there
    scores[5] = -1
    scores[5, 0:4, 2:6] = 1  # cut by the upper edge
    scores[7, :, :] = -1
    scores[7, 1:4, 1:4] = scores[7, 5:8, 5:7] = 1  # two objects
    scores[9] = 1  # everywhere
    scores[11] = np.random.default_rng(2).uniform(-0.5, 1, (GRID, GRID))  # anything
    folder = _write(tmp_path / "set", scores)
    _found(folder)
    distances = {f"{number:02d}": 0.5 for number in range(COUNT) if number != 3} | {"13": 1.5}
    found = _screened(folder, distances, ("15.png", "14.png", 1, 0), ("16.png", "14.png", 1, 0))
    found.pop("11")
    assert found == {
        "03": {"no object was found, so the image is left out"},
        "05": {"the object reaches the border, which may cut it"},
        "07": {"the foreground is in several parts, and the largest is used"},
        "09": {
            "the foreground is undecided: scores do not separate object and background",
            "the object reaches the border, which may cut it",
            "the object's box is the whole image",
        },
        "13": {"far from every pose"},
    }
    about = json.loads((folder / "screened/screening.json").read_text())
    assert (about["images"], about["near_duplicates"], about["images_with_warnings"]) == (
        COUNT,
        2,
        6,
    )
    line = (folder / "screened/screening.txt").read_text()
    assert line.startswith(f"screening: 2 near-duplicates, warnings about 6 of {COUNT} images: ")
    with Image.open(folder / "screened/screening.png") as image:
        assert min(image.size) > 300


def test_images_with_a_box_of_the_user_are_not_warned_of_for_their_foreground(tmp_path):
    scores = _objects()
    scores[5] = 1
    folder = _write(tmp_path / "set", scores)
    entries = read_manifest(folder / "manifest.csv")
    entries[5] = replace(entries[5], box=(0.0, 0.0, 40.0, 40.0))
    write_manifest(folder / "manifest.csv", entries)
    assert _found(folder)["05"]["separation"] == ""
    assert _screened(folder, {"05": 0.5}) == {}


def test_what_is_so_of_many_images_is_told_once(tmp_path, caplog):
    scores = np.roll(_objects(), -2, 1)  # all at the upper edge
    scores[5] = -1
    folder = _write(tmp_path / "set", scores)
    _found(folder)
    assert _screened(folder, {}) == {"05": {"no object was found, so the image is left out"}}
    (usual,) = json.loads((folder / "screened/screening.json").read_text())["warnings"]
    assert "images: the object reaches the border" in usual
    assert f"23 of {COUNT} images: the object reaches the border" in caplog.text


def test_nothing_to_look_at_is_a_picture_too(tmp_path):
    folder = _write(tmp_path / "set", _objects())
    _found(folder)
    assert _screened(folder, {}) == {}
    assert (folder / "screened/screening.png").stat().st_size > 0


def test_a_wheel_on_the_edge_is_not_a_cut_object_and_padding_is_no_image():
    scores = np.full((GRID, GRID), -1.0)
    scores[:2] = scores[6:] = np.nan  # padding above and below
    mask = np.zeros((GRID, GRID), bool)
    mask[3:5, 1:7] = mask[5, 1] = True
    scores[mask] = 1
    region = type("Region", (), {"mask": mask})
    clear = Clearness.of(Detection(None, None, region, scores), 0.0)
    assert (clear.cut, clear.largest_part, clear.separation) == (1 / 6, 1, pytest.approx(1))
    mask[5, 1:7] = True
    scores[mask] = 1
    assert Clearness.of(Detection(None, None, region, scores), 0.0).cut == 1


def test_tables_of_another_manifest_are_one_line(tmp_path):
    folder = _write(tmp_path / "set", _objects())
    _found(folder)
    with pytest.raises(UserError, match="does not fit the manifest.*--forcerun foreground"):
        _screened(folder, {}, ("15.png", "gone.png", 1, 0))
    assert not (folder / "screened").exists()
    rows = [(f"{number:02d}.png", "gone.png", 1, 0) for number in range(COUNT)]
    table = _write_csv(folder / "d.csv", ("image", "of", "similarity", "group"), *rows)
    with pytest.raises(UserError, match="leaves out all images; run snakemake with --forcerun"):
        _found(folder, duplicates=table)


# The component that the user names


@pytest.mark.parametrize(
    ("component", "chosen"), [(1, (0, 1)), (2, (1, -1)), (-2, (1, 1)), (3, (2, -1)), (-3, (2, 1))]
)
def test_a_component_is_named_with_the_side_of_the_border_or_the_other(component, chosen):
    contrasts = np.array([0.5, -1.5, 0.1])  # the last one is not decidable
    assert choose(contrasts, Foreground(component=component, fallback_sign=-1)) == chosen


def test_the_other_side_is_the_object_where_the_user_says_so(tmp_path):
    folder = _write(tmp_path / "set", _objects())
    middle, border = _found(folder), _found(folder, foreground=Foreground(component=-1))
    assert float(middle["00"]["x0"]) > 5 and float(border["00"]["x0"]) == 0
    about = json.loads((folder / "out/foreground.json").read_text())
    assert (about["component"], about["rule"]) == (1, "foreground.component")


def test_the_picture_shows_each_component_by_the_value_that_chooses_it(tmp_path, drawn):
    folder = _write(tmp_path / "set", _objects())
    for component in ("auto", -1, 2):
        _found(folder, foreground=Foreground(component=component))
    pictures = [given[-1] for given in drawn]
    for shown, expected in zip(pictures, ("1 (used)", "-1 (used)", "2 (used)"), strict=True):
        assert [entry.image for entry, _ in shown] == ["00.png", f"{COUNT - 1}.png"]
        for _, scores in shown:
            assert [one for one in scores if "used" in one] == [expected]
            assert len(scores) == 3
    auto, other = pictures[0][0][1]["1 (used)"], pictures[1][0][1]["-1 (used)"]
    assert auto[4, 4] > 0 > auto[0, 0]
    np.testing.assert_allclose(other, -auto)


# Boxes that the user gives


def _photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (60, 40))
        ImageDraw.Draw(image).rectangle((5 + number, 5, 20, 20), fill="red")
        image.save(folder / name)
    return folder


HEADER = "image,x0,y0,x1,y1\n"


def test_boxes_of_a_table_are_the_images_and_the_others_have_none(tmp_path, caplog):
    photos = _photos(tmp_path / "photos", "a.png", "b/c.png", "d.png", "e/c.png")
    table = tmp_path / "boxes.csv"
    rows = "a.png,1,2,30,400\nb/c.png,0.5,1,9,10\ngone.png,1,1,2,2\nc.png,1,1,2,2\n"
    table.write_text(HEADER + rows)
    dataset.main(source=Folder(path=photos, boxes=str(table)), out=tmp_path)
    found = {Path(one.image).name: one.box for one in read_manifest(tmp_path / "manifest.csv")}
    boxes = [one.box for one in read_manifest(tmp_path / "manifest.csv")]
    # Clipped to the photo.
    assert boxes == [(1, 2, 30, 40), (0.5, 1, 9, 10), None, None] and found["d.png"] is None
    told = [one for one in caplog.messages if "source.boxes" in one]
    assert len(told) == 1 and "2 name no image of the folder, or several (gone.png)" in told[0]


def test_photos_that_are_cropped_already_have_the_whole_image_as_box(tmp_path):
    photos = _photos(tmp_path / "photos", "a.png", "b.png")
    dataset.main(source=Folder(path=photos, boxes="image"), out=tmp_path)
    entries = read_manifest(tmp_path / "manifest.csv")
    assert [one.box for one in entries] == [(0, 0, one.width, one.height) for one in entries]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (HEADER + "a.png,1,2,3,4\na.png,5,2,3,4\n", "line 3: x0, y0, x1, y1 '5,2,3,4': no box"),
        (HEADER + "a.png,1,2,three,4\n", "line 2: x0, y0, x1, y1 '1,2,three,4': no box"),
        (HEADER + "a.png,1,2,,4\n", "line 2: x0, y0, x1, y1 '1,2,,4': no box"),
        (HEADER + "a.png,1,2\n", "line 2: x0, y0, x1, y1 '1,2,,': no box"),
        (HEADER + "a.png,1,2,nan,4\n", "line 2: x0"),
        (HEADER + "a.png,1,2,inf,4\n", "line 2: x0"),
        (HEADER + "a.png,1,5,2,6,5\n", "line 2: x0"),
        (HEADER, "has no boxes"),
        ("image,x0,y0,x1\na.png,1,2,3\n", "needs the columns image, x0, y0, x1, y1"),
        (HEADER.replace(",", ";") + "a.png;1;2;3;4\n", "needs the columns image, x0, y0, x1, y1"),
    ],
)
def test_a_bad_row_is_one_line_with_its_number_before_anything_starts(tmp_path, rows, message):
    table = tmp_path / "boxes.csv"
    table.write_text(rows)
    photos = _photos(tmp_path / "photos", "a.png")
    source = Folder(path=photos, boxes=str(table))
    with pytest.raises(UserError) as error:
        check_dataset(Dataset(source=source, backbone={"model": "efficientnet-lite0"}), tmp_path)
    told = str(error.value)
    assert message in told and told.startswith(f"source.boxes {table}") and "\n" not in told
    with pytest.raises(UserError):
        dataset.main(source=source, out=tmp_path / "out")
    assert not (tmp_path / "out/manifest.csv").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,70,2,80,4\n", r"line 2: .* is not on a.png \(60x40 pixels\)"),
        ("a.png,1,2,3,4\nphotos/a.png,1,2,3,4\n", "line 3: .* has a box already"),
    ],
)
def test_a_box_off_its_image_or_a_second_one_is_one_line(tmp_path, rows, message):
    (tmp_path / "boxes.csv").write_text(HEADER + rows)
    source = Folder(path=_photos(tmp_path / "photos", "a.png"), boxes=str(tmp_path / "boxes.csv"))
    with pytest.raises(UserError, match=message):
        dataset.main(source=source, out=tmp_path / "out")


# Photos that come later


def test_photos_added_to_the_folder_are_told_and_deleted_ones_are_not(tmp_path):
    photos = _photos(tmp_path / "photos", "a.png", "b.png", "sub/c.png")
    (photos / "notes.txt").write_text("no photo")
    chosen = Dataset(source=Folder(path=photos))
    assert added_images(chosen, tmp_path) == ""  # not listed yet
    dataset.main(source=chosen.source, out=tmp_path)
    write_json(tmp_path / "dataset.run.json", {"settings": {"path": str(photos)}})
    assert added_images(chosen, tmp_path) == ""
    (photos / "a.png").unlink()
    (photos / ".hidden.png").write_bytes(b"")
    assert added_images(chosen, tmp_path) == ""
    _photos(photos, "sub/d.png", "e.png")
    told = added_images(chosen, tmp_path)
    assert told.startswith(f"source.path {photos}: ") and "\n" not in told
    assert f"{photos}/e.png and 1 more came after the images were listed" in told
    assert "--forcerun dataset" in told
    other = Dataset(source=Folder(path=tmp_path))  # its images will be listed anyway
    assert added_images(other, tmp_path) == ""
    assert added_images(Dataset(source={"kind": "procedural"}), tmp_path) == ""
    (tmp_path / "manifest.csv").write_text("")
    (tmp_path / "rejected.csv").unlink()
    assert added_images(chosen, tmp_path) == ""
