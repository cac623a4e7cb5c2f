"""Step 2: patch tokens of a vision transformer, streamed to HDF5.

Run twice: on whole images, letterboxed to the backbone's resolution, and, with ``--windows``, on
the crops that the foreground step found, moved so that the object is in the middle (paper, section
3.1): where it stands is no part of its pose. Writes ``tokens.h5``:

- ``patch_tokens`` (n, T, dim) float16, one chunk an image, row by row from the top left;
- ``cls_token`` (n, dim) float16;
- ``content`` (n, 4) float32, the part of the square that is image, not padding, in fractions;
- ``image`` (n,) names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.files.atomic import human_size, require_disk
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import by_image, create_h5, write_names
from mirage_steps.files.loading import image_batches
from mirage_steps.files.manifest import Entry, read_manifest
from mirage_steps.files.shards import Shard
from mirage_steps.files.windows import read_windows
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
    entries = read_manifest(manifest)
    found = None if windows is None else read_windows(windows, entries, centre=True)
    entries = entries if found is None else [entry for entry, _ in found]
    total = len(entries)
    rows = part.rows(total, backbone.batch_size)
    entries = entries[rows.start : rows.stop]
    if found is None:
        content = [content_box(entry.width, entry.height) for entry in entries]
        prepare = _letterbox(network)
    else:
        found = found[rows.start : rows.stop]
        content = [window_content(window, entry.width, entry.height) for entry, window in found]
        prepare = _crop([window for _, window in found], network.resolution)
    size = len(entries) * (network.grid**2 + 1) * network.dim * 2
    log.info(
        "%s at %d pixels: %d images x %d tokens x %d = %s on disk",
        network.name, network.resolution, len(entries), network.grid**2, network.dim,
        human_size(size),
    )  # fmt: skip
    require_disk(out, size, "tokens.h5")
    path = out / f"{part.name('tokens')}.h5"
    write_tokens(
        path, network, entries, content, prepare, backbone.batch_size, part.note(rows, total)
    )
    return [part.name("features")]


def write_tokens(
    path: Path,
    network: Backbone,
    entries: Sequence[Entry],
    content: Sequence[Box],
    prepare: Callable[[Image.Image, int], Image.Image],
    batch_size: int,
    note: dict[str, list[int]],
) -> None:
    """Stream the tokens of all images into ``path``; memory does not grow with their number."""
    with create_h5(path) as out:
        out.attrs.update(
            model=network.name,
            resolution=network.resolution,
            patch_size=network.patch_size,
            **note,
        )
        patches = by_image(
            out, "patch_tokens", len(entries), (network.grid**2, network.dim), np.float16
        )
        cls = by_image(out, "cls_token", len(entries), (network.dim,), np.float16)
        out["content"] = np.array(content, np.float32).reshape(-1, 4)
        write_names(out, [entry.image for entry in entries])
        start = 0
        with tqdm(total=len(entries), unit="image", mininterval=1.0) as progress:
            for images in image_batches(entries, prepare, batch_size):
                patch, summary = network.tokens(images)
                end = start + len(images)
                patches[start:end] = patch.half().cpu().numpy()
                cls[start:end] = summary.half().cpu().numpy()
                progress.update(len(images))
                start = end


def _letterbox(network: Backbone) -> Callable[[Image.Image, int], Image.Image]:
    """Whole images; the bars take the backbone's mean colour, its zero."""
    fill = tuple(round(255 * value) for value in network.mean)
    return lambda image, _: letterbox(image, network.resolution, fill)


def _crop(windows: Sequence[Box], size: int) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, index: crop(image, windows[index], size)


if __name__ == "__main__":
    run(main)
