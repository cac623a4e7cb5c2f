"""A lock with a heartbeat: one process at a time works in a folder, on one machine or on many.

Locks of the operating system do not reach over all network file systems, and outlive nothing. This
one is a file that its owner touches every few seconds. Whoever finds it untouched for some time
takes it over; whoever finds that it was taken over stops.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from mirage_steps.errors import UserError
from mirage_steps.files.command import log

BEAT = 10.0  # s
STALE = 60.0  # s without a beat


class Lock:
    """Keeps two processes out of one folder while one of them beats.

    Ages are differences of modification times, both given by the file system that holds the file,
    so that the clocks of the machines need not agree.

    Args:
        folder: gets ``lock.json`` while the lock is held.
        beat: seconds between two beats.
        stale: seconds without a beat after which the owner counts as dead.
        what: the owner's work, for the message to a second one.
    """

    def __init__(self, folder: Path, what: str, beat: float = BEAT, stale: float = STALE):
        self.path, self.what, self.beat, self.stale = folder / "lock.json", what, beat, stale
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self.owner["machine"] = _machine()
        self._ended = threading.Event()
        self._lost, self._last = False, 0.0
        self._thread = threading.Thread(target=self._beats, daemon=True)

    def __enter__(self) -> "Lock":
        """Take the lock; waits where its owner seems dead, until that is sure.

        Raises:
            UserError: another process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._await_death()
            if self._take_over():
                break
        self._last = _clock()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def require(self) -> None:
        """Raise a UserError where another process took the lock over, as after a long pause."""
        if self._lost or self._is_another_s():
            self._lost = True
            raise UserError(
                f"{self.path}: taken over by another process ({_told(self._read())}), since this "
                f"one did not beat for {self.stale:.0f} s; leaving it all to that"
            )

    def _create(self) -> bool:
        """Make the file if there is none."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with open(handle, "w") as file:
            json.dump(self.owner, file)
        return True

    def _await_death(self) -> None:
        """Return once the owner is surely dead, or the file is gone.

        Raises:
            UserError: the owner beats.
        """
        first, told = self._touched(), False
        while (touched := self._touched()) is not None:
            owner = self._read()
            age = self._now() - touched
            if age > self.stale or _died_here(owner):
                log.warning("%s: its owner is dead (%s); taking it over", self.path, _told(owner))
                return
            if touched != first:
                raise UserError(
                    f"{self.path}: another process is {self.what} here ({_told(owner)}); wait for "
                    "it or stop it"
                )
            if not told:
                log.info("%s: waiting for a beat of %s", self.path, _told(owner))
                told = True
            time.sleep(min(self.beat, 1.0) / 2)

    def _take_over(self) -> bool:
        """Put our name into a dead owner's file; of several who do so at once the last one wins."""
        temporary = self.path.with_name(f".{self.owner['id']}")
        temporary.write_text(json.dumps(self.owner))
        os.replace(temporary, self.path)
        time.sleep(min(self.beat, 1.0))
        return self._is_ours()

    def _beats(self) -> None:
        while not self._ended.wait(self.beat):
            if self._is_another_s():
                self._lost = True
                return
            # A full or vanished disk shows in the work itself.
            with contextlib.suppress(OSError):
                if not self._create():
                    os.utime(self.path)
                self._last = _clock()

    def _is_ours(self) -> bool:
        return self._read().get("id") == self.owner["id"]

    def _is_another_s(self) -> bool:
        """Not where the file is gone or cannot be read for a moment; after a long one it is."""
        if not self.path.exists() and _clock() - self._last > self.stale:
            return True  # taken over, and given back since
        return self._read().get("id", self.owner["id"]) != self.owner["id"]

    def _read(self) -> dict:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _touched(self) -> float | None:
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        """The time, as the file system has it."""
        probe = self.path.with_name(f".{self.owner['id']}")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """What tells machines and containers apart whose processes have numbers of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _died_here(owner: dict) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    if not owner.get("machine") or owner["machine"] != _machine():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError, KeyError, TypeError):
        return False
    return False


def _told(owner: dict) -> str:
    """An owner in words."""
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown machine')}"
