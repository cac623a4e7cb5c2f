"""Batches of images, decoded ahead in order, with bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from mirage_steps.errors import UserError
from mirage_steps.files.h5 import slices
from mirage_steps.files.images import UnreadableImage, read_rgb
from mirage_steps.files.manifest import Entry

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
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
        UserError: it can no longer be read, or has another size.
    """
    try:
        image = read_rgb(entry.path, max_pixels=entry.width * entry.height)
    except (UnreadableImage, OSError) as error:
        raise UserError(
            f"{entry.path}: was readable when the manifest was made, now: {error}; "
            "restore it, or delete manifest.csv to list the images again"
        ) from None
    if image.size != (entry.width, entry.height):
        raise UserError(
            f"{entry.path}: was {entry.width}x{entry.height} when the manifest was made, now "
            f"{image.width}x{image.height}; delete manifest.csv to list the images again"
        )
    return image


def image_batches(
    entries: Sequence[Entry], prepare: Callable[[Image.Image, int], Image.Image], size: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Decode and prepare images in batches, with a progress bar.

    Args:
        entries: images to read.
        prepare: from an upright RGB image and its index to an image of fixed size.
        size: images a batch.

    Yields:
        The images' place among all, and (n, H, W, 3) uint8, n <= ``size``.

    Raises:
        UserError: an image can no longer be read, or has another size.
    """

    def load(index: int) -> np.ndarray:
        return np.asarray(prepare(read_entry(entries[index]), index))

    arrays = ahead(load, range(len(entries)))
    with tqdm(total=len(entries), unit="image", mininterval=1.0) as progress:
        for rows in slices(len(entries), size):
            batch = np.stack(list(islice(arrays, rows.stop - rows.start)))
            yield rows, batch
            progress.update(len(batch))
