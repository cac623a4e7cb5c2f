"""Pose labels in the order of the crops."""

import json
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.h5 import open_h5, read_names


def read_circles(poses: Path) -> tuple[int, int]:
    """Number of poses in all, and of kinds of object, each with equally many.

    Args:
        poses: poses.csv; poses.json lies beside it.

    Raises:
        UserError: poses.json is missing or not what the poses step writes.
    """
    about = poses.with_suffix(".json")
    try:
        counts = json.loads(about.read_text())
        return counts["k"] * counts["categories"], counts["categories"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{about}: not readable ({error!r}); rerun the poses step") from None


def read_labels(poses: Path, crops: Path) -> np.ndarray:
    """Pose of every crop, (n,) int64, in the order of ``crops.h5``.

    Raises:
        UserError: the two list different images.
    """
    rows = read_csv(poses)
    with open_h5(crops, "image") as file:
        if [row.get("image") for row in rows] != read_names(file):
            raise UserError(f"{poses} and {crops} list different images; rerun the poses step")
    return np.array([int(row["pose"]) for row in rows])
