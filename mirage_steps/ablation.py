"""Ablation of noise, cross-frame attention and guidance, one at a time (Figure 3).

All rows have the same objects: noise and reference are keyed by the object. Rows are evaluated as
in the evidence step (:mod:`mirage_steps.judge`) and compared with the first row in paired
differences with intervals. Writes ``ablation.json``, ``ablation.txt`` with the paper's claim about
each factor and whether it holds, and ``ablation.png``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mirage_steps import settings
from mirage_steps.files import tiles
from mirage_steps.files.atomic import atomic, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.terminal import progress
from mirage_steps.files.text_table import aligned
from mirage_steps.judge import Judge, Views, calibrated_judge
from mirage_steps.method.diffusion import sampling_timesteps
from mirage_steps.method.evidence import (
    Interval,
    mean_interval,
    nn_distance,
    paired_difference,
    share_interval,
)
from mirage_steps.method.metrics import frechet_from_features, kernel_distance
from mirage_steps.run import Run, generated_object

_SHOWN = 1  # objects in the picture
_BASE, _OWN_NOISE, _NO_ATTENTION = "as configured", "own noise", "no attention"
_NEITHER, _ENCODER, _GUIDED = "no attention, own noise", "encoder too", "guided reference"


@dataclass(frozen=True)
class Row:
    """One variant of the sampler and the scores of its views, per object.

    Attributes:
        settings: that differ from the first row's.
        values: (n,) of each measure: ``near``, the share of views in the requested pose or a
            neighbor; ``nn_distance`` from real images; and similarity by the kind of features.
        frechet, kernel: distances of the features of all views from those of real images.
    """

    settings: dict[str, object]
    values: dict[str, np.ndarray]
    frechet: float
    kernel: float


def main(
    *,
    run: Path,
    crops: Path,
    poses: Path,
    out: Path,
    turntables: Path | None = None,
    dataset: str = "",
    ablation: settings.Ablation = settings.Ablation(),
    evidence: settings.Evidence = settings.Evidence(),
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> None:
    """Vary noise, attention and guidance one at a time.

    Args:
        run: Folder of a finished run, such as results/demo.
        crops: crops.h5 of the data set, for real images.
        poses: poses.csv of these crops.
        out: Folder for ablation.json, ablation.txt and ablation.png.
        turntables: turntables.h5 with objects from all sides, for the ceiling.
        dataset: Its name for the head of the table; the run's by default.
        ablation: Objects and values of gamma.
        evidence: How views are judged.
        views: Sampler of the first row.
        guidance: Attention and guidance of the first row.
        weights: Folder of fetched networks.
        device: auto, cpu or cuda.
    """
    loaded = Run.load(run, device=device)
    judge, _, _ = calibrated_judge(loaded, evidence, crops, poses, turntables, weights)
    variants = _variants(views, guidance, ablation)
    rows, shown = _rows(judge, variants, ablation.ablated_objects, views.seed + 1)
    about = {
        "objects": ablation.ablated_objects,
        "poses": judge.k,
        "steps": views.steps,
        "first_row": {**views.model_dump(), **guidance.model_dump()},
        "ends_at_timestep": sampling_timesteps(views)[-1],
        **judge.about,
    }
    figures = _figures(judge, rows)
    claims = _claims(_in_units(judge, rows), guidance.gamma)
    write_json(out / "ablation.json", about | {"rows": figures, "claims": claims})
    with atomic(out / "ablation.txt") as temporary:
        text = _as_text(dataset or run.name, about, figures, claims)
        temporary.write_text(text, encoding="utf-8")
    _draw(out / "ablation.png", list(rows), shown)
    log.info("\n%s", text)


def _rows(
    judge: Judge,
    variants: Mapping[str, tuple[settings.Views, settings.Guidance]],
    objects: int,
    seed: int,
) -> tuple[dict[str, Row], list[Views]]:
    """The rows by name, and the views of each.

    The objects are those of the contact sheet and of the evidence, unless these leave references
    out.
    """
    rows, shown = {}, []
    with progress(total=len(variants) * objects, unit="object") as bar:
        for name, variant in variants.items():
            made = []
            for number in range(objects):
                made.append(generated_object(judge.run.model, number, seed, *variant))
                bar.update()
            shown.append(Views(*map(np.array, zip(*made, strict=True))))
            rows[name] = _judged(judge, shown[-1], _changed(variant, variants[_BASE]))
    return rows, shown


def _changed(
    sections: Sequence[settings.Settings], first: Sequence[settings.Settings]
) -> dict[str, object]:
    """Settings of a row that are not those of the first row."""
    return {
        key: value
        for one, base in zip(sections, first, strict=True)
        for key, value in one
        if value != getattr(base, key)
    }


def _variants(
    views: settings.Views, guidance: settings.Guidance, ablation: settings.Ablation
) -> dict[str, tuple[settings.Views, settings.Guidance]]:
    """The rows in their order, by name; a row that equals the first is left out."""
    if guidance.attention == "none":
        log.warning("guidance.attention none: there is no guidance to vary; starts from decoder")
        guidance = guidance.model_copy(update={"attention": "decoder"})

    def varied(shared_noise: bool = views.shared_noise, **changes: object) -> tuple:
        return (
            views.model_copy(update={"shared_noise": shared_noise}),
            guidance.model_copy(update=changes),
        )

    found = {
        _BASE: varied(),
        _OWN_NOISE: varied(shared_noise=False),
        _NO_ATTENTION: varied(shared_noise=True, attention="none"),
        _NEITHER: varied(shared_noise=False, attention="none"),
        _ENCODER: varied(attention="all"),
    }
    if guidance.hard:
        found[_GUIDED] = varied(reference="guided")
    # At least without guidance and, where the first row has none, with the default: for the claims.
    needed = {1.0} if guidance.hard else {1.0, settings.Guidance().gamma}
    gammas = sorted(needed.union(ablation.gammas))
    found |= {f"gamma {gamma:g}": varied(gamma=gamma) for gamma in gammas}
    return {
        name: variant for name, variant in found.items() if name == _BASE or variant != found[_BASE]
    }


def _judged(judge: Judge, made: Views, changed: dict[str, object]) -> Row:
    """Scores of a row's views."""
    seen = judge.see_views(made.images)
    _, kind = judge.kinds
    features, real = seen.features[kind], judge.real.features[kind]
    flat = features.reshape(-1, features.shape[-1])
    count = min(len(flat), len(real))
    chosen = np.random.default_rng(5).permutation(len(real))[:count]
    far = nn_distance(real, flat).reshape(features.shape[:2])
    values = {"near": made.mean(judge.shows(seen, made.poses)), "nn_distance": far.mean(1)}
    return Row(
        changed,
        values | judge.similarity(seen, made.poses, made.given),
        frechet_from_features(flat[:count], real[chosen]),
        kernel_distance(flat, real),
    )


