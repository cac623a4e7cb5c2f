"""The table of true azimuths that a user gives, as the key ``labels``."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.names import decoded, encoded
from mirage_steps.files.terminal import log

_MOST_DEGREES = 3600  # azimuths may be counted on over several turns


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
            raise UserError(f"{where}: azimuth_deg {value!r}: is more than ten turns; use degrees")
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
    by_name = defaultdict(list)
    for image in images:
        path = _parts(decoded(image))
        by_name[path[-1]].append((image, path))
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
