"""Checkpoints of a long training: whole or absent, two kept, never those of other settings."""

import zipfile
from pathlib import Path

import torch

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic
from mirage_steps.files.command import log

_KEPT = 2


class Checkpoints:
    """``step-NNNNNNN.pt`` in a folder, the newest two.

    Each holds the state and the fingerprint of what it was made with. The newest that can be read
    counts: a file may be damaged by a disk, while the writing itself replaces nothing before the
    new one is whole.

    Args:
        folder: of the checkpoints.
        fingerprint: settings and inputs as plain values; a state that was made with others is never
            gone on from.
    """

    def __init__(self, folder: Path, fingerprint: dict):
        self.folder, self.fingerprint = folder, fingerprint

    def path(self, done: int) -> Path:
        """File of the state after ``done`` steps."""
        return self.folder / f"step-{done:07d}.pt"

    def save(self, state: dict) -> None:
        """Write a state, then forget all but the newest two.

        Args:
            state: tensors and plain values, ``done`` among them, the number of steps.

        Raises:
            UserError: the disk is full or gone; the checkpoints that there were stay.
        """
        target = self.path(state["done"])
        try:
            # Into an open file: by a path torch does not tell what was wrong.
            with atomic(target) as path, open(path, "wb") as file:
                torch.save({"fingerprint": self.fingerprint, **state}, file)
        except (OSError, RuntimeError) as error:
            # Closing its archive, torch covers what the disk said with an error of its own.
            told = error if isinstance(error, OSError) else error.__context__
            reason = getattr(told, "strerror", None) or str(error).splitlines()[0]
            raise UserError(
                f"{target}: {reason}; the checkpoints before it are kept: make room and run again"
            ) from None
        for old in self._files()[_KEPT:]:
            old.unlink()

    def newest(self, last: int) -> dict | None:
        """The newest state to go on from; None where the training starts anew.

        What was made with other settings or data is put aside as ``previous-step-NNNNNNN.pt``, and
        what changed is logged; what is damaged is put aside as ``damaged.pt``.

        Args:
            last: number of steps beyond which a state is of a longer run than asked for.

        Raises:
            UserError: there are checkpoints, but all of them are damaged.
        """
        files, damaged = self._files(), ""
        for path in files:
            try:
                _require_whole(path)
                state = torch.load(path, map_location="cpu", weights_only=True)
                before = state.pop("fingerprint")
                keys = {*before, *self.fingerprint}
                done = int(state["done"])
            except (OSError, MemoryError):
                raise  # of the machine, not of the file
            except Exception as error:
                # torch.load raises many types on a damaged file; each means the same to the user.
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                damaged = f"{path}: damaged ({reason})"
                if path != files[-1]:
                    log.warning("%s; going on from the one before", damaged)
                continue
            changed = sorted(k for k in keys if before.get(k) != self.fingerprint.get(k))
            if done > last:
                changed.append("iterations")
            if not changed:
                self._put_aside(files[: files.index(path)], "damaged.pt")
                return state
            kept = self.folder / f"previous-{path.name}"  # of a name that a shorter one has not
            self._put_aside([*(other for other in files if other != path), path], kept.name)
            log.warning(
                "starting anew: %s changed; the old is %s (with its settings it goes on, once it "
                "has its name %s again)",
                ", ".join(changed), kept, path.name,
            )  # fmt: skip
            return None
        if damaged:
            raise UserError(f"{damaged}; delete {self.folder}/step-*.pt to start anew")
        return None

    def load(self, done: int) -> dict:
        """The state after ``done`` steps, as :meth:`newest` found it in another process."""
        return torch.load(self.path(done), map_location="cpu", weights_only=True)

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), key=_step, reverse=True)

    def _put_aside(self, files: list[Path], name: str) -> None:
        """Rename the last of some files, and delete the others."""
        for path in files[:-1]:
            path.unlink()
        for path in files[-1:]:
            path.replace(self.folder / name)


def _require_whole(path: Path) -> None:
    """Compare the checksums of the archive, which torch writes and does not read."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"checksum of {broken}")


def _step(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1
