"""``categories.csv``: the kind of object in every image."""

from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv


def read_categories(path: Path | None, images: list[str]) -> np.ndarray:
    """Category of each image, (n,) int64, counted from 0.

    Args:
        path: categories.csv of the data set; None where all objects are of one kind.
        images: names, each in the table.

    Raises:
        UserError: the table lacks an image or a column.
    """
    if path is None:
        return np.zeros(len(images), np.int64)
    rows = read_csv(path)
    try:
        found = {row["image"]: int(row["category"]) for row in rows}
        return np.array([found[image] for image in images])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: does not say the category of every image ({error!r}); rerun categories"
        ) from None
