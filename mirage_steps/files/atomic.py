"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from mirage_steps.errors import UserError

_HASH_LIMIT = 256 * 2**20
# Files that this process wrote, for its record.
WRITTEN: list[Path] = []


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to ``path`` if the block succeeds.

    The temporary name keeps the suffix, since many writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that the next run replaces an incomplete file of a killed one.
    folder = path.parent / f".{path.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        temporary = folder / path.name
        yield temporary
        # Sync before renaming, or a power cut leaves an empty file.
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        WRITTEN.append(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    """Rows of a UTF-8 CSV file as dictionaries.

    Raises:
        UserError: the file is missing or not text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            return list(csv.DictReader(lines))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable UTF-8 CSV file ({error})") from None


def require_disk(folder: Path, size: int, what: str) -> None:
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
