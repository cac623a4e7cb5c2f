"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mirage_steps.errors import UserError
from mirage_steps.files.names import not_a
from mirage_steps.files.process import died_here, machine

_HASH_LIMIT = 256 * 2**20
# Files that this process wrote, for its record.
WRITTEN: list[Path] = []
_PARTIAL = ".partial"
_ABANDONED = 7 * 24 * 3600  # s without a write, of a writer on another machine

# What writing may end with, by no fault of the program; and the remedy, where one is known.
_FULL = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
}
_OF_THE_DISK = {*_FULL, errno.EIO, errno.EROFS, errno.ESTALE}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to ``path`` if the block succeeds.

    The temporary name keeps the suffix, since many writers choose the format by it. Several
    writers of one path do not meet: the last one's file stays. The mode follows the umask.

    Raises:
        OSError: of the disk, naming ``path``.
    """
    path = Path(path)
    with _own_folder(path.parent, path) as folder:
        temporary = folder / path.name
        yield temporary
        # Sync before renaming, or a power cut leaves an empty file.
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
            mode, usual = (os.stat(one).st_mode & 0o666 for one in (written.fileno(), folder))
        if usual & ~mode:  # safetensors makes files that only their owner may read
            temporary.chmod(mode | usual)
        os.replace(temporary, path)
        WRITTEN.append(path)


@contextlib.contextmanager
def atomic_set(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Give a temporary folder; move all from there into ``folder`` if the block succeeds.

    Args:
        folder: of the set.
        names: of its files and folders, in the order of moving; each replaces its former one.

    Raises:
        OSError: of the disk, naming the first file.
    """
    with _own_folder(folder, folder / names[0]) as own:
        yield own
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)  # no folder can be replaced
            os.replace(own / name, folder / name)
        written = (path for path in WRITTEN if path.is_relative_to(own))
        WRITTEN.extend([folder / path.relative_to(own) for path in written])


def require_writable(folder: Path, path: Path) -> None:
    """Try to write into a folder, where ``path`` is to be made.

    Raises:
        OSError: it cannot be written, naming ``path``.
    """
    with _own_folder(folder, path) as own, open(own / "probe", "wb") as probe:
        probe.write(b"0")  # permissions do not tell of full and of read-only disks
        probe.flush()
        os.fsync(probe.fileno())


@contextlib.contextmanager
def _own_folder(parent: Path, path: Path) -> Iterator[Path]:
    """A new folder in ``parent``, deleted at the end; errors in it are those of ``path``."""
    own = parent / f"{_PARTIAL}-{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with located(path, own):
            parent.mkdir(parents=True, exist_ok=True)
            _clear(parent)
            own.mkdir()
            yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def located(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Name ``path`` in errors of writing, which name no file or one in ``folder``."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if name is None and error.errno not in _OF_THE_DISK:
            raise
        if name is not None and not (folder and str(name).startswith(str(folder))):
            raise
        reason = os.strerror(error.errno)
        if remedy := _FULL.get(error.errno):
            files = folder.glob("*") if folder else [path]
            written = sum(file.stat().st_size for file in files)
            reason += f"; it needs more than {human_size(written)}; {remedy}"
        raise OSError(error.errno, reason, str(path)) from error


@functools.cache  # once a process: a folder may hold thousands of files
def _clear(parent: Path) -> None:
    """Delete the temporary folders of writers that were killed."""
    with contextlib.suppress(OSError):
        for left in parent.glob(f"{_PARTIAL}-*-*-*"):
            _, where, pid, _ = left.name.split("-")
            written = max(one.stat().st_mtime for one in (left, *left.iterdir()))
            if died_here(where, pid) or time.time() - written > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


class LateErrorFile(io.FileIO):
    """A new file in which writing never fails; the first error is raised when it is closed.

    For libraries that cannot close a file after an error: HDF5 ends the process with a
    segmentation fault, torch hides the cause.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def require(self) -> None:
        """Raise the first error there was, if any."""
        if self.error:
            raise self.error

    def write(self, data: Any) -> int:
        """Write all of ``data``, or pretend to, after an error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file, or pretend to, after an error."""
        try:
            return self.tell() if self.error else super().truncate(size)
        except OSError as error:
            self.error = error
            return self.tell()

    def __exit__(self, *_: object) -> None:
        super().close()
        self.require()


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        # File names that are not UTF-8 reach Python as lone surrogates.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a UTF-8 CSV file with a header row, whole or not at all."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a UTF-8 CSV file as dictionaries; errors as of :func:`csv_rows`."""
    return list(csv_rows(path))


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a UTF-8 CSV file as dictionaries, one after the other.

    Raises:
        UserError: the file is missing, no regular file, not text, or has a column twice.
    """
    if wrong := not_a("file", path):
        raise UserError(f"{path}: {wrong}")
    with open(path, newline="", encoding="utf-8-sig") as lines:
        try:
            reader = csv.DictReader(lines)
            names = reader.fieldnames or []
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{path}: has the column {twice[0]} twice")
            yield from reader
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a readable UTF-8 CSV file ({error})") from None


def require_disk(folder: Path, size: float, what: str) -> None:
    """Refuse early if the disk that holds ``folder`` has less than ``size`` bytes free.

    Raises:
        UserError: too little room for ``what``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder}: {what} needs {human_size(size)}, only {human_size(free)} free; "
            "make room or point the config's results to another disk"
        )


def human_size(size: float) -> str:
    """A byte count as people read it, e.g. ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def identity(path: Path) -> dict[str, object]:
    """Identity of an input: its hash, or size and time if hashing would take long."""
    if not path.is_file():
        return {"path": str(path)}
    stat = path.stat()
    if stat.st_size > _HASH_LIMIT:
        return {"path": str(path), "bytes": stat.st_size, "mtime": int(stat.st_mtime)}
    return {"path": str(path), "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
