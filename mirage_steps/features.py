"""Patch tokens of a vision transformer, streamed to HDF5.

Run twice: on whole images, letterboxed to the backbone's resolution, and, with ``--windows``, on
crops centered on the object that the foreground step found (paper, section 3.1): the position in
the image is not part of the pose. Writes ``tokens.h5``:

- ``patch_tokens`` (n, T, dim) float16, one chunk an image, row by row from the top left;
- ``cls_token`` (n, dim) float16;
- ``content`` (n, 4) float32, the box of the square that is image, not padding, in fractions;
- ``image`` (n,) names;
- the attribute ``backbone``, JSON: its model, resolution and the hashes of its weights.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps import settings
from mirage_steps.files.atomic import human_size, require_disk
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import by_image, create_h5, write_names
from mirage_steps.files.loading import image_batches
from mirage_steps.files.manifest import Entry, read_manifest
from mirage_steps.files.shards import Shard
from mirage_steps.files.tables import read_windows
from mirage_steps.method.boxes import Box, content_box, crop, letterbox, window_content
from mirage_steps.method.device import choose_device
from mirage_steps.networks.backbone import Backbone


def main(
    *,
    manifest: Path,
    out: Path,
    windows: Path | None = None,
    backbone: settings.Backbone = settings.Backbone(),
    shard: str = "1-of-1",
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> list[str]:
    """Compute patch tokens of a vision transformer.

    Args:
        manifest: The data set's manifest.csv.
        out: Folder for tokens.h5.
        windows: The foreground step's foreground.csv, to look at its crops, not at whole images.
        backbone: The vision transformer.
        shard: Which of several jobs this is, such as 2-of-7; ``gather`` puts them together.
        weights: Folder of fetched networks.
        device: auto, cpu or cuda.

    Returns:
        What the record is called.
    """
    part = Shard.parse(shard)
    network = Backbone.load(backbone, choose_device(device), weights)
    images: list[tuple[Entry, Box | None]] = [(entry, None) for entry in read_manifest(manifest)]
    if windows is not None:
        images = read_windows(windows, [entry for entry, _ in images], centered_on_box=True)
    total = len(images)
    rows = part.rows(total, backbone.batch_size)
    images = images[rows.start : rows.stop]
    size = len(images) * (network.grid**2 + 1) * network.dim * 2
    log.info(
        "%s at %d pixels: %d images x %d tokens x %d = %s on disk",
        network.name, network.resolution, len(images), network.grid**2, network.dim,
        human_size(size),
    )  # fmt: skip
    require_disk(out, size, "tokens.h5")
    about = {
        "model": backbone.model,
        "resolution": backbone.resolution,
        "weights": str(weights),
        "sha256": network.sha256,
    }
    attributes = {"backbone": json.dumps(about), **part.note(rows, total)}
    path = out / f"{part.name('tokens')}.h5"
    write_tokens(path, network, images, backbone.batch_size, attributes)
    return [part.name("features")]


def write_tokens(
    path: Path,
    network: Backbone,
    images: Sequence[tuple[Entry, Box | None]],
    batch_size: int,
    attributes: dict[str, object],
) -> None:
    """Stream the tokens of all images into a file; memory does not grow with their number.

    Args:
        path: of the file.
        network: the vision transformer.
        images: each with its crop window in pixels, None for the whole image.
        batch_size: images at once.
        attributes: of the file.
    """
    entries = [entry for entry, _ in images]
    content = [
        window_content(window, entry.width, entry.height)
        if window
        else content_box(entry.width, entry.height)
        for entry, window in images
    ]

    def square(image: Image.Image, index: int) -> Image.Image:
        if window := images[index][1]:
            return crop(image, window, network.resolution)
        return letterbox(image, network.resolution, network.fill)

    shape = (network.grid**2, network.dim)
    with create_h5(path) as out:
        out.attrs.update(attributes)
        patches = by_image(out, "patch_tokens", len(entries), shape, np.float16)
        cls = by_image(out, "cls_token", len(entries), shape[1:], np.float16)
        out["content"] = np.array(content, np.float32).reshape(-1, 4)
        write_names(out, [entry.image for entry in entries])
        for rows, batch in image_batches(entries, square, batch_size):
            patches[rows], cls[rows] = network.half_tokens(batch)


if __name__ == "__main__":
    run(main)
