"""Grids of images, drawn with Pillow, written atomically."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mirage_steps.files.atomic import atomic

_GAP = 2
_FONT = 11  # pixels
_LETTER = 6  # pixels, somewhat more than the mean width
_LINE = 16


def save_image(path: Path, image: Image.Image | np.ndarray) -> None:
    """Write an image, or (H, W, 3) uint8."""
    with atomic(path) as temporary:
        Image.fromarray(np.asarray(image)).save(temporary)


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, H, W, 3) uint8 row by row on white, as one (H', W', 3) picture."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + _GAP, width + _GAP, 3), 255, np.uint8)
    cells[:count, :height, :width] = images
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    picture = cells.reshape(rows * (height + _GAP), columns * (width + _GAP), 3)
    return np.pad(picture, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)


def turntable(path: Path, rows: np.ndarray) -> None:
    """Write objects side by side as an endless GIF with a frame for each pose.

    Args:
        path: of the GIF.
        rows: (objects, k, S, S, 3) uint8, the poses in circular order.
    """
    objects, k = rows.shape[:2]
    columns = -(-objects // -(-objects // 4))  # at most four in a row, rows evenly filled
    frames = [_enlarged(tile(rows[:, pose], columns), 2) for pose in range(k)]
    with atomic(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=350, loop=0)


def contact_sheet(
    rows: np.ndarray,
    references: Sequence[int | None],
    poses: Sequence[object],
    title: str,
    warnings: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Image.Image:
    """Objects in rows below a title and the numbers of the poses, references framed in red.

    Args:
        rows: (objects, k, S, S, 3) uint8.
        references: column of each object's reference, None where it is not shown.
        poses: (k,) their numbers or names.
        title: wrapped to the width of the picture.
        warnings: below the rows, in red, wrapped likewise.
        labels: to the left of the rows.
    """
    objects, k, side = rows.shape[:3]
    scale = max(1, round(96 / side))
    tiles = _enlarged(tile(rows.reshape(-1, side, side, 3), k), scale)
    font = ImageFont.load_default(_FONT)
    margin = max((8 + _LETTER * len(label) for label in labels), default=0)
    width = margin + tiles.width
    letters = width // _LETTER
    head = textwrap.wrap(title, letters)
    foot = [part for line in warnings for part in textwrap.wrap(line, letters)]
    top = _LINE * (len(head) + 1)
    picture = Image.new("RGB", (width, top + tiles.height + _LINE * len(foot)), "white")
    picture.paste(tiles, (margin, top))
    draw = ImageDraw.Draw(picture)
    step = scale * (side + _GAP)
    for number, line in enumerate(head):
        draw.text((picture.width / 2, _LINE * (number + 0.5)), line, "black", font, anchor="mm")
    for column, pose in enumerate(poses):
        middle = (margin + step * (column + 0.5) + scale, top - _LINE / 2)
        name = pose if isinstance(pose, str) else f"pose {pose}"
        draw.text(middle, name, "black", font, anchor="mm")
    for row, reference in enumerate(references):
        if reference is None:
            continue
        left, up = margin + step * reference, top + step * row
        draw.rectangle((left, up, left + step + scale, up + step + scale), outline="red", width=3)
    for row, label in enumerate(labels):
        draw.text((4, top + step * (row + 0.5)), label, "black", font, anchor="lm")
    for number, line in enumerate(foot):
        draw.text((4, top + tiles.height + _LINE * (number + 0.5)), line, "red", font, anchor="lm")
    return picture


def _enlarged(pixels: np.ndarray, scale: int) -> Image.Image:
    """A picture (H, W, 3) uint8 ``scale`` times as large."""
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((scale * width, scale * height), Image.Resampling.BICUBIC)
