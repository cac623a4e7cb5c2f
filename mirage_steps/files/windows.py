"""``foreground.csv``: the object's box and the crop window of every image."""

from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv, write_csv
from mirage_steps.files.manifest import Entry
from mirage_steps.method.boxes import Box, centred

_BOX = ("x0", "y0", "x1", "y1")
_WINDOW = ("window_x0", "window_y0", "window_x1", "window_y1")
HEADER = ("image", "found", *_BOX, *_WINDOW, "padded_share", "foreground_share")


def write_windows(path: Path, rows: list[tuple]) -> None:
    """Write rows of ``HEADER``; boxes in pixels, empty where no object was found."""
    write_csv(
        path, HEADER, ([f"{v:.3f}" if isinstance(v, float) else v for v in row] for row in rows)
    )


def read_windows(path: Path, entries: list[Entry], centre: bool = False) -> list[tuple[Entry, Box]]:
    """Images in which an object was found, each with its crop window in pixels.

    Args:
        path: foreground.csv.
        entries: the manifest's images.
        centre: move each window so that the object's box is in its middle, even out of the image.

    Raises:
        UserError: the table belongs to another manifest, or no object was found at all.
    """
    rows = read_csv(path)
    if [row.get("image") for row in rows] != [entry.image for entry in entries]:
        raise UserError(f"{path}: lists other images than the manifest; rerun the foreground step")
    found = []
    for entry, row in zip(entries, rows, strict=True):
        if row["found"] == "1":
            box, window = (tuple(float(row[key]) for key in keys) for keys in (_BOX, _WINDOW))
            found.append((entry, centred(window, box) if centre else window))
    if not found:
        raise UserError(
            f"{path}: no object was found in any image; look at foreground.png beside it and try "
            "foreground.threshold: zero or another foreground.rule"
        )
    return found
