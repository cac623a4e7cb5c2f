"""What the command `status` says of a data set, by the files that its steps left."""

import json
import os
import time
from pathlib import Path

import pytest
from workflow import ROOT

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_json
from mirage_steps.files.lock import STALE
from mirage_steps.tools import status

DATASET = settings.Dataset(
    source=settings.Procedural(), training=settings.Training(iterations=1000)
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set whose poses are found and whose training has not begun."""
    folder = tmp_path / "results/demo"
    for stage, records in status.stages(DATASET).items():
        if stage == "real":
            break
        for path in records:
            content = {"step": f"mirage_steps.{stage}", "started": "2026-01-02T03:04:05+0000"}
            write_json(folder / path, {**content, "seconds": 90.5})
    return folder


def _train(folder: Path, *records: dict, beat: float | None = None) -> Path:
    """Records of a training whose lock was touched ``beat`` seconds ago."""
    checkpoints = folder / "training/checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (checkpoints / "metrics.jsonl").write_text(text)
    if beat is not None:
        write_json(checkpoints / "lock.json", {})
        os.utime(checkpoints / "lock.json", (time.time() - beat, time.time() - beat))
    return checkpoints


def _text(folder: Path) -> str:
    return status._as_text("demo", status.look(folder, DATASET))


def _line(folder: Path, stage: str) -> str:
    """A stage's line with single spaces."""
    found = [line for line in _text(folder).splitlines() if line.split()[:1] == [stage]]
    return " ".join(found[0].split())


def test_finished_and_missing_stages(folder):
    text = _text(folder)
    assert text.startswith("demo: 11 of 24 stages done\n")
    assert _line(folder, "poses") == "poses done 2026-01-02 03:04 0:01:30"
    assert _line(folder, "train") == "train missing"
    write_json(folder / "sets/no-mv/views.run.json", {"seconds": 2})
    assert _line(folder, "views") == "views missing 1 of 4 2.0 s"
    assert "categories" not in text and "novel_views" not in text


def test_stages_follow_the_settings():
    baselines = {
        name: settings.Baseline(path="x", background=background)
        for name, background in (("theirs", "kept"), ("cut", "remove"))
    }
    more = {"categories": 2, "photos": "examples/cars", "baselines": baselines}
    found = status.stages(DATASET.model_copy(update=more))
    assert {"categories", "novel_views", "baseline"} <= found.keys()
    assert "sets/cut-nobg/masks.run.json" in found["masks"]
    assert "sets/theirs/embed.run.json" in found["embed"]
    assert "sets/cut/embed.run.json" not in found["embed"]  # no row of the table has it
    assert "comparison" not in found  # no baseline has objects
    more["baselines"]["objects"] = settings.Baseline(path="x", views=4)
    compared = status.stages(DATASET.model_copy(update=more))["comparison"]
    assert compared == ["comparison.run.json"]
    using = status.stages(DATASET.model_copy(update={"use": "demo"}))
    assert "photo_sheet" in using and not {"train", "fid"} & using.keys()


def test_every_record_of_a_finished_run_belongs_to_a_stage(finished):
    dataset = DATASET.model_copy(update={"photos": str(finished.folder / "my photos")})
    found = status.look(finished[""], dataset)["stages"]
    assert {stage: one["state"] for stage, one in found.items()} == dict.fromkeys(found, "done")
    listed = {path for paths in status.stages(dataset).values() for path in paths}
    there = {str(path.relative_to(finished[""])) for path in finished[""].rglob("*.run.json")}
    assert all(path in listed or path.startswith("novel_views/") for path in there)


def test_pace_of_a_training_that_runs(folder):
    # 10 steps in 4 s; a night between two runs, and one line that was cut off.
    early = [{"step": step, "loss": 1.0, "time": step * 0.4} for step in range(10, 160, 10)]
    late = [{"step": s, "loss": 2 / s, "time": 40_000 + s * 0.4} for s in range(160, 260, 10)]
    with open(_train(folder, *early, *late, beat=5) / "metrics.jsonl", "a") as file:
        file.write('{"step": 260, "lo')
    told = "step 250 of 1000 (25%), loss 0.0080, 2.5 steps/s, 0:05:00 left"
    assert _line(folder, "train") == f"train running {told}"
    training = status.look(folder, DATASET)["training"]
    assert training["rate"] == pytest.approx(2.5) and training["left"] == pytest.approx(300)


def test_a_lock_that_nobody_touches_is_no_life(folder):
    checkpoints = _train(folder, {"step": 250, "loss": 0.5, "time": 0}, beat=STALE + 1)
    assert _line(folder, "train") == "train started step 250 of 1000 (25%), loss 0.5000"
    (checkpoints / "lock.json").unlink()
    assert _line(folder, "train").startswith("train started")


def test_a_failed_step_shows_the_last_error_of_its_log(folder):
    logs = folder / "logs"
    logs.mkdir()
    (logs / "masks-real-a-nobg.log").write_text(
        "error: first\n 9%\rerror: masks.sam x: absent\nbye"
    )
    (logs / "poses.log").write_text("error: of a stage that was done in the meantime\n")
    assert _line(folder, "masks") == "masks failed 0 of 4 masks.sam x: absent"
    assert _line(folder, "poses").startswith("poses done")
    (logs / "train.log").write_text("error: the loss is not finite\n")
    _train(folder, {"step": 7})
    assert _line(folder, "train") == ("train failed step 7 of 1000 (1%); the loss is not finite")


def test_failures_that_the_settings_have_removed_are_not_told(folder):
    logs = folder / "logs"
    (logs / "novel_views").mkdir(parents=True)
    for name in ("masks-old-nobg", "baseline-old", "views-mv-bg-hag.2-of-4", "novel_views/old"):
        (logs / f"{name}.log").write_text("error: of a set, a shard or a photo that was\n")
    (logs / "real.log").write_text("error: fid.samples 21: set it to at most 20\n")
    theirs = {"theirs": settings.Baseline(path="x")}
    dataset = DATASET.model_copy(update={"baselines": theirs, "photos": "examples/cars"})
    found = status.look(folder, dataset)["stages"]
    assert {found[stage]["state"] for stage in ("masks", "baseline", "views")} == {"missing"}
    assert found["real"]["state"] == "failed"
    assert status.look(folder, dataset, shards=4)["stages"]["views"]["state"] == "failed"


def test_damaged_files_are_passed_over(folder):
    with open(_train(folder) / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    (folder / "poses/poses.run.json").write_bytes(b"\xff{")
    (folder / "metrics.json").write_text('{"rows": [{"row": "no-mv", "n": 3')
    (folder / "poses/pose_eval.json").write_text("[1]")
    assert _line(folder, "poses").startswith("poses done") and "no-mv" not in _text(folder)
    rows = [{"row": "no-mv", "n": 3, "fd_backbone": 0.5, "fid": None, "sam": "x"}]
    write_json(folder / "metrics.json", {"rows": rows})
    write_json(folder / "poses/pose_eval.json", {"images": 5, "median_error_deg": 7.25})
    assert _line(folder, "no-mv") == "no-mv n 3, fd_backbone 0.5"
    assert "images 5, median_error_deg 7.25" in _text(folder)


def test_command_prints_text_and_json(folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    mine = folder / "mine.yaml"
    mine.write_text(f"results: {folder.parent}\n")
    before = sorted(folder.rglob("*"))
    status.main(configfile=(mine,))
    assert capsys.readouterr().out.startswith("demo: 11 of 25 stages done\n")
    status.main(("demo",), configfile=(mine,), as_json=True)
    found = json.loads(capsys.readouterr().out)["demo"]
    assert found["stages"]["poses"]["state"] == "done" and found["training"] is None
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(UserError, match="NAME dem: no such data set; did you mean 'demo'"):
        status.main(("dem",))
