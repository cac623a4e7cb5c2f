"""Steps as commands: log, progress, the reader of the output, folders that cannot be written."""

import errno
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mirage_steps import __version__
from mirage_steps.errors import UserError, printable
from mirage_steps.files import provenance, terminal
from mirage_steps.files.command import run, run_tool
from mirage_steps.method.device import choose_device
from mirage_steps.settings import Guidance, Views

ROOT = Path(__file__).parents[1]
NAMES = ("Tür 椅子.png", "a b.png")


def main(*, out: Path, fail: bool = False) -> None:
    """Write a file.

    Args:
        out: Its folder.
        fail: Fail after the work.
    """
    (out / "made.txt").write_text("made")


def _run(monkeypatch, *words: str, step: Callable = main) -> str:
    """Run the step above; gives its last line."""
    monkeypatch.setattr(sys, "argv", ["step", *words])
    monkeypatch.setattr(terminal.logging, "raiseExceptions", True)
    with pytest.raises(SystemExit) as ended:
        run(step)
    return str(ended.value.code)


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(tmp_path, monkeypatch):
    line = _run(monkeypatch, "--out", "/proc/none")
    assert line.startswith("error: /proc/none: ")
    out, fsync = tmp_path / "out", os.fsync

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert _run(monkeypatch, "--out", str(out)).startswith(f"error: {out}: No space left on device")
    monkeypatch.setattr(os, "fsync", fsync)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_leaves_no_older_one(tmp_path, monkeypatch):
    record = tmp_path / "test_command.run.json"
    record.write_text("{}")

    def full(path: Path, _: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(provenance, "write_json", full)
    line = _run(monkeypatch, "--out", str(tmp_path))
    assert line == f"error: {record}: No space left on device"
    assert not record.exists() and (tmp_path / "made.txt").exists()


# Run by itself with stderr in a file or in a terminal.
WORK = """
import time
from mirage_steps.files.terminal import log, progress, start_log
start_log()
for number in progress(range(6), unit="image"):
    time.sleep(0.3)
    if number == 3:
        log.warning("three")
        log.info("four")
"""


def test_files_get_no_bars_and_warnings_say_so(tmp_path):
    done = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True)
    first, second = done.stderr.splitlines()
    assert first == "warning: three" and second.endswith(" four") and "\r" not in done.stderr


def test_progress_in_files_is_a_line_every_half_minute(monkeypatch, caplog):
    monkeypatch.setattr(terminal, "_LOGGED_EVERY", 0.05)
    caplog.set_level(logging.INFO)
    with terminal.progress(total=3, unit="image", desc="masks") as bar:
        for _ in range(3):
            time.sleep(0.06)
            bar.update()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" image [")[0] for line in lines] == [f"masks: {n}/3" for n in (1, 2, 3)]


def test_lines_in_a_terminal_do_not_run_into_the_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", WORK], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 4096):
            text += part
    except OSError:  # closed by the process
        pass
    os.close(ours)
    assert process.wait() == 0
    lines = text.decode().replace("\r", "\n").split("\n")
    assert any("image/s" in line for line in lines) and "warning: three" in lines


def test_a_reader_that_leaves_ends_a_command_in_silence():
    command = f"set -o pipefail; {sys.executable} -m mirage_steps.tools.status --help | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_stdout_is_named():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mirage_steps.tools.status"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: stdout: No space left on device\n")


def values(
    *,
    out: Path,
    labels: Path | None = None,
    guidance: Guidance = Guidance(),
    views: Views = Views(),
    share: float = 1.0,
    count: int | None = None,
) -> None:
    """Take values."""


@pytest.mark.parametrize(
    "words, told",
    [
        ("--gamma inf", "--gamma inf: must be finite"),
        ("--gamma=-1e30", "--gamma -1e+30: is too small"),
        ("--gamma=-1", "--gamma -1.0: input should be greater than or equal to 0"),
        ("--gamma x", "--gamma: could not convert string to float: 'x'"),
        (f"--seed {10**30}", f"--seed {10**30}: is too large"),
        ("--batch-size 0", "--batch-size 0: input should be greater than or equal to 1"),
        ("--steps 0 --seed=-1", "--steps 0: input should be greater than or equal to 1; --seed -1"),
        ("--precision half", "--precision half: give one of auto, float32, bfloat16"),
        ("--share nan", "--share nan: must be finite"),
        (f"--count {10**30}", f"--count {10**30}: is too large"),
        ("--count x", "--count: no type matching {None}|INT"),
        ("--labels /dev/zero", "--labels /dev/zero: is not a regular file"),
    ],
)
def test_wrong_values_of_flags_are_one_line_with_the_flag(tmp_path, monkeypatch, words, told):
    line = _run(monkeypatch, "--out", str(tmp_path), *words.split(), step=values)
    assert line.startswith(f"error: {told}") and "\n" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path, closed):
    command = f"{sys.executable} -m mirage_steps.weights --help {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    # No file that is opened later becomes standard output.
    code = "import sys; sys.argv[0] = '-m'; import mirage_steps; opened = open(sys.executable); "
    code += "print(opened.fileno(), file=sys.stderr)"
    command = f'{sys.executable} -c "{code}" 0<&- 1>&-'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stderr) > 2


