"""Photos to turn: what their outputs are called, and which a folder holds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mirage_steps.sources.folder import find_files
from mirage_steps.support.errors import UserError


def distinct_stems(photos: Sequence[Path]) -> list[str]:
    """What the outputs of each photo are called: its name, with the suffix where others share it.

    Raises:
        UserError: two photos have the same name altogether.
    """
    stems = _stems([Path(photo.name) for photo in photos])
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: two photos of this name; rename one, or turn them apart")
    return stems


def photos_of(folder: Path) -> dict[str, Path]:
    """The files of a folder, however deep, by what their outputs are called.

    Args:
        folder: as in the key ``photos``.

    Raises:
        UserError: there is no such folder.
    """
    root = folder.expanduser()
    if not root.is_dir():
        raise UserError(f"photos {folder}: no such folder; set it to the folder with your photos")
    below = [path.relative_to(root.resolve()) for path in find_files(root)]
    return {stem: root / path for stem, path in zip(_stems(below), below, strict=True)}


def _stems(photos: Sequence[Path]) -> list[str]:
    """Paths, without their suffix where that tells them apart."""
    short = [str(path.with_suffix("")) for path in photos]
    whole = [str(path) for path in photos]
    counts = Counter(short)
    return [s if counts[s] == 1 else w for s, w in zip(short, whole, strict=True)]
