"""Listing a folder, rendering a set, the manifest, and labels for it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mirage_steps import dataset
from mirage_steps.errors import UserError
from mirage_steps.files import provenance
from mirage_steps.files.atomic import read_csv, write_csv, write_json
from mirage_steps.files.manifest import Entry, read_manifest, write_manifest
from mirage_steps.pose_eval import main as evaluate
from mirage_steps.pose_eval import match_labels
from mirage_steps.settings import Folder, Procedural


def _image(path, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def _list(photos, out, **options) -> tuple[list[Entry], dict[str, str]]:
    """The manifest and the rejected files of a folder."""
    dataset.main(source=Folder(path=photos, **options), out=out)
    rejected = {row["image"]: row["reason"] for row in read_csv(out / "rejected.csv")}
    return read_manifest(out / "manifest.csv"), rejected


# Folders


def test_folders_are_searched_recursively_and_hidden_files_skipped(tmp_path):
    photos = tmp_path / ".cache" / "photos"
    seen = [_image(photos / name) for name in ("b.png", "a/z.png", "a/deep/er/c.jpg")]
    for name in (".hidden.png", ".git/x.png", "a/.thumbs/y.png"):
        _image(photos / name)
    entries, rejected = _list(photos, tmp_path / "out")
    assert [entry.image for entry in entries] == sorted(map(str, seen))
    assert not rejected
    assert {(entry.width, entry.height, entry.azimuth_deg) for entry in entries} == {(24, 16, None)}


NAMES = [
    "Tür 椅子.png",
    "two  words.png",
    "a,b.png",
    'say "x".png',
    "it's.png",
    "-dash.png",
    "100%.png",
]


def test_names_with_any_characters_survive_a_round_trip(tmp_path):
    for name in NAMES:
        _image(tmp_path / "my photos" / name)
    entries, rejected = _list(tmp_path / "my photos", tmp_path / "out")
    assert sorted(entry.path.name for entry in entries) == sorted(NAMES)
    assert not rejected
    for entry in entries:
        assert Image.open(entry.path).size == (24, 16)


def test_sizes_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 30)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    entries, _ = _list(tmp_path / "photos", tmp_path / "out")
    assert (entries[0].width, entries[0].height) == (30, 80)


def test_every_rejected_file_has_its_reason(tmp_path):
    photos = tmp_path / "photos"
    _image(photos / "good.png")
    large = _image(photos / "large.png", (40, 40))
    (photos / "empty.jpg").touch()
    (photos / "labels.csv").write_text("image,azimuth_deg\n")
    (photos / "cut.png").write_bytes(large.read_bytes()[:50])
    _image(photos / "line\nbreak.png")
    _image(photos / "folder\nbreak" / "a.png")
    entries, rejected = _list(photos, tmp_path / "out", max_pixels=1000)
    assert [entry.path.name for entry in entries] == ["good.png"]
    reasons = {name.removeprefix(f"{photos}/"): reason for name, reason in rejected.items()}
    assert sorted(reasons) == sorted(
        ["large.png", "empty.jpg", "labels.csv", "cut.png", "line\\nbreak.png"]
        + ["folder\\nbreak/a.png"]
    )
    assert reasons["empty.jpg"] == "empty file" and reasons["labels.csv"] == "not an image"
    assert reasons["large.png"] == "40x40 has more than max_pixels = 1000 pixels"
    assert reasons["line\\nbreak.png"] == reasons["folder\\nbreak/a.png"]
    assert "rename it" in reasons["line\\nbreak.png"]


def test_names_that_are_not_utf_8_are_rejected(tmp_path):
    photos = tmp_path / "photos"
    _image(photos / "good.png")
    try:
        os.rename(_image(photos / "x.png"), os.fsencode(photos) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    entries, rejected = _list(photos, tmp_path / "out")
    assert len(entries) == 1
    ((name, reason),) = rejected.items()
    assert name.endswith("\\udcff.png") and "rename it" in reason


def test_links_keep_their_names(tmp_path):
    # As download caches lay out a data set: names that mean something, linked to blobs.
    blob = _image(tmp_path / "blobs" / "9f86d081.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("front.png", "copy.png"):
        (photos / name).symlink_to(blob)
    (photos / "broken.png").symlink_to(tmp_path / "gone.png")
    entries, rejected = _list(photos, tmp_path / "out")
    assert [entry.path.name for entry in entries] == ["copy.png", "front.png"]
    assert not rejected


def test_the_manifest_does_not_depend_on_where_it_was_made(tmp_path, monkeypatch):
    _image(tmp_path / "photos" / "a.png")
    whole, _ = _list(tmp_path / "photos", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    relative, _ = _list("photos", tmp_path / "out")
    assert relative == whole and relative[0].path.is_absolute()


# As a command


def _command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mirage_steps.dataset", *words], capture_output=True, text=True
    )


def _one_error(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and not done.stdout
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    return errors[0]


def test_a_missing_folder_is_one_line_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    error = _one_error(_command("--out", str(out), "folder", "--path", str(tmp_path / "gone")))
    assert "no such folder" in error and str(tmp_path / "gone") in error
    assert not out.exists()


def test_a_folder_without_images_is_refused_with_the_reason(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    with pytest.raises(UserError, match="holds no files"):
        _list(photos, out)
    assert not out.exists()
    (photos / "note.txt").write_text("hello")
    with pytest.raises(UserError, match=r"none of the 1 files .*note\.txt: not an image"):
        _list(photos, out)
    assert [path.name for path in out.iterdir()] == ["rejected.csv"]


def test_an_output_folder_that_is_a_file_is_one_line(tmp_path):
    _image(tmp_path / "photos" / "a.png")
    (tmp_path / "out").write_text("a file, not a folder")
    words = ("--out", str(tmp_path / "out"), "folder", "--path", str(tmp_path / "photos"))
    assert str(tmp_path / "out") in _one_error(_command(*words))


def test_the_command_writes_its_tables_and_its_provenance(tmp_path):
    _image(tmp_path / "my photos" / "a.png")
    out = tmp_path / "out"
    done = _command("--out", str(out), "folder", "--path", str(tmp_path / "my photos"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.run.json",
        "manifest.csv",
        "rejected.csv",
    ]


def test_provenance_does_not_need_every_package(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    provenance.write_provenance("mirage_steps.poses", ["poses"], {"out": tmp_path, "k": 4}, 0.0)
    record = json.loads((tmp_path / "poses.run.json").read_text())
    assert record["packages"] == {"numpy": np.__version__, "no-such-package": None}
    assert record["settings"] == {"k": 4}


# Rendered sets


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path):
    for count in (2, 3):
        source = Procedural(images=count, size=24, seed=5)
        dataset.main(source=source, out=tmp_path / str(count))
    small, large = (read_manifest(tmp_path / str(count) / "manifest.csv") for count in (2, 3))
    assert len(large) == 3
    for one, other in zip(small, large[:2], strict=True):
        assert (one.image, one.azimuth_deg) == (other.image, other.azimuth_deg)
        assert one.path.read_bytes() == other.path.read_bytes()
        mask = np.asarray(Image.open(one.path.parents[1] / "true_masks" / one.path.name))
        assert mask.shape == (24, 24) and 0 < (mask > 127).mean() < 1
    assert len({entry.azimuth_deg for entry in large}) == 3
    assert all(0 <= entry.azimuth_deg < 360 for entry in large)


# Manifests


def test_manifests_survive_a_round_trip(tmp_path):
    entries = [
        Entry("images/a.png", tmp_path / "images/a.png", 6, 4, 359.5),
        Entry('/else/where/ü,".png', type(tmp_path)('/else/where/ü,".png'), 1, 2),
        Entry("zero.png", tmp_path / "zero.png", 3, 3, 0.0),
    ]
    write_manifest(tmp_path / "manifest.csv", entries)
    assert read_manifest(tmp_path / "manifest.csv") == entries


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,width,height,azimuth_deg\n", "lists no images"),
        ("", "lists no images"),
        ("image,height\na.png,4\n", "not a manifest"),
        ("image,width,height\na.png,wide,4\n", "not a manifest"),
        ("image,width,height\na.png\n", "not a manifest"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "manifest.csv")


# Labels

IMAGES = ["/data/one/a.jpg", "/data/two/a.jpg", "/data/two/b.jpg", "/data/two/ü c.jpg"]


def _labels(tmp_path, *rows, header=("image", "azimuth_deg")):
    write_csv(tmp_path / "labels.csv", header, rows)
    return match_labels(tmp_path / "labels.csv", IMAGES)


def test_labels_match_by_name_by_end_of_path_and_by_whole_path(tmp_path):
    found = _labels(
        tmp_path, ("b.jpg", 10), ("one/a.jpg", "-90"), ("/data/two/a.jpg", 725), ("ü c.jpg", "1e1")
    )
    assert found == {IMAGES[2]: 10, IMAGES[0]: 270, IMAGES[1]: 5, IMAGES[3]: 10}


def test_labels_that_fit_several_images_or_none_are_left_out(tmp_path):
    assert _labels(tmp_path, ("a.jpg", 10), ("b.jpg", 20), ("x.jpg", 3), ("wo/b.jpg", 4)) == {
        IMAGES[2]: 20
    }


def test_images_without_a_value_have_no_label(tmp_path):
    assert _labels(tmp_path, ("b.jpg", ""), ("one/a.jpg", 3)) == {IMAGES[0]: 3}
    (tmp_path / "short.csv").write_text("image,azimuth_deg\nb.jpg\none/a.jpg,3\n")
    assert match_labels(tmp_path / "short.csv", IMAGES) == {IMAGES[0]: 3}


@pytest.mark.parametrize("value", ["front", "12,5", "nan", "inf", "-inf", "12°"])
def test_an_azimuth_that_is_not_a_number_is_named_with_its_line(tmp_path, value):
    with pytest.raises(UserError, match=r"line 3: azimuth_deg .*: not a number"):
        _labels(tmp_path, ("b.jpg", 1), ("one/a.jpg", value))


@pytest.mark.parametrize("header", [("image", "azimuth"), ("file", "azimuth_deg"), ("a", "b")])
def test_missing_columns_are_named(tmp_path, header):
    with pytest.raises(UserError, match="needs the columns image and azimuth_deg"):
        _labels(tmp_path, ("b.jpg", 1), header=header)
    with pytest.raises(UserError, match="needs the columns image and azimuth_deg"):
        _labels(tmp_path)


def test_labels_that_match_no_image_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no label can be used: 2 name no .*, 1 name several"):
        _labels(tmp_path, ("x.jpg", 1), ("a.jpg", 2), ("y.jpg", 3))


# Evaluation


def _evaluate(tmp_path, entries, poses, labels=None) -> str:
    write_manifest(tmp_path / "manifest.csv", entries)
    rows = [(entry.image, pose) for entry, pose in zip(entries, poses, strict=True)]
    write_csv(tmp_path / "poses.csv", ("image", "pose"), rows)
    write_json(tmp_path / "poses.json", {"k": 1 + max(poses), "categories": 1})
    evaluate(
        manifest=tmp_path / "manifest.csv",
        poses=tmp_path / "poses.csv",
        out=tmp_path / "out",
        labels=labels,
    )
    assert (tmp_path / "out" / "pose_eval.png").stat().st_size > 0
    return (tmp_path / "out" / "pose_eval.json").read_text()


def test_without_truth_the_evaluation_says_so(tmp_path):
    entries = [Entry(f"{i}.png", tmp_path / f"{i}.png", 4, 4) for i in range(3)]
    assert "no true azimuth or viewpoint is known" in _evaluate(tmp_path, entries, [0, 1, 1])


def test_viewpoints_score_poses_where_no_azimuth_is_known(tmp_path):
    views = ["front", "front", "rear", "rear", "side", None]
    entries = [
        Entry(f"{i}.jpg", tmp_path / f"{i}.jpg", 4, 4, viewpoint=view)
        for i, view in enumerate(views)
    ]
    found = json.loads(_evaluate(tmp_path, entries, [0, 0, 0, 1, 1, 1]))
    assert found["images"] == 0 and "median_error_deg" not in found
    scores = found["viewpoints"]
    assert scores["labels"] == ["front", "rear", "side"]
    assert scores["counts"] == [[2, 1, 0], [0, 1, 1]]
    assert scores["images"] == 5 and scores["purity"] == pytest.approx(3 / 5)
    assert scores["purity_of_chance"] == pytest.approx(2 / 5)
    # Mutual information over the mean of both entropies, by hand.
    joint, poses, labels = (np.array(p) / 5 for p in ([2, 1, 1, 1], [3, 2], [2, 2, 1]))
    shared = joint @ np.log(joint / np.array([6, 6, 4, 2]) * 25)
    mean = -(poses @ np.log(poses) + labels @ np.log(labels)) / 2
    assert scores["normalized_mutual_information"] == pytest.approx(shared / mean)


def test_labels_come_before_the_manifest_s_own_azimuths(tmp_path):
    entries = [Entry(f"{i}.png", tmp_path / f"{i}.png", 4, 4, 77.0) for i in range(2)]
    write_csv(tmp_path / "labels.csv", ("image", "azimuth_deg"), [("0.png", 30), ("1.png", 210)])
    result = _evaluate(tmp_path, entries, [0, 1], tmp_path / "labels.csv")
    means = [pose["mean_azimuth_deg"] for pose in json.loads(result)["poses"]]
    assert means == [pytest.approx(30), pytest.approx(210)]


def test_a_table_without_poses_is_refused(tmp_path):
    write_manifest(tmp_path / "manifest.csv", [Entry("a.png", tmp_path / "a.png", 4, 4, 1.0)])
    write_csv(tmp_path / "poses.csv", ("image", "pose"), [])
    with pytest.raises(UserError, match=r"poses\.csv: needs the columns"):
        evaluate(
            manifest=tmp_path / "manifest.csv", poses=tmp_path / "poses.csv", out=tmp_path / "out"
        )