def test_an_interrupt_while_python_imports_ends_in_silence(tmp_path):
    (tmp_path / "tyro.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "mirage_steps.tools.status"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    "given, used",
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_of_a_command_wait_in_no_busy_loop_unless_the_user_says_so(given, used):
    code = "import os, sys; sys.argv[0] = '-m'; import mirage_steps; "
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(used)


# What takes long to import, by modules that start without it.
_SLOW = ("torch", "transformers", "sklearn", "scipy.ndimage", "scipy.spatial", "scipy.stats")


@pytest.mark.parametrize(
    "modules, slow",
    [
        ("mirage_steps", ("numpy", "pydantic", "tyro", "PIL", "scipy", "matplotlib", *_SLOW)),
        ("crops dataset duplicates fid poses pose_eval pose_space real screening", _SLOW),
        ("novel_views photo_sheet views", ("matplotlib", "trimesh", *_SLOW[1:])),
    ],
)
def test_what_is_slow_to_import_waits_until_it_is_needed(modules, slow):
    names = [f"mirage_steps.{one}" for one in modules.split() if one != "mirage_steps"]
    code = f"import sys, mirage_steps, {', '.join(['os', *names])}; "
    code += f"print([one for one in {slow} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_import_of_the_package_changes_no_signals():
    code = (
        "import signal, mirage_steps.files.command; "
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [(name, "not supported; use auto, cpu, cuda or cuda:N")
     for name in ("meta", "mps", "xla", "cpu:0", "cuda:", "cuda:-1", "cuda:1000", "", "cpu\n")]
    + [("cuda:2", "the last CUDA device here is cuda:1")],
)  # fmt: skip
def test_a_device_that_is_not_there_is_one_line(monkeypatch, name, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=f"^--device {re.escape(printable(name))}: {told}$"):
        choose_device(name)
    assert choose_device("cuda:1").index == 1 and choose_device("auto").type == "cuda"


def test_steps_and_tools_tell_the_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step", "--version"])
    run(main)
    run_tool(main)
    assert capsys.readouterr().out == f"mirage-steps {__version__}\n" * 2


def test_messages_are_one_line_whatever_names_are_in_them(monkeypatch, capsys):
    def fail(*, out: Path) -> None:
        terminal.log.warning("a\nb")
        raise UserError("a\r\nb%41\udcff")

    monkeypatch.setattr(sys, "argv", ["step", "--out", "."])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(SystemExit, match=r"^error: a\\r\\nb%41\\udcff$"):
        run(fail)
    assert "warning: a\\nb\n" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--out", ""), ("--out=",), ("--out", "", "--fail")])
def test_an_empty_value_is_not_the_current_folder(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, *words).startswith("error: --out: its value is empty")
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_ascii_work_without_a_locale(tmp_path):
    for name in NAMES:
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "photos" / name)
    (tmp_path / "photos/böse.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "mirage_steps.dataset", "--out", str(tmp_path / "out")]
    command += ["folder", "--path", str(tmp_path / "photos")]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "böse.png: not an image" in done.stderr.decode()
    table = (tmp_path / "out/manifest.csv").read_text(encoding="utf-8")
    assert all(name in table for name in NAMES)


# A library's exit handler, registered after the step began, during which a scheduler sends SIGTERM.
ENDING = """
import atexit, os, signal, sys
from pathlib import Path
from mirage_steps.errors import UserError
from mirage_steps.files.command import run
def main(*, out: Path):
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
    raise UserError("no photos")
run(main)
"""


def test_a_signal_while_a_command_ends_prints_nothing(tmp_path):
    script = tmp_path / "ending.py"
    script.write_text(ENDING)
    command = [sys.executable, str(script), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: no photos\n")
