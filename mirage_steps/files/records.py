"""Readers of the steps' records that tolerate damaged and missing files."""

import contextlib
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


def home_of(folder: Path) -> Path:
    """The folder of the run that has the model: another's for a variant, by its steps' records."""
    if (folder / "training").is_dir():
        return folder
    for record in (*folder.glob("sheet/*.run.json"), *folder.glob("sets/*/views*.run.json")):
        model = read_json(record).get("inputs", {}).get("model", {}).get("path", "")
        if len(parts := Path(model).parts) > 2:
            return folder.parent / parts[-3]
    return folder


def read_metrics(folder: Path) -> list[dict]:
    """Records of a training's ``metrics.jsonl``; lines that a kill cut off are skipped.

    Args:
        folder: of the checkpoints.
    """
    records = []
    for line in read_text(folder / "metrics.jsonl").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records
