"""FID, KID and other metrics between generated and real images (paper, tables 1 and 2).

Every row compares two sets with the same number of images. Columns: FID if the features are from
clean-fid's Inception, and of the backbone's features the Frechet and kernel distances, precision
and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020). Writes
``fid.txt`` and, with all digits, ``metrics.json``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mirage_steps.errors import UserError, rerun
from mirage_steps.files.atomic import atomic, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.image_set import OWN_WHITE
from mirage_steps.files.text_table import aligned
from mirage_steps.method.evidence import coverage
from mirage_steps.method.metrics import frechet_from_features, kernel_distance
from mirage_steps.networks.names import INCEPTION, STAND_IN

_SHARES = ("precision", "recall", "density", "coverage")
_FEWEST = 6  # images, for the 5th neighbor
# Attributes of features.h5; distances compare only where all of them are equal.
_NETWORKS = ("backbone", "token", "resolution", "image_size")


@dataclass(frozen=True)
class Features:
    """Features of one set.

    Args:
        backbone: (n, dim) float32.
        inception: (n, 2048) float32, or None.
        inception_name: the network of ``inception``, or why it is absent.
        networks: what made ``backbone``: its name, token, resolution, size of the images.
        sam: what removed the background, empty where it was kept.
    """

    backbone: np.ndarray
    inception: np.ndarray | None
    inception_name: str
    networks: dict[str, object]
    sam: str


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: of the row.
        caption: what it shows, in words.
        n: images on each side.
        inception: Frechet distance of Inception's features, None where they are absent.
        inception_name: the network, or why it is absent.
        frechet: Frechet distance of the backbone's features.
        kernel: kernel distance of the backbone's features.
        coverage: precision, recall, density and coverage of the backbone's features; empty where
            there are too few.
        networks: what made the backbone's features.
        sam: model that removed both backgrounds, empty where they were kept.
        own_white: whether the scored images came without background.
    """

    name: str
    caption: str
    n: int
    inception: float | None
    inception_name: str
    frechet: float
    kernel: float
    coverage: dict[str, float]
    networks: dict[str, object]
    sam: str
    own_white: bool


@dataclass(frozen=True)
class Published:
    """The paper's figures for the same data set; shown, never computed with.

    Args:
        source: where in the paper.
        fid: FID by the name of the row.
        differs: settings of this run that are not the paper's.
    """

    source: str
    fid: dict[str, float]
    differs: tuple[str, ...]


