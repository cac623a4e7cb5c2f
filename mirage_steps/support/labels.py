"""Pose labels in the order of the crops."""

from pathlib import Path

import numpy as np

from mirage_steps.support.errors import UserError
from mirage_steps.support.files import read_csv
from mirage_steps.support.h5 import open_h5, read_names


def count_categories(poses: Path) -> int:
    """Number of kinds of object in ``poses.csv``."""
    return 1 + max(int(row.get("category") or 0) for row in read_csv(poses))


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
