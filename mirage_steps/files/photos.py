"""Photos to turn: what their outputs are called, and which a folder holds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.sources.folder import find_files, printable

# What an output's name ends in beside its suffix: `x.run.json` is the record of x.
_TAKEN = (".run", ".views")


def distinct_stems(photos: Sequence[Path]) -> list[str]:
    """What the outputs of each photo are called: its name, with the suffix where others share it.

    Raises:
        UserError: two photos would have outputs of the same name.
    """
    stems = _stems([photo.name for photo in photos])
    first: dict[str, Path] = {}
    for stem, photo in zip(stems, photos, strict=True):
        if stem in first:
            raise UserError(
                f"{first[stem]} and {photo}: the outputs of both would be called {stem}; turn them "
                "in two calls, with another --out"
            )
        first[stem] = photo
    return stems


def photos_of(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """The photos of a folder, however deep, by what their outputs are called.

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
    files, rejected = [], []
    for path in find_files(root):
        below = path.relative_to(root.resolve())
        if reason := _unusable(path, str(below)):
            rejected.append((printable(below), reason))
        else:
            files.append(below)
    stems = _stems([str(path) for path in files])
    counts = Counter(stems)
    found = {}
    for stem, path in zip(stems, files, strict=True):
        if counts[stem] > 1:
            rejected.append((str(path), "another photo's outputs have the same name; rename it"))
        else:
            found[stem] = root / path
    return found, rejected


def _unusable(path: Path, name: str) -> str | None:
    """Why a file cannot be a photo of the pipeline, as far as its name and header tell."""
    if set("{}<>\n") & set(name) or not name.isprintable():
        return "{ } < > or a line break in its name, which Snakemake would misread; rename it"
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception:  # Pillow raises nearly anything on damaged data
        return "not an image"
    return None


def _stems(names: Sequence[str]) -> list[str]:
    """Names without suffix where that tells them apart."""
    short = [str(Path(name).parent / Path(name).stem) for name in names]
    counts = Counter(short)
    return [
        name if counts[stem] > 1 or stem.endswith(_TAKEN) else stem
        for name, stem in zip(names, short, strict=True)
    ]
