"""What the steps left of themselves, for readers that must survive a damaged or missing file."""

import json
from pathlib import Path


def read_text(path: Path) -> str:
    """The text of a file, empty where it cannot be read; bytes that are no UTF-8 are replaced."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty where the file is missing, damaged or holds no object."""
    try:
        found = json.loads(read_text(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_metrics(folder: Path) -> list[dict]:
    """Records of a training's ``metrics.jsonl``, each with an int ``step``.

    Lines that a kill cut off are skipped.

    Args:
        folder: of the checkpoints.
    """
    records = []
    for line in read_text(folder / "metrics.jsonl").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def number(value: object) -> float | None:
    """A finite number of a record, None for anything else that may stand in its place."""
    return value if isinstance(value, int | float) and abs(value) < 1e300 else None


def section(record: dict, key: str) -> dict:
    """The object under a key of a record, empty where there is none."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def rows(record: dict) -> list[dict]:
    """The objects in the list ``rows`` of a record, as in ``metrics.json``."""
    found = record.get("rows")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
