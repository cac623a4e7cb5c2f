"""Runs side by side: settings, code and packages that differ, and their figures.

``python -m mirage_steps.tools.compare results/A results/B [results/C ...]`` reads what the steps
wrote there: ``*.run.json``, ``metrics.json`` and ``pose_eval.json``. Nothing is computed anew.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from mirage_steps.errors import UserError
from mirage_steps.files.command import run_tool
from mirage_steps.files.records import number, read_json
from mirage_steps.files.text_table import aligned

# By their folders, since searching those of 100 000 images takes long.
_RECORDS = ("*.run.json", "*/*.run.json", "sets/*/*.run.json", "novel_views/**/*.run.json")
_FILES = (*_RECORDS, "metrics.json", "poses/pose_eval.json")
# Inputs that no step made.
_OUTSIDE = ("labels", "photo")


@dataclass
class Run:
    """What was read of a run.

    Args:
        records: content of every file by its path in the run's folder.
        settings: values by step, part (such as the set) and key; code and packages among them.
        figures: by name the value, the number of images or steps, and what it was measured with.
        problems: files that cannot be read.
    """

    records: dict[str, dict] = field(default_factory=dict)
    settings: dict[tuple[str, str, str], object] = field(default_factory=dict)
    figures: dict[str, dict] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def main(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    *,
    format: Literal["text", "markdown", "json"] = "text",
) -> None:
    """Print what differs between runs, and their figures side by side; write nothing.

    Args:
        folders: Folders of two runs or more, such as results/demo.
        format: How it is printed.
    """
    if len(folders) < 2:
        raise UserError("FOLDERS: two runs or more are needed, such as results/demo results/other")
    runs = [read_run(folder) for folder in folders]
    found = {
        "runs": [str(folder) for folder in folders],
        "problems": [line for run in runs for line in run.problems],
        "differences": differences(runs),
        "figures": figures(runs),
    }
    print(json.dumps(found, indent=2) if format == "json" else _as_tables(found, format))


def read_run(folder: Path) -> Run:
    """What the steps of a run wrote; damaged files are listed and left out.

    Raises:
        UserError: there is no such folder, or it holds no records.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give that of a run, such as results/demo")
    run = Run()
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        if content := read_json(path):
            run.records[str(path.relative_to(folder))] = content
        else:
            run.problems.append(f"{path}: damaged, left out")
    if not run.records:
        raise UserError(f"{folder}: holds no results of a run; give its folder below results/")
    for path, record in run.records.items():
        if path.endswith(".run.json"):
            run.settings |= _settings(path, record)
    run.figures = _distances(run.records.get("metrics.json", {}))
    run.figures |= _scores(run.records.get("poses/pose_eval.json", {}))
    run.figures |= _training(run.records.get("training/train.run.json", {}))
    return run
