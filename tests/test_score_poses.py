"""The scoring script of the standard library against the pipeline's own scores."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mirage_steps.method.pose_scores import score_azimuths

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "score_poses.py"


def _write(path: Path, header: tuple[str, ...], rows) -> None:
    with open(path, "w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(header)
        writer.writerows(rows)


def _made_up(seed: int, k: int, images: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths and noisy poses of which one is empty and, for odd seeds, two are exchanged."""
    rng = np.random.default_rng(seed)
    azimuths = np.round(rng.uniform(0, 360, images), 3)
    poses = ((azimuths + rng.normal(0, noise, images)) % 360 * k / 360).astype(int)
    azimuths, poses = azimuths[poses != 1], poses[poses != 1]
    if seed % 2:
        poses = np.select([poses == 2, poses == 5], [5, 2], poses)
    return azimuths, poses


@pytest.mark.parametrize(
    "seed, k, images, noise",
    [(0, 8, 300, 0), (1, 8, 300, 0), (2, 12, 500, 12), (3, 12, 500, 40), (4, 25, 400, 500)],
)
def test_both_scores_agree(tmp_path, seed, k, images, noise):
    azimuths, poses = _made_up(seed, k, images, noise)
    names = [f"images/{number:03d}, ü.png" for number in range(len(poses))]
    _write(
        tmp_path / "manifest.csv",
        ("image", "width", "height", "azimuth_deg"),
        [*((name, 96, 96, a) for name, a in zip(names, azimuths, strict=True)), ("x", 9, 9, "")],
    )
    rows = [(name, pose, 0.5) for name, pose in zip(names, poses, strict=True)]
    # In any order of rows, and with an image of which no azimuth is known.
    np.random.default_rng(seed).shuffle(rows)
    _write(tmp_path / "poses.csv", ("image", "pose", "distance"), [("x", 0, 0.1), *rows])
    done = subprocess.run(
        [sys.executable, "-I", SCRIPT, tmp_path / "manifest.csv", tmp_path / "poses.csv"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = score_azimuths(poses, azimuths, k)
    for key in ("poses", "share_opposite"):
        expected.pop(key)
    assert json.loads(done.stdout) == pytest.approx(expected)
    if seed % 2:
        assert expected["order_errors"] > 0


def test_the_script_needs_the_standard_library_alone():
    words = SCRIPT.read_text().split("\n")
    imported = {line.split()[1] for line in words if line.startswith(("import ", "from "))}
    assert imported <= sys.stdlib_module_names
