"""What the steps left of themselves, for readers that must survive a damaged or missing file."""

import json
from pathlib import Path


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty where the file is missing, damaged or holds no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_metrics(folder: Path) -> list[dict]:
    """Records of a training's ``metrics.jsonl``, each with an int ``step``.

    Lines that a kill cut off are skipped.

    Args:
        folder: of the checkpoints.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
