"""Pictures that are images side by side, drawn with Pillow alone, whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mirage_steps.files.atomic import atomic

_GAP = 2
_FONT = 11  # pixels
_LINE = 16


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8."""
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def tile(images: np.ndarray, columns: int, gap: int = _GAP) -> np.ndarray:
    """Images (n, H, W, 3) uint8 row by row on white, as one (H', W', 3) picture."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    picture = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8
    )
    for number, image in enumerate(images):
        top = gap + number // columns * (height + gap)
        left = gap + number % columns * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Write images (n, H, W, 3) uint8 as one picture."""
    save_image(path, tile(images, columns))


def contact_sheet(path: Path, rows: np.ndarray, references: Sequence[int], title: str) -> None:
    """Objects in rows, poses in columns, the reference of each row framed.

    Args:
        path: of the picture.
        rows: (objects, k, S, S, 3) uint8.
        references: column of each object's reference.
        title: what the objects are.
    """
    title = f"{title}; red: the reference whose keys and values the others read"
    save_image(path, np.asarray(_sheet(rows, references, range(rows.shape[1]), title)))


def strip(
    views: np.ndarray, poses: Sequence[int], own: int, title: str, warnings: Sequence[str]
) -> Image.Image:
    """A photo in all poses, its own framed, and what is doubtful about it.

    Args:
        views: (k, S, S, 3) uint8.
        poses: (k,) their numbers.
        own: column of the photo's own pose.
        title: what is shown.
        warnings: lines below, in red.
    """
    return _sheet(views[None], [own], poses, title, [f"warning: {line}" for line in warnings])


def _sheet(
    rows: np.ndarray,
    references: Sequence[int],
    poses: Sequence[int],
    title: str,
    below: Sequence[str] = (),
) -> Image.Image:
    objects, k, side = rows.shape[:3]
    scale = max(1, round(96 / side))
    tiles = Image.fromarray(tile(rows.reshape(-1, side, side, 3), k))
    tiles = tiles.resize((scale * tiles.width, scale * tiles.height), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(_FONT)
    lines = [_wrapped(line, font, tiles.width) for line in (title, *below)]
    head, foot = lines[0], [part for line in lines[1:] for part in line]
    top = _LINE * (len(head) + 1)
    picture = Image.new("RGB", (tiles.width, top + tiles.height + _LINE * len(foot)), "white")
    picture.paste(tiles, (0, top))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(head):
        middle = (picture.width / 2, _LINE * (number + 0.5))
        draw.text(middle, line, "black", font, anchor="mm")
    step = scale * (side + _GAP)
    for column, pose in enumerate(poses):
        middle = (step * (column + 0.5) + scale, top - _LINE / 2)
        draw.text(middle, f"pose {pose}", "black", font, anchor="mm")
    for row, reference in enumerate(references):
        left, up = step * reference, top + step * row
        draw.rectangle((left, up, left + step + scale, up + step + scale), outline="red", width=3)
    for number, line in enumerate(foot):
        draw.text((4, top + tiles.height + _LINE * (number + 0.5)), line, "red", font, anchor="lm")
    return picture


def _wrapped(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A line in parts that fit."""
    parts = [""]
    for word in line.split():
        longer = f"{parts[-1]} {word}".strip()
        if parts[-1] and font.getlength(longer) > width - 8:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts


def turn(path: Path, rows: np.ndarray) -> None:
    """Objects side by side, turning through the poses, as an endless GIF."""
    objects, k = rows.shape[:2]
    columns = -(-objects // -(-objects // 4))  # at most four in a row, rows evenly filled
    frames = []
    for pose in range(k):
        frame = Image.fromarray(tile(rows[:, pose], columns))
        frames.append(frame.resize((2 * frame.width, 2 * frame.height), Image.Resampling.BICUBIC))
    with atomic(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=350, loop=0)
