"""Plots by matplotlib, written atomically."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mirage_steps.files.atomic import atomic
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.loading import read_entry
from mirage_steps.files.manifest import Entry
from mirage_steps.files.tiles import tile
from mirage_steps.method.boxes import Box, content_box
from mirage_steps.method.circle import circular_mean
from mirage_steps.method.pose_estimator import Detection

_DPI = 110
_NEAREST = 8  # crops shown of each pose
_ACROSS = 8  # images in a row of the screening
_SCORES = {"near": "in the requested or an adjacent pose", "color": "consistency, color"}


@contextlib.contextmanager
def _plot(
    path: Path,
    size: tuple[float, float],
    grid: tuple[int, int] | None = None,
    layout: Literal["constrained"] | None = "constrained",
    **options: str,
) -> Iterator[Any]:
    """Axes of a figure of ``size`` inches, written when the block succeeds.

    With a ``grid`` of (rows, columns) an array of axes without frames.
    """
    figure = Figure(size, layout=layout)
    if grid:
        axes = figure.subplots(*grid, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
    else:
        axes = figure.add_subplot(**options)
    yield axes
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, bbox_inches="tight")


def foreground(
    path: Path,
    examples: Sequence[tuple[Entry, Detection]],
    threshold: float,
    components: Sequence[tuple[Entry, dict[str, np.ndarray]]] = (),
) -> None:
    """Images with box and crop window above the component's scores with its threshold.

    What a window has outside its image, the padding of the crop, is hatched. The last row shows
    images with their scores along each of the ``components``, by name.
    """
    columns = min(8, len(examples))
    bands = -(-len(examples) // columns)
    reach = max(np.nanmax(np.abs(found.scores - threshold)) for _, found in examples)
    row = components[: columns // 4]
    height = 3.1 * bands + (1.9 if row else 0.3)
    with _plot(path, (1.5 * columns, height), (2 * bands + bool(row), columns)) as axes:
        pairs = axes[: 2 * bands].reshape(bands, 2, columns).swapaxes(1, 2).reshape(-1, 2)
        for (entry, found), (top, bottom) in zip(examples, pairs, strict=False):
            top.imshow(read_entry(entry), extent=(0, entry.width, entry.height, 0))
            if found.window is not None:
                x0, y0, x1, y1 = found.window
                # Behind the image.
                _outline(top, found.window, "gray", lw=0, hatch="////", zorder=-1)
                top.set_xlim(min(x0, 0), max(x1, entry.width))
                top.set_ylim(max(y1, entry.height), min(y0, 0))
                _outline(top, found.window, "yellow", lw=1.2)
                _outline(top, found.box, "lime", lw=1.2)
            x0, y0, x1, y1 = content_box(entry.width, entry.height)
            scores = found.scores - threshold
            bottom.imshow(scores, "coolwarm", vmin=-reach, vmax=reach, extent=(0, 1, 1, 0))
            bottom.set(xlim=(x0, x1), ylim=(y1, y0))
        for place, (entry, scores) in enumerate(row):
            _components(axes[-1, 4 * place : 4 * place + 4], entry, scores)
        told = (
            "Above: object's box (green), crop to train on (yellow), its padding (hatched). "
            "Below: the component, red is foreground."
        )
        if row:
            told += "\nLast row: values of foreground.component; -1 is the other side of 1."
        axes[0, 0].figure.suptitle(told, fontsize=9)


def _components(axes: np.ndarray, entry: Entry, scores: dict[str, np.ndarray]) -> None:
    """An image beside its scores along each component, each on its own scale."""
    axes[0].imshow(read_entry(entry), extent=(0, entry.width, entry.height, 0))
    x0, y0, x1, y1 = content_box(entry.width, entry.height)
    for axis, (name, values) in zip(axes[1:], scores.items(), strict=False):
        reach = np.nanmax(np.abs(values))
        axis.imshow(values, "coolwarm", vmin=-reach, vmax=reach, extent=(0, 1, 1, 0))
        axis.set(xlim=(x0, x1), ylim=(y1, y0))
        axis.set_title(name, fontsize=8)


def _outline(axis: Axes, box: Box, color: str, **options: Any) -> None:
    """Draw a box in the axis's pixels."""
    size = box[2] - box[0], box[3] - box[1]
    axis.add_patch(Rectangle(box[:2], *size, fill=False, ec=color, **options))


