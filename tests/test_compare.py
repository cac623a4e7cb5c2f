"""Two runs side by side: what differs, what does not, and which figures compare."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import one_line_errors
from mirage_steps.tools import compare

ROOT = Path(compare.__file__).parents[1]
PACKAGES = {"torch": "2.14.1", "numpy": "2.4.6"}


def _record(folder: Path, path: str, step: str, settings: dict, **more) -> None:
    content = {
        "step": f"mirage_steps.{step}", "version": "0.1.0", "commit": "aaa", "settings": settings,
        "inputs": {}, "networks": {}, "packages": PACKAGES, "device": "cpu (2 cores)", **more,
    }  # fmt: skip
    write_json(folder / f"{path}.run.json", content)


def _row(name: str, n: int, frechet: float, **more) -> dict:
    row = {"row": name, "n": n, "fd_backbone": frechet, "kid_backbone": frechet / 100, "sam": None}
    return {**row, "inception": None, "fid": None, "fd_inception": None, **more}


def _table(folder: Path, *rows: dict, token: str = "cls") -> None:
    about = {"image_size": 64, "backbone": "dinov2-base", "resolution": 224, "token": token}
    write_json(folder / "metrics.json", {"dataset": folder.name, **about, "rows": list(rows)})


def _run(folder: Path, k: int = 12, seconds: float = 3600.0, root: str | None = None) -> Path:
    """A small run whose records name its folder ``root``."""
    root = root or str(folder)
    manifest = {"manifest": {"path": f"{root}/manifest.csv", "sha256": folder.name}}
    _record(folder, "dataset", "dataset", {"images": 40})
    _record(folder, "features/features", "features", {"model": "m", "windows": None},
            inputs=manifest)  # fmt: skip
    _record(folder, "poses/poses", "poses", {"k": k, "seed": 0})
    _record(folder, "training/train", "train", {"preset": "small", "image_size": 64,
            "iterations": 40, "log": f"{root}/logs/train.log"}, seconds=seconds,
            peak_memory_mb=1200)  # fmt: skip
    for name in ("no-mv", "mv-bg-hag", "untrained"):
        _record(folder, f"sets/{name}/views", "views", {"steps": 50, "seed": 0, "kind": name})
    _record(folder, "fid", "fid", {"dataset": folder.name, "paper": []})
    _table(folder, _row("no-mv", 200, 2.0), _row("untrained", 200, 0.0))
    scores = {"images": 40, "median_error_deg": 8.0, "share_within_30_deg": 0.9, "order_errors": 0}
    write_json(folder / "poses/pose_eval.json", scores)
    counts = {"images": 40, "images_without_object": 2, "images_with_padded_crop": 4}
    write_json(folder / "foreground/foreground.json", counts)
    losses = [{"step": step, "loss": 1 / step} for step in range(1, 41)]
    lines = "".join(json.dumps(line) + "\n" for line in losses)
    (folder / "training/checkpoints").mkdir()
    (folder / "training/checkpoints/metrics.jsonl").write_text(lines)
    return folder


def _both(a: Path, b: Path) -> tuple[list, dict]:
    runs = compare.read_run(a), compare.read_run(b)
    found = [(one.step, one.key, one.a, one.b) for one in compare.differences(*runs)]
    return found, {(row.group, row.name): row for row in compare.compared(*runs)}


def test_runs_that_differ_by_their_folder_alone_do_not_differ(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    # As after a copy: the records name the folder where it was.
    copy = _run(tmp_path / "copy", root="results/demo")
    for one, other in ((a, b), (a, copy)):
        found, rows = _both(one, other)
        assert found == []
        assert rows and all(row.difference == 0 and not row.caution for row in rows.values())


def test_settings_inputs_and_versions_that_differ_are_told_once(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b", k=25)
    for name in ("no-mv", "mv-bg-hag", "untrained"):
        _record(b, f"sets/{name}/views", "views", {"steps": 10, "seed": 0, "kind": name})
    _record(b, "sets/no-mv/views", "views", {"steps": 10, "seed": 3, "kind": "no-mv"})
    _record(b, "dataset", "dataset", {"images": 40}, commit="bbb-dirty",
            packages={**PACKAGES, "numpy": "2.5"}, inputs={"labels": {"path": "/x/l.csv",
            "sha256": "0123456789abcdef"}}, networks={"model": [{"path": "w", "sha256": "9" * 64}]}
            )  # fmt: skip
    found, _ = _both(a, b)
    assert sorted(found, key=str) == sorted([
        ("poses", "k", 12, 25),
        ("views", "steps", 50, 10),
        ("views (no-mv)", "seed", 0, 3),
        ("dataset", "input labels", None, "/x/l.csv 0123456789ab"),
        ("dataset", "network model", None, f"w {'9' * 12}"),
        ("code", "commit", "aaa", "aaa and bbb-dirty"),
        ("package", "numpy", "2.4.6", "2.4.6 and 2.5"),
    ], key=str)  # fmt: skip


def test_a_path_outside_the_run_is_a_difference_also_where_it_ends_alike(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    _record(a, "dataset", "dataset", {"path": "/photos/a"})
    _record(b, "dataset", "dataset", {"path": "/photos/b"})
    assert _both(a, b)[0] == [("dataset", "path", "/photos/a", "/photos/b")]


def test_figures_have_difference_ratio_and_sample_counts(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b", seconds=7200.0)
    _table(b, _row("no-mv", 200, 3.0), _row("untrained", 200, 5.0), _row("theirs", 200, 1.0))
    _, rows = _both(a, b)
    row = rows["distances", "no-mv FD"]
    assert (row.a, row.b, row.difference, row.ratio) == (2.0, 3.0, 1.0, 1.5)
    assert (row.n_a, row.n_b, row.caution) == (200, 200, "")
    assert row.of_a["features"] == "dinov2-base cls at 224 pixels"
    assert rows["distances", "untrained FD"].ratio is None  # nothing divides by zero
    theirs = rows["distances", "theirs FD"]
    assert (theirs.a, theirs.b, theirs.difference, theirs.n_a) == (None, 1.0, None, None)
    assert rows["training", "time, hours"].ratio == 2.0
    loss = rows["training", "loss, mean of the last 10% of steps"]
    assert loss.a == pytest.approx((1 / 37 + 1 / 38 + 1 / 39 + 1 / 40) / 4)
    assert rows["foreground", "share without object"].a == 0.05


def test_distances_of_other_features_or_counts_do_not_compare(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    _table(b, _row("no-mv", 50, 2.0), _row("untrained", 200, 1.0, sam="vit_h"))
    _, rows = _both(a, b)
    assert rows["distances", "no-mv FD"].caution == "not comparable: sample counts differ"
    assert "background removal differs" in rows["distances", "untrained KID"].caution
    _table(b, _row("no-mv", 200, 2.0), token="mean-patch")
    assert _both(a, b)[1]["distances", "no-mv FD"].caution == "not comparable: features differ"
    # A share of fewer images is less certain, but compares.
    write_json(b / "poses/pose_eval.json", {"images": 7, "median_error_deg": 8.0})
    row = _both(a, b)[1]["poses", "median error, degrees"]
    assert row.caution == "sample counts differ"


def test_only_the_published_network_s_distance_is_called_fid(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    _table(a, _row("no-mv", 200, 2.0, inception="clean", fid=9.0, fd_inception=9.0))
    _table(b, _row("no-mv", 200, 2.0, inception="other", fd_inception=7.0))
    _, rows = _both(a, b)
    assert (rows["distances", "no-mv FID"].a, rows["distances", "no-mv FID"].b) == (9.0, None)
    assert rows["distances", "no-mv FD Inception"].b == 7.0


def test_what_is_missing_or_damaged_is_told_and_the_rest_compared(tmp_path, capsys):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    (b / "metrics.json").write_text('{"rows": [')
    (b / "poses/pose_eval.json").write_text("[1, 2]")
    (b / "poses/poses.run.json").write_bytes(b"\xff\xfe")
    with open(b / "training/checkpoints/metrics.jsonl", "a") as file:
        file.write('{"step": 41, "lo')
    write_json(b / "foreground/foreground.json", {"images": "many", "images_without_object": 1})
    (b / "fid.run.json").unlink()
    compare.main(a, b)
    text = capsys.readouterr().out
    for path in ("metrics.json", "poses/pose_eval.json", "poses/poses.run.json"):
        assert f"{b / path}: damaged, left out" in text
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "fid (whole step) done missing" in lines
    assert "distances: no-mv FD 200 2 missing" in lines
    assert any(line.startswith("training: loss") and "missing" not in line for line in lines)
    with pytest.raises(UserError, match="absent: no such folder; give those of two runs"):
        compare.main(a, tmp_path / "absent")


def test_nothing_on_either_side_ends_with_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as error, one_line_errors():
        compare.main(tmp_path / "empty", tmp_path / "absent")
    assert str(error.value.code).startswith("error: ") and "\n" not in str(error.value.code)
    with pytest.raises(UserError, match="neither holds results"):
        compare.main(tmp_path / "empty", tmp_path / "empty")


def test_command_prints_text_markdown_and_json(tmp_path):
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b", k=25)
    before = sorted(tmp_path.rglob("*"))
    printed = {}
    for form in ("text", "markdown", "json"):
        command = [
            sys.executable,
            "-m",
            "mirage_steps.tools.compare",
            str(a),
            str(b),
            "--format",
            form,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        printed[form] = done.stdout
    assert "| poses | k | 12 | 25 |" in printed["markdown"]
    assert "\nfeatures: dinov2-base cls at 224 pixels\n" in printed["text"]
    content = json.loads(printed["json"])
    assert {"step": "poses", "key": "k", "a": 12, "b": 25} in content["differences"]
    assert any(row["name"] == "no-mv FD" and row["ratio"] == 1 for row in content["figures"])
    assert sorted(tmp_path.rglob("*")) == before
