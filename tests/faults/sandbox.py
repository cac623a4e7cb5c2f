"""Runs steps of the miniature pipeline under faults, and judges what came of it.

A step runs in a fork of a process that has imported everything: torch's import would take longer
than most steps. The fork ends as a process of its own would, with all handlers at exit.
"""

import contextlib
import importlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from workflow import Project  # noqa: E402

RUN = Path("results/mini")
CORES = ("--cores", "2", "--max-threads", "1")  # sums depend on the number of threads
SECONDS = 180  # after which a step hangs
MEMORY_MB = 3000  # more than any step of the miniature may take
# What may differ between two equal runs: records of time and machine.
_VOLATILE = re.compile(
    r"\.run\.json$|/logs/|/benchmarks/|/checkpoints/|novel_views/.*\.json$|\.snakemake_timestamp$"
)
_PARTIAL = re.compile(r"\.partial")


@dataclass(frozen=True)
class Command:
    """A step of the miniature with its arguments, relative to the project's folder."""

    module: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.module.removeprefix("mirage_steps.")

    @property
    def out(self) -> Path:
        return Path(self.arguments[self.arguments.index("--out") + 1])

    @property
    def record(self) -> Path:
        """The record of the step; that of novel views has the photo's name."""
        name = self.name
        if "--name" in self.arguments:
            name = self.arguments[self.arguments.index("--name") + 1]
        return self.out / f"{name}.run.json"

    @property
    def inputs(self) -> list[Path]:
        """Files that earlier steps made."""
        return [Path(word) for word in self.arguments if word.startswith(f"{RUN}/") and "." in word]


@dataclass
class Result:
    """What a process left: exit code (negative: a signal), output, seconds, memory."""

    code: int
    text: str
    seconds: float
    memory_mb: int


