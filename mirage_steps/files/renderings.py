"""Renderings of another method: which object and view a file shows, and what its border shows.

The number at the end of a file's name is the view; the rest of its path is the object:
``NAME_VIEW.png`` (or ``NAME-VIEW.png``), or ``NAME/VIEW.png`` with a folder for each object.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.files.images import UnreadableImage, read_rgb
from mirage_steps.files.names import encoded

_VIEW = re.compile(r"(?:(.+)[_-])?(\d+)", re.ASCII)
_NEARLY_WHITE = 240
WHITE_SHARE = 0.5  # of the border of an image on white, where the object may touch it


def by_object(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Files of each object in the order of their views, by its path below ``root``.

    Those without an object, such as ``root/17.png`` or ``car.png``, are left out.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    endings = Image.registered_extensions()  # not of cameras or depths beside the images
    for path in files:
        if path.suffix.lower() not in endings:
            continue
        if parts := _VIEW.fullmatch(path.stem):
            name = path.relative_to(root).parent / (parts[1] or "")
            if name != Path():
                found.setdefault(encoded(name), []).append((int(parts[2]), path))
    return {name: [path for _, path in sorted(views)] for name, views in found.items()}


def read_square(path: Path, max_pixels: int) -> Image.Image:
    """Decode a square image as :func:`read_rgb` does; squeezed or padded it would not be theirs.

    Raises:
        UnreadableImage: with the reason.
    """
    image = read_rgb(path, max_pixels)
    if image.width != image.height:
        raise UnreadableImage(f"not square: {image.width}x{image.height}; crop it first")
    return image


def white_share(images: np.ndarray) -> float:
    """Share of white pixels at the border of images (n, S, S, 3) uint8."""
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    return float(np.mean([(side.min(axis=-1) > _NEARLY_WHITE).mean() for side in sides]))