def _figures(judge: Judge, rows: Mapping[str, Row]) -> dict[str, dict[str, object]]:
    """Every row's means, and their differences from the first row's, with intervals."""
    found, scaled = {}, _in_units(judge, rows)
    for name, row in rows.items():
        means = {
            "near": share_interval(row.values["near"]),
            "nn_distance": mean_interval(row.values["nn_distance"]),
        }
        means |= {
            f"consistency, {kind}": scale.position(row.values[kind])
            for kind, scale in judge.scales.items()
        }
        found[name] = {
            "settings": row.settings,
            **{key: asdict(one) for key, one in means.items()},
            "less_first_row": {
                key: asdict(paired_difference(values, scaled[_BASE].values[key]))
                for key, values in scaled[name].values.items()
            },
            "frechet": row.frechet,
            "kernel": row.kernel,
        }
    return found


def _in_units(judge: Judge, rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows with similarity in the unit of consistency, the ceiling's, where it is known."""
    unit = {
        kind: scale.ceiling.mean()
        for kind, scale in judge.scales.items()
        if scale.ceiling is not None
    }
    return {
        name: replace(
            row, values={key: one / unit.get(key, 1.0) for key, one in row.values.items()}
        )
        for name, row in rows.items()
    }


def _claims(rows: Mapping[str, Row], gamma: float) -> list[dict[str, Any]]:
    """The paper's claim about each factor, with the differences that decide it.

    A claim that a factor helps holds if no kind of consistency falls and one rises, by their joint
    intervals; that it has no effect, if no interval excludes zero.

    Args:
        rows: by their names.
        gamma: of the first row.
    """
    kinds = [key for key in rows[_BASE].values if key not in ("near", "nn_distance")]
    larger = [float(name.split()[1]) for name in rows if name.startswith("gamma")]
    largest = f"gamma {max(larger):g}" if max(larger, default=0) > gamma else _BASE
    # Attention is taken away from the row with the same noise.
    without = _NO_ATTENTION if _OWN_NOISE in rows else _NEITHER
    guided, alone = _BASE, "attention and guidance alone do so"
    if gamma == 1:
        guided, alone = f"gamma {settings.Guidance().gamma:g}", "attention alone does so"
    asked = [
        ("shared noise alone makes views more similar", _NO_ATTENTION, _NEITHER, kinds, "rises"),
        ("cross-frame attention makes views more similar", "gamma 1", without, kinds, "rises"),
        (alone, _OWN_NOISE, _NEITHER, kinds, "rises"),
        ("attention in the encoder has no effect", _ENCODER, _BASE, kinds, "same"),
        ("guidance makes views more similar", guided, "gamma 1", kinds, "rises"),
        ("too large a gamma is unrealistic", largest, _BASE, ["nn_distance"], "rises"),
    ]
    claims = []
    for claim, *names, keys, expected in asked:
        one, other = (name if name in rows else _BASE for name in names)
        if one == other:  # nothing to compare: no row with guidance, or with a larger gamma
            continue
        found = {
            key: paired_difference(
                rows[one].values[key], rows[other].values[key], comparisons=len(keys)
            )
            for key in keys
        }
        claims.append(
            {
                "claim": claim,
                "rows": [one, other],
                "differences": {key: asdict(value) for key, value in found.items()},
                "verdict": _verdict(list(found.values()), expected),
            }
        )
    return claims


def _verdict(found: list[Interval], expected: str) -> str:
    up, down = any(one.low > 0 for one in found), any(one.high < 0 for one in found)
    if expected == "same":
        return "does not hold" if up or down else "no effect seen"
    if up and down:
        return "mixed"
    return "holds" if up else "the opposite holds" if down else "not decided"


def _as_text(
    name: str,
    about: Mapping[str, Any],
    figures: Mapping[str, dict],
    claims: list[dict[str, Any]],
) -> str:
    """The figures as tables; a star marks significant differences from the first row."""
    keys = [key for key in figures[_BASE] if key in ("near", "nn_distance") or "consistency" in key]
    table = [["", *keys, "FD", "KID"]]
    for row, found in figures.items():
        cells = []
        for key in keys:
            change = Interval(**found["less_first_row"][key.removeprefix("consistency, ")])
            cells.append(f"{Interval(**found[key])}{'*' if change.differs else ''}")
        table.append([row, *cells, f"{found['frechet']:.1f}", f"{found['kernel']:.3f}"])
    first = about["first_row"]
    lines = [
        f"{name}: one factor at a time, {about['objects']} objects in {about['poses']} poses, "
        f"{about['steps']} steps",
        f"as configured: {first['solver']} to timestep {about['ends_at_timestep']}, gamma "
        f"{first['gamma']:g}",
        "near: share of views in the requested pose or a neighbor; nn_distance: 1 as far from real",
        "images as they are from each other; consistency: 0 unrelated objects, 1 real ones;",
        f"FD, KID: of {about['network']}, on the object",
        "in parentheses the 95 % interval over objects; * differs from the first row (one in 20",
        "comparisons does by chance)",
        "",
        *aligned(table, "<" * (len(keys) + 1) + ">>"),
        "",
        "What the paper says, and whether it holds for this model:",
    ]
    for one in claims:
        changes = "; ".join(f"{key} {_signed(value)}" for key, value in one["differences"].items())
        against = " against ".join(one["rows"])
        lines.append(f"- {one['claim']}: {one['verdict']} ({against}: {changes})")
    return "\n".join([*lines, ""])


def _signed(change: Mapping[str, float]) -> str:
    """A difference with its joint interval."""
    return f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"


def _draw(path: Path, names: list[str], shown: list[Views]) -> None:
    """The first objects, all rows of one below each other."""
    count = min(_SHOWN, len(shown[0].images))
    rows = [views.images[number] for number in range(count) for views in shown]
    given = [int(views.given[number]) for number in range(count) for views in shown]
    objects = "one object" if count == 1 else f"{count} objects"
    title = f"{objects}, one factor at a time; red: the reference"
    poses = range(len(rows[0]))
    sheet = tiles.contact_sheet(np.stack(rows), given, poses, title, labels=names * count)
    tiles.save_image(path, sheet)


if __name__ == "__main__":
    run(main)
