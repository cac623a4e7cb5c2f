"""Tables that steps exchange: crop windows, categories and poses of the images."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError, parsing, rerun
from mirage_steps.files.atomic import csv_rows
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.files.manifest import BOX, Entry
from mirage_steps.method.boxes import Box, centered

WINDOW = tuple(f"window_{key}" for key in BOX)
CLEARNESS = ("separation", "largest_part", "cut")
WINDOWS = (
    "image",
    "found",
    *BOX,
    *WINDOW,
    "padded_share",
    "foreground_share",
    *CLEARNESS,
    "left_out",
)
DUPLICATES = ("image", "of", "similarity", "group")


def read_windows(
    path: Path, entries: list[Entry], centered_on_box: bool = False
) -> list[tuple[Entry, Box]]:
    """Images in which an object was found, each with its crop window in pixels.

    Args:
        path: foreground.csv.
        entries: the manifest's images.
        centered_on_box: move each window so that the object's box is in its middle, even out of
            the image.

    Raises:
        UserError: the table belongs to another manifest, or no object was found at all.
    """
    found = []
    for entry, row in zip_longest(entries, csv_rows(path)):
        if entry is None or row is None or row.get("image") != entry.image:
            raise UserError(f"{path}: lists other images than the manifest; {rerun('foreground')}")
        with parsing(f"{path}, image {entry.image}", "damaged", "foreground"):
            if row["found"] not in ("0", "1"):
                raise ValueError(f"found is {row['found']}")
            if row["found"] == "0":
                continue
            box, window = _box(row, BOX), _box(row, WINDOW)
        found.append((entry, centered(window, box) if centered_on_box else window))
    if not found:
        raise UserError(
            f"{path}: no object was found in any image; look at foreground.png and try "
            "foreground.threshold: zero or another foreground.component"
        )
    return found


def _box(row: dict[str, str], keys: Sequence[str]) -> Box:
    """A box in pixels; raises ValueError where it is none."""
    x0, y0, x1, y1 = (float(row[key]) for key in keys)
    if not (x0 < x1 < 1e6 and y0 < y1 < 1e6):
        raise ValueError(f"{(x0, y0, x1, y1)} is no box")
    return x0, y0, x1, y1


def read_duplicates(path: Path | None) -> dict[str, str]:
    """The image that each near-duplicate repeats, by duplicates.csv; empty where there is none.

    Raises:
        UserError: the table lacks a column.
    """
    with parsing(f"{path}", "not a table of near-duplicates", "duplicates"):
        return {row["image"]: row["of"] for row in csv_rows(path)} if path else {}


def read_categories(path: Path | None, images: list[str]) -> np.ndarray:
    """Category of each image, (n,) int64 from 0, by categories.csv; all 0 where there is none.

    Raises:
        UserError: the table lacks an image or a column.
    """
    if path is None:
        return np.zeros(len(images), np.int64)
    with parsing(f"{path}", "does not say the category of every image", "categories"):
        found = {row["image"]: int(row["category"]) for row in csv_rows(path)}
        return np.array([found[image] for image in images])


def read_pose_counts(poses: Path) -> tuple[int, int]:
    """Number of poses in all, and of categories, by the poses.json next to ``poses.csv``.

    Raises:
        UserError: poses.json is missing or not what the poses step writes.
    """
    about = poses.with_suffix(".json")
    with parsing(f"{about}", "not readable", "poses"):
        counts = json.loads(about.read_text(encoding="utf-8"))
        return counts["k"] * counts["categories"], counts["categories"]


def require_pose_counts(poses: Path, count: int, categories: int) -> None:
    """Refuse ``poses.csv`` where the model was trained with another number of poses or categories.

    Raises:
        UserError: with both numbers.
    """
    found = read_pose_counts(poses)
    if found != (count, categories):
        raise UserError(
            f"{poses}: {found[0]} poses in {found[1]} categories, the model was trained with "
            f"{count} in {categories}; set poses.k, poses.edits and categories back, or train: run "
            "snakemake with --forcerun train"
        )


def read_poses(poses: Path) -> tuple[list[str], np.ndarray]:
    """Names of the images in ``poses.csv`` and their poses (n,) int64, in the order of the file.

    Raises:
        UserError: a column is missing, or a pose is none of those that poses.json counts.
    """
    images, labels = [], []
    with parsing(f"{poses}", "not a table of poses", "poses"):
        for row in csv_rows(poses):
            images.append(row["image"])
            labels.append(int(row["pose"]))
        if not images:
            raise ValueError("it is empty")
        count, _ = read_pose_counts(poses)
        if wrong := [label for label in labels if not 0 <= label < count]:
            raise ValueError(f"pose {wrong[0]} of {count}")
    return images, np.array(labels, np.int64)


def read_labels(poses: Path, crops: Path) -> np.ndarray:
    """Pose of every crop, (n,) int64, in the order of ``crops.h5``.

    Raises:
        UserError: the two list different images.
    """
    images, labels = read_poses(poses)
    with open_h5(crops, "image") as file:
        if images != read_names(file):
            raise UserError(f"{poses} and {crops} list different images; {rerun('poses')}")
    return labels
