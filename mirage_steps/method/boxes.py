"""Letterboxes and crop windows, in pixels of the original image."""

from collections.abc import Iterable

import numpy as np
import scipy  # loads `ndimage`, which takes a third of a second, on its first use
from PIL import Image

Box = tuple[float, float, float, float]
Padding = tuple[tuple[int, int], tuple[int, int]]
"""Pixels ((above, below), (left, right))."""


def content_box(width: int, height: int, window: Box | None = None) -> Box:
    """The part of a square that is image, not padding: (x0, y0, x1, y1) in fractions.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        window: the square in pixels of the image; by default its letterbox.
    """
    if window is None:
        side = max(width, height)
        x, y = (side - width) / 2 / side, (side - height) / 2 / side
        return (x, y, 1 - x, 1 - y)
    x, y, side = window[0], window[1], window[2] - window[0]
    start = max(0.0, -x / side), max(0.0, -y / side)
    return (*start, min(1.0, (width - x) / side), min(1.0, (height - y) / side))


def letterbox(image: Image.Image, size: int, fill: tuple[int, int, int]) -> Image.Image:
    """Scale an image into a centered square of ``size`` pixels without changing its aspect."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), fill)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def valid_patches(content: np.ndarray, grid: int) -> np.ndarray:
    """Patches of which more than half, along each axis, is image, bool (n, grid, grid).

    Args:
        content: (n, 4) of :func:`content_box`.
        grid: patches a side.
    """
    starts, ends = np.arange(grid) / grid, np.arange(grid) / grid + 1 / grid
    low, high = content[:, :2, None], content[:, 2:, None]
    seen = np.minimum(ends, high) - np.maximum(starts, low) > 0.5 / grid  # (n, x and y, grid)
    # An image much thinner than a patch still has its middle row or column.
    seen |= ~seen.any(2, keepdims=True) & (starts <= 0.5) & (ends > 0.5)
    return seen[:, 1, :, None] & seen[:, 0, None, :]


def from_letterbox(box: Box, width: int, height: int) -> Box:
    """A box in fractions of the letterbox as pixels of the original, clipped to it."""
    size = np.array([width, height] * 2)
    pixels = np.array(box) * size.max() - (size.max() - size) / 2
    return tuple(np.clip(pixels, 0, size).tolist())


def clipped(box: Box, width: int, height: int) -> Box | None:
    """Intersection of a box with its image, None if empty."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def as_box(edges: Iterable[float | str]) -> Box:
    """Four edges x0, y0, x1, y1, which may be written as text.

    Raises:
        ValueError: not four, or no numbers.
    """
    x0, y0, x1, y1 = map(float, edges)
    return x0, y0, x1, y1


