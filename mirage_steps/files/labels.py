"""Tables that a user gives: azimuths (``labels``), boxes (``source.boxes``), ``poses.edits``."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError, errors_at
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.manifest import BOX, Entry
from mirage_steps.files.names import decoded, encoded
from mirage_steps.files.terminal import log
from mirage_steps.method.boxes import Box, as_box, clipped
from mirage_steps.settings import LEAST_POSES

_MOST_DEGREES = 3600  # azimuths may be counted on over several turns
_MOST_LETTERS = 16  # of a pose's name, above a view of 96 pixels


def read_azimuths(labels: Path) -> list[tuple[str, float]]:
    """Name and azimuth in [0, 360) degrees of every row that has one.

    Raises:
        UserError: a column is missing, a value is no azimuth, or there is none.
    """
    rows = read_csv(labels)
    header = list(rows[0]) if rows else []
    if not {"image", "azimuth_deg"} <= set(header):
        sign = re.search(r"[;\t]", f"{header[0]}") if header else None
        found = {";": "semicolons", "\t": "tabs"}[sign[0]] if sign else ""
        between = f" with commas between them, not {found}" if found else ""
        raise UserError(f"{labels}: needs the columns image and azimuth_deg{between}")
    azimuths = []
    for number, row in enumerate(rows, 2):
        where, value = f"{labels}, line {number}", row["azimuth_deg"]
        if None in row:
            hint = "write decimals as 12.5, and a name with a comma in quotes"
            raise UserError(f"{where}: has more cells than the table has columns; {hint}")
        if not value:
            continue
        try:
            azimuth = float(value)
        except ValueError:
            azimuth = math.nan
        if not math.isfinite(azimuth):
            raise UserError(f"{where}: azimuth_deg {value!r}: not a number")
        if abs(azimuth) > _MOST_DEGREES:
            raise UserError(
                f"{where}: azimuth_deg {value!r}: is more than ten rotations; use degrees"
            )
        azimuths.append((row["image"] or "", azimuth % 360))
    if not azimuths:
        raise UserError(f"{labels}: azimuth_deg is always empty")
    return azimuths


def match_labels(labels: Path, images: list[str]) -> dict[str, float]:
    """Azimuths of a labels file by the manifest's names.

    A label belongs to the image whose path ends with the label's: ``a/b.jpg`` or just ``b.jpg``,
    if that names one image only. Images with several azimuths have none.

    Raises:
        UserError: the table cannot be used, or no label matches.
    """
    by_name = _by_name(images)
    found: dict[str, set[float]] = defaultdict(set)
    unused: dict[str, list[str]] = defaultdict(list)
    for label, azimuth in read_azimuths(labels):
        matches = _named(label, by_name)
        if len(matches) == 1:
            found[matches[0]].add(azimuth)
        else:
            why = "name several images" if matches else "name no image of the data set"
            unused[why].append(label)
    clear = {image: azimuths.pop() for image, azimuths in found.items() if len(azimuths) == 1}
    if several := [image for image in found if image not in clear]:
        unused["have several azimuths"] = several
    counts = ", ".join(
        f"{len(names)} {why} ({encoded(names[0])}{', ...' if names[1:] else ''})"
        for why, names in unused.items()
    )
    if not clear:
        raise UserError(
            f"labels {labels}: no label can be used: {counts}; "
            "write names as in manifest.csv, with folders where several files have the same"
        )
    if counts:
        log.warning("labels %s: %s; these are not used", labels, counts)
    return clear


def read_boxes(boxes: Path) -> list[tuple[str, str, Box]]:
    """Line of the table, name and box (x0, y0, x1, y1) of every row.

    Raises:
        UserError: a column is missing, a row has no box, or there is none.
    """
    found, columns = [], ", ".join(BOX)
    for number, row in enumerate(read_csv(boxes), 2):
        where = f"{boxes}, line {number}"
        if not {"image", *BOX} <= row.keys():
            raise UserError(
                f"{boxes}: needs the columns image, {columns}, with commas between them"
            )
        try:
            box = as_box(row[key] for key in BOX)
        except (TypeError, ValueError):  # an empty cell, a row that is too short
            box = (math.nan,) * 4
        # Comparisons with what is no number are false.
        if None in row or not (box[0] < box[2] < math.inf and box[1] < box[3] < math.inf):
            given = ",".join(f"{row[key] or ''}" for key in BOX)
            wrong = f"{columns} {given!r}: no box; give pixels from the top left, x0 < x1, y0 < y1"
            raise UserError(f"{where}: {wrong}")
        found.append((where, row["image"] or "", box))
    if not found:
        raise UserError(f"{boxes}: has no boxes")
    return found


def match_boxes(boxes: Path, entries: list[Entry]) -> dict[str, Box]:
    """Boxes of a user's table by the manifest's names, as :func:`match_labels` finds them.

    Raises:
        UserError: the table cannot be used, a box is not on its image, or an image has two.
    """
    by_name, sizes = _by_name([one.image for one in entries]), {}
    for one in entries:
        sizes[one.image] = one.width, one.height
    found, unused = {}, []
    for where, name, box in read_boxes(boxes):
        matches = _named(name, by_name)
        if len(matches) != 1:
            unused.append(name)
            continue
        (image,), (width, height) = matches, sizes[matches[0]]
        if image in found:
            raise UserError(f"{where}: {encoded(name)} has a box already; give one of each image")
        found[image] = clipped(box, width, height)
        if found[image] is None:
            raise UserError(f"{where}: {box} is not on {encoded(name)} ({width}x{height} pixels)")
    if unused:
        log.warning(
            "source.boxes %s: %d name no image of the folder, or several (%s); these are not used",
            boxes, len(unused), encoded(unused[0]),
        )  # fmt: skip
    return found


def read_edits(edits: Path, k: int, categories: int = 1) -> tuple[np.ndarray, dict[int, str]]:
    """What becomes of the poses that were found, and the names of those that stay.

    Args:
        edits: table with pose, action and value.
        k: poses of each category before any edit.
        categories: number of them; the poses of the second follow those of the first.

    Returns:
        (k * categories,) int64, of each pose itself, the pose that it joins, or -1 for none; and
        names by the poses' numbers before any edit.

    Raises:
        UserError: a row is no edit, two rows do not fit, or too few poses are left.
    """
    into, count = np.arange(k * categories), k * categories
    names: dict[int, str] = {}
    lines: dict[int, int] = {}
    with errors_at("poses.edits "):
        rows = read_csv(edits)
    for line, row in enumerate(rows, 2):
        with errors_at(f"poses.edits {edits}, line {line}: "):
            pose, joins, name = _edit(row, count)
            if pose in lines:
                raise UserError(f"pose {pose} is edited in line {lines[pose]}; give one row")
            if joins is not None and joins // k not in (pose // k, -1):
                raise UserError(f"merge {joins}: give another pose of its category")
        lines[pose] = line
        if joins is None:
            names[pose] = name
        else:
            into[pose] = joins
    with errors_at(f"poses.edits {edits}: "):
        if not lines:
            raise UserError("has no rows; give pose, action, value")
        if wrong := [pose for pose in lines if into[pose] >= 0 and into[into[pose]] != into[pose]]:
            joins = f"line {lines[wrong[0]]}: merge {into[wrong[0]]}"
            raise UserError(f"{joins}: is merged or dropped itself; give a pose that stays")
        left = np.bincount(np.unique(into[into >= 0]) // k, minlength=categories)
        if left.min() < LEAST_POSES or left.min() < left.max():
            equally = ", equally many in all categories" if categories > 1 else ""
            counts = " and ".join(map(str, left))
            raise UserError(f"leaves {counts} poses; leave at least {LEAST_POSES}{equally}")
    return into, names


def _edit(row: Mapping[str, str], count: int) -> tuple[int, int | None, str]:
    """An edit of one of so many poses: its number, what it joins (-1 for none), or its name.

    Raises:
        UserError: the row is no edit.
    """
    if None in row or not {"pose", "action", "value"} <= row.keys():
        raise UserError("needs the cells pose, action, value, and no more, with commas between")
    pose, action, value = (f"{row[key] or ''}".strip() for key in ("pose", "action", "value"))
    for number in (pose, value) if action == "merge" else (pose,):
        # Python converts no numbers of thousands of digits.
        if not (re.fullmatch("[0-9]{1,9}", number) and int(number) < count):
            raise UserError(f"{number!r} is no pose; give a number, 0 to {count - 1}")
    if action == "merge" and int(value) != int(pose):
        return int(pose), int(value), ""
    if action == "drop" and not value:
        return int(pose), -1, ""
    if action == "name" and 0 < len(value) <= _MOST_LETTERS and value.isprintable():
        return int(pose), None, value
    raise UserError(
        f"{action} {value}: give merge and another pose, drop and nothing, or name and a text of "
        f"at most {_MOST_LETTERS} letters"
    )


def _by_name(images: list[str]) -> dict[str, list[tuple[str, list[str]]]]:
    """Images and the parts of their paths by their last."""
    found = defaultdict(list)
    for image in images:
        path = _parts(decoded(image))
        found[path[-1]].append((image, path))
    return found


def _named(label: str, by_name: Mapping[str, list[tuple[str, list[str]]]]) -> list[str]:
    """The images that a label names, as it is written, or by the spelling of tables or Windows."""
    unix = label.replace("\\", "/")
    for spelled in (label, decoded(label), unix, decoded(unix)):
        end = _parts(spelled)
        near = by_name.get(end[-1], ()) if end else ()
        found = [image for image, path in near if path[-len(end) :] == end]
        # Of names that differ in their Unicode form only, the label's own.
        if exact := [image for image in found if f"/{decoded(image)}".endswith(f"/{spelled}")]:
            return exact
        if found:
            return found
    return []


def _parts(path: str) -> list[str]:
    """Parts of a path in one Unicode form, without ``.`` and leading ``..``."""
    parts = list(Path(unicodedata.normalize("NFC", path)).parts)
    while parts[:1] == [".."]:
        parts.pop(0)
    return parts
