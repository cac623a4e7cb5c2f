"""Two runs side by side: what differs in settings, code and packages, and all figures.

``python -m mirage_steps.tools.compare results/A results/B`` reads what the steps wrote there: the
``*.run.json`` beside their outputs, ``metrics.json``, ``pose_eval.json``, ``metrics.jsonl`` of the
training, and the counts of foreground and masks. Nothing is computed anew, and nothing written.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from mirage_steps.errors import UserError
from mirage_steps.files.command import one_line_errors
from mirage_steps.tools.status import read_json, read_records

MISSING = "missing"
_LAST = 0.1  # share of a training whose mean loss is compared
# By the folder they lie in, since searching folders of 100 000 images takes long.
_RECORDS = ("*.run.json", "*/*.run.json", "sets/*/*.run.json", "novel_views/**/*.run.json")


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Args:
        value: the number.
        n: images or steps it was taken over.
        of: what else must be equal for two of them to compare, by name: features, networks.
    """

    value: float
    n: int | None = None
    of: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A setting, version or input in which two runs differ.

    Args:
        step: the step, with the sets it concerns where it is not all of them.
        key: of the setting.
        a: value in A, None where it has none.
        b: value in B.
    """

    step: str
    key: str
    a: object
    b: object


@dataclass(frozen=True)
class Compared:
    """One figure of both runs.

    Args:
        group: what it belongs to, such as ``distances``.
        name: of the figure.
        a: value in A, None where it is missing.
        b: value in B.
        n_a: images or steps in A.
        n_b: in B.
        difference: b - a.
        ratio: b / a, None where a is zero.
        caution: what keeps the two from comparing, empty where nothing does.
        of_a: what the value of A is of, such as its features, by name.
        of_b: likewise of B.
    """

    group: str
    name: str
    a: float | None
    b: float | None
    n_a: int | None
    n_b: int | None
    difference: float | None
    ratio: float | None
    caution: str
    of_a: dict[str, object]
    of_b: dict[str, object]


@dataclass
class Run:
    """What was read of a run.

    Args:
        folder: of its results.
        records: content of every ``*.run.json`` by its path in the folder.
        figures: by group and name.
        problems: files that cannot be read, and what else is missing.
    """

    folder: Path
    records: dict[str, dict] = field(default_factory=dict)
    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def roots(self) -> set[str]:
        """The run's folder as its records name it, wherever it lies now."""
        found = {str(self.folder), str(self.folder.resolve())}
        for path, record in self.records.items():
            depth = len(Path(path).parts) - 1
            for name, file in (("manifest", "manifest.csv"), ("poses", "poses/poses.csv")):
                given = _dict(_dict(record.get("inputs")).get(name)).get("path")
                if depth and isinstance(given, str) and given.endswith(f"/{file}"):
                    found.add(given.removesuffix(f"/{file}"))
        return found


def main(
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    *,
    format: Literal["text", "markdown", "json"] = "text",
) -> None:
    """Print what differs between two runs, and their figures side by side; write nothing.

    Args:
        a: Folder of a run, such as results/demo.
        b: Folder of the run it is compared with.
        format: How it is printed.
    """
    runs = read_run(a), read_run(b)
    if not any(run.records or run.figures for run in runs):
        raise UserError(f"{a} and {b}: neither holds results of a run")
    found = differences(*runs), compared(*runs), [line for run in runs for line in run.problems]
    print(as_json(a, b, *found) if format == "json" else as_tables(a, b, *found, format))


# Reading


