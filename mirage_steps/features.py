"""Patch tokens of a vision transformer, streamed to HDF5.

Run twice: on whole images, letterboxed to the backbone's resolution, and, with ``--windows``, on
crops centered on the object that the foreground step found (paper, section 3.1): the position in
the image is not part of the pose. Writes ``tokens.h5``:

- ``patch_tokens`` (n, T, dim) float16, one chunk an image, row by row from the top left;
- ``cls_token`` (n, D) float16, or what the network has for a feature of the whole image;
- ``content`` (n, 4) float32, the box of the square that is image, not padding, in fractions;
- ``masks`` (n, T) float32, of crops if an image has a given mask: the share of each patch that
  shows it, NaN for images without one;
- ``image`` (n,) names;
- the attribute ``backbone``, JSON: its model, resolution and the hashes of its weights.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError, rerun
from mirage_steps.files.atomic import human_size, require_disk
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import by_image, create_h5, write_names
from mirage_steps.files.images import MAX_PIXELS, UnreadableImage, read_mask
from mirage_steps.files.loading import Windowed, ahead, image_batches
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.names import encoded
from mirage_steps.files.shards import Shard
from mirage_steps.files.tables import read_windows
from mirage_steps.files.terminal import progress
from mirage_steps.method.boxes import Box, content_box, crop, letterbox, mask_shares
from mirage_steps.method.device import choose_device, memory_advice
from mirage_steps.method.finite import require_finite
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
    images: list[Windowed] = [(entry, None) for entry in read_manifest(manifest)]
    if windows is not None:
        images = read_windows(windows, [entry for entry, _ in images], centered_on_box=True)
    rows = part.rows(len(images), backbone.batch_size)
    about = backbone.model_dump(include={"model", "resolution", "levels", "token_precision"})
    about |= {"weights": str(weights), "sha256": network.sha256}
    attributes = {"backbone": json.dumps(about), **part.note(rows, len(images))}
    names = [entry.image for entry, _ in images]
    masked = windows is not None and any(entry.mask for entry, _ in images)  # of any shard
    images = images[rows.start : rows.stop]
    shape = (network.grid**2, network.dim)
    size = len(images) * (shape[0] * network.dim + network.summary_dim) * 2
    log.info(
        "%s at %d pixels: %d images x %d tokens x %d = %s on disk",
        network.name, network.resolution, len(images), *shape, human_size(size),
    )  # fmt: skip
    require_disk(out, size, "tokens.h5")
    square = partial(_square, network=network)

    advice = memory_advice("backbone.batch_size", backbone.batch_size)
    with create_h5(out / f"{part.name('tokens')}.h5") as file, advice:
        file.attrs.update(attributes)
        by_image(file, "patch_tokens", len(images), shape, np.float16)
        by_image(file, "cls_token", len(images), (network.summary_dim,), np.float16)
        content = [content_box(entry.width, entry.height, window) for entry, window in images]
        file["content"] = np.array(content, np.float32).reshape(-1, 4)
        own = names[rows.start : rows.stop]
        write_names(file, own, widest=names)
        for batch_rows, batch in image_batches(images, square, backbone.batch_size):
            tokens = network.half_tokens(batch)
            remedy = f"check backbone.model {backbone.model}; float16 holds at most 65504"
            require_finite(own[batch_rows], "tokens", remedy, *tokens)
            file["patch_tokens"][batch_rows], file["cls_token"][batch_rows] = tokens
        if masked:
            _write_masks(file, images, network.grid)
    return [part.name("features")]


def _square(image: Image.Image, window: Box | None, network: Backbone) -> Image.Image:
    """What the network sees: the window of a photo, or all of it, letterboxed."""
    if window is None:
        return letterbox(image, network.resolution, network.fill)
    return crop(image, window, network.resolution)


def _write_masks(file: h5py.File, images: Sequence[Windowed], grid: int) -> None:
    """Store how much of each patch of the crops shows the images' masks."""
    by_image(file, "masks", len(images), (grid**2,), np.float32)
    shares = ahead(partial(_mask_shares, grid=grid), images)
    for row, share in enumerate(progress(shares, total=len(images), unit="mask")):
        file["masks"][row] = share


def _mask_shares(image: Windowed, grid: int) -> np.ndarray:
    """Share of each patch of a crop that shows the image's mask, (T,); NaN where it has none."""
    entry, window = image
    if entry.mask is None:
        return np.full(grid**2, np.nan, np.float32)
    size = entry.width, entry.height
    try:
        mask = read_mask(entry.mask, size, max(MAX_PIXELS, entry.width * entry.height))
    except UnreadableImage as error:
        raise UserError(
            f"{encoded(entry.mask)}: was a mask when the manifest was made, now: {error}; restore "
            f"it, or list the images again: {rerun('dataset')}"
        ) from None
    return mask_shares(mask, window, *size, grid).ravel()


if __name__ == "__main__":
    run(main)
