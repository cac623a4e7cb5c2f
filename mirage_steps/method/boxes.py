"""Letterboxes and crop windows, in pixels of the original image."""

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def content_box(width: int, height: int) -> Box:
    """Where an image lies in its letterbox: (x0, y0, x1, y1) in fractions of the square."""
    side = max(width, height)
    x, y = (side - width) / 2 / side, (side - height) / 2 / side
    return (x, y, 1 - x, 1 - y)


def letterbox(image: Image.Image, size: int, fill: tuple[int, int, int]) -> Image.Image:
    """Scale an image into a centered square of ``size`` pixels without changing its aspect."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), fill)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def valid_patches(content: np.ndarray, grid: int) -> np.ndarray:
    """Patches that lie on the image, not on padding.

    Args:
        content: (n, 4) boxes in fractions of the square.
        grid: patches a side.

    Returns:
        bool (n, grid, grid): more than half of the patch, along each axis, is image.
    """
    starts = np.arange(grid) / grid
    x0, y0, x1, y1 = (content[:, i, None] for i in range(4))
    columns = np.minimum(starts + 1 / grid, x1) - np.maximum(starts, x0) > 0.5 / grid
    rows = np.minimum(starts + 1 / grid, y1) - np.maximum(starts, y0) > 0.5 / grid
    # An image much thinner than a patch still has its middle row or column.
    columns |= ~columns.any(1, keepdims=True) & (starts <= 0.5) & (starts + 1 / grid > 0.5)
    rows |= ~rows.any(1, keepdims=True) & (starts <= 0.5) & (starts + 1 / grid > 0.5)
    return rows[:, :, None] & columns[:, None, :]


def from_letterbox(box: Box, width: int, height: int) -> Box:
    """A box in fractions of the letterbox as pixels of the original, clipped to it."""
    side = max(width, height)
    offset = ((side - width) / 2, (side - height) / 2) * 2
    limits = (width, height) * 2
    return tuple(
        min(max(edge * side - start, 0.0), limit)
        for edge, start, limit in zip(box, offset, limits, strict=True)
    )


def clipped(box: Box, width: int, height: int) -> Box | None:
    """The part of a box that lies on its image, None where that is nothing."""
    x0, y0, x1, y1 = _inside(box, width, height)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _inside(box: Box, width: int, height: int) -> Box:
    x0, y0, x1, y1 = box
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))


def rounded(box: Box) -> Box:
    """A box in thousandths of a pixel, which tables keep exactly."""
    return tuple(round(float(edge), 3) for edge in box)


def square_window(box: Box, width: int, height: int, margin: float) -> Box:
    """The square crop that shows a box centered, its longer side filling all but the margins.

    A window that leaves the image is shifted inside first; where it is larger than the image it
    stays centered on the image along that axis, so that both ends are padded alike.

    Args:
        box: the object in pixels.
        width: of the image.
        height: of the image.
        margin: share of the window left free on each side.
    """
    side = max(box[2] - box[0], box[3] - box[1]) / (1 - 2 * margin)
    start = []
    for low, high, limit in ((box[0], box[2], width), (box[1], box[3], height)):
        if side >= limit:
            start.append((limit - side) / 2)
        else:
            start.append(min(max((low + high - side) / 2, 0.0), limit - side))
    return (start[0], start[1], start[0] + side, start[1] + side)


def centered(window: Box, box: Box) -> Box:
    """The window moved so that the middle of ``box`` is its own, even where it leaves the image."""
    right, down = ((box[i] + box[i + 2] - window[i] - window[i + 2]) / 2 for i in (0, 1))
    return (window[0] + right, window[1] + down, window[2] + right, window[3] + down)


def window_content(window: Box, width: int, height: int) -> Box:
    """The part of a window that is image: (x0, y0, x1, y1) in fractions of the window."""
    side = window[2] - window[0]
    return (
        max(0.0, -window[0] / side),
        max(0.0, -window[1] / side),
        min(1.0, (width - window[0]) / side),
        min(1.0, (height - window[1]) / side),
    )


def padded_share(window: Box, width: int, height: int) -> float:
    """Share of a window's area outside the image, in [0, 1]."""
    x0, y0, x1, y1 = window_content(window, width, height)
    return float(1 - max(x1 - x0, 0.0) * max(y1 - y0, 0.0))


def crop(image: Image.Image, window: Box, size: int) -> Image.Image:
    """Cut a square window out of an image and scale it; edge pixels are replicated outside.

    Args:
        image: RGB.
        window: (x0, y0, x1, y1) in pixels, may leave the image.
        size: side of the result in pixels.
    """
    width, height = image.size
    inside = _inside(window, width, height)
    scale = size / (window[2] - window[0])
    left, top = (round((inside[axis] - window[axis]) * scale) for axis in (0, 1))
    # A rounded window is square only up to its decimals.
    right, bottom = (min(round((inside[axis + 2] - window[axis]) * scale), size) for axis in (0, 1))
    target = (max(right - left, 1), max(bottom - top, 1))
    part = image.resize(target, Image.Resampling.BICUBIC, box=inside, reducing_gap=3.0)
    left, top = min(left, size - target[0]), min(top, size - target[1])
    if target == (size, size):
        return part
    padding = ((top, size - top - target[1]), (left, size - left - target[0]), (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), padding, mode="edge"))
