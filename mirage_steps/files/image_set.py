"""Image sets in HDF5, compared by the rows of the table: ``images`` (n, S, S, 3) uint8."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mirage_steps.files import tiles
from mirage_steps.files.h5 import by_image, create_h5

# Attribute `sam` of a set that was given without background, instead of the network's name.
OWN_WHITE = "nothing (rendered on white)"

_ROWS = 6  # of the preview


@contextlib.contextmanager
def create_image_set(
    path: Path, count: int, side: int, columns: int = 12, **attributes: object
) -> Iterator[h5py.File]:
    """Open a new set for writing; it gets its name only if the block succeeds.

    Args:
        path: of the HDF5 file.
        count: number of images.
        side: of an image in pixels.
        columns: of the preview.
        attributes: of the file.
    """
    with create_h5(path) as file:
        file.attrs.update(columns=columns, **attributes)
        by_image(file, "images", count, (side, side, 3), np.uint8)
        yield file


def write_preview(path: Path, file: h5py.File) -> None:
    """Write a picture of the first images of a set, six rows of them."""
    columns = int(file.attrs["columns"])
    tiles.save_image(path, tiles.tile(file["images"][: _ROWS * columns], columns))
