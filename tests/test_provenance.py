"""Files that were changed after their step wrote them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workflow import ROOT

from mirage_steps.files.atomic import write_csv
from mirage_steps.files.provenance import changed_since, files_of_network, write_provenance


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_csv(tmp_path / "poses.csv", ("image", "pose"), [("a.png", 1), ("b.png", 2)])
    write_provenance("mirage_steps.poses", ["poses"], {"out": tmp_path}, 0.0)
    return tmp_path / "poses.csv"


def test_a_record_lists_what_was_written(table: Path):
    outputs = json.loads((table.parent / "poses.run.json").read_text())["outputs"]
    assert outputs.keys() == {"poses.csv"} and len(outputs["poses.csv"]) == 64


def test_a_table_that_was_edited_since_is_noticed(table: Path):
    assert not changed_since(table)
    table.write_text(table.read_text().replace("2", "3"))
    assert changed_since(table)


def test_a_record_in_the_folder_above_counts(tmp_path: Path):
    """One step fills several folders."""
    write_csv(tmp_path / "real-a/list.csv", ("image",), [("a.png",)])
    write_provenance("mirage_steps.real", ["real"], {"out": tmp_path}, 0.0)
    assert not changed_since(tmp_path / "real-a/list.csv")
    (tmp_path / "real-a/list.csv").write_text("image\n")
    assert changed_since(tmp_path / "real-a/list.csv")


@pytest.mark.parametrize("place, known", [("", True), (".venv/site-packages", False)])
def test_the_commit_is_that_of_this_project_alone(tmp_path: Path, place, known):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "one"], check=True)
    folder = tmp_path / place / "mirage_steps"
    shutil.copytree(ROOT / "mirage_steps", folder)
    code = "from mirage_steps.files import provenance; print(provenance._commit())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
    )  # fmt: skip
    assert (done.stdout != "None\n") is known and done.returncode == 0, done.stderr


def test_a_file_without_a_record_is_taken_as_it_is(tmp_path: Path):
    write_csv(tmp_path / "labels.csv", ("image",), [("a.png",)])
    assert not changed_since(tmp_path / "labels.csv")


def test_what_a_local_network_depends_on_is_tracked(tmp_path):
    names = ("config.json", "pytorch_model.bin", "part/model.safetensors", "README.md")
    (tmp_path / "part").mkdir()
    for name in names:
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files_of_network(tmp_path)]
    assert sorted(found) == sorted(names[:3])
    assert files_of_network(tmp_path / names[3]) == [tmp_path / names[3]]
