"""The table of true azimuths that a user gives, as the key ``labels``."""

import math
import re
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv

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
