"""Crops for training the diffusion model.

Writes ``crops.h5``: ``images`` (n, S, S, 3) uint8 and ``image`` (n,) names, for the images in which
an object was found, in the manifest's order.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mirage_steps.files.command import run
from mirage_steps.files.h5 import by_image, create_h5, write_names
from mirage_steps.files.loading import image_batches
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import read_windows
from mirage_steps.method.boxes import crop

_BATCH = 64


def main(*, manifest: Path, windows: Path, out: Path, image_size: int = 64) -> None:
    """Cut out the objects at the diffusion model's size.

    Args:
        manifest: The data set's manifest.csv.
        windows: The foreground step's foreground.csv.
        out: Folder for crops.h5.
        image_size: Side of a crop in pixels.
    """
    found = read_windows(windows, read_manifest(manifest))
    with create_h5(out / "crops.h5") as file:
        by_image(file, "images", len(found), (image_size, image_size, 3), np.uint8)
        write_names(file, [entry.image for entry, _ in found])
        for rows, batch in image_batches(found, partial(crop, size=image_size), _BATCH):
            file["images"][rows] = batch


if __name__ == "__main__":
    run(main)
