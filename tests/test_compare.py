"""Runs side by side: what differs, what does not, and which figures compare."""

import json
from pathlib import Path

import pytest

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_json
from mirage_steps.files.records import read_run
from mirage_steps.tools import compare

PACKAGES = {"torch": "2.14.1", "numpy": "2.4.6"}


def _record(folder: Path, path: str, step: str, settings: dict, **more) -> None:
    content = {
        "step": f"mirage_steps.{step}", "version": "0.1.0", "commit": "aaa", "settings": settings,
        "inputs": {}, "networks": {}, "packages": PACKAGES, "device": "cpu (2 cores)", **more,
    }  # fmt: skip
    write_json(folder / f"{path}.run.json", content)


def _row(name: str, n: int, distance: float, **more) -> dict:
    row = {"row": name, "n": n, "fd_backbone": distance, "kid_backbone": distance / 100}
    return {**row, "sam": None, "inception": None, "fid": None, "fd_inception": None, **more}


def _table(folder: Path, *rows: dict, token: str = "cls", image_size: int = 64) -> None:
    about = {"image_size": image_size, "backbone": "dinov2", "resolution": 224, "token": token}
    write_json(folder / "metrics.json", {"dataset": folder.name, **about, "rows": list(rows)})


def _run(folder: Path, k: int = 12) -> Path:
    """A small run."""
    manifest = {"manifest": {"path": f"{folder}/manifest.csv", "sha256": folder.name}}
    _record(folder, "dataset", "dataset", {"images": 40})
    _record(folder, "crop_features/features", "features", {"model": "m"}, inputs=manifest)
    _record(folder, "poses/poses", "poses", {"k": k, "seed": 0})
    settings = {"preset": "small", "iterations": 40}
    _record(folder, "training/train", "train", settings, seconds=3600.0, peak_memory_mb=1200)
    for name in ("no-mv", "mv-bg-hag", "untrained"):
        _record(folder, f"sets/{name}/views", "views", {"steps": 50, "seed": 0})
    _record(folder, "fid", "fid", {"dataset": folder.name})
    _table(folder, _row("no-mv", 200, 2.0), _row("untrained", 200, 0.5))
    write_json(folder / "poses/pose_eval.json", {"images": 40, "median_error_deg": 8.0})
    return folder


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    return _run(tmp_path / "a"), _run(tmp_path / "b")


def _differences(*folders: Path) -> set[tuple]:
    runs = [compare.settings(compare.read_run(folder)) for folder in folders]
    found = compare.differences(runs)
    return {(one["step"], one["key"], *map(str, one["values"])) for one in found}


def _figures(*folders: Path) -> dict[str, list[list]]:
    """Lines of each figure: values that compare stand in one line."""
    found: dict[str, list[list]] = {}
    measured = [compare.figures(compare.read_run(folder)) for folder in folders]
    for (name, _, _), values in compare.side_by_side(measured):
        found.setdefault(name, []).append(values)
    return found


def test_runs_that_differ_by_their_folder_alone_do_not_differ(runs):
    assert _differences(*runs) == set()
    found = _figures(*runs).values()
    assert found and all(len(lines) == 1 and len(set(lines[0])) == 1 for lines in found)


def test_settings_inputs_and_versions_that_differ_are_told_once(runs, tmp_path):
    a, b = runs
    for name in ("no-mv", "mv-bg-hag", "untrained"):
        _record(b, f"sets/{name}/views", "views", {"steps": 10, "seed": 0})
    _record(b, "sets/no-mv/views", "views", {"steps": 10, "seed": 3})
    _record(b, "dataset", "dataset", {"images": 40}, commit="bbb-dirty",
            packages={**PACKAGES, "numpy": "2.5"}, inputs={"labels": "l"}, networks={"model": "m"}
            )  # fmt: skip
    assert _differences(a, b) == {
        ("views", "steps", "50", "10"),
        ("views", "seed", "0", "0 and 3"),
        ("dataset", "input labels", "None", "l"),
        ("dataset", "network model", "None", "m"),
        ("code", "commit", "aaa", "aaa and bbb-dirty"),
        ("package", "numpy", "2.4.6", "2.4.6 and 2.5"),
    }
    c = _run(tmp_path / "c", k=25)
    (c / "fid.run.json").unlink()
    found = _differences(a, a, c)
    assert found == {("poses", "k", "12", "12", "25"), ("fid", "finished", "1", "1", "None")}


