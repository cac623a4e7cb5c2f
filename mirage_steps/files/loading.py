"""Batches of images, decoded ahead in order, with bounded memory."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError, rerun
from mirage_steps.files.h5 import slices
from mirage_steps.files.images import UnreadableImage, read_rgb
from mirage_steps.files.manifest import Entry
from mirage_steps.files.names import encoded
from mirage_steps.files.terminal import progress
from mirage_steps.method.boxes import Box

# An image and its crop window in pixels, None for the whole image.
Windowed = tuple[Entry, Box | None]


def ahead(function: Callable, items: Iterable) -> Iterator:
    """Map in threads, results in order, never more than a few items ahead of the consumer.

    ``Executor.map`` would submit everything at once and hold every result that is not yet read.
    Pillow decodes without the interpreter's lock, so threads do help.
    """
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_entry(entry: Entry) -> Image.Image:
    """Decode an image of the manifest.

    Raises:
        UserError: it is gone or damaged, or has another size.
        OSError: it may not be read.
    """
    try:
        image = read_rgb(entry.path, max_pixels=entry.width * entry.height)
        if image.size == (entry.width, entry.height):
            return image
        now: object = f"{image.width}x{image.height}"
    except (UnreadableImage, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise OSError(error.errno, os.strerror(error.errno), str(entry.path)) from None
        now = error
    raise UserError(
        f"{encoded(entry.path)}: was {entry.width}x{entry.height} when the manifest was made, now: "
        f"{now}; restore it, or list the images again: {rerun('dataset')}"
    )


def image_batches(
    images: Sequence[Windowed], prepare: Callable[[Image.Image, Box | None], Image.Image], size: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Decode and prepare images in batches, with a progress bar.

    Args:
        images: to read.
        prepare: from an upright RGB image and its window to an image of fixed size.
        size: images a batch.

    Yields:
        The images' place among all, and (n, H, W, 3) uint8, n <= ``size``.

    Raises:
        UserError: as :func:`read_entry`.
    """
    arrays = ahead(lambda one: np.asarray(prepare(read_entry(one[0]), one[1])), images)
    with progress(total=len(images), unit="image") as bar:
        for rows in slices(len(images), size):
            batch = np.stack(list(islice(arrays, rows.stop - rows.start)))
            yield rows, batch
            bar.update(len(batch))
