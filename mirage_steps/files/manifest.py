"""``manifest.csv``: the list of images, in the order of every step."""

from dataclasses import dataclass
from pathlib import Path

from mirage_steps.errors import UserError, parsing
from mirage_steps.files.atomic import csv_rows, write_csv
from mirage_steps.files.names import decoded, encoded
from mirage_steps.method.boxes import Box, as_box

BOX = ("x0", "y0", "x1", "y1")
HEADER = ("image", "width", "height", "azimuth_deg", "viewpoint", "category", *BOX, "mask")


@dataclass(frozen=True, slots=True)
class Entry:
    """One usable image.

    Args:
        image: the name by which every table calls it: its path relative to the manifest's folder
            if it lies there, else absolute, as :func:`.names.encoded` spells it.
        path: where it is.
        width: in pixels, upright.
        height: in pixels, upright.
        azimuth_deg: true azimuth in [0, 360), None where unknown: 0 front to the camera, 90 facing
            image-left, 180 rear to the camera, 270 facing image-right.
        box: of the object in pixels, where it is given.
        mask: file of the object's mask, where one is given.
    """

    image: str
    path: Path
    width: int
    height: int
    azimuth_deg: float | None = None
    viewpoint: str | None = None
    category: str | None = None
    box: Box | None = None
    mask: Path | None = None


def write_manifest(path: Path, entries: list[Entry]) -> None:
    """Write ``manifest.csv``, whole or not at all; what is unknown stays empty."""
    rows = []
    for entry in entries:
        azimuth, box = entry.azimuth_deg, entry.box
        angle = None if azimuth is None else f"{round(azimuth, 3) % 360:.3f}"
        edges = (None,) * 4 if box is None else (f"{edge:.3f}" for edge in box)
        known = entry.image, entry.width, entry.height, angle, entry.viewpoint, entry.category
        rows.append((*known, *edges, None if entry.mask is None else encoded(entry.mask)))
    write_csv(path, HEADER, rows)


def read_manifest(path: Path) -> list[Entry]:
    """Read ``manifest.csv``.

    Raises:
        UserError: missing, empty or without its columns.
    """
    with parsing(f"{path}", "not a manifest", "dataset"):
        entries = [
            Entry(
                row["image"],
                path.parent / decoded(row["image"]),
                int(row["width"]),
                int(row["height"]),
                float(row["azimuth_deg"]) if row.get("azimuth_deg") else None,
                row.get("viewpoint") or None,
                row.get("category") or None,
                as_box(row[key] for key in BOX) if row.get("x0") else None,
                path.parent / decoded(row["mask"]) if row.get("mask") else None,
            )
            for row in csv_rows(path)
        ]
    if not entries:
        raise UserError(f"{path}: lists no images; see rejected.csv in its folder for the reasons")
    return entries
