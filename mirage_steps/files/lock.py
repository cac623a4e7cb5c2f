"""A lock with a heartbeat: one process at a time per folder, on one machine or several.

Locks of the operating system do not work on all network file systems. This one is a file that its
owner touches every few seconds. A second process that sees it touched exits; if it stays untouched
for long, the process takes it over. An owner that lost it, such as after a suspend, stops before it
writes. Clocks of different machines are never compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.process import died_here, machine
from mirage_steps.files.records import read_json
from mirage_steps.files.terminal import log

BEAT = 10.0  # s
STALE = 60.0  # s without a beat


class Lock:
    """Context in which no other process works in a folder.

    Args:
        folder: gets ``lock.json`` while the lock is held.
        work: of the owner, for the message to a second process.
        beat: seconds between two beats.
        stale: seconds without a beat after which the owner counts as dead.
    """

    def __init__(self, folder: Path, work: str, beat: float = BEAT, stale: float = STALE):
        self.path, self.work, self.beat, self.stale = folder / "lock.json", work, beat, stale
        about = {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine()}
        self.owner = {"id": uuid.uuid4().hex, **about}
        self._released = threading.Event()

    def __enter__(self) -> "Lock":
        """Take the lock; waits where its owner seems dead, until that is sure.

        Raises:
            UserError: another process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create() and not self._take_over():
            pass
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def require(self) -> None:
        """Raise a UserError where the lock is lost; to be called before writing."""
        if self._is_lost():
            raise UserError(
                f"{self.path}: taken over by {_name(read_json(self.path))} or deleted, since this "
                f"process slept for more than {self.stale:.0f} s; run again after the other ends"
            )

    def _is_lost(self) -> bool:
        """Whether the file is gone or another's; a failed read says neither."""
        try:
            return json.loads(self.path.read_text()).get("id") != self.owner["id"]
        except FileNotFoundError:
            return True
        except (OSError, ValueError):
            return False

    def _is_ours(self) -> bool:
        return read_json(self.path).get("id") == self.owner["id"]

    def _create(self) -> bool:
        with contextlib.suppress(FileExistsError), open(self.path, "x") as file:
            json.dump(self.owner, file)
            return True
        return False

    def _take_over(self) -> bool:
        """Wait until the owner is certainly dead, then replace its file; the last one wins.

        Raises:
            UserError: the owner beats.
        """
        log.info("%s: waiting for a heartbeat of %s", self.path, _name(read_json(self.path)))
        started = time.monotonic()
        try:
            first = self.path.stat().st_mtime_ns
            while self.path.stat().st_mtime_ns == first:
                owner = read_json(self.path)
                died = died_here(owner.get("machine"), owner.get("pid"))
                if died or time.monotonic() - started > self.stale:
                    break
                time.sleep(min(self.beat, 1.0) / 2)
            else:
                reason = f"another process is {self.work} here ({_name(read_json(self.path))})"
                raise UserError(f"{self.path}: {reason}; wait for it or stop it")
        except FileNotFoundError:
            return False
        log.warning("%s: taken over from %s, which has ended", self.path, _name(owner))
        temporary = self.path.with_name(f".{self.owner['id']}")
        temporary.write_text(json.dumps(self.owner))
        temporary.replace(self.path)
        time.sleep(min(self.beat, 1.0))
        return self._is_ours()

    def _keep_beating(self) -> None:
        while not self._released.wait(self.beat):
            with contextlib.suppress(OSError):  # a full or vanished disk shows in the work itself
                if self._is_ours():
                    os.utime(self.path)


def _name(owner: dict) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown machine')}"
