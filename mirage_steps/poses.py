"""Poses by clustering in pose space, numbered around the object (paper, section 3.1).

Every category has its own K poses; those of the second category follow those of the first. Writes
``pose_estimator.safetensors`` (complete; assigns poses to new photos), ``poses.csv``
(image, pose, distance, category) and ``poses.json`` (count of each pose, and after edits, by
``found``, the numbers before them).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from mirage_steps import settings
from mirage_steps.errors import rerun
from mirage_steps.files.atomic import write_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import open_h5, read_names, slices
from mirage_steps.files.labels import read_edits
from mirage_steps.files.tables import read_categories
from mirage_steps.method.finite import require_finite
from mirage_steps.method.pose_estimator import PoseEstimator

_FEW = 10  # images per pose below which there is a warning
_BATCH = 256  # maps in memory while poses are assigned


def main(
    *,
    maps: Path,
    estimator: Path,
    out: Path,
    categories: Path | None = None,
    stored: Path | None = None,
    poses: settings.Poses = settings.Poses(),
) -> None:
    """Cluster the maps into poses.

    Args:
        maps: maps.h5 of the pose space.
        estimator: The pose space's pose_estimator.safetensors.
        out: Folder for pose_estimator.safetensors, poses.csv and poses.json.
        categories: categories.csv, where there are several categories.
        stored: The estimator that this step fitted on another data set; nothing is fitted here.
        poses: Method, number of poses, starts, seed, and the table of edits.
    """
    with open_h5(maps, "maps", "valid") as file:
        images = read_names(file)
        assigned = read_categories(categories, images)
        model = load_estimator(stored or estimator, "poses" if stored else "pcas")
        before: list = []
        if stored is None:
            model = _fit(file, images, assigned, model, poses)
            if poses.edits != "none":
                model, before = _edited(model, Path(poses.edits))
        parts = [
            model.assign(values, valid, assigned[rows])
            for rows, values, valid in _batches(file, images)
        ]
    labels, distances = map(np.concatenate, zip(*parts, strict=True))
    counts = np.bincount(labels, minlength=model.number_of_poses)
    save_estimator(out / ESTIMATOR, model)
    about = {"k": model.k, "categories": len(model.poses), "images": counts.tolist()}
    if before:
        about["found"] = before
    write_json(out / "poses.json", about)
    rows = zip(images, labels, distances, assigned, strict=True)
    write_csv(
        out / "poses.csv",
        ("image", "pose", "distance", "category"),
        ((image, pose, f"{distance:.6g}", category) for image, pose, distance, category in rows),
    )
    log.info("images of each pose: %s", " ".join(map(str, counts)))


def _batches(
    file: h5py.File, images: Sequence[str]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows, their maps (m, T, c) and which patches are valid (m, T), all finite."""
    for rows in slices(len(images), _BATCH):
        values = file["maps"][rows]
        require_finite(images[rows], "map", rerun("pose_space"), values)
        yield rows, values, file["valid"][rows]


def _fit(
    file: h5py.File,
    images: Sequence[str],
    assigned: np.ndarray,
    model: PoseEstimator,
    poses: settings.Poses,
) -> PoseEstimator:
    """The estimator with poses, fitted on ``poses.fitted_images`` maps at most."""
    chosen, drawn = np.ones(len(images), bool), np.random.default_rng(poses.seed)
    for category in range(most := int(assigned.max()) + 1):
        own = drawn.permutation(np.flatnonzero(assigned == category))
        chosen[own[poses.fitted_images // most :]] = False  # also a rare one has its share
    count = int(chosen.sum())
    values = np.empty((count, *file["maps"].shape[1:]), np.float32)
    valid = np.empty((count, *file["valid"].shape[1:]), bool)
    at = 0
    for rows, some, seen in _batches(file, images):
        part = slice(at, at := at + int(chosen[rows].sum()))
        values[part], valid[part] = some[chosen[rows]], seen[chosen[rows]]
    log.info("%s: %d of %d maps, %d poses", poses.method, count, len(images), poses.k)
    for category, number in enumerate(np.bincount(assigned)):
        if number < _FEW * poses.k:
            log.warning(
                "only %d images for poses.k = %d (category %d): some poses may be accidental "
                "clusters; lower poses.k or add images", number, poses.k, category,
            )  # fmt: skip
    return model.fit_poses(values, valid, assigned[chosen], poses)


def _edited(model: PoseEstimator, edits: Path) -> tuple[PoseEstimator, list[list[int]]]:
    """The estimator after the edits; of each pose the numbers before, empty where none changed."""
    into, _ = read_edits(edits, model.k, len(model.poses))
    stay = np.unique(into[into >= 0])
    if len(stay) == len(into):  # the table gives names only
        return model, []
    log.info("poses.edits: %d of %d poses are left", len(stay), len(into))
    return model.edited(into), [np.flatnonzero(into == pose).tolist() for pose in stay]


if __name__ == "__main__":
    run(main)