def test_figures_compare_only_with_equal_features_sizes_backgrounds_and_counts(runs):
    a, b = runs
    _table(b, _row("no-mv", 50, 2.0), _row("untrained", 200, 0.5, sam="vit_h"), _row("x", 9, 1.0))
    found = _figures(a, b)
    assert found["no-mv fd_backbone"] == [[2.0, None], [None, 2.0]]
    assert found["untrained kid_backbone"] == [[0.005, None], [None, 0.005]]
    assert found["x fd_backbone"] == [[None, 1.0]]
    rows = (_row("no-mv", 200, 2.0), _row("untrained", 200, 0.5))
    _table(b, *rows)
    assert _figures(a, b)["no-mv fd_backbone"] == [[2.0, 2.0]]
    for other in ({"token": "mean-patch"}, {"image_size": 32}):
        _table(b, *rows, **other)
        assert _figures(a, b)["no-mv fd_backbone"] == [[2.0, None], [None, 2.0]]
    write_json(b / "poses/pose_eval.json", {"images": 7, "viewpoints": {"images": 7, "purity": 1}})
    found = _figures(a, b)
    assert found["poses median_error_deg"] == [[8.0, None]]
    assert found["poses purity"] == [[None, 1]]


def test_damaged_files_are_listed_and_left_out(runs, capsys):
    a, b = runs
    damaged = ("metrics.json", "poses/pose_eval.json", "poses/poses.run.json")
    for path, content in zip(damaged, (b'{"rows": [', b"[1, 2]", b"\xff\xfe"), strict=True):
        (b / path).write_bytes(content)
    compare.main((a, b))
    text = capsys.readouterr().out
    assert all(f"{b / path}: damaged, left out" in text for path in damaged)
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "poses finished 1 -" in lines
    assert any(line.startswith("no-mv fd_backbone 200 2 -") for line in lines)


def test_evidence_is_compared_by_its_networks(runs):
    for run, near in zip(runs, (0.5, 0.7), strict=True):
        one = {"value": near, "low": 0.1, "high": 0.9, "n": 24}
        (run / "evidence").mkdir()
        about = {"pose_estimator": "dinov2", "network": "lite0 at 128 pixels"}
        content = {"pose_control": {"near": {"chance": 0.25, "generated": one}}, **about}
        (run / "evidence/evidence.json").write_text(json.dumps(content))
    key = ("pose control, near, generated", 24, "dinov2, lite0 at 128 pixels, chance 0.25")
    found = [compare.figures(read_run(run)) for run in runs]
    assert [one[key] for one in found] == [0.5, 0.7]
    for changes in ({"maps_centered": True}, {"network": "x"}, {"pose_estimator": "y"}):
        path = runs[1] / "evidence/evidence.json"
        path.write_text(json.dumps(content | changes))
        assert key not in compare.figures(read_run(runs[1]))


def test_a_folder_without_results_is_an_error_of_one_line(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(UserError, match=rf"^.*{name}: no results there; give [^\n]*$"):
            compare.main((runs[0], tmp_path / name))
    with pytest.raises(UserError, match="two or more"):
        compare.main(runs[:1])
    with pytest.raises(UserError, match="one is given twice"):
        compare.main((*runs, runs[0] / ".." / runs[0].name))


def test_command_prints_text_and_json(runs, tmp_path, capsys):
    c = _run(tmp_path / "c", k=25)
    before = sorted(tmp_path.rglob("*"))
    compare.main((*runs, c))
    text = capsys.readouterr().out
    assert text.startswith(f"A: {runs[0]}\nB: ") and "\nposes  k    12  12  25\n" in text
    assert "dinov2 cls at 224 px, images 64 px, background kept\n" in text
    compare.main((*runs, c), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == [{"step": "poses", "key": "k", "values": ["12", "12", "25"]}]
    assert found["damaged"] == [] and len(found["figures"]) == 7
    assert sorted(tmp_path.rglob("*")) == before
