"""Sources of labeled photos: what is read, what is refused, which boxes count."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mirage_steps import dataset, foreground
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.manifest import Entry, read_manifest, write_manifest
from mirage_steps.method.boxes import content_box, padded_share, square_window
from mirage_steps.method.foreground import ForegroundModel, TokenBatch
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.settings import CompCars, Epfl, Folder, Procedural
from mirage_steps.sources import check_source, compcars, epfl

MODEL = "1/2/2014"
SIZE = (60, 40)


def _photo(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def _car(root, name: str, label: str | None):
    """A photo of CompCars with the text of its label, None for no label."""
    photo = _photo(root / "image" / MODEL / f"{name}.jpg")
    folder = root / "label" / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    if label is not None:
        (folder / f"{name}.txt").write_text(label, encoding="utf-8")
    return photo


def _list(source, out) -> tuple[dict[str, Entry], dict[str, str]]:
    """The manifest's entries and the reasons of rejected files, both by file name."""
    dataset.main(source=source, out=out)
    entries = {entry.path.name: entry for entry in read_manifest(out / "manifest.csv")}
    rejected = read_csv(out / "rejected.csv")
    return entries, {row["image"].rpartition("/")[2]: row["reason"] for row in rejected}


def _refused(call) -> str:
    """The one line of an error that names the key."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and message.startswith("source.path ")
    return message


# CompCars


def test_every_viewpoint_of_compcars_is_read_and_unknown_is_none(tmp_path, caplog):
    for code in (-1, 1, 2, 3, 4, 5):
        _car(tmp_path / "cars", f"a {code}", f"{code}\n1\n5 6 50 30\n")
    entries, rejected = _list(CompCars(path=tmp_path / "cars"), tmp_path / "out")
    assert {name: entry.viewpoint for name, entry in entries.items()} == {
        "a -1.jpg": None,
        "a 1.jpg": "front",
        "a 2.jpg": "rear",
        "a 3.jpg": "side",
        "a 4.jpg": "front-side",
        "a 5.jpg": "rear-side",
    }
    assert not rejected and "no usable label" not in caplog.text
    for entry in entries.values():
        assert (entry.width, entry.height) == SIZE and entry.path.is_file()
        assert entry.box is None and entry.azimuth_deg is None


def test_photos_of_any_suffix_and_linked_makes_are_listed(tmp_path):
    cars = tmp_path / "cars"
    _car(cars, "small", "1\n1\n5 6 50 30\n")
    large = _car(cars, "LARGE", "2\n1\n5 6 50 30\n")
    large.rename(large.with_suffix(".JPG"))
    (cars / "image" / MODEL / "notes.txt").write_text("hello")
    elsewhere = tmp_path / "disk/9/1/2000/linked.jpg"
    _photo(elsewhere)
    (cars / "image/9").symlink_to(tmp_path / "disk/9")
    (cars / "label/9/1/2000").mkdir(parents=True)
    (cars / "label/9/1/2000/linked.txt").write_text("3\n1\n5 6 50 30\n")
    entries, rejected = _list(CompCars(path=cars), tmp_path / "out")
    found = {name: entry.viewpoint for name, entry in entries.items()}
    assert found == {"small.jpg": "front", "LARGE.JPG": "rear", "linked.jpg": "side"}
    assert rejected == {"notes.txt": "not an image"}


BAD_LABELS = {
    "missing": None,
    "empty": "",
    "words": "front\n1\n5 6 50 30\n",
    "short": "3\n",
    "fewer boxes": "3\n2\n5 6 50 30\n",
    "fewer boxes, cut short": "3\n2\n5 6 50 30",
    "three edges": "3\n1\n5 6 50\n",
    "edges of words": "3\n1\na b c d\n",
    "not ascii": "3ü\n1\n5 6 50 30\n",
}


def test_photos_with_unusable_labels_are_kept_with_one_warning(tmp_path, caplog):
    for name, label in BAD_LABELS.items():
        _car(tmp_path / "cars", name, label)
    _car(tmp_path / "cars", "good", "3\n1\n5 6 50 30\n")
    entries, rejected = _list(CompCars(path=tmp_path / "cars"), tmp_path / "out")
    assert not rejected
    assert {name for name, entry in entries.items() if entry.viewpoint} == {"good.jpg"}
    assert len(entries) == len(BAD_LABELS) + 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{len(BAD_LABELS)} photos have no usable label")


@pytest.mark.parametrize("name, label", BAD_LABELS.items(), ids=BAD_LABELS)
def test_a_label_that_cannot_be_read_says_why(tmp_path, name, label):
    _car(tmp_path, name, label)
    path = tmp_path / "label" / MODEL / f"{name}.txt"
    reason = "no label file" if label is None else f"not a label of CompCars: {path}"
    with pytest.raises(ValueError, match=re.escape(reason)):
        compcars.read_label(path, *SIZE)


def test_boxes_are_clipped_and_survive_the_manifest(tmp_path):
    boxes = {
        "inside": ("5 6 50 30", (5, 6, 50, 30)),
        "fraction": ("5.25 6.5 50.125 30", (5.25, 6.5, 50.125, 30)),
        "over the left and top": ("-7 -3 20 30", (0, 0, 20, 30)),
        "over the right and bottom": ("30 20 61 99", (30, 20, 60, 40)),
        "the first of two": ("1 2 30 20\n5 5 9 9", (1, 2, 30, 20)),
    }
    for name, (text, _) in boxes.items():
        _car(tmp_path / "cars", name, f"4\n{len(text.splitlines())}\n{text}\n")
    entries, rejected = _list(CompCars(path=tmp_path / "cars", boxes=True), tmp_path / "out")
    assert not rejected
    assert {name: entry.box for name, entry in entries.items()} == {
        f"{name}.jpg": box for name, (_, box) in boxes.items()
    }
    assert {entry.viewpoint for entry in entries.values()} == {"front-side"}
    write_manifest(tmp_path / "out/again.csv", list(entries.values()))
    assert read_manifest(tmp_path / "out/again.csv") == list(entries.values())


def test_photos_without_a_usable_box_are_rejected_only_where_boxes_are_asked_for(tmp_path):
    _car(tmp_path / "cars", "good", "3\n1\n5 6 50 30\n")
    labels = {
        "right of the photo": "3\n1\n60 6 80 30\n",
        "above the photo": "3\n1\n5 -30 50 0\n",
        "without width": "3\n1\n20 6 20 30\n",
        "no box": "3\n0\n",
        "no label": None,
    }
    for name, label in labels.items():
        _car(tmp_path / "cars", name, label)
    entries, rejected = _list(CompCars(path=tmp_path / "cars", boxes=True), tmp_path / "out")
    assert list(entries) == ["good.jpg"]
    assert rejected == {
        f"{name}.jpg": "has no usable box, and source.boxes is on" for name in labels
    }
    entries, rejected = _list(CompCars(path=tmp_path / "cars"), tmp_path / "all")
    assert len(entries) == len(labels) + 1 and not rejected
    assert entries["no box.jpg"].viewpoint == "side" and entries["good.jpg"].box is None


def test_unreadable_and_too_large_photos_of_compcars_are_rejected(tmp_path):
    _car(tmp_path / "cars", "good", "3\n1\n5 6 50 30\n")
    _car(tmp_path / "cars", "cut", "3\n1\n5 6 50 30\n").write_bytes(b"\xff\xd8\xff")
    _photo(tmp_path / "cars/image" / MODEL / "large.jpg", (80, 60))
    source = CompCars(path=tmp_path / "cars", max_pixels=3000)
    entries, rejected = _list(source, tmp_path / "out")
    assert list(entries) == ["good.jpg"] and sorted(rejected) == ["cut.jpg", "large.jpg"]
    assert "max_pixels = 3000" in rejected["large.jpg"]


def test_a_path_that_is_not_compcars_is_one_line_with_the_key_and_the_remedy(tmp_path):
    def refused(path) -> str:
        return _refused(lambda: check_source(CompCars(path=path)))

    message = refused(tmp_path / "gone")
    assert "no such folder" in message and str(tmp_path / "gone") in message
    assert compcars.HOME in message
    (tmp_path / "neither").mkdir()
    message = refused(tmp_path / "neither")
    assert "has no folder image or label" in message and compcars.HOME in message
    (tmp_path / "half/image").mkdir(parents=True)
    message = refused(tmp_path / "half")
    assert "has no folder label;" in message and compcars.HOME in message
    (tmp_path / "above/data/image").mkdir(parents=True)
    assert "did you mean" not in refused(tmp_path / "above")
    (tmp_path / "above/data/label").mkdir()
    assert refused(tmp_path / "above").endswith(f"did you mean {tmp_path / 'above/data'}?")
    check_source(CompCars(path=tmp_path / "above/data"))


def test_compcars_without_photos_is_one_line(tmp_path):
    for name in ("image", "label"):
        (tmp_path / "cars" / name).mkdir(parents=True)
    (tmp_path / "cars/image/readme.txt").write_text("hello")
    source = CompCars(path=tmp_path / "cars")
    message = _refused(lambda: dataset.main(source=source, out=tmp_path / "out"))
    assert "image/ holds no .jpg files" in message and compcars.HOME in message
    assert not (tmp_path / "out").exists()


def test_sources_without_input_need_no_check(tmp_path):
    check_source(Procedural(images=1))
    check_source(Folder(path=tmp_path))
    assert "no such folder" in _refused(lambda: check_source(Folder(path=tmp_path / "gone")))


# EPFL

TIMES = [[100.0, 101.0, 103.0, 104.5, 108.0, 109.0], [7.0, 9.0, 10.0, 11.0, 15.0]]
PERIODS, FRONTS, SENSES = [5, 5], [2, 3], [1, -1]


def _turntable(root):
    """Two sequences of 6 and 5 photos; the last photo of the first is beyond one rotation."""
    root.mkdir(parents=True)
    lines = [
        f"2 {SIZE[0]} {SIZE[1]}",
        "6 5",
        "tripod_seq_%02d_%03d.jpg",
        "bbox_%02d.txt",
        *(" ".join(map(str, row)) for row in (PERIODS, FRONTS, SENSES)),
    ]
    (root / "tripod-seq.txt").write_text("\n".join(lines) + "\n")
    # Rows end in times that belong to no photo, as a table of fixed width has them.
    rows = [[*seconds, 0.0] for seconds in TIMES]
    (root / "times.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows) + "\n")
    for number, seconds in enumerate(TIMES, 1):
        boxes = [f"{photo} {2 * photo} 30 20" for photo in range(1, len(seconds) + 1)]
        (root / f"bbox_{number:02d}.txt").write_text("\n".join(boxes) + "\n")
        for photo in range(1, len(seconds) + 1):
            _photo(root / f"tripod_seq_{number:02d}_{photo:03d}.jpg")
    return root


def _literal_azimuth(sequence: int, photo: int) -> float:
    """Sequence and photo from 1: the share of the rotation since the frontal photo, in degrees."""
    seconds = TIMES[sequence - 1]
    one_rotation = seconds[PERIODS[sequence - 1] - 1] - seconds[0]
    since_front = seconds[photo - 1] - seconds[FRONTS[sequence - 1] - 1]
    angle = SENSES[sequence - 1] * since_front / one_rotation * 360
    while angle < 0:
        angle += 360
    while angle >= 360:
        angle -= 360
    return angle


def test_azimuths_follow_the_times_of_the_photos(tmp_path):
    entries, rejected = _list(Epfl(path=_turntable(tmp_path / "cars")), tmp_path / "out")
    assert not rejected
    assert list(entries) == [
        f"tripod_seq_{sequence:02d}_{photo:03d}.jpg"
        for sequence in (1, 2)
        for photo in range(1, len(TIMES[sequence - 1]) + 1)
    ]
    for sequence in (1, 2):
        for photo in range(1, len(TIMES[sequence - 1]) + 1):
            entry = entries[f"tripod_seq_{sequence:02d}_{photo:03d}.jpg"]
            assert entry.azimuth_deg == pytest.approx(_literal_azimuth(sequence, photo), abs=6e-4)
            assert entry.box is None and entry.viewpoint is None
    assert entries["tripod_seq_01_002.jpg"].azimuth_deg == 0
    assert entries["tripod_seq_02_003.jpg"].azimuth_deg == 0
    # 360 / 8 degrees a second: forward in the first sequence, backward in the second.
    assert entries["tripod_seq_01_003.jpg"].azimuth_deg == 90
    assert entries["tripod_seq_02_004.jpg"].azimuth_deg == 315
    assert entries["tripod_seq_02_001.jpg"].azimuth_deg == 135


def test_azimuths_wrap_around():
    seconds = np.cumsum(np.random.default_rng(0).uniform(0.5, 3, 40))
    for sense in (1, -1):
        found = np.array(epfl.turntable_azimuths(seconds, 20, 7, sense))
        assert ((found >= 0) & (found < 360)).all() and found[6] == 0
        period = seconds[19] - seconds[0]
        steps = sense * np.diff(found) % 360
        np.testing.assert_allclose(steps, np.diff(seconds) / period * 360, atol=1e-9)
    # One period later the car stands as before.
    later = epfl.turntable_azimuths(np.array([0.0, 1, 2, 4, 5, 6]), 4, 1, 1)
    assert later == pytest.approx([0, 90, 180, 0, 90, 180])


@pytest.mark.parametrize("seconds, sense", [([3.0, 2.0], 1), ([1.0, 1.0], 1), ([1.0, 2.0], 0)])
def test_a_rotation_without_duration_or_sense_is_refused(seconds, sense):
    with pytest.raises(ValueError, match="a rotation of"):
        epfl.turntable_azimuths(np.array(seconds), 2, 1, sense)


def test_boxes_of_the_turntable_are_corner_and_size(tmp_path):
    root = _turntable(tmp_path / "cars")
    (root / "bbox_02.txt").write_text("1 2 30 20\n50 30 30 20\n70 5 9 9\n-10 1 5 9\n1 1 5 5\n")
    entries, rejected = _list(Epfl(path=root, boxes=True), tmp_path / "out")
    assert entries["tripod_seq_01_004.jpg"].box == (4, 8, 34, 28)
    assert entries["tripod_seq_02_002.jpg"].box == (50, 30, 60, 40)
    assert rejected == {
        f"tripod_seq_02_{photo:03d}.jpg": "has no usable box, and source.boxes is on"
        for photo in (3, 4)
    }
    entries, rejected = _list(Epfl(path=root), tmp_path / "all")
    assert len(entries) == 11 and not rejected


def test_a_photo_that_is_listed_but_not_there_is_rejected_and_moves_no_other(tmp_path):
    root = _turntable(tmp_path / "cars")
    (root / "tripod_seq_01_003.jpg").unlink()
    (root / "tripod_seq_02_001.jpg").write_bytes(b"")
    entries, rejected = _list(Epfl(path=root), tmp_path / "out")
    assert rejected == {
        "tripod_seq_01_003.jpg": "listed in tripod-seq.txt but not there",
        "tripod_seq_02_001.jpg": "empty file",
    }
    assert len(entries) == 9
    expected = pytest.approx(_literal_azimuth(1, 4), abs=6e-4)
    assert entries["tripod_seq_01_004.jpg"].azimuth_deg == expected


def test_the_folder_above_tripod_seq_will_do(tmp_path):
    root = _turntable(tmp_path / "cars/tripod-seq")
    check_source(Epfl(path=tmp_path / "cars"))
    assert epfl.check(Epfl(path=tmp_path / "cars")) == epfl.check(Epfl(path=root)) == root
    assert len(_list(Epfl(path=tmp_path / "cars"), tmp_path / "out")[0]) == 11


def test_a_path_that_is_not_the_turntable_is_one_line_with_the_key_and_the_url(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, reason in (("gone", "no such folder"), ("empty", "has no tripod-seq.txt")):
        message = _refused(lambda name=name: check_source(Epfl(path=tmp_path / name)))
        assert reason in message and epfl.HOME in message and str(tmp_path / name) in message


@pytest.mark.parametrize("name", ["times.txt", "bbox_02.txt"])
def test_a_missing_table_is_named(tmp_path, name):
    root = _turntable(tmp_path / "cars")
    (root / name).unlink()
    with pytest.raises(UserError) as error:
        dataset.main(source=Epfl(path=root), out=tmp_path / "out")
    assert str(error.value) == f"{root / name}: no such file; get it at {epfl.HOME}"


@pytest.mark.parametrize(
    "name, text", [("bbox_02.txt", "1 2 30 20\n"), ("times.txt", "1 2 3 4 5\n1 2 3 4 5\n")]
)
def test_no_photo_is_lost_silently_if_a_table_is_short(tmp_path, name, text):
    root = _turntable(tmp_path / "cars")
    (root / name).write_text(text)
    try:
        entries, rejected = _list(Epfl(path=root), tmp_path / "out")
    except UserError:
        return
    assert len(entries) + len(rejected) == 11


@pytest.mark.parametrize(
    "name, text",
    [
        ("tripod-seq.txt", ""),
        ("tripod-seq.txt", "2 60 40\n6 5\n"),
        ("tripod-seq.txt", "two\n6 5\na_%02d_%03d.jpg\nb_%02d.txt\n5 5\n2 3\n1 -1\n"),
        ("tripod-seq.txt", "2 60 40\n6\na_%02d_%03d.jpg\nbbox_%02d.txt\n5 5\n2 3\n1 -1\n"),
        ("tripod-seq.txt", "2 60 40\n6 5\na.jpg\nbbox_%02d.txt\n5 5\n2 3\n1 -1\n"),
        ("tripod-seq.txt", "2 60 40\n6 5\na_%02d_%03d.jpg\nbbox_%02d.txt\n9 5\n2 3\n1 -1\n"),
        ("tripod-seq.txt", "2 60 40\n6 5\na_%02d_%03d.jpg\nbbox_%02d.txt\n5 5\n2 3\n1 2\n"),
        ("times.txt", "1 2 3 4 5 6\n"),
        ("times.txt", "1 2 3 four 5 6\n1 2 3 4 5\n"),
        ("times.txt", "1 1 1 1 1 1\n1 2 3 4 5\n"),
        ("bbox_01.txt", "1 2 30\n" * 6),
        ("bbox_01.txt", "a b c d\n" * 6),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, name, text):
    root = _turntable(tmp_path / "cars")
    (root / name).write_text(text)
    with pytest.raises(UserError, match="do not fit the data set's format") as error:
        dataset.main(source=Epfl(path=root), out=tmp_path / "out")
    message = str(error.value)
    assert "\n" not in message and str(root) in message and epfl.HOME in message


# What foreground.csv says of a box


def _row(box, found: bool) -> tuple:
    """A row of foreground.csv for an image in which PCA 1 sees two patches, or nothing."""
    scores = np.full((1, 4, 4), -1.0)
    scores[0, 1, 1:3] = 1 if found else -1
    pca = Pca(np.zeros(1), np.ones((1, 1)), np.ones(1), np.ones(1))
    estimator = PoseEstimator({}, ForegroundModel(pca, 0, 1, 0.0), 0.1)
    content = np.array([content_box(*SIZE)])
    batch = TokenBatch(slice(0, 1), scores.reshape(1, 16, 1), np.zeros((1, 1)), content)
    (one,) = estimator.locate(batch, [SIZE], [box])
    return foreground._row(Entry("a.jpg", None, *SIZE, box=box), one, 0.0, "")


def test_the_manifest_s_box_is_taken_whether_or_not_an_object_was_found():
    box = (5.0, 6.0, 50.0, 30.0)
    window = square_window(box, *SIZE, 0.1)
    padded = padded_share(window, *SIZE)
    # Two of 16 patches of a letterbox of 60 x 60, of which 60 x 40 are image.
    share = pytest.approx(2 / 16 * 1.5)
    assert _row(box, True) == ("a.jpg", 1, *box, *window, padded, share, *[""] * 4)
    assert _row(box, False) == ("a.jpg", 1, *box, *window, padded, 0.0, *[""] * 4)
    own = _row(None, True)
    assert own[1] == 1 and own[2:6] != box and own[11] == share
    # All variance is between the two; one part, at the edge of a photo two patches high.
    assert own[12:] == (pytest.approx(1), 1, 1, "")
    assert _row(None, False) == ("a.jpg", 0, *[""] * 13, "no object was found")


def test_an_interrupt_of_a_rendering_is_silent_in_its_processes(tmp_path):
    command = [sys.executable, "-m", "mirage_steps.dataset", "--out", str(tmp_path)]
    command += ["procedural", "--images", "4000", "--size", "32"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("images/*.png")):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in printed
