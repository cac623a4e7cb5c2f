"""Step 7d: a set of another method's images, from a folder, to be scored like the generated ones.

Writes ``images.h5``: ``images`` (n, S, S, 3) uint8, ``image`` (n,) names; ``images.png``, the first
of them; and ``rejected.csv`` (image, reason).
"""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import write_csv
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import by_image, create_h5, write_names
from mirage_steps.files.images import UnreadableImage, read_rgb
from mirage_steps.files.loading import ahead
from mirage_steps.files.photos import find_files, printable

# What the masked sets carry in place of a network's name: nobody removed this background.
OWN_WHITE = "nothing (rendered on white)"

_SHOWN, _COLUMNS = 72, 12
_NEARLY_WHITE, _WHITE_SHARE = 240, 0.5


def main(
    *,
    path: Path,
    out: Path,
    samples: int,
    image_size: int = 64,
    background: Literal["kept", "removed", "remove"] = "kept",
    seed: int = 0,
) -> None:
    """Take the images of another method into a set.

    Args:
        path: Folder with the images, searched recursively; they must be square.
        out: Folder for images.h5, images.png and rejected.csv.
        samples: Number of images; of more, as many are drawn.
        image_size: Side of an image in the set, in pixels.
        background: removed where the images are on white already, else kept or remove.
        seed: Seed of the choice.
    """
    where = f"baselines.{out.name}.path {path}"
    if not path.expanduser().is_dir():
        raise UserError(f"{where}: no such folder; set it to the folder with the method's images")
    files = find_files(path)
    order = np.random.default_rng(seed).permutation(len(files))
    rejected: list[tuple[str, str]] = []
    with create_h5(out / "images.h5") as file, tqdm(total=samples, unit="image") as bar:
        file.attrs["kind"] = f"images of {path}"
        if background == "removed":
            file.attrs["sam"] = OWN_WHITE
        images = by_image(file, "images", samples, (image_size, image_size, 3), np.uint8)
        count, names = 0, []
        for name, result in ahead(lambda index: _read(files[index], image_size), order):
            if isinstance(result, str):
                rejected.append((name, result))
                continue
            images[count] = result
            names.append(name)
            count += 1
            bar.update()
            if count == samples:
                break
        if count < samples:
            first = f"; the first, {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
            raise UserError(
                f"{where}: {count} usable images of {len(files)} files, fid.samples = {samples}; "
                f"every row needs as many{first}"
            )
        write_names(file, names)
        if background == "removed" and (share := _white_share(images[:_SHOWN])) < _WHITE_SHARE:
            log.warning(
                "%s: background is removed, but only %.0f %% of the border is white; is it "
                "background: kept?", where, 100 * share,
            )  # fmt: skip
        tiles.grid(out / "images.png", images[:_SHOWN], _COLUMNS)
    write_csv(out / "rejected.csv", ("image", "reason"), rejected)
    log.info("%d of %d files taken, %d rejected", samples, len(files), len(rejected))


def _white_share(images: np.ndarray) -> float:
    """Share of white pixels at the border of images (n, S, S, 3) uint8."""
    white = images.min(axis=3) > _NEARLY_WHITE
    sides = (white[:, 0], white[:, -1], white[:, :, 0], white[:, :, -1])
    return float(np.mean([side.mean() for side in sides]))


def _read(path: Path, size: int) -> tuple[str, np.ndarray | str]:
    """Name of an image, and its pixels (size, size, 3) uint8 or why it cannot be used."""
    name = printable(path)
    try:
        image = read_rgb(path)
    except (UnreadableImage, OSError) as error:
        return name, str(error)
    if image.width != image.height:
        # Squeezed or padded it would be another image than the method made.
        return name, f"not square: {image.width}x{image.height}; crop it first"
    return name, np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    run(main)
