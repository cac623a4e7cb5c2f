"""Files that are whole or absent, tables, HDF5, and reading ahead."""

import json
import shutil
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files import atomic as files
from mirage_steps.files.h5 import by_image, create_h5, open_h5, read_names, slices, write_names
from mirage_steps.files.loading import ahead, image_batches
from mirage_steps.files.manifest import Entry

# Whole or absent


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    with files.atomic(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent != path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [child.name for child in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_behind_and_the_old_file_in_place(tmp_path, error):
    path = tmp_path / "a.txt"
    for old in (None, "old"):
        if old:
            path.write_text(old)
        with pytest.raises(error), files.atomic(path) as temporary:
            temporary.write_text("half")
            raise error
        assert [child.name for child in tmp_path.iterdir()] == (["a.txt"] if old else [])
    assert path.read_text() == "old"


def test_a_block_that_writes_nothing_fails_and_keeps_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_is_utf_8_and_whole(tmp_path):
    path = tmp_path / "a.json"
    content = {"name": "Tür 椅子", "values": [1, 2.5, None]}
    files.write_json(path, content)
    assert json.loads(path.read_bytes().decode("utf-8")) == content
    with pytest.raises(TypeError):
        files.write_json(path, {"path": object()})
    assert json.loads(path.read_bytes()) == content
    # A file name that is no UTF-8, as Python holds it.
    files.write_json(path, {"path": "\udcff.png"})
    assert json.loads(path.read_bytes()) == {"path": "\udcff.png"}


# Tables


def test_tables_keep_any_text(tmp_path):
    path = tmp_path / "a.csv"
    values = ["plain", "a,b", 'say "x"', "two\nlines", "Tür 椅子", " spaces ", ""]
    files.write_csv(path, ("image", "number"), ((value, 1) for value in values))
    assert files.read_csv(path) == [{"image": value, "number": "1"} for value in values]


def test_a_failing_row_leaves_the_old_table(tmp_path):
    path = tmp_path / "a.csv"
    files.write_csv(path, ("a",), [(1,)])

    def rows():
        yield (2,)
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        files.write_csv(path, ("a",), rows())
    assert files.read_csv(path) == [{"a": "1"}]
    assert len(list(tmp_path.iterdir())) == 1


def test_tables_of_spreadsheets_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffimage,azimuth_deg\r\na.jpg,12\r\n".encode())
    assert files.read_csv(path) == [{"image": "a.jpg", "azimuth_deg": "12"}]


def test_missing_and_binary_tables_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        files.read_csv(tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(UserError, match=r"b\.csv: not a readable UTF-8 CSV"):
        files.read_csv(tmp_path / "b.csv")


# Room on the disk


def test_too_little_room_is_refused_with_both_sizes(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_500_000))
    files.require_disk(tmp_path / "new", 1_500_000, "tokens.h5")
    with pytest.raises(UserError, match=r"tokens\.h5 needs 2\.0 GB, only 1\.5 MB free"):
        files.require_disk(tmp_path / "new", 2_000_000_000, "tokens.h5")


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_540_000, "1.5 MB"), (3e15, "3000.0 TB")],
)
def test_sizes_are_written_as_people_read_them(size, text):
    assert files.human_size(size) == text


# HDF5


def test_an_hdf5_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(RuntimeError), create_h5(path) as out:
        by_image(out, "images", 3, (2, 2, 3), np.uint8)
        raise RuntimeError("stopped")
    assert not list(tmp_path.iterdir())
    with create_h5(path) as out:
        by_image(out, "images", 3, (2, 2, 3), np.uint8)
        out["images"][1] = 7
        write_names(out, ["a", "Tür 椅子", "c,d\n"])
    with open_h5(path, "images", "image") as file:
        assert file["images"].chunks == (1, 2, 2, 3) and file["images"].dtype == np.uint8
        assert (file["images"][1] == 7).all() and not file["images"][0].any()
        assert read_names(file) == ["a", "Tür 椅子", "c,d\n"]