def _tile_rows(
    path: Path,
    rows: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    width: float,
    columns: int = 1,
) -> None:
    """Rows of tiles, each (n, S, S, 3) uint8 below its title, column by column."""
    height = -(-len(rows) // columns)
    with _plot(path, (width * columns, 0.9 * height), (height, columns)) as axes:
        for axis, row, title in zip(axes.T.flat, rows, titles, strict=False):
            axis.imshow(tile(row, len(row)))
            axis.set_title(title, fontsize=7, pad=1, parse_math=False)


def poses(
    path: Path,
    centroids: np.ndarray,
    names: Sequence[str],
    labels: np.ndarray,
    distances: np.ndarray,
    crops: Path,
) -> None:
    """Figure 2a: each pose's mean map and the crops nearest to it, poses in circular order.

    Args:
        path: of the picture.
        centroids: (k, T, c), of which the first three components are shown.
        names: (k,) of the poses.
        labels: (n,) poses.
        distances: (n,) to the centroids.
        crops: crops.h5.
    """
    maps = np.zeros((*centroids.shape[:2], 3), np.float32)
    maps[..., : centroids.shape[2]] = centroids[..., :3]
    side = round(maps.shape[1] ** 0.5)
    # One color scale for all poses: equal colors are equal features.
    low, high = np.percentile(maps, [1, 99], axis=(0, 1))
    colors = np.clip((maps - low) / np.maximum(high - low, 1e-9), 0, 1) * 255
    with open_h5(crops, "images") as file:
        size = file["images"].shape[1]
        rows = np.full((len(maps), 1 + _NEAREST, size, size, 3), 255, np.uint8)
        for pose, row in enumerate(rows):
            small = Image.fromarray(colors[pose].reshape(side, side, 3).astype(np.uint8))
            row[0] = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
            members = np.flatnonzero(labels == pose)
            members = members[np.argsort(distances[members], kind="stable")][:_NEAREST]
            for place, member in enumerate(members, 1):
                row[place] = file["images"][int(member)]
    counts = np.bincount(labels, minlength=len(rows))
    about = "mean map and nearest of"
    titles = [f"{name}: {about} {n} images" for name, n in zip(names, counts, strict=True)]
    _tile_rows(path, rows, titles, width=6.6, columns=2 if len(rows) > 6 else 1)


def categories(path: Path, rows: np.ndarray, counts: np.ndarray) -> None:
    """Crops of each category in a row, (c, n, S, S, 3) uint8, with its count of images (c,)."""
    titles = [f"category {c}: the first of {n} images" for c, n in enumerate(counts)]
    _tile_rows(path, rows, titles, width=0.7 * rows.shape[1])


def pose_eval(path: Path, poses: np.ndarray, azimuths: np.ndarray, scores: dict) -> None:
    """True azimuths (n,) in degrees of every pose (n,) around the circle, with their scores.

    Beside it, where those go whose azimuth differs from the mean of their pose.
    """
    k = len(scores["poses"])
    colors = colormaps["hsv"](np.arange(k) / k)
    with _plot(path, (5.5, 5.5), layout=None, projection="polar") as axis:
        for pose in range(k):
            found = azimuths[poses == pose]
            # A ring for each pose: rings that spread over the circle are mixed poses.
            axis.scatter(np.radians(found), np.full(len(found), 2.0 + pose), 3, [colors[pose]])
            if len(found):
                mean = np.radians(circular_mean(found))
                axis.text(mean, k + 3.5, str(pose), ha="center", va="center", fontsize=8)
        axis.set(rticks=[], rlim=(0, k + 4.5), theta_zero_location="S")
        axis.set_title(
            f"true azimuth (0 = front) of {k} poses, one ring each: median error "
            f"{scores['median_error_deg']:.1f} deg,\n{scores['share_within_30_deg']:.0%} within "
            f"30 deg of their pose's mean, {scores['images']} images",
            fontsize=8,
        )
        means = np.array([pose["mean_azimuth_deg"] for pose in scores["poses"]], float)
        _confusions(axis.figure.add_axes((1.12, 0.16, 0.68, 0.68)), means[poses], azimuths)


def _confusions(axis: Axes, means: np.ndarray, azimuths: np.ndarray) -> None:
    """How often images of each azimuth (n,) are in poses of each mean (n,), in degrees."""
    edges = np.arange(0, 361, 10)
    counts, _, _ = np.histogram2d(azimuths % 360, means % 360, (edges, edges))
    axis.pcolormesh(edges, edges, np.sqrt(counts), cmap="Greys")
    turn = np.array([0, 360])
    for label, color, lines in (
        ("its own direction", "tab:green", [(turn, turn)]),
        ("the opposite: front for rear", "tab:red", [(turn, turn + 180), (turn, turn - 180)]),
        ("mirrored: left for right", "tab:blue", [(turn, 360 - turn)]),
    ):
        for x, y in lines:
            axis.plot(x, y, color=color, lw=0.8, ls="--", label=label)
            label = None
    axis.set(xlim=(0, 360), ylim=(0, 360), xticks=range(0, 361, 90), yticks=range(0, 361, 90))
    axis.set_xlabel("mean azimuth of its pose, deg", fontsize=8)
    axis.set_ylabel("azimuth of the image, deg", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.01), frameon=False)


