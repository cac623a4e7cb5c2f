"""HDF5 files: written atomically, read in batches, never changed by later steps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic
from mirage_steps.files.integrity import require_unchanged


@contextlib.contextmanager
def create_h5(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file for writing; it gets its name only if the block succeeds."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as out:
        yield out


@contextlib.contextmanager
def open_h5(path: Path, *needed: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        UserError: missing, damaged, or without a dataset in ``needed``.
    """
    require_unchanged(path)
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(
            f"{path}: not a readable HDF5 file ({error}); if a step made it, delete it and rerun"
        ) from None
    with file:
        missing = [key for key in needed if key not in file]
        if missing:
            raise UserError(f"{path}: has no dataset {', '.join(missing)}; is it the right file?")
        yield file


def by_image(
    out: h5py.File, name: str, count: int, shape: tuple[int, ...], dtype: object
) -> h5py.Dataset:
    """A new dataset (count, *shape) in chunks of one image, so that any image reads alone.

    Chunks have checksums, since files too large to hash may be damaged as well.
    """
    options = {"chunks": (1, *shape), "fletcher32": True} if count else {}
    return out.create_dataset(name, (count, *shape), dtype, **options)


def write_names(out: h5py.File, names: list[str]) -> None:
    """Store the images' names as UTF-8 strings in ``image`` (n,)."""
    out.create_dataset("image", data=np.array(names, dtype=object), dtype=h5py.string_dtype())


def read_names(file: h5py.File) -> list[str]:
    """The images' names, as :func:`write_names` stored them."""
    return list(file["image"].asstr()[:])


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
