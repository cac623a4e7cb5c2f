"""Cameras of the poses, from the data alone.

A pose's camera is shared by all its images, so it follows from their mean mask and mean map: one
volume, symmetric in shape, must explain them from all sides. Writes ``cameras.json``: azimuth,
elevation, scale, offset and perspective of each pose, as :class:`.Camera` defines them,
and half the difference of the azimuths that the two halves of the images give.

What the images do not tell is a convention: front and rear are alike (``front`` settles it), and
cameras look down, not up, which settles the sense of turning (``left`` does, if given). The
distance is assumed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError, rerun
from mirage_steps.files.atomic import sha256_of, write_json
from mirage_steps.files.cameras import CAMERAS, camera_record
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5, read_names, slices
from mirage_steps.files.labels import match_labels
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import read_pose_counts, read_poses
from mirage_steps.method.camera_fit import PERSPECTIVE, Fit, find, refit, reversed_depth
from mirage_steps.method.circle import circular_distance, circular_mean
from mirage_steps.method.visual_hull import LEAST_VIEWS

_ASIDE = 45  # degrees
_BATCH = 256  # maps in memory
_NEEDED = (
    "{}: cameras need maps that are zero off the object and not centered; set pose_space."
    "mask_background true and pose_space.center false"
)
_CONVENTION = (
    "azimuth 0 is front or rear, which silhouettes do not tell (cameras.front settles it), 90 the "
    "object's left if 0 is its front; cameras look down (unless cameras.left tells another sense "
    "of turning) from the same elevation, "
    f"from {1 / PERSPECTIVE:.1f} lengths of the object; the object's shape is its own mirror image"
)


def main(
    *,
    maps: Path,
    poses: Path,
    manifest: Path,
    out: Path,
    labels: Path | None = None,
    pose_space: settings.PoseSpace = settings.PoseSpace(),
    cameras: settings.Cameras = settings.Cameras(),
) -> None:
    """Find the camera of every pose.

    Args:
        maps: maps.h5 of the pose space.
        poses: poses.csv, with poses.json in the same folder.
        manifest: The data set's manifest.csv; its azimuths only tell the error.
        out: Folder for cameras.json.
        labels: CSV file with image and azimuth_deg, likewise.
        pose_space: How the maps were made.
        cameras: What the data cannot tell.
    """
    if pose_space.center:
        raise UserError(_NEEDED.format("pose_space.center true"))
    names, assigned = read_poses(poses)
    count, categories = read_pose_counts(poses)
    for key, given in cameras:
        if given and max(given) >= count:
            raise UserError(f"--{key} {max(given)}: there are {count} poses, 0 to {count - 1}")
    if count // categories < LEAST_VIEWS:
        raise UserError(f"poses.k {count // categories}: cameras need at least {LEAST_VIEWS} poses")
    with open_h5(maps, "maps", "valid") as file:
        if names != read_names(file):
            raise UserError(f"{poses} and {maps} list different images; {rerun('poses')}")
        means = _means(file, maps, assigned, count)
    entries = read_manifest(manifest)
    truth = {one.image: one.azimuth_deg for one in entries if one.azimuth_deg is not None}
    if labels is not None:
        truth |= match_labels(labels, [entry.image for entry in entries])
    azimuths = np.array([truth.get(image, np.nan) for image in names])
    report = {
        "convention": _CONVENTION,
        "front": list(cameras.front),
        "left": list(cameras.left),
        "found_in": sha256_of(poses),
        "poses": [],
        "categories": [],
    }
    for circle in np.arange(count).reshape(categories, -1):
        front, left = (_one_of(circle, key, given) for key, given in cameras)
        if left is not None and front is None:
            raise UserError(f"--left {circle[left]}: needs a --front of its category")
        mine = (means[0][:, circle], means[1][:, circle])
        _add_circle(report, circle, mine, assigned, azimuths, front, left)
    write_json(out / CAMERAS.name, report)


def _means(
    file: h5py.File, maps: Path, assigned: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean masks (3, count, g, g) and maps (3, count, g, g, c) of each pose.

    They are of all its images, of every second one, and of the others; a pose with a single image
    has no halves.

    Args:
        file: the open maps.h5.
        maps: its path.
        assigned: (n,) pose of each map.
        count: number of poses.

    Raises:
        UserError: maps have a background.
    """
    patches, components = file["maps"].shape[1:]
    sums = np.zeros((2, count, patches, components + 1))
    images, background = np.zeros((2, count), int), False
    for rows in slices(len(assigned), _BATCH):
        values, valid = file["maps"][rows], file["valid"][rows]
        shown = (values != 0).any(-1)
        background |= not (shown | ~valid).all()  # padding is zero in any case
        for pose, *one in zip(assigned[rows], values, shown, strict=True):
            half = images[:, pose].sum() % 2
            sums[half, pose] += np.column_stack(one)
            images[half, pose] += 1
    if not background:
        raise UserError(_NEEDED.format(maps))
    single = images[1] == 0
    sums[1, single], images[1, single] = sums[0, single], images[0, single]
    sums, images = np.stack([sums.sum(0), *sums]), np.stack([images.sum(0), *images])
    side = round(patches**0.5)
    means = sums / np.maximum(images, 1)[..., None, None]
    means = means.reshape(3, count, side, side, components + 1).astype(np.float32)
    return means[..., -1], means[..., :-1]


