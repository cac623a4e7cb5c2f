"""Step 5: poses by K-Means in pose space, numbered around the object (paper, section 3.1).

Writes ``poses.csv`` (image, pose, distance), ``poses.npz`` (the centroids, by which a new photo is
assigned), ``poses.json`` (count of each pose) and ``poses.png`` (Figure 2a).
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.core.poses import PoseModel, fill_padding, position_means
from mirage_steps.support import pictures
from mirage_steps.support.errors import UserError
from mirage_steps.support.files import atomic, write_csv, write_json
from mirage_steps.support.h5 import open_h5, read_names
from mirage_steps.support.step import log, run


def main(*, maps: Path, crops: Path, out: Path, poses: settings.Poses = settings.Poses()) -> None:
    """Cluster the maps into poses.

    Args:
        maps: maps.h5 of the pose space.
        crops: crops.h5, for the picture.
        out: Folder for poses.csv, poses.npz, poses.json and poses.png.
        poses: Number of poses, starts and seed.
    """
    with open_h5(maps, "maps", "valid") as file:
        values, valid, names = file["maps"][:], file["valid"][:], read_names(file)
    with open_h5(crops, "image") as file:
        if read_names(file) != names:
            raise UserError(f"{crops} and {maps} list different images; rerun crops and pose_space")
    if len(names) < poses.k:
        raise UserError(
            f"poses.k = {poses.k}, but an object was found in only {len(names)} images; "
            "lower poses.k or add images"
        )
    means = position_means(values, valid)
    fill_padding(values, valid, means)
    log.info("K-Means: %d maps, %d poses, %d starts", len(names), poses.k, poses.starts)
    model = PoseModel.fit(values, means, poses.k, poses.starts, poses.seed)
    labels, distances = model.assign(values)
    counts = np.bincount(labels, minlength=poses.k)
    with atomic(out / "poses.npz") as path:
        model.save(path)
    pictures.poses(out / "poses.png", model.centroids, labels, distances, crops)
    write_json(out / "poses.json", {"k": poses.k, "images": counts.tolist()})
    write_csv(
        out / "poses.csv",
        ("image", "pose", "distance"),
        ((n, p, f"{d:.6g}") for n, p, d in zip(names, labels, distances, strict=True)),
    )
    log.info("images of each pose: %s", " ".join(map(str, counts)))


if __name__ == "__main__":
    run(main)
