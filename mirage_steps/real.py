"""Two disjoint sets of real crops, the reference of the distances (section 4).

Writes ``real-a/images.h5`` (the reference of every row) and ``real-b/images.h5`` (its distance to
the first is the floor): ``images`` (n, S, S, 3) uint8, ``pose`` (n,).
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.evaluation_sets import EVALUATION_SETS
from mirage_steps.files.command import run
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.image_set import create_image_set
from mirage_steps.files.tables import read_labels


def main(*, crops: Path, poses: Path, out: Path, fid: settings.Fid = settings.Fid()) -> None:
    """Draw two disjoint sets of real crops.

    Args:
        crops: crops.h5.
        poses: poses.csv.
        out: Folder for real-a/images.h5 and real-b/images.h5.
        fid: Images of each set, and seed of the choice.
    """
    labels = read_labels(poses, crops)
    names = [one.name for one in EVALUATION_SETS if one.source == "real"]
    needed = len(names) * fid.samples
    with open_h5(crops, "images") as file:
        count, side = file["images"].shape[:2]
        if count < needed:
            raise UserError(
                f"fid.samples = {fid.samples} needs {needed} real images (two disjoint sets), "
                f"there are {count}; set it to at most {count // len(names)}"
            )
        chosen = np.random.default_rng(fid.seed).permutation(count)[:needed]
        for name, indices in zip(names, np.split(chosen, len(names)), strict=True):
            with create_image_set(out / name / "images.h5", fid.samples, side) as target:
                target["pose"] = labels[indices].astype(np.int16)
                for place, index in enumerate(indices):
                    target["images"][place] = file["images"][int(index)]


if __name__ == "__main__":
    run(main)
