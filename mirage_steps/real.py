"""Step 7c: two disjoint sets of real crops, what the generated images are compared with.

Writes ``real-a/images.h5`` (every row is compared with it) and ``real-b/images.h5`` (its distance
to the first is the floor that no generator can beat): ``images`` (n, S, S, 3) uint8, ``pose`` (n,).
"""

from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files.command import run
from mirage_steps.files.h5 import by_image, create_h5, open_h5
from mirage_steps.files.tables import read_labels


def main(*, crops: Path, poses: Path, out: Path, samples: int, seed: int = 0) -> None:
    """Draw two disjoint sets of real crops.

    Args:
        crops: crops.h5.
        poses: poses.csv.
        out: Folder for real-a/images.h5 and real-b/images.h5.
        samples: Images of each set.
        seed: Seed of the choice.
    """
    labels = read_labels(poses, crops)
    with open_h5(crops, "images") as file:
        count, *shape = file["images"].shape
        if count < 2 * samples:
            raise UserError(
                f"fid.samples = {samples} needs {2 * samples} real images (two disjoint sets), "
                f"there are {count}; set it to at most {count // 2}"
            )
        chosen = np.random.default_rng(seed).permutation(count)[: 2 * samples]
        for name, indices in (("real-a", chosen[:samples]), ("real-b", chosen[samples:])):
            with create_h5(out / name / "images.h5") as target:
                target.attrs["kind"] = name
                images = by_image(target, "images", samples, tuple(shape), np.uint8)
                target["pose"] = labels[indices].astype(np.int16)
                for place, index in enumerate(indices):
                    images[place] = file["images"][int(index)]


if __name__ == "__main__":
    run(main)