def main(
    *,
    row: Annotated[tuple[tuple[str, Path, Path, str], ...], tyro.conf.UseAppendAction] = (),
    paper: Annotated[tuple[tuple[str, float], ...], tyro.conf.UseAppendAction] = (),
    paper_source: str = "the paper",
    differs: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    dataset: str,
    out: Path,
) -> None:
    """Write the metrics table.

    Args:
        row: Name of a row, features.h5 of the scored set and of the real set, and a caption.
        paper: Name of a row and the FID that the paper gives for it.
        paper_source: Where in the paper.
        differs: A setting of this run that is not the paper's.
        dataset: Name of the data set, for the head of the table.
        out: Folder for fid.txt and metrics.json.
    """
    if not row:
        raise UserError("--row is needed at least once: NAME SCORED.h5 REAL.h5 CAPTION")
    rows = []
    for name, scored, real, caption in row:
        rows.append(compare(name, scored, real, caption))
        log.info("%s: FD %.3f, KID %.6f", name, rows[-1].frechet, rows[-1].kernel)
    if any(one.networks != rows[0].networks for one in rows):
        found = "; ".join(f"{one.name}: {one.networks}" for one in rows)
        raise UserError(
            f"rows of different networks cannot share a table ({found}); {rerun('embed')}"
        )
    published = Published(paper_source, dict(paper), differs) if paper else None
    write_json(out / "metrics.json", as_json(dataset, rows, published))
    text = as_text(dataset, rows, published)
    with atomic(out / "fid.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    log.info("\n%s", text)


def read_features(path: Path) -> Features:
    """Read what the embed step wrote.

    Raises:
        UserError: not there, damaged, or with values that are not finite.
    """
    with open_h5(path, "backbone") as file:
        inception = file["inception"][:] if "inception" in file else None
        backbone = file["backbone"][:]
        about = dict(file.attrs)
    if not all(np.isfinite(values).all() for values in (backbone, inception) if values is not None):
        raise UserError(f"{path}: has features that are not finite; look at its images")
    name = str(about["inception_absent" if inception is None else "inception"])
    networks = {
        key: about[key] if isinstance(about[key], str) else int(about[key]) for key in _NETWORKS
    }
    return Features(backbone, inception, name, networks, str(about["sam"]))


def compare(name: str, scored: Path, real: Path, caption: str = "") -> Row:
    """Distances between two sets.

    Args:
        name: of the row.
        scored: features.h5 of the scored set.
        real: features.h5 of the real set.
        caption: what the row shows, in words.

    Raises:
        UserError: the sets do not compare: unequal numbers, networks or backgrounds.
    """
    x, y = read_features(scored), read_features(real)
    # Images rendered on white are comparable with any background removal.
    removal = y.sam if x.sam == OWN_WHITE and y.sam else x.sam
    pairs = {
        "images": (len(x.backbone), len(y.backbone)),
        "networks": (x.networks, y.networks),
        "Inception": (x.inception_name, y.inception_name),
        "background removal": (removal or "none", y.sam or "none"),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(
                f"row {name}: {what} differ, {scored}: {one}, {real}: {other}; they must be equal"
            )
    n = len(x.backbone)
    if n < 2:
        raise UserError(f"row {name}: {scored} has {n} images, 2 are needed")
    return Row(
        name,
        caption,
        n,
        None if x.inception is None else frechet_from_features(x.inception, y.inception),
        x.inception_name,
        frechet_from_features(x.backbone, y.backbone),
        kernel_distance(x.backbone, y.backbone),
        _coverage(y.backbone, x.backbone),
        x.networks,
        y.sam,
        x.sam == OWN_WHITE,
    )


def _coverage(real: np.ndarray, scored: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage; none where there are too few images."""
    if len(real) < _FEWEST:
        return {}
    return {key: float(values.mean()) for key, values in coverage(real, scored).items()}


def as_json(dataset: str, rows: list[Row], published: Published | None = None) -> dict[str, object]:
    """The table with every digit; absent distances are null and say why."""
    return {
        "dataset": dataset,
        **rows[0].networks,
        "rows": [
            {
                "row": row.name,
                "n": row.n,
                "inception": None if row.inception is None else row.inception_name,
                "inception_absent": row.inception_name if row.inception is None else None,
                # Only the published network's distance may be called FID.
                "fid": row.inception if row.inception_name == INCEPTION else None,
                "fd_inception": row.inception,
                "fd_backbone": row.frechet,
                "kid_backbone": row.kernel,
                "coverage_backbone": row.coverage,
                "sam": row.sam or None,
                "paper_fid": None if published is None else published.fid.get(row.name),
            }
            for row in rows
        ],
        "notes": notes(rows, published),
    }


def as_text(dataset: str, rows: list[Row], published: Published | None = None) -> str:
    """The table as text."""
    backbone, token, resolution, size = (rows[0].networks[key] for key in _NETWORKS)
    heads = [f"{head}*" for head in ("FD", "KID", "prec.", "recall", "density", "coverage")]
    table = [["row", "n", _inception_column(rows), *heads, ""]]
    for row in rows:
        inception = "-" if row.inception is None else f"{row.inception:.3f}"
        distances = [inception, f"{row.frechet:.3f}", f"{row.kernel:.6f}"]
        shares = [f"{row.coverage[key]:.2f}" if row.coverage else "-" for key in _SHARES]
        table.append([row.name, str(row.n), *distances, *shares, row.caption])
    if published is not None:
        printed = [published.fid.get(row.name) for row in rows]
        cells = ["paper's FID", *("-" if value is None else f"{value:.3f}" for value in printed)]
        for line, cell in zip(table, cells, strict=True):
            line.insert(3, cell)
    counts = " or ".join(str(n) for n in sorted({row.n for row in rows}))
    lines = [
        f"{dataset}: FD and KID to real images, smaller is better; shares, larger is better",
        f"{counts} images a side, {size} x {size} pixels; "
        f"* of {backbone} at {resolution} pixels, {token} token",
        "",
        *aligned(table, f"<{'>' * (len(table[0]) - 2)}<"),
        "",
        *notes(rows, published),
    ]
    return "\n".join(lines) + "\n"


def notes(rows: list[Row], published: Published | None = None) -> list[str]:
    """What a reader must know before comparing the numbers with others, a line each."""
    backbone = str(rows[0].networks["backbone"])
    lines = [f"- in {_inception_column(rows)}: {reason}" for reason in _absences(rows)]
    lines += [
        f"{name} is not the Inception network of published FIDs, so its column is not called FID."
        for name in sorted({r.inception_name for r in rows if r.inception is not None})
        if name != INCEPTION
    ]
    if len({row.n for row in rows}) > 1:
        lines.append("Frechet distances fall with n: compare rows of equal n only.")
    if backbone.startswith(STAND_IN):
        lines.append(
            f"{backbone} is the embedded stand-in for DINOv2: FD and KID of its features "
            "are not comparable with published numbers."
        )
    else:
        lines.append(f"FD and KID of {backbone} are not FID; compare them with their own.")
    for sam in sorted({row.sam for row in rows if row.sam}):
        note = "the embedded stand-in for SAM" if sam.startswith(STAND_IN) else "segment-anything"
        lines.append(f"Backgrounds were removed by {sam}, {note}.")
    if not any(row.sam for row in rows):
        lines.append("All backgrounds were kept: nothing was there to remove them (masks.sam).")
    lines += [
        f"{row.name}: its images came on white; {row.sam} removed only the real ones' background."
        for row in rows
        if row.own_white
    ]
    return lines + (_about_paper(rows, published) if published else [])


def _about_paper(rows: list[Row], published: Published) -> list[str]:
    """Note on the paper's column, and in which settings this run differs."""
    lines = [
        f"paper's FID: from {published.source}; the paper does not state the number of images, so "
        "compare it with column FID only, and only roughly."
    ]
    names = {row.name for row in rows}
    absent = [f"{name} {value:.3f}" for name, value in published.fid.items() if name not in names]
    if absent:
        lines.append(f"The paper also gives: {', '.join(absent)}.")
    if published.differs:
        lines.append(f"Not as in the paper: {'; '.join(published.differs)}.")
    return lines


def _absences(rows: list[Row]) -> list[str]:
    """Each reason why Inception's distance is absent, with its rows if not all share it."""
    absent: dict[str, list[str]] = {}
    for row in rows:
        if row.inception is None:
            absent.setdefault(row.inception_name, []).append(row.name)
    return [
        reason if len(names) == len(rows) else f"{reason} ({', '.join(names)})"
        for reason, names in absent.items()
    ]


def _inception_column(rows: list[Row]) -> str:
    """Name of the first column of distances: FID only where the network is the published one."""
    names = {row.inception_name for row in rows if row.inception is not None}
    if names <= {INCEPTION}:
        return "FID"
    if len(names) > 1:
        raise UserError(f"rows of different Inception networks: {', '.join(sorted(names))}")
    return f"FD {names.pop()}"


if __name__ == "__main__":
    run(main)
