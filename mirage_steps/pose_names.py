"""Names of the poses, and a picture of the poses with their names (Figure 2a).

Writes ``names.json``, the names by ``poses.edits`` or ``pose N``, and ``poses.png``. Only what is
drawn depends on names, so that naming a pose makes no views and trains nothing.
"""

from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError, parsing, rerun
from mirage_steps.files import plots
from mirage_steps.files.atomic import read_csv, write_json
from mirage_steps.files.command import run
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.labels import read_edits
from mirage_steps.files.pose_names import NAMES, read_pose_names
from mirage_steps.files.records import read_json
from mirage_steps.files.tables import read_labels


def main(
    *,
    poses: Path,
    crops: Path,
    estimator: Path,
    out: Path,
    k: int = 0,
    edits: Path | None = None,
    stored: Path | None = None,
) -> None:
    """Name and draw the poses.

    Args:
        poses: poses.csv, with poses.json in the same folder.
        crops: crops.h5.
        estimator: The poses step's pose_estimator.safetensors.
        out: Folder for names.json and poses.png.
        k: Number of poses of each category before the edits.
        edits: The table of edits.
        stored: names.json of the data set that fitted the poses, if it is another.
    """
    model = load_estimator(estimator, "poses")
    labels = read_labels(poses, crops)
    with parsing(f"{poses}", "not a table of poses", "poses"):
        distances = np.array([float(row["distance"]) for row in read_csv(poses)])
    names = read_pose_names(stored, model.number_of_poses)
    if edits is not None:
        into, given = read_edits(edits, k, len(model.poses))
        stay = np.unique(into[into >= 0]).tolist()
        if len(stay) != len(names):
            raise UserError(f"{estimator}: has {len(names)} poses, not the {len(stay)} that "
                            f"{edits} leaves; {rerun('poses')}")  # fmt: skip
        names = [given.get(pose, names[place]) for place, pose in enumerate(stay)]
    write_json(out / NAMES.name, {"names": names})
    if before := read_json(poses.with_suffix(".json")).get("found"):
        names = [f"{name} (was {was})" for name, was in zip(names, before, strict=True)]
    centroids = np.concatenate([part.mean_maps for part in model.poses])
    centroids = centroids.reshape(len(centroids), -1, len(model.pcas[0].components))
    plots.poses(out / "poses.png", centroids, names, labels, distances, crops)


if __name__ == "__main__":
    run(main)
