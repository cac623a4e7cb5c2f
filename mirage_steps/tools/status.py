"""Progress of data sets: finished stages, training speed, errors, the last metrics.

``python -m mirage_steps.tools.status [NAME ...]`` reads what the steps leave in the results:
``*.run.json``, logs, ``metrics.jsonl`` and the lock of a training, ``metrics.json``,
``pose_eval.json``. It works while the pipeline runs and passes over damaged files. Whether a
finished stage is stale is for ``snakemake -n`` to say.
"""

import json
import os
import re
import statistics
import time
from collections.abc import Collection, Sequence
from datetime import timedelta
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from mirage_steps.files.command import run_tool
from mirage_steps.files.configuration import read_configuration, read_dataset
from mirage_steps.files.file_cache import CACHE, FileCache
from mirage_steps.files.lock import STALE
from mirage_steps.files.photos import photos_of
from mirage_steps.files.project import project_path
from mirage_steps.files.records import BUDGET, read_json, read_metrics, read_text
from mirage_steps.files.text_table import aligned
from mirage_steps.settings import Dataset

_RECENT = 20  # records that give the pace of a training


def main(
    name: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    configfile: tuple[Path, ...] = (),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Print what is done, running, failed and missing, with the last figures; write nothing.

    Args:
        name: Data sets; all that were begun by default.
        configfile: Files merged over the project's own, as by snakemake --configfile.
        as_json: Print it as JSON.
    """
    configuration = read_configuration(configfile)
    results = Path(configuration.results)
    names = name or [one for one in configuration.datasets if (results / one).is_dir()]
    found = {
        one: look(
            results / one,
            read_dataset(configuration, one),
            configuration.shards,
            configuration.own_sets(one),
        )
        for one in names
    }
    text = "\n\n".join(_as_text(*one) for one in found.items())
    print(json.dumps(found, indent=2) if as_json else text or "no data set was begun")


def stages(
    dataset: Dataset, results: Path = Path(), own_sets: Collection[str] | None = None
) -> dict[str, list[str]]:
    """Stages in the order of the pipeline, each with the records it leaves below results/NAME.

    Args:
        dataset: its settings.
        results: folder of all results, with what Snakemake found out about photos.
        own_sets: evaluation sets that it makes; all by default.
    """
    sets = [one for one in dataset.sets.values() if own_sets is None or one.name in own_sets]
    compared = {
        name for one in dataset.sets.values() if one.reference for name in (one.name, one.reference)
    }
    drawn = ("", *(f"-{one}" for one in dataset.sheet.references))
    found = {} if dataset.is_variant else _of_images(dataset)
    if dataset.use is None:
        found |= {"real": ["sets/real"], "train": ["training/train"]}
        found["sampling"] = ["training/sampling"]
    if dataset.is_evaluated:
        found |= {
            "views": [f"sets/{one.name}/views" for one in sets if one.generated],
            "baseline": [f"sets/{one.name}/baseline" for one in sets if one.source == "baseline"],
            "masks": [f"sets/{one.name}/masks" for one in sets if one.unmasked],
            "embed": [f"sets/{one.name}/embed" for one in sets if one.name in compared],
            "sheet": ["sheet/sheet"],
            "reference_sheet": [f"sheet/reference-{one}" for one in dataset.sheet.references],
            "contact_sheet": [f"sheet/contact_sheet{one}" for one in drawn],
            "comparison": ["comparison"] if dataset.compared else [],
            "fid": ["fid"],
            "turntables": ["turntables/turntables"] if dataset.renders else [],
            "evidence": ["evidence/evidence"],
            "ablation": ["ablation/ablation"],
        }
    if dataset.photos and os.path.isdir(project_path(dataset.photos)):
        cache = FileCache(results / CACHE)
        names, _, _ = photos_of(dataset.photos, dataset.novel_views.max_pixels, cache)
        found["novel_views"] = [f"novel_views/{escape(name)}" for name in names]
    if dataset.is_evaluated:
        found["report"] = ["report"]
    return {stage: [f"{one}.run.json" for one in found[stage]] for stage in found if found[stage]}


def _of_images(dataset: Dataset) -> dict[str, list[str]]:
    """Stages that a variant does not have: from images to poses."""
    screened = dataset.is_evaluated or dataset.screening.duplicates == "drop"
    return {
        "dataset": ["dataset"],
        "features": ["features/features"],
        "duplicates": ["screening/duplicates"] if screened else [],
        "foreground": ["foreground/foreground"],
        "crops": ["crops/crops"],
        "crop_features": ["crop_features/features"],
        "categories": ["categories/categories"] if dataset.categories > 1 else [],
        "pose_space": ["pose_space/pose_space"],
        "poses": ["poses/poses"],
        "pose_names": ["poses/pose_names"],
        "pose_eval": ["poses/pose_eval"],
        "screening": ["screening/screening"] if dataset.is_evaluated else [],
        "photo_sheet": ["photo_sheet/photo_sheet"] if dataset.use else [],
        "photo_contact_sheet": ["photo_sheet/contact_sheet"] if dataset.use else [],
    }


def look(
    folder: Path, dataset: Dataset, shards: int = 1, own_sets: Collection[str] | None = None
) -> dict:
    """Stages, training, poses and distances of a data set, as JSON.

    Args:
        folder: of its results.
        dataset: its settings.
        shards: of features, generated images and masks.
        own_sets: evaluation sets that it makes; all by default.
    """
    checkpoints, iterations = folder / "training/checkpoints", dataset.training.iterations
    if dataset.training.hours != "none":
        iterations = read_json(checkpoints / BUDGET).get("iterations", iterations)
    training = _training(checkpoints, iterations)
    found = {}
    for stage, paths in stages(dataset, folder.parent, own_sets).items():
        # Logs of sets, photos and shards that are no longer asked for do not count.
        missing = [path for path in paths if not any(folder.glob(path))]
        patterns = [pattern for path in missing for pattern in _logs(stage, path, shards)]
        logs = [log for pattern in patterns for log in sorted(folder.glob(f"logs/{pattern}"))]
        found[stage] = _stage(folder, stage, paths, logs, training)
    return {
        "stages": found,
        "training": training,
        "poses": read_json(folder / "poses/pose_eval.json"),
        "distances": read_json(folder / "metrics.json"),
    }


def _logs(stage: str, record: str, shards: int) -> list[str]:
    """Patterns of the logs of the jobs that make a record, below ``logs``."""
    *folder, name = record.removesuffix(".run.json").split("/")
    if stage == "novel_views":
        return [f"{record.removesuffix('.run.json')}.log"]
    if stage in ("reference_sheet", "contact_sheet"):
        return [f"{name}.log"]
    name = f"{stage}-{folder[1]}" if folder[1:] else stage  # of a set: sets/NAME/STAGE.run.json
    of_shards = [f"{name}.*-of-{shards}.log", f"gather_{name}.log"] if shards > 1 else []
    return [f"{name}.log", *of_shards]


def _stage(
    folder: Path, name: str, paths: Sequence[str], logs: Sequence[Path], training: dict | None
) -> dict:
    """State of a stage, records ``done`` of how many, last start, seconds in all, last error."""
    there = [found for path in paths if (found := [*folder.glob(path)])]
    records = [read_json(path) for found in there for path in found]
    errors = re.findall("^error: (.*)$", "\n".join(map(read_text, logs)), re.MULTILINE)
    if len(there) == len(paths):
        state = "done"
    elif name == "train" and training and training["alive"]:
        state = "running"
    else:
        # A step that works or was killed has a log without an error line.
        begun = logs or name == "train" and training
        state = "failed" if errors else "started" if begun else "missing"
    return {
        "state": state,
        "done": len(there),
        "of": len(paths),
        "started": max((one.get("started", "") for one in records), default=""),
        "seconds": sum(one.get("seconds", 0) for one in records),
        "error": errors[-1] if errors else "",
    }


def _training(folder: Path, iterations: int) -> dict | None:
    """Step, loss, steps a second, seconds left and whether a trainer lives; None without one."""
    records = [one for one in read_metrics(folder) if "near" not in one]  # no scores
    try:
        alive = time.time() - (folder / "lock.json").stat().st_mtime <= STALE
    except OSError:
        alive = False
    if not records and not alive:
        return None
    last = records[-1] if records else {"step": 0}
    rates = [
        (after["step"] - before["step"]) / max(after["time"] - before["time"], 0.1)
        for before, after in pairwise(records[-_RECENT:])
    ]
    rate = statistics.median(rates) if rates else None  # pauses do not count
    return {
        "step": last["step"],
        "iterations": iterations,
        "loss": last.get("loss"),
        "rate": rate,
        "left": max(0, iterations - last["step"]) / rate if rate else None,
        "alive": alive,
    }


def _as_text(name: str, found: dict) -> str:
    """A line a stage, the figures below."""
    table = [("stage", "state", "", "started", "time", "")]
    for stage, one in found["stages"].items():
        count = f"{one['done']} of {one['of']}" if one["of"] > 1 else ""
        started = one["started"][:16].replace("T", " ")
        took = _duration(one["seconds"]) if one["done"] else ""
        progress = _progress(found["training"]) if stage == "train" and found["training"] else ""
        note = "; ".join(filter(None, (progress, one["error"])))
        table.append((stage, one["state"], count, started, took, note))
    done = sum(one["state"] == "done" for one in found["stages"].values())
    lines = [f"{name}: {done} of {len(table) - 1} stages done", "", *aligned(table, "<<>>><"), ""]
    for one in [{"row": "poses", **found["poses"]}, *found["distances"].get("rows", [])]:
        figures = [f"{key} {one[key]:.4g}" for key in one if isinstance(one[key], int | float)]
        lines += [f"{one['row']:18} {', '.join(figures)}"] if figures else []
    return "\n".join(lines).rstrip()


def _progress(training: dict) -> str:
    step, iterations = training["step"], training["iterations"]
    text = f"step {step} of {iterations} ({step / iterations:.0%})"
    if training["loss"] is not None:
        text += f", loss {training['loss']:.4f}"
    if training["alive"] and training["rate"]:
        text += f", {training['rate']:.3g} steps/s, {_duration(training['left'])} left"
    return text


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    run_tool(main)
