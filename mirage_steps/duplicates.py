"""Near-duplicates: the same photo twice, its thumbnails, bursts.

Writes ``duplicates.csv`` (image, of: the first image that it repeats; similarity: the correlation
of both, at most 1; group, from 0).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.files.atomic import write_csv
from mirage_steps.files.command import log, run
from mirage_steps.files.loading import image_batches
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import DUPLICATES
from mirage_steps.method.boxes import Box
from mirage_steps.method.duplicates import SIDE, duplicate_limit, near_duplicates

_BATCH = 256


def main(*, manifest: Path, out: Path) -> None:
    """Find images that are nearly the same, by thumbnails of them.

    Args:
        manifest: The data set's manifest.csv.
        out: Folder for duplicates.csv.
    """
    entries = read_manifest(manifest)
    thumbnails = np.empty((len(entries), SIDE, SIDE, 3), np.uint8)
    for rows, batch in image_batches([(entry, None) for entry in entries], _thumbnail, _BATCH):
        thumbnails[rows] = batch
    limit = duplicate_limit(thumbnails)
    of, similarity = near_duplicates(thumbnails, limit)
    repeats = np.flatnonzero(of != np.arange(len(of)))
    groups = np.unique(of[repeats], return_inverse=True)[1]
    rows = [
        (entries[index].image, entries[of[index]].image, f"{similarity[index]:.5f}", group)
        for index, group in zip(repeats, groups, strict=True)
    ]
    write_csv(out / "duplicates.csv", DUPLICATES, rows)
    log.info("%d of %d images are near-duplicates (limit %.2f)", len(rows), len(of), limit)


def _thumbnail(image: Image.Image, window: Box | None) -> Image.Image:
    """The whole image squeezed into a small square: a copy may have another aspect by rounding."""
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)


if __name__ == "__main__":
    run(main)
