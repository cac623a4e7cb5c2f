"""Imports point down: steps -> files and networks -> mathematics; no cycles, no step in a step."""

import graphlib
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("graphs", ROOT / "docs/graphs.py")
layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layers)


def test_every_import_points_down_or_stays_in_its_layer():
    upwards = [
        f"{module} imports {other}"
        for module, others in layers.imports().items()
        for other in others
        if layers.group(other) != layers.group(module)
        and layers.level(layers.group(other)) >= layers.level(layers.group(module))
    ]
    assert upwards == []


def test_no_step_imports_another():
    sideways = [
        f"{module} imports {other}"
        for module, others in layers.imports().items()
        for other in others
        if layers.group(module) == layers.group(other) == "steps"
    ]
    assert sideways == []


def test_there_is_no_cycle():
    graphlib.TopologicalSorter(layers.imports()).prepare()  # raises CycleError


def test_mathematics_know_no_files_and_no_command_line():
    banned = ("import argparse", "import tyro", "import h5py", "from pathlib", "import snakemake")
    for path in (layers.PACKAGE / "method").glob("*.py"):
        text = path.read_text()
        assert not [name for name in banned if name in text], path


def test_the_page_of_the_architecture_shows_both_graphs_as_they_are():
    assert layers.page() == layers.PAGE.read_text(), "run python docs/graphs.py"
