"""The finished miniature that several files of tests look at."""

import shutil
from pathlib import Path

import pytest
from workflow import Project

TARGETS = ("results/mini/overview.txt",)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project whose every target is there, in a folder with a name of the worse kind."""
    project = Project(tmp_path_factory.mktemp("finished") / "a 'quoted' földer")
    project.run("--", *TARGETS)
    return project


@pytest.fixture
def changed(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project that a test may change and break."""
    project = Project(tmp_path / "copy")
    for name in ("results", ".snakemake"):
        shutil.copytree(finished.folder / name, project.folder / name)
    return project