def _add_circle(
    report: dict,
    circle: np.ndarray,
    means: tuple[np.ndarray, np.ndarray],
    assigned: np.ndarray,
    azimuths: np.ndarray,
    front: int | None,
    left: int | None,
) -> None:
    """Add the poses of a category, in circular order, to the report.

    The category's front and left pose are given by their places in the circle, its means as
    :func:`_means` returns them.
    """
    masks, maps = means
    for pose, mask in zip(circle, masks[0], strict=True):
        if not (mask > 0.5).any():
            raise UserError(f"pose {pose}: its images have no patch in common; lower poses.k")
    found, losses = find(masks[0], maps[0])
    if left is not None and _from_front(found, front)[left] > 180:
        log.warning("--left %d: the opposite direction of rotation fits better", circle[left])
        found = refit(masks[0], maps[0], reversed_depth(found.cameras))
    halves = [refit(masks[half], maps[half], found.cameras) for half in (1, 2)]
    one, two = (np.array([c.azimuth_deg for c in half.cameras]) for half in halves)
    spread = circular_distance(one, two) / 2
    angles = _from_front(found, front)
    if front is not None and (aside := circular_distance(angles[front], 0)) > _ASIDE:
        log.warning(
            "--front %d: is %.0f degrees from the object's plane of symmetry", circle[front], aside
        )
    for pose, angle, camera, error in zip(circle, angles, found.cameras, spread, strict=True):
        final = replace(camera, azimuth_deg=float(angle))
        report["poses"].append(camera_record(int(pose), final, float(error)))
    about = {
        "loss": found.loss,
        "loss_by_sense_of_turning": {str(sense): loss for sense, loss in losses.items()},
        "elevation_deg": found.cameras[0].elevation_deg,
    }
    known = [azimuths[(assigned == pose) & ~np.isnan(azimuths)] for pose in circle]
    if all(map(len, known)):
        about |= errors(angles, np.array([circular_mean(azimuth) for azimuth in known]))
        log.info(
            "median error of the azimuths, best alignment: %(median_error_deg).1f degrees (equal "
            "spacing: %(equal_spacing_error_deg).1f)", about,
        )  # fmt: skip
    report["categories"].append(about)
    log.info("azimuths %s, elevation %.0f", angles.round().astype(int), about["elevation_deg"])


def _one_of(circle: np.ndarray, key: str, given: Sequence[int]) -> int | None:
    """Place in a circle of poses of the one that is given, if any.

    Raises:
        UserError: several are.
    """
    places = np.flatnonzero(np.isin(circle, given)).tolist()
    if len(places) > 1:
        raise UserError(f"--{key} {given}: several poses of one category; give one")
    return places[0] if places else None


def _from_front(found: Fit, front: int | None) -> np.ndarray:
    """Azimuths in [0, 360) degrees, so that the front, or pose 0, is nearer to 0 than to 180."""
    angles = np.array([camera.azimuth_deg for camera in found.cameras])
    return (angles + 180 * (circular_distance(angles[front or 0], 0) > 90)) % 360


def errors(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Median errors in degrees of azimuths (k,), and of equal spacing, at the best offset."""
    even = np.arange(len(truth)) * 360 / len(truth)
    return {
        "median_error_deg": _aligned_error(found, truth),
        "equal_spacing_error_deg": _aligned_error(even, truth),
    }


def _aligned_error(found: np.ndarray, truth: np.ndarray) -> float:
    starts = np.arange(0, 360, 0.5)[:, None]
    errors = [circular_distance(sense * found + starts, truth) for sense in (1, -1)]
    return float(min(np.median(error, axis=1).min() for error in errors))


if __name__ == "__main__":
    run(main)
