"""Evaluate poses against true azimuths or viewpoints, if known.

No other step reads these labels. Writes ``pose_eval.json`` and ``pose_eval.png``, also if none are
known.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files import plots
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.labels import read_azimuths
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.names import decoded, encoded
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
    if that names one image only. Images with several azimuths have none.

    Raises:
        UserError: the table cannot be used, or no label matches.
    """
    by_name = defaultdict(list)
    for image in images:
        path = _parts(decoded(image))
        by_name[path[-1]].append((image, path))
    found: dict[str, set[float]] = defaultdict(set)
    unused: dict[str, list[str]] = defaultdict(list)
    for label, azimuth in read_azimuths(labels):
        matches = _named(label, by_name)
        if len(matches) == 1:
            found[matches[0]].add(azimuth)
        else:
            why = "name several images" if matches else "name no image of the data set"
            unused[why].append(label)
    clear = {image: azimuths.pop() for image, azimuths in found.items() if len(azimuths) == 1}
    if several := [image for image in found if image not in clear]:
        unused["have several azimuths"] = several
    counts = ", ".join(
        f"{len(names)} {why} ({encoded(names[0])}{', ...' if names[1:] else ''})"
        for why, names in unused.items()
    )
    if not clear:
        raise UserError(
            f"labels {labels}: no label can be used: {counts}; "
            "write names as in manifest.csv, with folders where several files have the same"
        )
    if counts:
        log.warning("labels %s: %s; these are not used", labels, counts)
    return clear


def _named(label: str, by_name: Mapping[str, list[tuple[str, list[str]]]]) -> list[str]:
    """The images that a label names, as it is written, or by the spelling of tables or Windows."""
    unix = label.replace("\\", "/")
    for spelled in (label, decoded(label), unix, decoded(unix)):
        end = _parts(spelled)
        near = by_name.get(end[-1], ()) if end else ()
        found = [image for image, path in near if path[-len(end) :] == end]
        # Of names that differ in their Unicode form only, the label's own.
        if exact := [image for image in found if f"/{decoded(image)}".endswith(f"/{spelled}")]:
            return exact
        if found:
            return found
    return []


def _parts(path: str) -> list[str]:
    """Parts of a path in one Unicode form, without ``.`` and leading ``..``."""
    parts = list(Path(unicodedata.normalize("NFC", path)).parts)
    while parts[:1] == [".."]:
        parts.pop(0)
    return parts


if __name__ == "__main__":
    run(main)
