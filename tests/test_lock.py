"""The lock with a heartbeat: one owner at a time, dead ones are replaced."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mirage_steps.errors import UserError
from mirage_steps.files.lock import Lock

ROOT = Path(__file__).parents[1]
QUICK = {"beat": 0.05, "stale": 0.6}


def test_the_file_is_there_while_the_lock_is_held(tmp_path):
    with Lock(tmp_path, "training", **QUICK) as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_second_owner_is_refused_while_the_first_beats(tmp_path):
    with Lock(tmp_path, "training", **QUICK) as first:
        with pytest.raises(UserError, match=rf"training here \(process {os.getpid()} on .*wait"):
            Lock(tmp_path, "training", **QUICK).__enter__()
        first.require()
    with Lock(tmp_path, "training", **QUICK):
        pass


def _left_behind(folder: Path, **owner) -> Path:
    path = folder / "lock.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": "other", **owner}))
    return path


@pytest.mark.parametrize("age", [-3600, 0, 3600])
def test_a_lock_of_another_machine_without_beats_is_taken_over(tmp_path, age):
    """Whatever time the clocks show."""
    path = _left_behind(tmp_path)
    os.utime(path, (time.time() - age, time.time() - age))
    began = time.monotonic()
    with Lock(tmp_path, "training", **QUICK) as lock:
        lock.require()
    assert time.monotonic() - began > QUICK["stale"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"id": 3}'])
def test_a_damaged_lock_is_taken_over_too(tmp_path, content):
    _left_behind(tmp_path).write_text(content)
    with Lock(tmp_path, "training", **QUICK) as lock:
        lock.require()


def test_a_lock_that_goes_while_it_is_watched_is_taken_at_once(tmp_path):
    path = _left_behind(tmp_path)
    threading.Timer(0.3, path.unlink).start()
    with Lock(tmp_path, "training", beat=0.05, stale=30) as lock:
        lock.require()


def test_an_owner_whose_file_was_deleted_stops(tmp_path):
    with Lock(tmp_path, "training", **QUICK) as lock:
        lock.path.unlink()
        with pytest.raises(UserError, match="or deleted"):
            lock.require()
        time.sleep(3 * QUICK["beat"])
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_read_for_a_moment_is_not_lost(tmp_path, monkeypatch):
    def stale(*_: object, **__: object) -> str:
        raise OSError(116, "Stale file handle")

    with Lock(tmp_path, "training", **QUICK) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", stale)
            lock.require()
        lock.require()


def test_a_killed_owner_of_this_machine_is_replaced_at_once(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mirage_steps.files.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1]), 'training').__enter__()\nprint('held', flush=True)\n"
        "time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert owner.stdout.readline() == "held\n"
    owner.kill()
    owner.wait()
    began = time.monotonic()
    with Lock(tmp_path, "training") as lock:  # with the long times of real work
        lock.require()
    assert time.monotonic() - began < 5


def test_an_owner_that_slept_too_long_stops(tmp_path):
    with Lock(tmp_path, "training", beat=30, stale=60) as sleeper:
        with Lock(tmp_path, "training", **QUICK) as other:
            with pytest.raises(UserError, match=r"taken over by process \d+ on"):
                sleeper.require()
            other.require()
        with pytest.raises(UserError, match="taken over"):
            sleeper.require()


def test_an_owner_that_wakes_up_does_not_keep_its_successor_s_lock_alive(tmp_path):
    with Lock(tmp_path, "training", beat=0.8, stale=60) as sleeper:
        path = _left_behind(tmp_path)
        then = path.stat().st_mtime_ns
        time.sleep(1.2)
        assert path.stat().st_mtime_ns == then
        with pytest.raises(UserError, match="taken over"):
            sleeper.require()
    assert path.exists()


def test_of_many_at_a_stale_lock_one_wins(tmp_path):
    _left_behind(tmp_path)
    held, refused, start = [], [], threading.Barrier(6)

    def contend() -> None:
        start.wait()
        try:
            with Lock(tmp_path, "training", beat=0.3, stale=2.0) as lock:
                held.append(lock)
                time.sleep(1.5)
                lock.require()
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 5, refused
