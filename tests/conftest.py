"""The finished miniature that several files of tests look at."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as in the jobs of Project, whose results are compared

import h5py
import numpy as np
import pytest
from filelock import FileLock
from workflow import Project

TARGETS = ("results/mini/overview.txt",)


@pytest.fixture(autouse=True)
def signals():
    """Those of a command in a terminal, whatever the tests were started by, or ran before."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project whose every target is there, in a folder with a name of the worse kind.

    Made once for all of pytest-xdist's workers, which have folders beside each other.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "finished/a 'quoted' földer"
    with FileLock(shared / "finished.lock"):
        if folder.exists():
            return Project(folder, made=True)
        project = Project(folder)
        project.run("--", *TARGETS)
    return project


@pytest.fixture
def changed(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project that a test may change and break."""
    project = Project(tmp_path / "copy")
    for name in ("results", ".snakemake"):
        shutil.copytree(finished.folder / name, project.folder / name)
    return project


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """What training reads: random crops with poses."""
    count, poses, side = 12, 4, 32
    names = [f"{number}.png" for number in range(count)]
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "crops.h5", "w") as file:
        file["images"] = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        file.create_dataset("image", data=names, dtype=h5py.string_dtype())
    rows = [f"{name},{number % poses},0" for number, name in enumerate(names)]
    (tmp_path / "poses.csv").write_text("\n".join(["image,pose,distance", *rows]) + "\n")
    (tmp_path / "poses.json").write_text(json.dumps({"k": poses, "categories": 1}))
    return {"crops": tmp_path / "crops.h5", "poses": tmp_path / "poses.csv"}


@pytest.fixture
def coarse(monkeypatch):
    """Meshes of few faces with small textures."""
    from mirage_steps.method import reconstruction, texture  # slow to import

    monkeypatch.setattr(reconstruction, "smoothed", partial(texture.smoothed, most_faces=1500))
    monkeypatch.setattr(reconstruction, "textured", partial(texture.textured, size=64))
