"""Every picture that is more than tiles, drawn with matplotlib, whole or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from mirage_steps.files.atomic import atomic
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.loading import read_entry
from mirage_steps.files.manifest import Entry
from mirage_steps.files.tiles import tile
from mirage_steps.method.circle import circular_mean

_DPI = 110


def save_figure(path: Path, figure: plt.Figure) -> None:
    """Write a figure and forget it."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, bbox_inches="tight")
    plt.close(figure)


@dataclass(frozen=True)
class ForegroundExample:
    """An image to show: its entry, its scores (g, g) with NaN on padding, its table row."""

    entry: Entry
    scores: np.ndarray
    row: tuple


def foreground(path: Path, examples: Sequence[ForegroundExample], threshold: float) -> None:
    """Images with box and crop window above the component's scores with its threshold."""
    columns = min(8, len(examples))
    bands = -(-len(examples) // columns)
    figure, axes = plt.subplots(
        2 * bands,
        columns,
        figsize=(1.5 * columns, 3.1 * bands + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.axis("off")
    reach = max(np.nanmax(np.abs(example.scores - threshold)) for example in examples)
    for number, example in enumerate(examples):
        top = axes[2 * (number // columns), number % columns]
        bottom = axes[2 * (number // columns) + 1, number % columns]
        entry = example.entry
        top.imshow(read_entry(entry))
        if example.row[1]:
            for box, colour in ((example.row[2:6], "lime"), (example.row[6:10], "yellow")):
                x0, y0, x1, y1 = box
                top.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.2))
        side = max(entry.width, entry.height)
        left, up = (entry.width - side) / 2, (entry.height - side) / 2
        extent = (left, left + side, up + side, up)
        bottom.imshow(
            example.scores - threshold, cmap="coolwarm", vmin=-reach, vmax=reach, extent=extent
        )
        bottom.set_xlim(0, entry.width)
        bottom.set_ylim(entry.height, 0)
    figure.suptitle(
        "Above: object's box (green), crop to train on (yellow). "
        "Below: the component, red is foreground.",
        fontsize=9,
    )
    save_figure(path, figure)


def poses(
    path: Path, centroids: np.ndarray, labels: np.ndarray, distances: np.ndarray, crops: Path
) -> None:
    """Figure 2a: each pose's mean map and the crops nearest to it, poses in circular order."""
    nearest_count = 8
    maps = centroids.reshape(len(centroids), -1, 3)
    # One colour scale for all poses: equal colours are equal features.
    low, high = np.percentile(maps, [1, 99], axis=(0, 1))
    side = round(maps.shape[1] ** 0.5)
    rows = []
    with open_h5(crops, "images") as file:
        size = file["images"].shape[1]
        for pose, one in enumerate(maps):
            members = np.flatnonzero(labels == pose)
            members = members[np.argsort(distances[members], kind="stable")][:nearest_count]
            colours = np.clip((one - low) / np.maximum(high - low, 1e-9), 0, 1) * 255
            small = Image.fromarray(colours.reshape(side, side, 3).astype(np.uint8))
            row = np.full((1 + nearest_count, size, size, 3), 255, np.uint8)
            row[0] = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
            for place, member in enumerate(members, 1):
                row[place] = file["images"][int(member)]
            rows.append(row)
    columns = 2 if len(rows) > 6 else 1
    half = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        half, columns, figsize=(6.6 * columns, 0.9 * half), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for pose, row in enumerate(rows):
        axis = axes[pose % half, pose // half]
        axis.imshow(tile(row, 1 + nearest_count))
        count = int((labels == pose).sum())
        axis.set_title(f"pose {pose}: mean map and nearest of {count} images", fontsize=7, pad=1)
    save_figure(path, figure)


def pose_eval(path: Path, poses: np.ndarray, azimuths: np.ndarray, scores: dict) -> None:
    """True azimuths of every pose around the circle."""
    figure, axis = plt.subplots(figsize=(5.5, 5.5), subplot_kw={"projection": "polar"})
    k = len(scores["poses"])
    colours = plt.get_cmap("hsv")(np.arange(k) / k)
    for pose in range(k):
        found = np.radians(azimuths[poses == pose])
        # A ring for each pose: rings that spread over the circle are mixed poses.
        axis.scatter(found, np.full(len(found), 2.0 + pose), s=3, color=colours[pose])
        if len(found):
            mean = np.radians(circular_mean(azimuths[poses == pose]))
            axis.text(mean, k + 3.5, str(pose), ha="center", va="center", fontsize=8)
    axis.set_rticks([])
    axis.set_rlim(0, k + 4.5)
    axis.set_theta_zero_location("S")
    axis.set_title(
        f"true azimuth (0 = front) of {k} poses, one ring each: median error "
        f"{scores['median_error_deg']:.1f} deg,\n{scores['share_within_30_deg']:.0%} within 30 deg "
        f"of their pose's mean, {scores['images']} images",
        fontsize=8,
    )
    save_figure(path, figure)


def categories(path: Path, rows: np.ndarray, counts: np.ndarray) -> None:
    """Crops of every category in a row, with their number.

    Args:
        path: of the picture.
        rows: (c, n, S, S, 3) uint8, white where there are fewer.
        counts: (c,) images of each category.
    """
    kinds, shown = rows.shape[:2]
    figure, axes = plt.subplots(
        kinds, 1, figsize=(0.7 * shown, 0.9 * kinds), squeeze=False, layout="constrained"
    )
    for kind, axis in enumerate(axes.flat):
        axis.imshow(tile(rows[kind], shown))
        axis.set_title(f"category {kind}: the first of {counts[kind]} images", fontsize=7, pad=1)
        axis.axis("off")
    save_figure(path, figure)


def viewpoints(path: Path, agreement: dict) -> None:
    """Share of every true viewpoint in every pose, as stacked bars."""
    counts = np.array(agreement["counts"], float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    poses = np.arange(len(counts))
    figure, axis = plt.subplots(figsize=(max(4, 0.35 * len(counts) + 2), 3.2), layout="constrained")
    below = np.zeros(len(counts))
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
    save_figure(path, figure)


def no_truth(path: Path) -> None:
    """A plot that says why there is none."""
    figure, axis = plt.subplots(figsize=(4, 1))
    axis.axis("off")
    axis.text(0.5, 0.5, "nothing is known of this data set's true poses", ha="center", va="center")
    save_figure(path, figure)


def loss_curve(path: Path, records: list[dict]) -> None:
    """Training loss per value over the steps, with a running mean, and the learning rate."""
    steps = np.array([record["step"] for record in records])
    loss = np.array([record["loss"] for record in records])
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.plot(steps, loss, lw=0.5, alpha=0.4, label="as recorded")
    window = max(1, len(loss) // 50)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1 :], smooth, lw=1.5, label=f"mean of {window} records")
    axis.set(xlabel="step", ylabel="squared error per value", yscale="log")
    axis.legend(fontsize=8)
    save_figure(path, figure)
