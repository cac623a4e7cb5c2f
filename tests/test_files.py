"""Files that are whole or absent, tables, HDF5, and reading ahead."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files import atomic as files
from mirage_steps.files import tiles
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.h5 import by_image, create_h5, open_h5, read_names, slices, write_names
from mirage_steps.files.loading import ahead, image_batches
from mirage_steps.files.manifest import Entry
from mirage_steps.files.process import machine
from mirage_steps.files.tensors import read_tensors, write_tensors
from mirage_steps.method.unet import build, preset
from mirage_steps.networks.diffusion_model import load_model, save_model

ROOT = Path(__file__).parents[1]

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


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic(path) as first:
        first.write_text("first")
        with files.atomic(path) as second:
            second.write_text("second")
            assert first.read_text() == "first"
        assert path.read_text() == "second"
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_what_killed_writers_left_is_removed_what_others_write_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = {
        f"{machine()}-{dead.pid}": 0,  # killed here
        f"{machine()}-{os.getpid()}": 0,  # works here
        f"other-{dead.pid}": 0,  # works on another machine, or was killed
        f"another-{dead.pid}": 30 * 24 * 3600,  # that one was killed long ago
    }
    for name, age in left.items():
        folder = tmp_path / f".partial-{name}-1"
        folder.mkdir()
        for path in (folder / "a.txt", folder):
            path.touch()
            os.utime(path, (time.time() - age,) * 2)
    files.write_json(tmp_path / "b.json", {})
    there = [path.name for path in tmp_path.iterdir() if path.name != "b.json"]
    assert sorted(there) == sorted(f".partial-{name}-1" for name in list(left)[1:3])


@contextlib.contextmanager
def _files_of_at_most(size: int):
    """A limit of the system, which ends writing in the middle as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _write_h5(path):
    with create_h5(path) as out:
        by_image(out, "images", 200, (16, 16, 3), np.uint8)
        for rows in slices(200, 8):
            out["images"][rows] = 7
        write_names(out, [str(number) for number in range(200)])


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
WRITERS = {
    "a.csv": lambda path: files.write_csv(path, ("a",), ((n,) for n in range(5000))),
    "a.json": lambda path: files.write_json(path, list(range(5000))),
    "a.png": lambda path: tiles.save_image(path, NOISE),
    "a.gif": lambda path: tiles.turntable(path, NOISE[None, None].repeat(3, 1)),
    "a.safetensors": lambda path: write_tensors(path, {"a": np.zeros(5000)}),
    "a.h5": _write_h5,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_with_path_and_need_and_leaves_nothing(tmp_path, name):
    path = tmp_path / name
    for size in (0, 50, 3000, 7000):
        with _files_of_at_most(size), pytest.raises(OSError) as error:
            WRITERS[name](path)
        assert (error.value.filename, error.value.errno) == (str(path), errno.EFBIG)
        assert "needs more than" in error.value.strerror and "\n" not in error.value.strerror
        assert list(tmp_path.iterdir()) == []
    WRITERS[name](path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    os.umask(now := os.umask(0))
    return now


def test_a_full_disk_ends_the_writing_of_hdf5_soon(tmp_path):
    """The process must live on, and close the file: HDF5 used to end it at its exit."""
    done = 0
    with _files_of_at_most(100_000), pytest.raises(OSError), create_h5(tmp_path / "a.h5") as out:
        by_image(out, "images", 10_000, (64, 64, 3), np.uint8)
        for done in range(10_000):
            out["images"][done] = done % 256
    assert done < 1000 and list(tmp_path.iterdir()) == []
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)\n"
        "from test_files import Path, _write_h5; _write_h5(Path('b.h5'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    )
    assert ended.returncode == 1 and b"needs more than" in ended.stderr.splitlines()[-1]


@contextlib.contextmanager
def _nobody():
    """Without the rights of root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


READERS = {
    "a.csv": files.read_csv,
    "a.h5": lambda path: open_h5(path).__enter__(),
    "a.safetensors": read_tensors,
    "model.safetensors": lambda path: load_model(path.parent, torch.device("cpu")),
    "pose_estimator.safetensors": load_estimator,
}


@pytest.mark.parametrize("name", READERS)
def test_what_may_not_be_read_is_neither_missing_nor_damaged(tmp_path, name):
    if name == "model.safetensors":
        model = build(preset("small", 32, 4, 0.0), 0)
        save_model(tmp_path, model, {"seed": 0})
    else:
        _write_h5(tmp_path / name)
    (tmp_path / name).chmod(0)
    temporary = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if temporary in folder.parents:
            folder.chmod(0o755)
    with _nobody(), pytest.raises(PermissionError) as error:
        READERS[name](tmp_path / name)
    assert (error.value.filename, error.value.strerror) in (
        (str(tmp_path / name), "Permission denied"),
        (tmp_path / name, "Permission denied"),
    )


def test_a_damaged_byte_in_tensors_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(20.0), "b": np.ones((2, 3), np.float32)}, '{"c": 1}')
    arrays, about = read_tensors(path)
    assert about == '{"c": 1}' and arrays["b"].shape == (2, 3)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found, text = read_tensors(path)
        except ValueError:
            continue
        assert text == about and found.keys() == arrays.keys(), place
        assert all((found[name] == arrays[name]).all() for name in arrays), place


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


def test_a_damaged_byte_in_hdf5_is_one_line(tmp_path):
    path = tmp_path / "a.h5"

    def read() -> list:
        with open_h5(path, "images", "image") as file:
            values = [file[name][:].tobytes() for name in ("images", "pose")]
            return [*values, read_names(file), dict(file.attrs)]

    with create_h5(path) as out:
        out.attrs.update(sam="vit_h", empty="", columns=3)
        by_image(out, "images", 20, (4, 4, 3), np.uint8)
        out["images"][:] = np.arange(20)[:, None, None, None]
        out["pose"] = np.arange(20)
        write_names(out, [f"{number} Tür.png" for number in range(20)])
    good, whole = read(), path.read_bytes()
    assert good[3] == {"sam": "vit_h", "empty": "", "columns": 3}
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            assert read() == good, place
        except UserError as error:
            assert str(error).startswith(f"{path}: not a readable HDF5 file ("), place
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a readable HDF5 file"):
            read()


def test_reading_needs_no_lock(tmp_path):
    """Some disks have none, and a program that reads the file may hold one."""
    _write_h5(tmp_path / "a.h5")
    with open(tmp_path / "a.h5") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with open_h5(tmp_path / "a.h5", "images") as file:
            assert (file["images"][3] == 7).all()


def test_a_file_that_a_program_writes_is_not_to_be_deleted(tmp_path):
    _write_h5(tmp_path / "a.h5")
    code = "import h5py, os; file = h5py.File('a.h5', 'r+'); file.flush(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="another program has it open") as error:
        with open_h5(tmp_path / "a.h5"):
            pass
    assert "delete" not in str(error.value)


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
    with pytest.raises(UserError, match=r"2\.png: was .* --forcerun dataset") as error:
        list(image_batches([(entry, None) for entry in entries], _prepared, 2))
    assert "\n" not in str(error.value)
