"""Compare runs: settings, code and packages that differ, and their figures.

``python -m mirage_steps.tools.compare results/A results/B [results/C ...]`` reads what the steps
wrote: ``*.run.json``, ``metrics.json`` and ``pose_eval.json``. It computes nothing again. With
``--html FILE`` it writes a page that needs no other file, which has the runs' pictures, too.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mirage_steps.errors import UserError
from mirage_steps.files.command import run_tool
from mirage_steps.files.page import Page
from mirage_steps.files.records import home_of, read_run
from mirage_steps.files.text_table import aligned

_OUTSIDE = ("labels", "photos")  # inputs that no step made
_PICTURES = {
    "Evidence": "evidence/evidence.png",
    "Contact sheet": "sheet/contact_sheet.png",
    "Ablation": "ablation/ablation.png",
    "Poses": "poses/poses.png",
    "Poses against truth": "poses/pose_eval.png",
    "Foreground": "foreground/foreground.png",
    "Loss": "training/loss.png",
}


def main(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    html: Path | None = None,
) -> None:
    """Print what differs between runs, and their figures side by side.

    Args:
        folders: Folders of two runs or more, such as results/demo.
        as_json: Print it as JSON.
        html: Page to write it to, in place of printing it.
    """
    if len(folders) < 2:
        raise UserError("FOLDERS: two or more are needed, such as results/demo results/other")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"FOLDERS {' '.join(map(str, folders))}: one is given twice")
    runs = {str(folder): read_run(folder) for folder in folders}
    found = {
        "runs": list(runs),
        "damaged": [
            f"{name}/{path}" for name, run in runs.items() for path in run if not run[path]
        ],
        "differences": differences([settings(run) for run in runs.values()]),
        "figures": [
            {"figure": figure, "n": n, "of": of, "values": values}
            for (figure, n, of), values in side_by_side([figures(run) for run in runs.values()])
        ],
    }
    if html is None:
        print(json.dumps(found, indent=2) if as_json else _as_text(found))
    else:
        print(_as_page(found, folders, html).write())


def settings(run: dict[str, dict]) -> dict[tuple[str, str], str]:
    """Settings, networks, code and packages by step and key; of several sets all their values.

    Inputs that earlier steps made are left out. The key ``finished`` counts a step's records.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for path, record in run.items():
        if not (path.endswith(".run.json") and record):
            continue
        step = str(record.get("step")).rpartition(".")[2]
        step = "crop_features" if path.startswith("crop_features/") else step
        values = {(step, key): value for key, value in record["settings"].items()}
        values.pop((step, "dataset"), None)  # the run's own name
        values |= {(step, f"network {key}"): one for key, one in record["networks"].items()}
        inputs = record["inputs"]
        values |= {(step, f"input {key}"): inputs[key] for key in _OUTSIDE if key in inputs}
        values |= {("package", key): one for key, one in record["packages"].items()}
        values |= {("code", key): record.get(key) for key in ("version", "commit", "device")}
        values[step, "finished"] = path
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            found.setdefault(name, set()).add(text)
    told = {name: " and ".join(sorted(texts)) for name, texts in found.items()}
    return told | {name: str(len(found[name])) for name in found if name[1] == "finished"}


def side_by_side(runs: Sequence[dict]) -> Iterator[tuple[tuple, list]]:
    """Every key of any run, and its value in each, None where a run lacks it."""
    for key in dict.fromkeys(key for run in runs for key in run):
        yield key, [run.get(key) for run in runs]


def differences(runs: Sequence[dict[tuple[str, str], str]]) -> list[dict]:
    """Step, key and a value per run where :func:`settings` differ.

    Where a step is missing from a run, only its key ``finished`` tells.
    """
    found = []
    for (step, key), values in side_by_side(runs):
        asked = [run for run in runs if key == "finished" or any(step == one for one, _ in run)]
        if len({run.get((step, key)) for run in asked}) > 1:
            found.append({"step": step, "key": key, "values": values})
    return found


