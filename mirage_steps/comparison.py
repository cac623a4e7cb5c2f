"""Objects of other methods above ours, each row an object and its views (as Figure 8).

Writes ``comparison.png``.
"""

from pathlib import Path

import numpy as np

from mirage_steps.files import tiles
from mirage_steps.files.command import run
from mirage_steps.files.h5 import open_h5


def main(*, theirs: tuple[Path, ...], objects: Path, out: Path) -> None:
    """Draw objects of other methods and ours in one picture.

    Args:
        theirs: images.h5 of the sets of other methods, with objects.
        objects: The sheet's objects.h5.
        out: Folder for comparison.png.
    """
    found: list[tuple[str, np.ndarray]] = []
    for path in theirs:
        with open_h5(path, "objects") as file:
            found.append((path.parent.name, file["objects"][:]))
    with open_h5(objects, "images") as file:
        found.append(("ours", file["images"][: max(len(one) for _, one in found)]))
    columns = min(found[-1][1].shape[1], max(one.shape[1] for _, one in found[:-1]))
    rows = np.concatenate([_spread(one, columns) for _, one in found])
    labels = [name for name, one in found for _ in one]
    title = "objects (rows) and views of each (columns): other methods above, ours below"
    tiles.save_image(
        out / "comparison.png", tiles.contact_sheet(rows, (), (), title, labels=labels)
    )


def _spread(objects: np.ndarray, columns: int) -> np.ndarray:
    """Evenly spaced views (m, columns, S, S, 3) of objects (m, v, S, S, 3); white beyond v."""
    count, views = objects.shape[:2]
    taken = min(views, columns)
    rows = np.full((count, columns, *objects.shape[2:]), 255, np.uint8)
    rows[:, :taken] = objects[:, np.arange(taken) * views // taken]
    return rows


if __name__ == "__main__":
    run(main)
