"""Checkpoints of a long training: atomic, two kept, never resumed with other settings."""

import shutil
import zipfile
from pathlib import Path

import torch

from mirage_steps.errors import UserError, first_line
from mirage_steps.files.atomic import LateErrorFile, atomic
from mirage_steps.files.command import log

_KEPT = 2


class Checkpoints:
    """``step-NNNNNNN.pt`` in a folder, the newest two.

    Each holds the state and the fingerprint of what it was made with. The newest that can be read
    counts: a disk may damage a file, while writing replaces nothing before the new one is whole.

    Args:
        folder: of the checkpoints.
        fingerprint: settings and inputs as plain values; a state made with others is not resumed.
    """

    def __init__(self, folder: Path, fingerprint: dict):
        self.folder, self.fingerprint = folder, fingerprint

    def path(self, done: int) -> Path:
        """File of the state after ``done`` steps."""
        return self.folder / f"step-{done:07d}.pt"

    def save(self, state: dict) -> None:
        """Write a state, then delete all but the newest two.

        Args:
            state: tensors and plain values, ``done`` among them, the number of steps.

        Raises:
            UserError: the disk is full or gone; the checkpoints before it stay.
        """
        target = self.path(state["done"])
        try:
            with atomic(target) as path, LateErrorFile(path) as file:
                torch.save({"fingerprint": self.fingerprint, **state}, file)
        except OSError as error:
            raise UserError(
                f"{target}: {error.strerror or error}; the checkpoints before it are kept, the "
                "next run continues from there"
            ) from None
        for old in self._files()[_KEPT:]:
            old.unlink()

    def newest(self, last: int) -> dict | None:
        """The newest state to resume from; None if the training starts at step 0.

        A checkpoint made with other settings or data is renamed to ``previous-step-NNNNNNN.pt``,
        and what changed is logged; a damaged one is renamed to ``damaged.pt``.

        Args:
            last: number of steps beyond which a state is of a longer run than asked for.

        Raises:
            UserError: there are checkpoints, but all of them are damaged.
        """
        files = self._files()
        for newest in files:
            try:
                state = load_checkpoint(newest)
                break
            except ValueError as error:
                log.warning("%s", error)
        else:
            if files:
                raise UserError(
                    f"{newest}: damaged, like all checkpoints; restore one, or move "
                    f"{self.folder}/step-*.pt away to restart"
                )
            return None
        before, now = state.pop("fingerprint"), self.fingerprint
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        changed += ["iterations"] if state["done"] > last else []
        if not changed:
            for damaged in files[: files.index(newest)]:
                damaged.replace(self.folder / "damaged.pt")
            return state
        kept = newest.replace(self.folder / f"previous-{newest.name}")
        # Sample grids and their curve would be taken for those of the new training.
        shutil.rmtree(self.folder / "samples", ignore_errors=True)
        (self.folder / "loss.png").unlink(missing_ok=True)
        for other in self._files():
            other.unlink()
        what = ", ".join(changed)
        log.warning("restarting: %s changed; the old checkpoint is kept as %s", what, kept)
        return None

    def _files(self) -> list[Path]:
        """Newest first."""
        found = self.folder.glob("step-[0-9]*[0-9].pt")
        return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def load_checkpoint(path: Path) -> dict:
    """A state with its fingerprint, on the CPU.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        # torch writes the checksums of its archive, but does not compare them.
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"checksum of {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {**state, "fingerprint": dict(state["fingerprint"]), "done": int(state["done"])}
    except (OSError, MemoryError):
        raise  # an error of the machine, not of the file
    except Exception as error:  # torch raises many types on a damaged file
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {first_line(error)})") from None
