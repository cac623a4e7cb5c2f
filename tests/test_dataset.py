"""Listing a folder, rendering a set, the manifest, and labels for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirage_steps import dataset
from mirage_steps.errors import UserError
from mirage_steps.files import provenance
from mirage_steps.files.atomic import read_csv, write_csv, write_json
from mirage_steps.files.labels import match_labels, read_azimuths
from mirage_steps.files.loading import read_entry
from mirage_steps.files.manifest import Entry, read_manifest, write_manifest
from mirage_steps.pose_eval import main as evaluate
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


def test_folders_are_searched_recursively_and_hidden_files_passed_over(tmp_path):
    photos = tmp_path / ".cache" / "photos"
    seen = [_image(photos / name) for name in ("b.png", "a/z.png", "a/deep/er/c.jpg")]
    for name in (".hidden.png", ".git/x.png", "a/.thumbs/y.png"):
        _image(photos / name)
    entries, rejected = _list(photos, tmp_path / "out")
    assert [entry.image for entry in entries] == sorted(map(str, seen))
    hidden = (".hidden.png", ".git", "a/.thumbs")
    assert rejected == {str(photos / name): "hidden" for name in hidden}
    assert {(entry.width, entry.height, entry.azimuth_deg) for entry in entries} == {(24, 16, None)}


NAMES = [
    "Tür 椅子.png",
    "two  words.png",
    "a,b.png",
    'say "x".png',
    "it's.png",
    "-dash.png",
    "100%.png",
    "50%20off%0A.png",
    "car\rriage\n\ttab.png",
    "no\u202fbreak\xa0ideo\u3000graphic.png",
    "line\u2028separator\x85.png",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",
    "gru\u0308n.png",
    "gr\xfcn.png",
    "$(touch x) `y` {z} <w>.png",
    "=1+1.png",
    "#comment.png",
    " spaces .png",
    "back\\slash.png",
    "~tilde.png",
    "x" * 251 + ".png",
]


def test_names_with_any_characters_survive_a_round_trip(tmp_path):
    for name in NAMES:
        _image(tmp_path / "my photos" / name)
    entries, rejected = _list(tmp_path / "my photos", tmp_path / "out")
    assert sorted(entry.path.name for entry in entries) == sorted(NAMES)
    assert not rejected
    assert len({entry.image for entry in entries}) == len(NAMES)
    assert all(entry.image.splitlines() == [entry.image] for entry in entries)
    plain = {entry.path.name for entry in entries if str(entry.path) == entry.image}
    assert {*NAMES[:7], "gr\xfcn.png", "#comment.png"} <= plain
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
    (photos / "line\nbreak.png").write_bytes(b"GIF89a")
    entries, rejected = _list(photos, tmp_path / "out", max_pixels=1000)
    assert [entry.path.name for entry in entries] == ["good.png"]
    reasons = {name.removeprefix(f"{photos}/"): reason for name, reason in rejected.items()}
    assert sorted(reasons) == sorted(
        ["large.png", "empty.jpg", "labels.csv", "cut.png", "line%0Abreak.png"]
    )
    assert reasons["empty.jpg"] == "empty file" and reasons["labels.csv"] == "not an image"
    assert reasons["large.png"] == "40x40 has more than max_pixels = 1000 pixels; raise it"


def test_names_that_are_not_utf_8_survive_a_round_trip(tmp_path):
    photos = tmp_path / "photos"
    try:
        os.rename(_image(photos / "x.png"), os.fsencode(photos) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    ((entry,), rejected) = _list(photos, tmp_path / "out")
    assert entry.image == f"{photos}/%FF.png" and not rejected
    assert os.fsencode(entry.path) == os.fsencode(photos) + b"/\xff.png"
    assert read_entry(entry).size == (24, 16)


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
    assert rejected == {f"{photos}/broken.png": "a link to nothing"}


def test_linked_folders_are_searched_once(tmp_path):
    photos, other = tmp_path / "photos", tmp_path / "other"
    _image(photos / "z/own.png")
    for name in ("one.png", "deep/two.JPG"):
        _image(other / name)
    links = {"a": photos / "z", "linked": other, "more": other / "deep", "self": photos}
    for name, target in {**links, "above": tmp_path}.items():
        (photos / name).symlink_to(target)
    (other / "back").symlink_to(photos)
    (photos / "to itself").symlink_to(photos / "to itself")
    entries, rejected = _list(photos, tmp_path / "out")
    names = [str(entry.path.relative_to(photos)) for entry in entries]
    assert names == ["linked/deep/two.JPG", "linked/one.png", "z/own.png"]
    reasons = {name.removeprefix(f"{photos}/"): reason for name, reason in rejected.items()}
    assert "symbolic links" in reasons.pop("to itself")
    assert set(reasons) == {"a", "more", "self", "above", "linked/back"}
    assert set(reasons.values()) == {"a link to a folder that is listed already"}


def test_copies_and_results_of_the_pipeline_are_passed_over(tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.png", "green.png", "green.views/p.png", "thumbs up/b.png", "old/c.png"):
        _image(photos / name)
    copies = ("@eaDir", "sub/@eaDir", "__MACOSX", "Thumbnails", "thumbs", "#recycle")
    for name in copies:
        _image(photos / name / "a.png")
    for name in ("x.png", "x.mesh.png", "x.texture.png", "x.views/pose_00.png"):
        _image(photos / name)
    (photos / "x.gif").touch()
    write_json(photos / "x.json", {"inversion_evaluations": 50})
    write_json(photos / "x.run.json", {"step": "mirage_steps.novel_views"})
    write_json(photos / "old/photo.run.json", {"outputs": {"mine": 1}})
    (photos / "old/bad.run.json").write_text("[" * 100_000)
    results = photos / "results/mini"
    dataset.main(source=Procedural(images=1, size=24), out=results)
    write_json(results / "dataset.run.json", {"outputs": {"manifest.csv": None}})
    entries, rejected = _list(photos, tmp_path / "out")
    names = [str(entry.path.relative_to(photos)) for entry in entries]
    kept = ["a.png", "green.png", "green.views/p.png", "old/c.png", "thumbs up/b.png"]
    assert names == kept
    reasons = {name.removeprefix(f"{photos}/"): reason for name, reason in rejected.items()}
    assert reasons == {
        **dict.fromkeys(copies, "copies of photos"),
        **{f"x.{end}": "made by novel_views" for end in ("png", "gif", "json", "run.json")},
        **{f"x.{end}": "made by novel_views" for end in ("views", "mesh.png", "texture.png")},
        "results/mini": "results of this pipeline",
        "old/photo.run.json": "not an image",
        "old/bad.run.json": "not an image",
    }


def test_what_cannot_be_listed_has_its_reason(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    _image(photos / "good.png")
    _image(photos / "secret/a.png")
    os.mkfifo(photos / "pipe.png")
    scandir = os.scandir

    def denied(folder):
        if str(folder).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    entries, rejected = _list(photos, tmp_path / "out")
    assert len(entries) == 1
    assert rejected == {
        f"{photos}/secret": "cannot be read: Permission denied",
        f"{photos}/pipe.png": "not a regular file",
    }


def test_a_jpeg_is_listed_by_an_eighth_of_its_pixels_as_if_by_all(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        Image.new("RGB", (161, 163)).save(photos / f"{orientation}.jpg", exif=exif)
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for percent in (20, 60, 95):
        (photos / f"cut {percent}.jpg").write_bytes(whole[: len(whole) * percent // 100])
    entries, rejected = _list(photos, tmp_path / "out")
    assert [(entry.width, entry.height) for entry in entries] == [(161, 163)] * 4 + [(163, 161)] * 4
    assert all(read_entry(entry) for entry in entries)
    assert len(rejected) == 3 and all("truncated" in reason for reason in rejected.values())


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


def test_labels_match_however_their_names_are_spelled(tmp_path):
    labels = [
        ("./b.jpg", 1),
        ("two\\a.jpg", 2),
        ("../one//a.jpg", 3),
        ("u\u0308 c.jpg", 4),
    ]
    assert _labels(tmp_path, *labels) == {IMAGES[2]: 1, IMAGES[1]: 2, IMAGES[0]: 3, IMAGES[3]: 4}
    odd = ["/d/50%2520off.jpg", "/d/line%0Abreak.jpg", "/d/%FF.jpg", "/d/ba\\ck.jpg"]
    for name, image in (
        ("50%20off.jpg", odd[0]),
        ("50%2520off.jpg", odd[0]),
        ("line\nbreak.jpg", odd[1]),
        ("d/line%0Abreak.jpg", odd[1]),
        ("%FF.jpg", odd[2]),
        ("ba\\ck.jpg", odd[3]),
    ):
        write_csv(tmp_path / "labels.csv", ("image", "azimuth_deg"), [(name, 7)])
        assert match_labels(tmp_path / "labels.csv", odd) == {image: 7}
    forms = ["/d/\xfc.jpg", "/d/u\u0308.jpg"]
    rows = [("\xfc.jpg", 1), ("u\u0308.jpg", 2)]
    write_csv(tmp_path / "labels.csv", ("image", "azimuth_deg"), rows)
    assert match_labels(tmp_path / "labels.csv", forms) == {forms[0]: 1, forms[1]: 2}


def test_an_image_with_contradicting_labels_has_none(tmp_path, caplog):
    rows = [("b.jpg", 10), ("one/a.jpg", 3), ("two/b.jpg", 190), ("/data/one/a.jpg", 363)]
    assert _labels(tmp_path, *rows) == {IMAGES[0]: 3}
    assert "1 have several azimuths (/data/two/b.jpg); these are not used" in caplog.text
    with pytest.raises(UserError, match="no label can be used: 1 have several azimuths"):
        _labels(tmp_path, ("b.jpg", 10), ("b.jpg", 10.5))


@pytest.mark.parametrize("sign, name", [(";", "semicolons"), ("\t", "tabs")])
def test_labels_between_other_signs_than_commas_are_told(tmp_path, sign, name):
    (tmp_path / "labels.csv").write_text(f"image{sign}azimuth_deg\nb.jpg{sign}10,5\n")
    with pytest.raises(UserError, match=f"needs the columns .* with commas .*, not {name}"):
        match_labels(tmp_path / "labels.csv", IMAGES)


def test_images_without_a_value_have_no_label(tmp_path):
    assert _labels(tmp_path, ("b.jpg", ""), ("one/a.jpg", 3)) == {IMAGES[0]: 3}
    (tmp_path / "short.csv").write_text("image,azimuth_deg\nb.jpg\none/a.jpg,3\n")
    assert match_labels(tmp_path / "short.csv", IMAGES) == {IMAGES[0]: 3}


@pytest.mark.parametrize("value", ["front", "12,5", "nan", "inf", "-inf", "12°"])
def test_an_azimuth_that_is_not_a_number_is_named_with_its_line(tmp_path, value):
    with pytest.raises(UserError, match=r"line 3: azimuth_deg .*: not a number"):
        _labels(tmp_path, ("b.jpg", 1), ("one/a.jpg", value))


def test_tables_of_labels_that_cannot_be_meant_are_refused(tmp_path):
    labels, head = tmp_path / "labels.csv", "image,azimuth_deg\n"
    for text, told in (
        (head + "b.jpg,12,5\n", r"line 2: has more cells than the .*; write decimals as 12\.5"),
        (
            head + "b.jpg,1\nb.jpg,36000\n",
            "line 3: azimuth_deg '36000': is more than ten rotations",
        ),
        ("image,azimuth_deg,image\nb.jpg,1,c\n", "has the column image twice"),
        (head + "b.jpg,\n", "azimuth_deg is always empty"),
    ):
        labels.write_text(text)
        with pytest.raises(UserError, match=told):
            read_azimuths(labels)
    labels.unlink()
    os.mkfifo(labels)
    for path in (labels, Path("/dev/zero")):
        with pytest.raises(UserError, match=": is not a regular file$"):
            read_azimuths(path)


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
    with pytest.raises(UserError, match=r"poses\.csv: not a table of poses .*it is empty"):
        evaluate(
            manifest=tmp_path / "manifest.csv", poses=tmp_path / "poses.csv", out=tmp_path / "out"
        )
