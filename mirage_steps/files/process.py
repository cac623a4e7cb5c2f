"""How a command's process begins; which one left a file behind, and whether it still runs."""

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


def prepare_command() -> None:
    """Open standard streams that are closed, and let Ctrl-C end the imports in silence.

    To be called before the other imports: a file that they open must not become standard output,
    and OpenMP reads its settings once.
    """
    # Threads wait for each other in every layer, by default for milliseconds in a busy loop, which
    # takes the CPU from those that are waited for wherever other processes run, too.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free descriptor is the stream's
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_imports() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def pool_of(workers: int) -> Iterator["ProcessPoolExecutor"]:
    """A pool of processes; Ctrl-C is left to this one, or each of them would print a traceback.

    They are spawned: threads of this process may hold locks that a fork would wait for forever.
    """
    from concurrent.futures import ProcessPoolExecutor  # half of the package's import time
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in range(workers):  # each starts a worker, which inherits what is ignored
            pool.submit(int)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def machine() -> str:
    """This machine since its boot, or the container: where a process number means one process.

    Empty where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def died_here(where: str | None, pid: int | str | None) -> bool:
    """Whether a process was one of this machine and is gone.

    Args:
        where: its :func:`machine`.
        pid: its number.
    """
    if not where or where != machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, TypeError, OverflowError):  # of another user, or no number
        return False
    return False
