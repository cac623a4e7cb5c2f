"""Runs side by side: settings, code and packages that differ, and their figures.

``python -m mirage_steps.tools.compare results/A results/B [results/C ...]`` reads what the steps
wrote there: ``*.run.json``, ``metrics.json`` and ``pose_eval.json``. Nothing is computed anew.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import tyro

from mirage_steps.errors import UserError
from mirage_steps.files.command import run_tool
from mirage_steps.files.records import number, read_json, rows, section
from mirage_steps.files.text_table import aligned

# By their folders, since searching those of 100 000 images takes long.
_RECORDS = ("*.run.json", "*/*.run.json", "sets/*/*.run.json", "novel_views/**/*.run.json")
_FILES = (*_RECORDS, "metrics.json", "poses/pose_eval.json")
_OUTSIDE = ("labels", "photos")  # inputs that no step made

Run = dict[str, dict]  # content of a run's files by their paths in its folder


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
        raise UserError("FOLDERS: two or more are needed, such as results/demo results/other")
    runs = {str(folder): read_run(folder) for folder in folders}
    found = {
        "runs": list(runs),
        "damaged": [
            f"{folder}/{path}" for folder, run in runs.items() for path in run if not run[path]
        ],
        "differences": list(differences([settings(run) for run in runs.values()])),
        "figures": list(side_by_side([figures(run) for run in runs.values()])),
    }
    print(json.dumps(found, indent=2) if format == "json" else _as_tables(found, format))


def read_run(folder: Path) -> Run:
    """What the steps of a run wrote, with nothing in place of damaged files.

    Raises:
        UserError: the folder is missing or holds no results.
    """
    paths = [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
    if not paths:
        raise UserError(f"{folder}: no results there; give the folder of a run, as results/demo")
    return {str(path.relative_to(folder)): read_json(path) for path in paths}


def settings(run: Run) -> dict[tuple[str, str], str]:
    """Settings, networks, code and packages by step and key; of several sets all their values.

    Inputs that earlier steps made are left out. The key ``finished`` counts a step's records.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for path, record in run.items():
        if not (path.endswith(".run.json") and record):
            continue
        step = str(record.get("step")).rpartition(".")[2]
        step = "crop_features" if path.startswith("crop_features/") else step
        values = {(step, key): value for key, value in section(record, "settings").items()}
        values.pop((step, "dataset"), None)  # the run's own name
        values |= {(step, f"network {k}"): one for k, one in section(record, "networks").items()}
        inputs = section(record, "inputs")
        values |= {(step, f"input {key}"): inputs[key] for key in _OUTSIDE if key in inputs}
        values |= {("package", key): one for key, one in section(record, "packages").items()}
        values |= {("code", key): record.get(key) for key in ("version", "commit", "device")}
        values[step, "finished"] = path
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            found.setdefault(name, set()).add(text)
    told = {name: " and ".join(sorted(texts)) for name, texts in found.items()}
    return told | {name: str(len(found[name])) for name in found if name[1] == "finished"}


def differences(runs: Sequence[dict[tuple[str, str], str]]) -> Iterator[dict]:
    """Step, key and a value per run where :func:`settings` differ.

    Where a step is missing from a run, only its key ``finished`` tells.
    """
    steps = [{step for step, _ in one} for one in runs]
    for step, key in dict.fromkeys(name for one in runs for name in one):
        values = [one.get((step, key)) for one in runs]
        there = [
            value
            for value, finished in zip(values, steps, strict=True)
            if key == "finished" or step in finished
        ]
        if len(set(there)) > 1:
            yield {"step": step, "key": key, "values": values}


def figures(run: Run) -> dict[str, tuple]:
    """Value, n and basis of figures by name; two compare where n and basis are equal.

    ``n`` counts images or training steps. The basis is features, image size and background removal
    of a distance, network and device of a training.
    """
    table, poses = run.get("metrics.json", {}), run.get("poses/pose_eval.json", {})
    train = run.get("training/train.run.json", {})
    found: dict[str, tuple] = {}
    features = f"{table.get('backbone')} {table.get('token')} at {table.get('resolution')} px"
    for row in rows(table):
        background = row.get("sam") or "kept"
        for key in ("fid", "fd_inception", "fd_backbone", "kid_backbone"):
            network = features if key.endswith("backbone") else row.get("inception")
            of = f"{network}, images {table.get('image_size')} px, background {background}"
            found[f"{row.get('row')} {key}"] = (row.get(key), row.get("n"), of)
    scores = {**poses, **section(poses, "viewpoints")}
    n = scores.pop("images", None)
    found |= {f"poses {key}": (value, n, "true viewpoints") for key, value in scores.items()}
    chosen = section(train, "settings")
    of = f"U-Net {chosen.get('preset')} on {train.get('device')}"
    for key in ("seconds", "peak_memory_mb"):
        found[f"training {key}"] = (train.get(key), chosen.get("iterations"), of)
    return {name: one for name, one in found.items() if number(one[0]) is not None}


def side_by_side(measured: Sequence[dict[str, tuple]]) -> Iterator[dict]:
    """Each figure with value, ``n`` and basis (``of``) per run, and whether it is comparable."""
    for name in dict.fromkeys(name for one in measured for name in one):
        values, n, of = zip(*(one.get(name, (None,) * 3) for one in measured), strict=True)
        bases = [one[name][1:] for one in measured if name in one]
        comparable = all(one == bases[0] for one in bases)
        yield {"figure": name, "values": values, "n": n, "of": of, "comparable": comparable}


def _as_tables(found: dict, format: str) -> str:
    """What differs, the figures, and what these are of, as text or Markdown."""
    letters = [chr(ord("A") + place) for place in range(len(found["runs"]))]
    changes = [("step", "key", *letters)]
    for one in found["differences"]:
        changes.append((one["step"], one["key"], *map(_cell, one["values"])))
    bases = list(dict.fromkeys(of for one in found["figures"] for of in one["of"] if of))
    measured = [("figure", "n", *letters, "of", "")]
    for one in found["figures"]:
        n = dict.fromkeys(str(n) for n in one["n"] if n is not None)
        of = dict.fromkeys(f"({bases.index(of) + 1})" for of in one["of"] if of)
        note = "" if one["comparable"] else "not comparable"
        values = map(_cell, one["values"])
        measured.append((one["figure"], ", ".join(n), *values, ", ".join(of), note))
    runs = [f"{letter}: {run}" for letter, run in zip(letters, found["runs"], strict=True)]
    notes = [f"({place}) {of}" for place, of in enumerate(bases, 1)]
    notes += [f"{path}: damaged, left out" for path in found["damaged"]]
    parts = (runs, _table(changes, format), _table(measured, format), notes)
    return "\n\n".join("\n".join(lines) for lines in parts)


def _cell(value: object) -> str:
    """A value in short; of files the start of their hashes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    hashes = re.findall('"sha256": "(.{12})', str(value))
    return " ".join(hashes) or ("-" if value is None else str(value))


def _table(lines: Sequence[Sequence[str]], format: str) -> list[str]:
    if format == "text":
        return aligned(lines, "<" * len(lines[0]))
    cells = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
    return [cells[0], "|---" * len(lines[0]) + "|", *cells[1:]]


if __name__ == "__main__":
    run_tool(main)
