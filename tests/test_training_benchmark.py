"""The benchmark of training recipes, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_it_trains_measures_and_keeps_what_is_done(tmp_path):
    names = [f"{number}.png" for number in range(40)]
    (tmp_path / "run/crops").mkdir(parents=True)
    (tmp_path / "run/poses").mkdir()
    with h5py.File(tmp_path / "run/crops/crops.h5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
        file.create_dataset("image", data=names, dtype=h5py.string_dtype())
    rows = [f"{name},{number % 4},0" for number, name in enumerate(names)]
    (tmp_path / "run/poses/poses.csv").write_text("\n".join(["image,pose,distance", *rows]) + "\n")
    (tmp_path / "run/poses/poses.json").write_text('{"k": 4, "categories": 1}')
    command = [
        sys.executable, "benchmarks/training.py", "--run", tmp_path / "run", "--out",
        tmp_path / "out", "--variants", "middle", "--seeds", "3", "--samples", "4", "--minutes",
    ]  # fmt: skip
    start = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    done = subprocess.run([*command, "0.001"], capture_output=True, **start)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/middle-3.json").read_text())
    assert found["steps"] == 1 and found["samples"] == 4 and 0 < found["error"] < 2000
    assert f"| 1 | {found['error']} | {found['FD']} | {found['KID']} |" in done.stdout
    again = subprocess.run([*command, "5"], capture_output=True, **start)
    assert again.returncode == 1 and "give another --out" in again.stderr
