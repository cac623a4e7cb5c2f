"""Photos for novel views: opened, found in a folder, and the names of their outputs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files.images import UnreadableImage, find_files, printable, read_rgb, upright_rgb

Photo = Path | str | Image.Image | np.ndarray
_SMALLEST = 16  # pixels a side below which a photo shows nothing
# Reserved ends of output names: `x.run.json` is the record of x.
_TAKEN = (".run", ".views")


def open_photo(photo: Photo) -> tuple[str, Image.Image]:
    """Name and upright RGB image of a photo.

    Args:
        photo: a file, an image, or (H, W, 3) uint8.

    Raises:
        UserError: it cannot be read, or is too small.
    """
    path = Path(photo).expanduser() if isinstance(photo, (Path, str)) else None
    where = path or "the photo"
    if path and not path.is_file():
        why = "is a folder; give the photos in it" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {why}")
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise UserError(
                f"the photo: {photo.dtype} of shape {photo.shape}; give (H, W, 3) uint8"
            )
        photo = Image.fromarray(photo)
    try:
        image = read_rgb(path) if path else upright_rgb(photo)
    except (UnreadableImage, OSError) as error:
        raise UserError(f"{where}: cannot be used: {error}") from None
    if min(image.size) < _SMALLEST:
        raise UserError(
            f"{where}: cannot be used: {image.width}x{image.height} pixels are too few; "
            f"use at least {_SMALLEST}x{_SMALLEST}"
        )
    return path.name if path else "photo", image


def output_names(photos: Sequence[Path]) -> list[str]:
    """Names of the photos' outputs: without suffix, or with it if two would be the same.

    Args:
        photos: paths relative to one folder.
    """
    short = [str(photo.parent / photo.stem) for photo in photos]
    counts = Counter(short)
    return [
        str(photo) if counts[stem] > 1 or stem.endswith(_TAKEN) else stem
        for photo, stem in zip(photos, short, strict=True)
    ]


def photos_of(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """The photos of a folder, searched recursively, by the names of their outputs.

    Args:
        folder: as in the key ``photos``.

    Returns:
        Images, and (name, reason) of every other file; no image is decoded.

    Raises:
        UserError: there is no such folder.
    """
    root = folder.expanduser()
    if not root.is_dir():
        raise UserError(f"photos {folder}: no such folder; set it to the folder with your photos")
    files = (path.relative_to(root.resolve()) for path in find_files(root))
    reasons = {path: _unusable(root, path) for path in files}
    usable = [path for path, reason in reasons.items() if reason is None]
    names = output_names(usable)
    counts = Counter(names)
    found = {}
    for name, path in zip(names, usable, strict=True):
        if counts[name] == 1:
            found[name] = root / path
        else:
            reasons[path] = "another photo's outputs have the same name; rename it"
    return found, [(printable(path), reason) for path, reason in reasons.items() if reason]


def _unusable(root: Path, path: Path) -> str | None:
    """Why a file of a folder is not a usable photo, by its name and header."""
    name = str(path)
    if set("{}<>\n") & set(name) or not name.isprintable():
        return "{ } < > or a line break in its name, which Snakemake would misread; rename it"
    try:
        with Image.open(root / path) as image:
            image.verify()
    except Exception:  # Pillow raises nearly anything on damaged data
        return "not an image"
    return None