def make_golden(folder: Path) -> None:
    """Run the miniature once, keep all intermediates, and store the commands of its steps."""
    if (folder / "commands.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    project = Project(folder)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = project.start("--notemp", "--", str(RUN / "overview.txt"), env=env)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    listing = project.run("-n", "-p", "--forceall", "--", str(RUN / "overview.txt"))
    found = re.findall(r"python -m (mirage_steps\.[\w.]+) (.*) 2>&1 \|", listing)
    (folder / "commands.json").write_text(json.dumps([[m, shlex.split(w)] for m, w in found]))


def read_commands(golden: Path) -> list[Command]:
    """The commands of all steps, in the order of the pipeline."""
    stored = json.loads((golden / "commands.json").read_text())
    return [Command(module, tuple(words)) for module, words in stored]


@dataclass
class Sandbox:
    """A copy of the finished miniature in which one fault happens.

    Args:
        golden: the finished project.
        folder: of the copy; deleted first.
    """

    golden: Path
    folder: Path
    before: dict[str, bytes | int] = field(default_factory=dict)

    def __post_init__(self):
        remove(self.folder)
        project = Project(self.folder)
        for path in sorted((self.golden / RUN).rglob("*")):
            place = project.folder / path.relative_to(self.golden)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif "/checkpoints/" not in str(path) and path.stat().st_size < 2**20:
                shutil.copy2(path, place)
            elif "/checkpoints/" not in str(path):
                os.link(path, place)  # writers replace files, they do not change them

    def own(self, path: Path) -> Path:
        """A file of the copy that may be changed without changing the finished project."""
        place = self.folder / path
        content = place.read_bytes()
        place.unlink()
        place.write_bytes(content)
        return place

    def clear(self, command: Command) -> None:
        """Delete the outputs of a step, as before its first run."""
        for path in self.outputs(command):
            (self.folder / path).unlink()

    def outputs(self, command: Command) -> list[Path]:
        """Files of the finished project that a step made, but for records."""
        names = json.loads((self.golden / command.record).read_text())["outputs"]
        found = [command.out / name for name in names]
        return [path for path in found if not _VOLATILE.search(str(path))]

    def start(
        self,
        command: Command,
        *,
        limits: dict[int, int] | None = None,
        patch: Callable[[], None] = lambda: None,
    ) -> tuple[int, int, float]:
        """A step in a fork: its process, the pipe of what it prints, and when it began."""
        output, target = os.pipe()
        sys.stdout.flush()
        process = os.fork()
        if process:
            os.close(target)
            os.set_blocking(output, False)
            return process, output, time.monotonic()
        # As under python -m, until a step's imports end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        os.chdir(self.folder)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        sys.argv = [command.module, *command.arguments]
        raise Fork(command, limits or {}, patch)  # unwinds the stack of the campaign

    def wait(self, started: tuple[int, int, float], seconds: float = SECONDS) -> Result:
        """The end of a started step; killed where it takes too long."""
        process, output, since = started
        printed = b""
        while True:
            printed += read(output)
            ended, status, usage = os.wait4(process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() - since > seconds:
                os.killpg(process, signal.SIGKILL)
                _, status, usage = os.wait4(process, 0)
                break
            time.sleep(0.01)
        took = time.monotonic() - since
        text = (printed + read(output)).decode(errors="replace").replace("\r", "\n")
        os.close(output)
        code = os.waitstatus_to_exitcode(status)
        return Result(code, text, took, usage.ru_maxrss // 1024)

    def run(self, command: Command, **options) -> Result:
        """A step from start to end."""
        return self.wait(self.start(command, **options))

    def judge(self, command: Command, result: Result, refusable: bool = True) -> str:
        """``same``, ``refused``, or what must not be.

        Args:
            command: that was run.
            result: of it.
            refusable: whether one line and exit code 1 is a right answer.
        """
        if wrong := misbehavior(result):
            return wrong
        changed = [str(path) for path in self.outputs(command) if not self.is_golden(path)]
        if left := [str(p) for p in self.folder.rglob("*") if _PARTIAL.search(p.name)]:
            return f"FORBIDDEN left over: {left[0]}"
        if result.code == 0:
            return f"FORBIDDEN wrong result: {changed[0]}" if changed else "same"
        if half := [path for path in changed if (self.folder / path).exists()]:
            return f"FORBIDDEN half-written: {half[0]}"
        return "refused" if refusable else f"FORBIDDEN refused: {last_line(result.text)}"

    def whole(self, command: Command) -> str:
        """After a kill: empty where every output is absent or whole."""
        paths = self.outputs(command)
        half = [p for p in paths if (self.folder / p).exists() and not self.is_golden(p)]
        return f"FORBIDDEN half-written: {half[0]}" if half else ""

    def lost(self, command: Command) -> str:
        """After a failure: empty where every output that was there is there."""
        gone = [path for path in self.outputs(command) if not (self.folder / path).exists()]
        return f"FORBIDDEN lost: {gone[0]}" if gone else ""

    def is_golden(self, path: Path) -> bool:
        """Whether a file is as in the finished project."""
        here, there = self.folder / path, self.golden / path
        if not here.exists():
            return False
        return here.samefile(there) or here.read_bytes() == there.read_bytes()


class Fork(BaseException):
    """Leaves the campaign's stack in the forked process; carries what it has to run."""

    def run(self) -> None:
        """Run the step and end the process as ``python -m`` would."""
        command, limits, patch = self.args
        for number, limit in limits.items():
            resource.setrlimit(number, (limit, resource.RLIM_INFINITY))
        patch()
        from mirage_steps.files.command import run

        step = importlib.import_module(command.module)
        run(step.main, getattr(step, "of_the_run", None))  # as below its `if __name__`
        sys.exit(0)


def read(pipe: int) -> bytes:
    """What a pipe holds now."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, 65536):
            found += part
    return found


def preload(commands: list[Command]) -> None:
    """Import every step, so that forks need not."""
    import torch

    torch.set_num_threads(1)
    for module in sorted({command.module for command in commands}):
        importlib.import_module(module)


def misbehavior(result: Result) -> str:
    """What no fault may lead to, empty where all is well."""
    if "Traceback (most recent call last)" in result.text or "Fatal Python" in result.text:
        return f"FORBIDDEN traceback: {result.text[-1500:]}"
    if result.code not in (0, 1, 75, 130, 143):
        return f"FORBIDDEN exit code {result.code}: {last_line(result.text)}"
    if result.seconds > SECONDS:
        return f"FORBIDDEN hang: {last_line(result.text)}"
    if result.memory_mb > MEMORY_MB:
        return f"FORBIDDEN memory: {result.memory_mb} MB"
    errors = [line for line in result.text.splitlines() if line.startswith("error: ")]
    if result.code == 1 and len(errors) != 1:
        return f"FORBIDDEN {len(errors)} error lines: {last_line(result.text)}"
    return ""


def last_line(text: str) -> str:
    """What a process said last."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing printed"


def remove(folder: Path) -> None:
    """Delete a folder, also with files that may not be read."""
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
        shutil.rmtree(folder)


def run_process(words: list[str], folder: Path, seconds: float = SECONDS, **env: str) -> Result:
    """A command that is no step, such as snakemake."""
    started = time.monotonic()
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **env}
    process = subprocess.Popen(
        words, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    text = output.decode(errors="replace").replace("\r", "\n")
    return Result(process.returncode, text, time.monotonic() - started, 0)