def figures(run: dict[str, dict]) -> dict[tuple[str, int | None, str], float]:
    """Figures by name, ``n`` and basis; those of two runs compare where all three are equal.

    ``n`` counts images or training steps. The basis is features, image size and background removal
    of a distance, network and device of a training.
    """
    table, poses = run.get("metrics.json", {}), run.get("poses/pose_eval.json", {})
    train = run.get("training/train.run.json", {})
    found = {}
    features = f"{table.get('backbone')} {table.get('token')} at {table.get('resolution')} px"
    for row in table.get("rows", []):
        images = f"images {table.get('image_size')} px, background {row.get('sam') or 'kept'}"
        for key in ("fid", "fd_inception", "fd_backbone", "kid_backbone"):
            network = features if key.endswith("backbone") else row.get("inception")
            found[f"{row.get('row')} {key}", row.get("n"), f"{network}, {images}"] = row.get(key)
    for scores, truth in ((poses, "azimuths"), (poses.get("viewpoints", {}), "viewpoints")):
        n = scores.get("images")
        found |= {
            (f"poses {key}", n, f"true {truth}"): scores[key] for key in scores if key != "images"
        }
    seen = run.get("evidence/evidence.json", {})
    control = seen.get("pose_control", {})
    chance = control.get("near", {}).get("chance", 0)
    of = f"{seen.get('pose_estimator')}{', centered' * bool(seen.get('maps_centered'))}"
    of += f", {seen.get('network')}, chance {chance:.2f}"
    rows = {f"pose control, {key}": row for key, row in control.items()}
    rows |= {"strength of the pose": seen.get("pose_strength") or {}}
    rows |= {f"consistency, {key}": row for key, row in seen.get("consistency", {}).items()}
    for name, row in rows.items():
        ceiling = ", by the ceiling" if row.get("ceiling_similarity") else ""
        for kind, what in (("generated", ""), ("photos", f", {seen.get('photos_are')}")):
            one = row.get(kind, {})
            found[f"{name}, {kind}", one.get("n"), f"{of}{ceiling}{what}"] = one.get("value")
    chosen = train.get("settings", {})
    of = f"U-Net {chosen.get('preset')} on {train.get('device')}"
    for key in ("seconds", "peak_memory_mb"):
        found[f"training {key}", chosen.get("iterations"), of] = train.get(key)
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def _tables(found: dict) -> tuple[list[str], list[tuple], list[tuple]]:
    """The runs by letters, and a table each of differences and figures."""
    letters = [chr(ord("A") + place) for place in range(len(found["runs"]))]
    changes, measured = [("step", "key", *letters)], [("figure", "n", *letters, "of")]
    for one in found["differences"]:
        changes.append((one["step"], one["key"], *map(_cell, one["values"])))
    for one in found["figures"]:
        measured.append((one["figure"], _cell(one["n"]), *map(_cell, one["values"]), one["of"]))
    runs = [f"{letter}: {run}" for letter, run in zip(letters, found["runs"], strict=True)]
    return runs, changes, measured


def _as_page(found: dict, folders: Sequence[Path], path: Path) -> Page:
    """The tables, and the same pictures of each run below each other."""
    runs, changes, measured = _tables(found)
    page = Page(path, "Runs compared", "; ".join(runs))
    page.section("Settings, code and packages that differ")
    page.table(changes[0], changes[1:])
    page.section("Figures", "Figures compare where n and what they are of are equal.")
    page.table(measured[0], measured[1:])
    for one in found["damaged"]:
        page.add("warning", text=f"{one}: damaged, left out")
    for title, file in _PICTURES.items():
        page.section(title)
        for run, folder in zip(runs, folders, strict=True):
            there = [one / file for one in (folder, home_of(folder)) if (one / file).is_file()]
            if there:
                page.picture(there[0], f"{title} of {run}", run)
    return page


def _as_text(found: dict) -> str:
    """The runs and both tables as a person reads them."""
    runs, changes, measured = _tables(found)
    damaged = [f"{path}: damaged, left out" for path in found["damaged"]]
    tables = [aligned(lines, "<" * len(lines[0])) for lines in (changes, measured)]
    if len(changes) == 1:
        tables[0] = ["no settings, code or packages differ"]
    return "\n\n".join("\n".join(lines) for lines in (runs, *tables, damaged)).rstrip()


def _cell(value: object) -> str:
    """A value in short; of files the start of their hashes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    hashes = re.findall('"sha256": "(.{12})', str(value))
    return " ".join(hashes) or ("-" if value is None else str(value))


if __name__ == "__main__":
    run_tool(main)