def read_run(folder: Path) -> Run:
    """Everything a run's steps wrote of themselves; what is damaged is left out and told.

    Raises:
        UserError: there is no such folder.
    """
    run = Run(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give those of two runs, such as results/demo")
    for pattern in _RECORDS:
        for path in sorted(folder.glob(pattern)):
            if content := _read(run, path):
                run.records[str(path.relative_to(folder))] = content
    if not run.records:
        run.problems.append(f"{folder}: no step has finished there")
    run.figures |= _distances(_read(run, folder / "metrics.json"))
    run.figures |= _poses(_read(run, folder / "poses/pose_eval.json"))
    run.figures |= _training(run)
    run.figures |= _foreground(_read(run, folder / "foreground/foreground.json"))
    for path in sorted(folder.glob("sets/*/masks.json")):
        run.figures |= _masks(path.parent.name, _read(run, path))
    return run


def _read(run: Run, path: Path) -> dict:
    content = read_json(path)
    if not content and path.exists():
        run.problems.append(f"{path}: damaged, left out")
    return content


def _distances(table: dict) -> dict[tuple[str, str], Figure]:
    """Rows of the table of distances; a column's name is what its features are."""
    features = f"{table.get('backbone')} {table.get('token')}"
    shared = {"image size": table.get("image_size")}
    backbone = {"features": f"{features} at {table.get('resolution')} pixels", **shared}
    found = {}
    for row in _list(table.get("rows")):
        images = _count(row.get("n"))
        removed = {"background removal": row.get("sam") or "none"}
        columns = {
            "FD": ("fd_backbone", backbone),
            "KID": ("kid_backbone", backbone),
            "FD Inception": ("fd_inception", {"features": row.get("inception"), **shared}),
        }
        for title, (key, of) in columns.items():
            if (value := _number(row.get(key))) is not None:
                name = "FID" if title == "FD Inception" and row.get("fid") is not None else title
                found["distances", f"{row.get('row')} {name}"] = Figure(value, images, of | removed)
    return found


def _poses(scores: dict) -> dict[tuple[str, str], Figure]:
    """Poses against the truth, where it is known."""
    found = {}
    for key, name in (
        ("median_error_deg", "median error, degrees"),
        ("share_within_30_deg", "share within 30 degrees"),
        ("order_errors", "steps out of order"),
    ):
        if (value := _number(scores.get(key))) is not None:
            found["poses", name] = Figure(value, _count(scores.get("images")))
    views = _dict(scores.get("viewpoints"))
    for key, name in (
        ("purity", "purity of viewpoints"),
        ("normalized_mutual_information", "mutual information with viewpoints"),
    ):
        if (value := _number(views.get(key))) is not None:
            found["poses", name] = Figure(value, _count(views.get("images")))
    return found


def _training(run: Run) -> dict[tuple[str, str], Figure]:
    """Mean loss at the end of the training, and what the training took."""
    found = {}
    record = run.records.get("training/train.run.json", {})
    settings = _dict(record.get("settings"))
    network = {"network": f"{settings.get('preset')} at {settings.get('image_size')} pixels"}
    records = [
        one
        for one in read_records(run.folder / "training/checkpoints")
        if _number(one.get("loss")) is not None
    ]
    if records:
        steps = records[-1]["step"]
        losses = [one["loss"] for one in records if one["step"] > (1 - _LAST) * steps]
        losses = losses or [records[-1]["loss"]]
        name = f"loss, mean of the last {_LAST:.0%} of steps"
        found["training", name] = Figure(sum(losses) / len(losses), steps, network)
    for key, name, unit in (("seconds", "time, hours", 3600), ("peak_memory_mb", "memory, MB", 1)):
        if (value := _number(record.get(key))) is not None:
            device = {"device": record.get("device")}
            steps = _count(settings.get("iterations"))
            found["training", name] = Figure(value / unit, steps, network | device)
    return found


def _foreground(counts: dict) -> dict[tuple[str, str], Figure]:
    found = {}
    images = _count(counts.get("images"))
    for key, name in (
        ("images_without_object", "share without object"),
        ("images_filled_by_their_box", "share filled by the box"),
        ("images_with_padded_crop", "share with padded crop"),
    ):
        if images and (value := _number(counts.get(key))) is not None:
            found["foreground", name] = Figure(value / images, images)
    return found


def _masks(name: str, counts: dict) -> dict[tuple[str, str], Figure]:
    found = {}
    images, of = _count(counts.get("images")), {"background removal": counts.get("sam")}
    for key, title in (
        ("mean_predicted_iou", "predicted IoU, mean"),
        ("mean_mask_share", "share of the mask, mean"),
    ):
        if (value := _number(counts.get(key))) is not None:
            found["masks", f"{name} {title}"] = Figure(value, images, of)
    empty = _number(counts.get("images_with_empty_mask"))
    if images and empty is not None:
        found["masks", f"{name} share of empty masks"] = Figure(empty / images, images, of)
    return found


# Comparing


def differences(a: Run, b: Run) -> list[Difference]:
    """Settings, inputs from outside, code, packages and devices that differ."""
    # A difference of several sets that is the same for all of them is told once.
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    values: dict[tuple[str, str], tuple[object, object]] = {}
    sets: dict[str, set[str]] = {}
    for path in dict.fromkeys([*a.records, *b.records]):
        one, other = a.records.get(path), b.records.get(path)
        step = _step(one or other, path)
        part = _part(path)
        sets.setdefault(step, set()).add(part)
        for key, mine, theirs in _record_differences(one, other, a.roots, b.roots):
            texts = json.dumps(mine, sort_keys=True), json.dumps(theirs, sort_keys=True)
            grouped.setdefault((step, key, *texts), []).append(part)
            values[texts] = mine, theirs
    found = []
    for (step, key, *texts), parts in grouped.items():
        told = step if len(parts) == len(sets[step]) else f"{step} ({', '.join(parts)})"
        found.append(Difference(told, key, *values[tuple(texts)]))
    return found + _versions(a, b)


def _step(record: dict, path: str) -> str:
    """Name of the step that wrote a record."""
    if path.startswith("crop_features/"):
        return "crop_features"
    name = str(record.get("step", "")).removeprefix("mirage_steps.")
    return name or Path(path).name.removesuffix(".run.json")


def _part(path: str) -> str:
    """What tells records of a step apart: the set or the photo."""
    parts = Path(path).parts
    return parts[1] if parts[0] == "sets" and len(parts) > 2 else path.removesuffix(".run.json")


def _record_differences(
    one: dict | None, other: dict | None, roots_a: set[str], roots_b: set[str]
) -> Iterator[tuple[str, object, object]]:
    """Keys of two records of a step that differ, with both values."""
    if one is None or other is None:
        yield "(whole step)", None if one is None else "done", None if other is None else "done"
        return
    mine, theirs = _flat(one, roots_a), _flat(other, roots_b)
    for key in dict.fromkeys([*mine, *theirs]):
        if mine.get(key) != theirs.get(key):
            yield key, mine.get(key), theirs.get(key)


def _flat(record: dict, roots: set[str]) -> dict[str, object]:
    """Settings, networks and inputs from outside the run, by key."""
    found = {key: _inside(value, roots) for key, value in _dict(record.get("settings")).items()}
    if found.get("dataset") in {Path(root).name for root in roots}:
        found.pop("dataset")  # the run's own name
    found = {key: value for key, value in found.items() if value != []}
    for key, value in _dict(record.get("inputs")).items():
        path = _dict(value).get("path")
        # What the run made itself follows from the steps before.
        if isinstance(path, str) and _inside(path, roots) == path:
            found[f"input {key}"] = _told(value)
    for key, value in _dict(record.get("networks")).items():
        found[f"network {key}"] = _told(value)
    return found


def _inside(value: object, roots: set[str]) -> object:
    """A value without the run's folder, where it begins with that."""
    if isinstance(value, list):
        return [_inside(one, roots) for one in value]
    if isinstance(value, str):
        for root in sorted(roots, key=len, reverse=True):
            if value == root or value.startswith(f"{root}/"):
                return f"RUN{value.removeprefix(root)}"
    return value


def _told(value: object) -> object:
    """An input's identity in short: its path and the start of its hash."""
    if isinstance(value, list):
        return ", ".join(str(_told(one)) for one in value)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        mark = value.get("sha256") or value.get("bytes")
        return f"{value['path']} {str(mark)[:12]}" if mark else value["path"]
    return value


def _versions(a: Run, b: Run) -> list[Difference]:
    """Commits, package versions and devices, of all steps together."""
    mine, theirs = _environment(a), _environment(b)
    found = []
    for kind, key in dict.fromkeys([*mine, *theirs]):
        one, other = (sorted(part.get((kind, key), ())) for part in (mine, theirs))
        if one != other and a.records and b.records:
            values = (" and ".join(part) or None for part in (one, other))
            found.append(Difference(kind, key, *values))
    return found


def _environment(run: Run) -> dict[tuple[str, str], set[str]]:
    """Every value that a commit, a package's version or a device has in a run's records."""
    found: dict[tuple[str, str], set[str]] = {}
    for record in run.records.values():
        values = {("code", key): record.get(key) for key in ("version", "commit")}
        values["machine", "device"] = record.get("device")
        values |= {("package", key): one for key, one in _dict(record.get("packages")).items()}
        for key, value in values.items():
            if value is not None:
                found.setdefault(key, set()).add(str(value))
    return found


def compared(a: Run, b: Run) -> list[Compared]:
    """All figures of both runs."""
    found = []
    for group, name in dict.fromkeys([*a.figures, *b.figures]):
        one, other = a.figures.get((group, name)), b.figures.get((group, name))
        both = one is not None and other is not None
        found.append(
            Compared(
                group,
                name,
                one and one.value,
                other and other.value,
                one and one.n,
                other and other.n,
                other.value - one.value if both else None,
                other.value / one.value if both and one.value else None,
                _caution(group, one, other) if both else "",
                one.of if one else {},
                other.of if other else {},
            )
        )
    return found


def _caution(group: str, one: Figure, other: Figure) -> str:
    """What keeps two figures from comparing, empty where nothing does."""
    reasons = [
        f"{key} {'differ' if key == 'features' else 'differs'}"
        for key in dict.fromkeys([*one.of, *other.of])
        if one.of.get(key) != other.of.get(key)
    ]
    differ = bool(reasons)
    if one.n != other.n:
        reasons.append("steps differ" if group == "training" else "sample counts differ")
        # A Frechet distance falls with the number of images; a share only becomes less certain.
        differ |= group == "distances"
    return ("not comparable: " if differ else "") + ", ".join(reasons)


# Printing


def as_json(
    a: Path, b: Path, found: Sequence[Difference], rows: Sequence[Compared], problems: Sequence[str]
) -> str:
    """Everything, as indented JSON."""
    content = {
        "a": str(a),
        "b": str(b),
        "problems": list(problems),
        "differences": [asdict(one) for one in found],
        "figures": [asdict(row) for row in rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def as_tables(
    a: Path,
    b: Path,
    found: Sequence[Difference],
    rows: Sequence[Compared],
    problems: Sequence[str],
    format: str,
) -> str:
    """Two tables, as text or as Markdown."""
    lines = [f"A: {a}", f"B: {b}", *problems]
    if format == "markdown":
        lines = [f"- {line}" for line in lines]
    head = ["step", "key", "A", "B"]
    cells = [[one.step, one.key, _value(one.a), _value(one.b)] for one in found]
    lines += ["", *(_table([head, *cells], format) if cells else ["No settings differ."])]
    head = ["figure", "n", "A", "B", "B - A", "B / A", ""]
    cells = []
    for row in rows:
        counts = [_value(n) for n in (row.n_a, row.n_b) if n is not None]
        cells.append(
            [
                f"{row.group}: {row.name}",
                " | ".join(dict.fromkeys(counts)) if format == "text" else ", ".join(counts[:2]),
                *map(_digits, (row.a, row.b)),
                "" if row.difference is None else _digits(row.difference),
                "" if row.ratio is None else f"{row.ratio:.3f}",
                row.caution,
            ]
        )
    lines += ["", *(_table([head, *cells], format) if cells else ["No figures."])]
    legend = _legend(rows)
    if format == "markdown":
        legend = [f"- {line}" for line in legend]
    return "\n".join([*lines, *([""] * bool(legend)), *legend])


def _legend(rows: Sequence[Compared]) -> list[str]:
    """What the figures are of: features, networks, background removal; a line each."""
    lines = []
    for key in dict.fromkeys(key for row in rows for key in (*row.of_a, *row.of_b)):
        one, other = (
            " and ".join(dict.fromkeys(str(of[key]) for of in side if of.get(key) is not None))
            or MISSING
            for side in ([row.of_a for row in rows], [row.of_b for row in rows])
        )
        lines.append(f"{key}: {one}" if one == other else f"{key}: A {one}; B {other}")
    return lines


def _value(value: object) -> str:
    return MISSING if value is None else str(value)


def _digits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def _table(rows: Sequence[Sequence[str]], format: str) -> list[str]:
    """Lines of a table whose first row is its head."""
    if format == "markdown":
        safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = [f"| {' | '.join(row)} |" for row in safe]
        return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


# Values of files that may be damaged


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    found = isinstance(value, int | float) and abs(value) < 1e300
    return float(value) if found else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(
            main, prog="python -m mirage_steps.tools.compare", config=(tyro.conf.OmitArgPrefixes,)
        )
