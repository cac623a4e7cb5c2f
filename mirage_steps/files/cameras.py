"""``cameras.json``, the cameras of a run's poses."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mirage_steps.errors import UserError, parsing, rerun
from mirage_steps.files.atomic import sha256_of
from mirage_steps.method.cameras import Camera

CAMERAS = Path("cameras/cameras.json")  # in the folder of a run


def camera_record(pose: int, camera: Camera, uncertainty_deg: float) -> dict:
    """What ``cameras.json`` holds of a pose."""
    values = {"pose": pose, **asdict(camera), "azimuth_uncertainty_deg": uncertainty_deg}
    values["offset"] = [round(value, 5) for value in camera.offset]
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}


def read_cameras(path: Path, poses: Sequence[int]) -> list[Camera]:
    """Cameras of poses.

    Raises:
        UserError: the file is missing, damaged, lacks a pose, or is of other poses than the run has
            now (exported runs have no ``poses.csv``).
    """
    remedy = f"snakemake --cores 2 [--configfile FILE] -- results/NAME/{CAMERAS}"
    if not path.is_file():
        raise UserError(f"{path}: not there; a run makes it by {remedy}")
    with parsing(f"{path}", "not readable", "cameras"):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows, found_in = content["poses"], content.get("found_in")
        found = {row["pose"]: {k: row[k] for k in Camera.__dataclass_fields__} for row in rows}
        cameras = {p: Camera(**row | {"offset": tuple(row["offset"])}) for p, row in found.items()}
    labels = path.parents[1] / "poses/poses.csv"
    if found_in and labels.is_file() and sha256_of(labels) != found_in:
        raise UserError(f"{path}: the poses were changed since; make it again by {remedy}")
    if lacking := set(poses) - cameras.keys():
        raise UserError(f"{path}: lacks pose {min(lacking)} of these views; {rerun('cameras')}")
    return [cameras[pose] for pose in poses]