def viewpoints(path: Path, agreement: dict) -> None:
    """Share of every true viewpoint in every pose, as stacked bars."""
    counts = np.array(agreement["counts"], float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    poses, below = np.arange(len(counts)), np.zeros(len(counts))
    with _plot(path, (max(4, 0.35 * len(counts) + 2), 3.2)) as axis:
        for name, share in zip(agreement["labels"], shares.T, strict=True):
            axis.bar(poses, share, bottom=below, label=name)
            below += share
        axis.set(xlabel="pose", ylabel="share of its images", xticks=poses, ylim=(0, 1))
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        axis.set_title(
            f"true viewpoints in {len(counts)} poses, {agreement['images']} images: purity "
            f"{agreement['purity']:.2f} (chance {agreement['purity_of_chance']:.2f})",
            fontsize=8,
        )


def no_truth(path: Path) -> None:
    """A plot that says why there is no data."""
    with _plot(path, (4, 1), layout=None) as axis:
        axis.axis("off")
        axis.text(0.5, 0.5, "no true poses are known of this data set", ha="center", va="center")


def loss_curve(path: Path, records: list[dict]) -> None:
    """Loss per value over the steps of the records, with a running mean; the scores of views."""
    losses = [record for record in records if "loss" in record]
    scored = [record for record in records if "near" in record]
    if not losses:
        return  # samples may come before the first line of losses
    steps = np.array([record["step"] for record in losses])
    loss = np.array([record["loss"] for record in losses])
    window = max(1, len(loss) // 50)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    with _plot(path, (6, 3.2)) as axis:
        lines = axis.plot(steps, loss, lw=0.5, alpha=0.4, label="as recorded")
        if window > 1:
            label = f"mean of {window} records"
            lines += axis.plot(steps[window - 1 :], smooth, lw=1.5, label=label)
        axis.set(xlabel="step", ylabel="squared error per value", yscale="log")
        if scored:
            places, right = [record["step"] for record in scored], axis.twinx()
            for number, (key, label) in enumerate(_SCORES.items(), 2):
                values = [record[key] for record in scored]
                lines += right.plot(places, values, "o-", color=f"C{number}", ms=3, label=label)
            objects, views = scored[-1]["objects"], scored[-1]["views"]
            about = f"unguided views: {views} of {objects} objects"
            right.set(ylabel=about, ylim=(-0.05, 1.05))
        axis.legend(handles=lines, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def evidence(path: Path, found: dict, about: dict) -> None:
    """Pose control and consistency of generated objects and of photos, with floor and ceiling.

    Args:
        path: of the picture.
        found: ``pose_control``, ``pose_strength`` and ``consistency`` of the evidence step.
        about: numbers of objects.
    """
    control, names = found["pose_control"], {"exact": "in its pose", "near": "in it or a neighbor"}
    rows = [
        (names[name], row, row["chance"], row.get("real_objects", row["training_crops"]).value)
        for name, row in control.items()
    ]
    if found["pose_strength"] is not None:
        rows.append(("strength of the pose", found["pose_strength"], 0.0, 1.0))
    rows += [
        (f"consistency:\n{feature}", row, 0.0, 1.0 if row["ceiling_similarity"] else None)
        for feature, row in found["consistency"].items()
    ]
    with _plot(path, (6.5, 0.75 * len(rows) + 1.2)) as axis:
        for place, (_, row, low, high) in enumerate(rows):
            for bound, color in ((low, "gray"), (high, "black")):
                if bound is not None:
                    axis.plot([bound] * 2, [place - 0.35, place + 0.35], color=color, lw=2)
            for kind, shift, color in (
                ("generated", -0.15, "tab:blue"),
                ("photos", 0.15, "tab:red"),
            ):
                one = row[kind]
                label = f"{kind} ({one.n} objects)" if place == 0 else None
                axis.plot([one.low, one.high], [place + shift] * 2, color=color, lw=1.5)
                axis.plot(one.value, place + shift, "o", color=color, ms=5, label=label)
        axis.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(
            "gray: chance or unrelated objects; black: real images "
            f"({about['pose_estimator']}, {about['network']})",
            fontsize=7,
            parse_math=False,
        )
        axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, -0.3), ncols=2)


def screening(
    path: Path,
    warned: Sequence[tuple[Entry, Box | None, str]],
    groups: Sequence[Sequence[Entry]],
) -> None:
    """Images with box and warnings, then groups of near-duplicates, a row each.

    Args:
        path: of the picture.
        warned: images, their boxes and the reasons of the warnings.
        groups: each the image that the others repeat, and these.
    """
    rows = -(-len(warned) // _ACROSS)
    count = max(rows + len(groups), 1)
    with _plot(path, (1.5 * _ACROSS, 1.9 * count + 0.4), (count, _ACROSS)) as axes:
        for axis, (entry, box, reason) in zip(axes.flat, warned, strict=False):
            axis.imshow(read_entry(entry), extent=(0, entry.width, entry.height, 0))
            if box is not None:
                _outline(axis, box, "lime", lw=1.2)
            axis.set_title(textwrap.fill(reason, 34), fontsize=5, pad=1)
        for line, group in zip(axes[rows:], groups, strict=False):
            for axis, entry in zip(line, group, strict=False):
                axis.imshow(read_entry(entry))
            line[0].set_title(f"{len(group)} near-duplicates", fontsize=6, pad=1)
        told = "Images with the worst warnings" + (
            "; below, groups of near-duplicates" if groups else ""
        )
        axes[0, 0].figure.suptitle(told if rows or groups else "Nothing was found.", fontsize=9)


def number_of_poses(path: Path, name: str, categories: Sequence[dict]) -> None:
    """What speaks for each number of poses, a panel for each measure and a line for each category.

    Args:
        path: of the picture.
        name: of the data set.
        categories: with ``numbers``, rows of :func:`mirage_steps.method.number_of_poses`.
    """
    panels = {
        "stability": "stability between halves",
        "silhouette": "silhouette",
        "sharing": "clusters that share a pose",
        "smallest": "images of the smallest cluster",
        "median_error_deg": "median error (degrees)",
    }
    if not any("median_error_deg" in row for one in categories for row in one["numbers"]):
        del panels["median_error_deg"]
    with _plot(path, (2.6 * len(panels), 2.6), (1, len(panels))) as axes:
        for (key, title), axis in zip(panels.items(), axes[0], strict=True):
            axis.axis("on")
            for one in categories:
                rows = [{**row, "sharing": sum(map(len, row["shared"]))} for row in one["numbers"]]
                rows = [row for row in rows if key in row]
                label = f"category {one['category']}"
                axis.plot(
                    *zip(*((r["k"], r[key]) for r in rows), strict=True), "o-", ms=3, label=label
                )
            axis.axvline(categories[0]["run"]["k"], color="gray", lw=0.8, ls=":")
            axis.set_title(title, fontsize=8)
            axis.set_xlabel("K", fontsize=8)
            axis.tick_params(labelsize=7)
        if key == "median_error_deg":
            numbers = sorted({row["k"] for one in categories for row in one["numbers"]})
            axis.plot(numbers, [90 / k for k in numbers], "k--", lw=0.8, label="even parts")
        if len(categories) > 1 or key == "median_error_deg":
            axis.legend(fontsize=6)
        axes[0, 0].figure.suptitle(f"{name}: numbers of poses (dotted: the run's)", fontsize=9)
