"""Evaluate poses against true azimuths or viewpoints, if known.

No other step reads these labels. Writes ``pose_eval.json`` and ``pose_eval.png``, also if none are
known.
"""

import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files import plots
from mirage_steps.files.atomic import read_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import read_pose_counts
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
    rows = read_csv(poses)
    if not rows or not {"image", "pose"} <= rows[0].keys():
        raise UserError(f"{poses}: needs the columns image and pose; rerun the poses step")
    assigned = {row["image"]: int(row["pose"]) for row in rows}
    k, categories = read_pose_counts(poses)
    picture = out / "pose_eval.png"
    scores: dict = {"images": 0}
    if known := [(pose, truth[image]) for image, pose in assigned.items() if image in truth]:
        found, azimuths = (np.array(part) for part in zip(*known, strict=True))
        scores = score_azimuths(found, azimuths, k, categories)
        plots.pose_eval(picture, found, azimuths, scores)
        log.info(
            "%(images)d images with known azimuth: median error %(median_error_deg).1f degrees, "
            "share within 30 degrees %(share_within_30_deg).2f, order errors %(order_errors)d",
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


def match_labels(labels: Path, images: list[str]) -> dict[str, float]:
    """Azimuths of a labels file by the manifest's names.

    A label belongs to the image whose path ends with the label's: ``a/b.jpg`` or just ``b.jpg``,
    if that names one image only.

    Raises:
        UserError: a column is missing, a value is no number, or no label matches.
    """
    rows = read_csv(labels)
    if not rows or not {"image", "azimuth_deg"} <= rows[0].keys():
        raise UserError(f"labels {labels}: needs the columns image and azimuth_deg")
    by_name = defaultdict(list)
    for image in images:
        by_name[Path(image).name].append(image)
    found: dict[str, float] = {}
    none = several = 0
    for number, row in enumerate(rows, 2):
        if not row["azimuth_deg"]:
            continue
        try:
            azimuth = float(row["azimuth_deg"])
        except ValueError:
            azimuth = math.nan
        if not math.isfinite(azimuth):
            raise UserError(
                f"labels {labels}, line {number}: azimuth_deg {row['azimuth_deg']!r}: not a number"
            )
        label = row["image"] or ""
        named = by_name.get(Path(label).name, ())
        matches = [image for image in named if f"/{image}".endswith(f"/{label}")]
        none, several = none + (len(matches) == 0), several + (len(matches) > 1)
        if len(matches) == 1:
            found[matches[0]] = azimuth % 360
    if not found:
        raise UserError(
            f"labels {labels}: none of its images names one image of the data set ({none} name "
            f"none, {several} several; a name with its folders tells equal file names apart)"
        )
    if none or several:
        log.warning(
            "labels %s: %d name no image of the data set and %d several; they are not used",
            labels, none, several,
        )  # fmt: skip
    return found


if __name__ == "__main__":
    run(main)
