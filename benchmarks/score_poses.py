"""Score discovered poses against true azimuths, with the standard library only.

    python benchmarks/score_poses.py results/demo/manifest.csv results/demo/poses/poses.csv

An independent check of the step pose_eval: it shares no code with the pipeline and reads two
tables, ``image, azimuth_deg`` and ``image, pose``. It skips images without azimuth. Prints JSON:

- ``images``: how many were scored;
- ``median_error_deg``: median angle between an image's azimuth and the mean direction of its pose;
- ``share_within_30_deg``: share of the images for which this angle is at most 30 degrees;
- ``order_errors``: rotations around the object, beyond the first, that visiting the poses in order
  takes, in the better direction. Going back by less than 15 degrees is allowed.
"""

import csv
import json
import math
import statistics
import sys

REACH_DEG = 30
SLACK_DEG = 15


def column(path: str, name: str) -> dict[str, str]:
    """One column of a table, by image; empty fields are left out."""
    with open(path, newline="", encoding="utf-8") as lines:
        return {row["image"]: row[name] for row in csv.DictReader(lines) if row[name]}


def mean_direction(azimuths: list[float]) -> float:
    """Direction in degrees of the sum of unit vectors."""
    x = math.fsum(math.cos(math.radians(azimuth)) for azimuth in azimuths)
    y = math.fsum(math.sin(math.radians(azimuth)) for azimuth in azimuths)
    return math.degrees(math.atan2(y, x))


def angle_between(one: float, other: float) -> float:
    """Unsigned angle between two directions, in [0, 180] degrees."""
    return abs(math.remainder(one - other, 360))


def rotations(directions: list[float]) -> int:
    """Full rotations of a closed walk from each direction forward to the next."""
    walked = 0.0
    for here, there in zip(directions, directions[1:] + directions[:1], strict=True):
        step = math.remainder(there - here, 360)  # in [-180, 180]
        walked += step if step > -SLACK_DEG else step + 360
    return round(walked / 360)


def score(azimuths: dict[str, str], poses: dict[str, str]) -> dict[str, float]:
    """The scores, from the tables' columns by image."""
    members: dict[int, list[float]] = {}
    for image, pose in poses.items():
        if image in azimuths:
            members.setdefault(int(pose), []).append(float(azimuths[image]))
    if not members:
        sys.exit("no image of the poses has a known azimuth")
    means = {pose: mean_direction(members[pose]) for pose in sorted(members)}
    errors = [angle_between(a, means[pose]) for pose, found in members.items() for a in found]
    order = list(means.values())
    return {
        "images": len(errors),
        "median_error_deg": statistics.median(errors),
        "share_within_30_deg": sum(error <= REACH_DEG for error in errors) / len(errors),
        "order_errors": max(min(rotations(order), rotations(order[::-1])) - 1, 0),
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: score_poses.py MANIFEST.csv POSES.csv")
    scores = score(column(sys.argv[1], "azimuth_deg"), column(sys.argv[2], "pose"))
    print(json.dumps(scores, indent=2))