def test_hdf5_faults_are_one_line_with_the_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.h5: no such file"), open_h5(tmp_path / "gone.h5"):
        pass
    (tmp_path / "bad.h5").write_bytes(b"no HDF5 at all")
    with create_h5(tmp_path / "good.h5") as out:
        by_image(out, "images", 40, (16, 16, 3), np.uint8)
        out["images"][:] = 1
    whole = (tmp_path / "good.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    for name in ("bad.h5", "cut.h5"):
        with pytest.raises(UserError, match=rf"{name}: not a readable HDF5") as error:
            with open_h5(tmp_path / name, "images"):
                pass
        assert "\n" not in str(error.value) and "rerun" in str(error.value)
    with pytest.raises(UserError, match=r"good\.h5: has no dataset maps, valid;"):
        with open_h5(tmp_path / "good.h5", "images", "maps", "valid"):
            pass
    with open_h5(tmp_path / "good.h5") as file, pytest.raises((ValueError, OSError, KeyError)):
        file["more"] = 1
    # Closed again, also after an error in the block.
    with pytest.raises(ZeroDivisionError), open_h5(tmp_path / "good.h5"):
        _ = 1 / 0
    h5py.File(tmp_path / "good.h5", "r+").close()


@pytest.mark.parametrize("count, size", [(0, 4), (1, 4), (4, 4), (9, 4), (10, 1)])
def test_slices_cover_everything_once(count, size):
    parts = list(slices(count, size))
    assert [index for part in parts for index in range(count)[part]] == list(range(count))
    assert all(0 < part.stop - part.start <= size for part in parts)


# Reading ahead


def test_results_come_in_order():
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(ahead(work, range(60))) == [item * item for item in range(60)]


def test_only_a_few_items_are_taken_ahead_of_the_consumer(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    done = []
    results = ahead(lambda item: done.append(item) or item, range(200))
    for consumed in range(1, 4):
        next(results)
        # Long enough for idle threads to do whatever was submitted.
        time.sleep(0.05)
        assert consumed <= len(done) <= consumed + 4 * 2
    results.close()
    assert len(done) < 20


def test_an_error_comes_at_its_place():
    def work(item: int) -> int:
        if item == 5:
            raise LookupError("five")
        return item

    results = ahead(work, range(20))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(LookupError, match="five"):
        next(results)


def test_no_items_no_results():
    assert list(ahead(str, [])) == []


def _entries(folder, count: int) -> list[Entry]:
    entries = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (24, 16), (number, 0, 0)).save(path)
        entries.append(Entry(path.name, path, 24, 16))
    return entries


def _prepared(image: Image.Image, window: tuple | None) -> Image.Image:
    return image.resize((3, 2)).point(lambda value: value + (window[0] if window else 0))


def test_batches_are_in_order_and_know_each_image_s_window(tmp_path):
    images = [(entry, (n, 0, 4, 4)) for n, entry in enumerate(_entries(tmp_path, 7))]
    rows, batches = zip(*image_batches(images, _prepared, 3), strict=True)
    assert rows == (slice(0, 3), slice(3, 6), slice(6, 7))
    assert [batch.shape for batch in batches] == [(3, 2, 3, 3), (3, 2, 3, 3), (1, 2, 3, 3)]
    together = np.concatenate(batches)
    assert together.dtype == np.uint8
    # Red is the file's number, and each channel has the window's start added.
    np.testing.assert_array_equal(together[:, 0, 0, 0], 2 * np.arange(7))
    np.testing.assert_array_equal(together[:, 0, 0, 1], np.arange(7))


@pytest.mark.parametrize("fault", ["vanished", "damaged", "larger", "smaller"])
def test_an_image_that_changed_since_the_manifest_is_named(tmp_path, fault):
    entries = _entries(tmp_path, 4)
    path = entries[2].path
    if fault == "vanished":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:40])
    else:
        Image.new("RGB", (25, 25) if fault == "larger" else (16, 24)).save(path)
    with pytest.raises(UserError, match=r"2\.png: was .* rerun the dataset step") as error:
        list(image_batches([(entry, None) for entry in entries], _prepared, 2))
    assert "\n" not in str(error.value)
