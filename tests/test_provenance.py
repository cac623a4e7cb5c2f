"""Files that were changed after their step wrote them."""

import json
from pathlib import Path

import pytest

from mirage_steps.files.atomic import write_csv
from mirage_steps.files.provenance import changed_since, write_provenance


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


def test_a_file_without_a_record_is_taken_as_it_is(tmp_path: Path):
    write_csv(tmp_path / "labels.csv", ("image",), [("a.png",)])
    assert not changed_since(tmp_path / "labels.csv")
