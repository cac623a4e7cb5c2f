"""Imports point down: steps -> files and networks -> mathematics; no cycles, no step in a step."""

import graphlib
import importlib.util
from pathlib import Path
from types import ModuleType

from mirage_steps.files import step_code

ROOT = Path(__file__).parents[1]


def _of_docs(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layers = _of_docs("graphs")


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


def test_the_schema_and_the_page_of_all_keys_are_those_of_the_settings():
    for path, text in _of_docs("reference").contents().items():
        assert text == path.read_text(), f"{path}: run python docs/graphs.py"


def test_only_what_no_rule_needs_is_imported_inside_functions():
    """Edits there make no output stale."""
    hidden = {
        f"{module} imports {other}"
        for module, others in layers.imports().items()
        if not module.startswith(("tools.", "demo."))
        for other in others - set(step_code._imports(step_code._parsed(module)))
    }
    assert hidden == {
        "run imports files.cameras",
        "run imports files.meshes",
        "novel_views imports files.cameras",
        "novel_views imports files.meshes",  # for annotations
        "gather imports files.masked_set",  # masks import it, too; tokens must not depend on it
        # Devices and their memory.
        "files.command imports method.device",
        "sources.stable_diffusion imports method.device",
    }


def test_an_edit_of_the_code_of_meshes_makes_only_meshes_stale():
    steps = [module for module in layers.imports() if layers.group(module) == "steps"]
    needed = {step: step_code._modules(step) for step in steps}
    assert {one for one in steps if "method.texture" in needed[one]} == {"mesh"}
    assert {one for one in steps if "files.cameras" in needed[one]} == {"cameras", "export", "mesh"}
    # The views of a pipeline are made without, or they would depend on it.
    rule = (ROOT / "rules/views.smk").read_text().partition("rule novel_views:")[2]
    assert "mesh=" not in rule.partition("rule mesh:")[0]
