"""HDF5 files: written atomically, with checksums, read in batches, never changed by later steps."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike

from mirage_steps.errors import UserError, first_line
from mirage_steps.files.atomic import LateErrorFile, atomic, require_disk
from mirage_steps.files.names import not_a

# What HDF5 says of a file that is damaged for certain.
_DAMAGED = ("signature", "truncated", "checksum", "filter returned failure", "bad ", "unknown ")


class _Attributes(h5py.AttributeManager):
    """Attributes with text of fixed length: that of variable length is stored unprotected."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value.decode() if isinstance(value, bytes) else value

    def __setitem__(self, name: str, value: object) -> None:
        super().__setitem__(name, np.bytes_(value.encode()) if isinstance(value, str) else value)


class _File(h5py.File):
    @property
    def attrs(self) -> _Attributes:
        return _Attributes(self)


class _Output(_File):
    """A new file with checksums; a full disk is noticed at the next access to a dataset."""

    def __init__(self, path: Path, disk: LateErrorFile):
        # This format has checksums of the metadata, and tells readers that a program writes.
        super().__init__(disk, "w", libver=("v110", "v110"))
        self.path, self.disk = path, disk

    def __getitem__(self, name: object) -> Any:
        self.disk.require()
        return super().__getitem__(name)

    def create_dataset(
        self, name: str | None, shape: Any = None, dtype: Any = None, data: Any = None, **options
    ) -> h5py.Dataset:
        """As h5py's, with checksums of the values."""
        sides = np.shape(data) if shape is None else np.atleast_1d(shape)
        if len(sides) and min(sides):
            options["fletcher32"] = True
        return super().create_dataset(name, shape, dtype, data, **options)


@contextlib.contextmanager
def create_h5(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file for writing; it gets its name only if the block succeeds.

    Raises:
        OSError: of the disk, naming ``path``.
    """
    with atomic(path) as temporary, LateErrorFile(temporary) as disk, _Output(path, disk) as out:
        yield out


@contextlib.contextmanager
def open_h5(path: Path, *needed: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        UserError: missing, damaged, or without a dataset in ``needed``.
        OSError: of the disk, naming ``path``.
    """
    if wrong := not_a("file", path):
        raise UserError(f"{path}: {wrong}")
    try:
        # Files are whole and never change: they need no lock, which not every disk has.
        with _File(path, "r", locking=False) as file:
            missing = [key for key in needed if key not in file]
            if missing:
                raise UserError(
                    f"{path}: has no dataset {', '.join(missing)}; is it the right file?"
                )
            yield file
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if "synchronously" not in str(error):  # not of HDF5
            raise
        raise _explained(path, error) from None


def _explained(path: Path, error: Exception) -> Exception:
    """What an error of HDF5 means to the user."""
    if number := getattr(error, "errno", None):
        return OSError(number, os.strerror(number), str(path))
    reason = first_line(error).partition("(")[2].rstrip("')") or first_line(error)
    if "already open for write" in reason:
        return UserError(
            f"{path}: another program has it open for writing; close it there; "
            f"if none has and a crash left it marked as open: h5clear -s {path}"
        )
    damaged = any(word in reason for word in _DAMAGED)
    advice = "; if a step made it, delete it and rerun" if damaged else ""
    return UserError(f"{path}: not a readable HDF5 file ({reason}){advice}")


def by_image(
    out: h5py.File, name: str, count: int, shape: tuple[int, ...], dtype: DTypeLike
) -> None:
    """Make a dataset (count, *shape) in chunks of one image, so that any image reads alone.

    It is written as ``out[name]``, which notices a full disk.

    Raises:
        UserError: too little room for it.
    """
    size = count * math.prod(shape) * np.dtype(dtype).itemsize
    require_disk(out.path.parent, size, out.path.name)
    out.create_dataset(name, (count, *shape), dtype, chunks=(1, *shape) if count else None)


def write_names(out: h5py.File, names: Sequence[str], widest: Sequence[str] = ()) -> None:
    """Store the images' names as UTF-8 strings in ``image`` (n,).

    Args:
        out: the file.
        names: of its images.
        widest: names of the images of all shards, so that these have the same type.
    """
    width = max((len(name.encode()) for name in (*names, *widest)), default=0) or 1
    out.create_dataset(
        "image", data=[name.encode() for name in names], dtype=h5py.string_dtype(length=width)
    )


def read_names(file: h5py.File) -> list[str]:
    """The images' names, as :func:`write_names` stored them."""
    return list(file["image"].asstr()[:])


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
