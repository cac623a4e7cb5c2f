"""Readers of the steps' records that tolerate damaged and missing files."""

import contextlib
import json
from pathlib import Path

from mirage_steps.errors import UserError

# By their folders, since searching those of 100 000 images takes long.
_RECORDS = ("*.run.json", "*/*.run.json", "sets/*/*.run.json", "novel_views/**/*.run.json")
_FILES = (*_RECORDS, "metrics.json", "poses/pose_eval.json", "evidence/evidence.json")
BUDGET = "budget.json"  # of training.hours, beside the checkpoints


def read_text(path: Path) -> str:
    """The text of a file, empty where it cannot be read; bytes that are no UTF-8 are replaced."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict:
    """The object in a JSON file, without what is null; empty where the file cannot be read."""
    try:
        found = json.loads(read_text(path))
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if value is not None}


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


def read_run(folder: Path) -> dict[str, dict]:
    """Content of a run's files by their paths in its folder, empty for damaged ones.

    A variant has those of the run whose model it uses, too.

    Raises:
        UserError: the folder is missing or holds no results.
    """
    paths = [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
    if not paths:
        raise UserError(f"{folder}: no results there; give the folder of a run, as results/demo")
    found = {str(path.relative_to(folder)): read_json(path) for path in paths}
    home = home_of(folder)
    return found if home == folder else read_run(home) | found
