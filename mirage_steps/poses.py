"""Step 5: poses by K-Means in pose space, numbered around the object (paper, section 3.1).

Every category of objects has K poses of its own; those of the second category follow those of the
first. Writes ``poses.csv`` (image, pose, distance, category), ``poses.npz`` (the centroids, by
which a new photo is assigned), ``poses.json`` (count of each pose) and ``poses.png`` (Figure 2a).
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import plots as pictures
from mirage_steps.files.atomic import atomic, write_csv, write_json
from mirage_steps.files.categories import read_categories
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.method.poses import PoseModel, fill_padding, position_means

_FEW = 10  # images a pose below which poses are doubtful


def main(
    *,
    maps: Path,
    crops: Path,
    out: Path,
    categories: Path | None = None,
    stored: Path | None = None,
    poses: settings.Poses = settings.Poses(),
) -> None:
    """Cluster the maps into poses.

    Args:
        maps: maps.h5 of the pose space.
        crops: crops.h5, for the picture.
        out: Folder for poses.csv, poses.npz, poses.json and poses.png.
        categories: categories.csv, where there are several kinds of object.
        stored: poses.npz of another data set, to assign by, where nothing shall be fitted.
        poses: Number of poses, starts and seed.
    """
    with open_h5(maps, "maps", "valid") as file:
        values, valid, names = file["maps"][:], file["valid"][:], read_names(file)
    with open_h5(crops, "image") as file:
        if read_names(file) != names:
            raise UserError(f"{crops} and {maps} list different images; rerun crops and pose_space")
    kinds = read_categories(categories, names)
    if stored is None:
        models = _fit(values, valid, kinds, poses)
    else:
        models = PoseModel.load_all(stored)
    labels, distances = np.empty(len(names), np.int64), np.empty(len(names))
    k = len(models[0].centroids)
    for kind, model in enumerate(models):
        own = _members(kinds, kind, len(models))
        mine = values[own]
        if not len(mine):
            continue  # photos of another kind only
        fill_padding(mine, valid[own], model.means)
        labels[own], distances[own] = model.assign(mine)
        labels[own] += kind * k
    counts = np.bincount(labels, minlength=k * len(models))
    with atomic(out / "poses.npz") as path:
        PoseModel.save_all(path, models)
    centroids = np.concatenate([model.centroids for model in models])
    pictures.poses(out / "poses.png", centroids, labels, distances, crops)
    write_json(out / "poses.json", {"k": k, "categories": len(models), "images": counts.tolist()})
    write_csv(
        out / "poses.csv",
        ("image", "pose", "distance", "category"),
        (
            (name, pose, f"{distance:.6g}", kind)
            for name, pose, distance, kind in zip(names, labels, distances, kinds, strict=True)
        ),
    )
    log.info("images of each pose: %s", " ".join(map(str, counts)))


def _fit(
    values: np.ndarray, valid: np.ndarray, kinds: np.ndarray, poses: settings.Poses
) -> list[PoseModel]:
    """Poses of every category."""
    models, count = [], int(kinds.max()) + 1
    for kind in range(count):
        own = _members(kinds, kind, count)
        mine = values[own]
        where = f" of category {kind}" if count > 1 else ""
        if len(mine) < poses.k:
            raise UserError(
                f"poses.k = {poses.k}, but an object{where} was found in only {len(mine)} images; "
                "lower poses.k or add images"
            )
        if len(mine) < _FEW * poses.k:
            log.warning(
                "only %d images%s for %d poses: some will hold a few alike by chance",
                len(mine), where, poses.k,
            )  # fmt: skip
        means = position_means(mine, valid[own])
        fill_padding(mine, valid[own], means)
        log.info("K-Means: %d maps%s, %d poses, %d starts", len(mine), where, poses.k, poses.starts)
        models.append(PoseModel.fit(mine, means, poses.k, poses.starts, poses.seed))
    return models


def _members(kinds: np.ndarray, kind: int, count: int) -> np.ndarray | slice:
    """Index of a category's images; with one category no copy of all maps is made."""
    return kinds == kind if count > 1 else slice(None)


if __name__ == "__main__":
    run(main)
