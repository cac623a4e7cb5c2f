"""Image set of another method, from a folder, evaluated like the generated sets.

Writes ``images.h5``: ``images`` (n, S, S, 3) uint8, ``image`` (n,) names, and for the comparison a
few whole ``objects`` (m, views, S, S, 3) where the files name views; ``images.png``, the first
images; and ``rejected.csv`` (image, reason).
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_csv
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import by_image, write_names
from mirage_steps.files.image_set import OWN_WHITE, create_image_set, write_preview
from mirage_steps.files.images import UnreadableImage, find_files
from mirage_steps.files.loading import ahead
from mirage_steps.files.names import encoded, not_a
from mirage_steps.files.renderings import WHITE_SHARE, by_object, read_square, white_share
from mirage_steps.files.terminal import progress

_CHECKED = 72  # images whose border must be white where the background is removed
_SHOWN = 3  # objects of the comparison


def main(
    *,
    baseline: settings.Baseline,
    out: Path,
    fid: settings.Fid = settings.Fid(),
    image_size: int = 64,
) -> None:
    """Take the images of another method into a set.

    Args:
        baseline: Folder with the images, searched recursively, and their background; the images
            must be square.
        out: Folder for images.h5, images.png and rejected.csv.
        fid: Number of images (of more, as many are drawn), and seed of the choice.
        image_size: Side of an image in the set, in pixels.
    """
    where = f"baselines.{out.name}.path {baseline.path}"
    if wrong := not_a("folder", baseline.path):
        raise UserError(f"{where}: {wrong}; set it to the folder with the method's images")
    files, rejected = find_files(baseline.path)
    order = np.random.default_rng(fid.seed).permutation(len(files))
    white: dict[str, Any] = {"sam": OWN_WHITE} if baseline.background == "removed" else {}
    read = partial(_read, size=image_size, max_pixels=baseline.max_pixels)
    objects = _objects(where, files, baseline, fid.seed, read) if baseline.views else None
    names: list[str] = []
    with (
        create_image_set(out / "images.h5", fid.samples, image_size, **white) as file,
        progress(total=fid.samples, unit="image") as bar,
    ):
        for name, result in ahead(lambda index: read(files[index]), order):
            if isinstance(result, str):
                rejected.append((name, result))
                continue
            file["images"][len(names)] = result
            names.append(name)
            bar.update()
            if len(names) == fid.samples:
                break
        if len(names) < fid.samples:
            first = f"; the first, {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
            raise UserError(
                f"{where}: {len(names)} usable images of {len(files)} files, fid.samples = "
                f"{fid.samples}; every row needs as many{first}"
            )
        write_names(file, names)
        if objects is not None:
            by_image(file, "objects", len(objects), objects.shape[1:], np.uint8)
            file["objects"][:] = objects
        if white and (share := white_share(file["images"][:_CHECKED])) < WHITE_SHARE:
            log.warning(
                "%s: background is removed, but only %.0f %% of the border is white; is it "
                "background: kept?", where, 100 * share,
            )  # fmt: skip
        write_preview(out / "images.png", file)
    write_csv(out / "rejected.csv", ("image", "reason"), rejected)
    log.info("%d of %d files taken, %d rejected", fid.samples, len(files), len(rejected))


def _objects(
    where: str, files: list[Path], baseline: settings.Baseline, seed: int, read: Callable
) -> np.ndarray:
    """A few objects (m, views, S, S, 3) uint8 of those that have all views.

    Raises:
        UserError: none has; the message begins with ``where``.
    """
    found = by_object(files, Path(os.path.expanduser(baseline.path)).resolve())
    whole = [views for views in found.values() if len(views) == baseline.views]
    shown: list[np.ndarray] = []
    for index in np.random.default_rng(seed).permutation(len(whole)):
        views = [read(path)[1] for path in whole[index]]
        if not any(isinstance(view, str) for view in views):
            shown.append(np.stack(views))
        if len(shown) == _SHOWN:
            break
    if not shown:
        raise UserError(
            f"{where}: none of {len(found)} objects has {baseline.views} usable views; name the "
            "files NAME_VIEW.png or NAME/VIEW.png, or leave the key views out"
        )
    return np.stack(shown)


def _read(path: Path, size: int, max_pixels: int) -> tuple[str, np.ndarray | str]:
    """Name of an image, and its pixels (size, size, 3) uint8 or why it cannot be used."""
    name = encoded(path)
    try:
        image = read_square(path, max_pixels)
    except (UnreadableImage, OSError) as error:
        return name, str(error)
    return name, np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    run(main)
