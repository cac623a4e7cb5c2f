"""Evaluate poses against true azimuths or viewpoints, if known.

No other step reads these labels. Writes ``pose_eval.json`` and ``pose_eval.png``, also if none are
known.
"""

from pathlib import Path

import numpy as np

from mirage_steps.files import plots
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.labels import match_labels
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import read_pose_counts, read_poses
from mirage_steps.method.pose_scores import score_azimuths, score_labels


def main(*, manifest: Path, poses: Path, out: Path, labels: Path | None = None) -> None:
    """Compare poses with true azimuths and viewpoints.

    Args:
        manifest: The data set's manifest.csv.
        poses: poses.csv.
        out: Folder for pose_eval.json and pose_eval.png.
        labels: CSV file with image and azimuth_deg; its image is a path or a file name.
    """
    entries = read_manifest(manifest)
    truth = {entry.image: entry.azimuth_deg for entry in entries if entry.azimuth_deg is not None}
    if labels is not None:
        truth |= match_labels(labels, [entry.image for entry in entries])
    viewpoints = {entry.image: entry.viewpoint for entry in entries if entry.viewpoint}
    assigned = dict(zip(*read_poses(poses), strict=True))
    k, categories = read_pose_counts(poses)
    picture = out / "pose_eval.png"
    scores: dict = {"images": 0}
    if known := [(pose, truth[image]) for image, pose in assigned.items() if image in truth]:
        found, azimuths = (np.array(part) for part in zip(*known, strict=True))
        scores = score_azimuths(found, azimuths, k, categories)
        plots.pose_eval(picture, found, azimuths, scores)
        log.info(
            "%(images)d images with known azimuth: median error %(median_error_deg).1f degrees, "
            "share within 30 degrees %(share_within_30_deg).2f, share in the opposite direction "
            "%(share_opposite).2f, order errors %(order_errors)d",
            scores,
        )
    if known := [(pose, viewpoints[i]) for i, pose in assigned.items() if i in viewpoints]:
        found, names = zip(*known, strict=True)
        scores["viewpoints"] = score_labels(np.array(found), list(names), k)
        log.info(
            "%(images)d images with known viewpoint: purity %(purity).3f (chance "
            "%(purity_of_chance).3f), mutual information %(normalized_mutual_information).3f",
            scores["viewpoints"],
        )
        if not scores["images"]:
            plots.viewpoints(picture, scores["viewpoints"])
    elif not scores["images"]:
        scores["note"] = "no true azimuth or viewpoint is known"
        plots.no_truth(picture)
    write_json(out / "pose_eval.json", scores)


if __name__ == "__main__":
    run(main)