def box_of(mask: np.ndarray, width: int, height: int) -> Box:
    """Bounding box of a mask, bool (h, w) and not empty, in pixels of its image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    right, down = width / mask.shape[1], height / mask.shape[0]
    return as_box(
        (columns[0] * right, rows[0] * down, (columns[-1] + 1) * right, (rows[-1] + 1) * down)
    )


def mask_shares(mask: np.ndarray, window: Box, width: int, height: int, grid: int) -> np.ndarray:
    """Share of each patch of a square window that shows a mask, (grid, grid) float32 in [0, 1].

    Args:
        mask: bool (h, w) of the whole image, at any resolution; outside there is none.
        window: the square in pixels of the image.
        width: of the image in pixels.
        height: of the image in pixels.
        grid: patches a side.
    """
    rows = _overlaps(window[1] / height, window[3] / height, mask.shape[0], grid)
    columns = _overlaps(window[0] / width, window[2] / width, mask.shape[1], grid)
    return rows @ mask.astype(np.float32) @ columns.T


def _overlaps(start: float, end: float, pixels: int, grid: int) -> np.ndarray:
    """Share of each patch between two places (fractions) on each of all pixels, (grid, pixels)."""
    edges = np.linspace(start, end, grid + 1)[:, None] * pixels
    places = np.arange(pixels)
    shared = np.minimum(edges[1:], places + 1) - np.maximum(edges[:-1], places)
    return (np.maximum(shared, 0) / np.diff(edges, axis=0)).astype(np.float32)


def rounded(box: Box) -> Box:
    """A box in thousandths of a pixel, which tables keep exactly."""
    return as_box(round(float(edge), 3) for edge in box)


def square_window(box: Box, width: int, height: int, margin: float) -> Box:
    """The square crop that shows a box centered, its longer side filling all but the margins.

    Along an axis on which a window inside the image is possible, one that leaves it is shifted
    inside. Where the window is larger than the image, it is as close to centered as the whole
    image stays inside, so that no more than need be is padded.

    Args:
        box: the object, in pixels of an image of ``width`` and ``height``.
        margin: share of the window left free on each side.
    """
    low, high, size = np.array(box[:2]), np.array(box[2:]), np.array([width, height])
    side = (high - low).max() / (1 - 2 * margin)
    free = size - side  # negative where the window is larger
    start = np.clip((low + high - side) / 2, np.minimum(free, 0), np.maximum(free, 0))
    return tuple([*start.tolist(), *(start + side).tolist()])


def centered(window: Box, box: Box) -> Box:
    """The window moved so that the middle of ``box`` is its own, even where it leaves the image."""
    right, down = ((box[i] + box[i + 2] - window[i] - window[i + 2]) / 2 for i in (0, 1))
    return (window[0] + right, window[1] + down, window[2] + right, window[3] + down)


def padded_share(window: Box, width: int, height: int) -> float:
    """Share of a window's area outside the image, in [0, 1]."""
    x0, y0, x1, y1 = content_box(width, height, window)
    return float(1 - max(x1 - x0, 0.0) * max(y1 - y0, 0.0))


def crop(image: Image.Image, window: Box, size: int) -> Image.Image:
    """A square window of an RGB image, scaled to ``size`` pixels a side.

    Where it leaves the image, it shows the image's edge, blurred (:func:`extend`).
    """
    return Image.fromarray(extend(*inner_part(image, window, size)))


def inner_part(image: Image.Image, window: Box, size: int) -> tuple[np.ndarray, Padding]:
    """What a crop of ``size`` pixels a side has of the image, uint8 (h, w, 3), and its padding."""
    inside = clipped(window, *image.size)
    scale = size / (window[2] - window[0])
    left, top = (round((inside[axis] - window[axis]) * scale) for axis in (0, 1))
    # A rounded window is square only up to its decimals.
    right, bottom = (min(round((inside[axis + 2] - window[axis]) * scale), size) for axis in (0, 1))
    target = (max(right - left, 1), max(bottom - top, 1))
    part = image.resize(target, Image.Resampling.BICUBIC, box=inside, reducing_gap=3.0)
    left, top = min(left, size - target[0]), min(top, size - target[1])
    return np.asarray(part), ((top, size - top - target[1]), (left, size - left - target[0]))


def extend(part: np.ndarray, padding: Padding) -> np.ndarray:
    """Pixels (h, w, 3) uint8 with padding, whose rows are the edge's, blurred along it.

    The standard deviation of the blur is the distance from the edge: what continues stays sharp
    near the edge, and nothing is drawn out into streaks. Measured by ``benchmarks/padding.py``.
    """
    for before, after in padding:
        rows = [*_blurred(part[0], before)[::-1], *part, *_blurred(part[-1], after)]
        part = np.stack(rows).swapaxes(0, 1)  # the columns come next, then the rows again
    return part


def _blurred(edge: np.ndarray, count: int) -> list[np.ndarray]:
    """An edge (w, 3) uint8 as it is 1 to ``count`` pixels away from itself."""
    row, rows = edge.astype(np.float64), []
    for away in range(1, count + 1):
        # Variances add up: 1 + 3 + ... + (2 n - 1) = n^2.
        row = scipy.ndimage.gaussian_filter1d(row, (2 * away - 1) ** 0.5, axis=0, mode="nearest")
        rows.append(row.round().astype(np.uint8))
    return rows
