"""What the command `status` says of a pipeline: by Snakemake's records and the steps' files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.persistence.file import FilePersistence
from workflow import ENVIRONMENT, ROOT

from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import one_line_errors
from mirage_steps.files.lock import Lock
from mirage_steps.tools import status

TARGETS = {"demo": "results/demo/overview.txt"}
# Three stages that Snakemake runs in a second; the training waits while a file `slow` is there.
SNAKEFILE = r"""
rule poses:
    output:
        csv="results/demo/poses/poses.csv",
        run="results/demo/poses/poses.run.json",
    params:
        words=config.get("words", "--k 12 --seed 0"),
        out="results/demo/poses",
        code="0123456789abcdef",
    message: "demo: poses by K-Means"
    shell:
        ": python -m mirage_steps.poses --out {params.out:q} {params.words}; touch {output.csv};"
        " cp record.json {output.run}"

rule train:
    input: rules.poses.output.csv
    output:
        model="results/demo/training/model.safetensors",
        run="results/demo/training/train.run.json",
    message: "demo: training"
    shell:
        "while [ -e slow ]; do sleep 0.2; done; touch {output.model}; cp record.json {output.run}"

rule overview:
    input: rules.train.output.model
    output: "results/demo/overview.txt"
    message: "demo: everything"
    shell: "touch {output}"
"""


def _snakemake(*words: str, wait: bool = True) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *words, "--", *TARGETS.values()]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    if wait:
        assert process.wait(60) == 0
    return process


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """An unfinished project of three stages, as the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    record = {"step": "x", "started": "2026-01-02T03:04:05+0000", "seconds": 90.5}
    write_json(tmp_path / "record.json", record)
    return tmp_path


def _look(*configfiles: Path) -> status.DatasetStatus:
    return status.look(Path("results"), TARGETS, {"demo": 1000}, configfiles)[-1]


def _states(found: status.DatasetStatus) -> dict[str, str]:
    return {job.rule: job.state for job in found.jobs}


def _records(folder: Path, *records: dict) -> Path:
    checkpoints = folder / "results/demo/training/checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (checkpoints / "metrics.jsonl").write_text(text)
    return checkpoints


def _lock(checkpoints: Path, age: float) -> None:
    """A trainer's lock that was touched ``age`` seconds ago."""
    write_json(checkpoints / "lock.json", {"host": "here", "pid": 1})
    os.utime(checkpoints / "lock.json", (time.time() - age, time.time() - age))


# With Snakemake


def test_stages_are_the_rules_in_their_order():
    rules = []
    for phase in ("weights", "poses", "training", "views", "scores"):
        text = (ROOT / "rules" / f"{phase}.smk").read_text()
        rules += re.findall(r"^rule (\w+):", text, re.MULTILINE)
    gathering = (ROOT / "rules/gathering.smk").read_text()
    gathered = re.findall(r"rule gather_features as (\w+) with|rule (\w+):", gathering)
    for name in map("".join, gathered):
        rules.insert(rules.index(name.removeprefix("gather_")) + 1, name)
    assert sorted(rules) == sorted(status.STAGES) and len(gathered) == 3
    rules.remove("baseline")  # which may come any time before the masks
    assert rules == [name for name in status.STAGES if name != "baseline"]


def test_done_then_stale_with_the_setting_that_changed(tiny):
    (tiny / "results/demo").mkdir(parents=True)
    assert _look().state == "not started"
    _snakemake()
    found = _look()
    assert _states(found) == {"poses": "done", "train": "done", "overview": "done"}
    assert found.state == "done" and not found.at_work
    assert found.jobs[0].seconds == 90.5
    text = status.as_text([found], TARGETS)
    assert text.startswith("demo: done, 3 of 3 jobs done\n")
    assert text.endswith("next: nothing to do")

    mine = tiny / "mine.yaml"
    mine.write_text("words: --k 14 --seed 0\n")
    found = _look(mine)
    assert set(_states(found).values()) == {"stale"}
    assert [job.reason for job in found.jobs] == [
        "k 12 -> 14",
        *["its inputs will be made anew"] * 2,
    ]
    text = status.as_text([found], TARGETS, [mine])
    assert re.search(r"^  poses +stale .* 0:01:30  k 12 -> 14$", text, re.MULTILINE), text
    assert text.endswith(f"snakemake --cores N --configfile {mine} -- {TARGETS['demo']}")

    (tiny / "results/demo/overview.txt").unlink()
    assert _states(_look()) == {"poses": "done", "train": "done", "overview": "missing"}


def test_running_then_killed(tiny):
    (tiny / "slow").touch()
    process = _snakemake(wait=False)
    try:
        deadline = time.time() + 30
        while not any((tiny / ".snakemake/incomplete").glob("*")) or not _is_training(tiny):
            assert time.time() < deadline
            time.sleep(0.1)
        found = _look()
        assert _states(found) == {"poses": "done", "train": "running", "overview": "missing"}
        assert found.state == "running" and found.at_work
        assert re.fullmatch(r"since \d\d:\d\d", found.jobs[1].reason)
        assert "next: wait" in status.as_text([found], TARGETS)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # The locks are still there: on another machine it might go on.
    found = _look()
    assert found.jobs[1].state == "running" and "no Snakemake is seen" in found.jobs[1].reason
    assert "if it was killed, snakemake --unlock" in status.as_text([found], TARGETS)
    for lock in (tiny / ".snakemake/locks").iterdir():
        lock.unlink()
    found = _look()
    assert _states(found) == {"poses": "done", "train": "interrupted", "overview": "missing"}
    assert status.as_text([found], TARGETS).endswith(f"--cores N -- {TARGETS['demo']}")


def _is_training(folder: Path) -> bool:
    return (folder / "results/demo/poses/poses.run.json").exists() and any(
        "training" in name for name in dict(status._marked(folder / ".snakemake/incomplete"))
    )


def test_a_step_that_failed_shows_its_error(tiny):
    log = tiny / "results/demo/logs/train.log"
    log.parent.mkdir(parents=True)
    log.write_text("12:00:00 some words\nerror: the loss is not finite at step 7\n")
    job = _look().jobs[1]
    assert (job.state, job.reason) == ("failed", "error: the loss is not finite at step 7")


def test_without_snakemake_s_answer_the_records_are_shown(tiny):
    (tiny / "Snakefile").write_text('import sys\nsys.exit("error: photos: no such folder")\n')
    folder = tiny / "results/demo"
    write_json(folder / "poses/poses.run.json", {"step": "mirage_steps.poses", "seconds": 2})
    found = _look()
    assert found.problem == "error: photos: no such folder"
    assert _states(found) == {"poses": "unchecked"}
    assert "Snakemake cannot check it: photos: no such folder" in status.as_text([found], TARGETS)


def test_marks_of_long_names_are_read_as_snakemake_writes_them(tmp_path):
    naming = SimpleNamespace(_fetch_max_len=lambda _: 255)
    names = {"results/demo/ö.csv", f"results/{'long/' * 200}x.run.json"}
    for name in names:
        path = Path(FilePersistence._record_path(naming, str(tmp_path), name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "no base64").touch()
    assert dict(status._marked(tmp_path)).keys() == names


# Parameters


@pytest.mark.parametrize(
    "before, now, told",
    [
        ("'--k 12 --seed 0'", "'--k 14 --seed 0'", "k 12 -> 14"),
        ("'1.5'", "'2.0'", "1.5 -> 2.0"),
        ("'--image-size 64 --a 1'", "'--image-size 32 --a 1'", "image_size 64 -> 32"),
        ("'0123456789abcdef'", "'0123456789abcdee','--k 3'", "code changed; k absent -> 3"),
        ("'--inside --a 1'", "'--no-inside --a 1'", "inside yes -> no"),
        ("'--row a x --row b x'", "'--row a x --row b y'", "row b x -> b y"),
        ("'--path=-x'", "\"--path 'it''s'\"", "path -x -> its"),
        ("<nothing exclusive>", "'--k 3'", "k absent -> 3"),
        ("not python", "'--k 3'", ""),
    ],
)
def test_changed_parameters_are_told_by_flag(before, now, told):
    assert status.words_changed(before, now) == told


# Training


def test_rate_and_time_left_of_a_training_that_runs(tiny):
    # 10 steps in 4 s; a night between two runs, and one line that was cut off.
    early = [{"step": step, "loss": 1.0, "time": step * 0.4} for step in range(10, 60, 10)]
    late = [
        {"step": step, "loss": 2 / step, "time": 40_000 + step * 0.4} for step in range(60, 260, 10)
    ]
    checkpoints = _records(tiny, *early, *late)
    with open(checkpoints / "metrics.jsonl", "a") as file:
        file.write('{"step": 260, "lo')
    for records in (late, early + late[:3]):
        assert status.recent_rate(records) == pytest.approx(2.5)
    with Lock(checkpoints, "training", beat=0.1):
        assert status.read_training(checkpoints, 1000).alive
    assert not status.read_training(checkpoints, 1000).alive
    _lock(checkpoints, age=5)
    found = _look()
    training = found.training
    assert (training.step, training.iterations, training.loss) == (250, 1000, 2 / 250)
    assert training.left == pytest.approx(750 / 2.5)
    assert training.alive and 5 <= training.beat < 30
    assert found.jobs[1].state == "running" and found.state == "running"
    text = status.as_text([found], TARGETS)
    assert "step 250 of 1000 (25%), loss 0.0080, 2.5 steps/s, 0:05:00 left\n" in text


def test_a_lock_that_nobody_touches_is_no_life(tiny):
    checkpoints = _records(tiny, {"step": 250, "loss": 0.5})
    _lock(checkpoints, age=61)
    found = _look()
    assert not found.training.alive
    assert (found.training.rate, found.training.left) == (None, None)
    assert found.jobs[1].state == "interrupted"
    text = status.as_text([found], TARGETS)
    assert "step 250 of 1000 (25%), loss 0.5000\n" in text and "left" not in text
    (checkpoints / "lock.json").unlink()
    assert _look().jobs[1].state == "interrupted"


@pytest.mark.parametrize(
    "started, beat, state",
    [(100.0, 300.0, "running"), (300.0, 100.0, "interrupted"), (300.0, 30.0, "running")],
)
def test_a_trainer_that_starts_up_is_not_taken_for_dead(tmp_path, started, beat, state):
    """``started`` and ``beat`` are ages in seconds: of the job, and of the lock's last touch."""
    folder = tmp_path / "results/demo"
    _lock(_records(tmp_path, {"step": 10, "loss": 1.0}), age=beat)
    job = status.Job("train", "training", [], "running", started=time.time() - started)
    found = status.DatasetStatus("demo", [job])
    status._add_figures(found, folder, 1000)
    assert job.state == state


# Damage and mistakes


def test_damaged_files_are_left_out(tiny):
    _snakemake()
    folder = tiny / "results/demo"
    (folder / "metrics.json").write_text('{"rows": [{"row": "no-mv", "n": 3')
    (folder / "poses/pose_eval.json").write_text("[1]")
    (folder / "poses/poses.run.json").write_bytes(b"\xff{")
    write_json(folder / "training/train.run.json", {"seconds": "long", "started": 1e300})
    checkpoints = _records(tiny, {"step": 1e3}, {"no": 1}, {"step": 9, "loss": None, "time": "x"})
    (checkpoints / "lock.json").mkdir()
    (tiny / ".snakemake/incomplete/%%%").touch()
    (tiny / ".snakemake/locks").mkdir(exist_ok=True)
    (tiny / ".snakemake/locks/0.output.lock").write_bytes(b"\xff\xfe")
    found = _look()
    assert _states(found) == {"poses": "done", "train": "done", "overview": "done"}
    assert found.table == {} and found.poses == {} and found.training.step == 9
    assert "no-mv" not in status.as_text([found], TARGETS)
    assert json.loads(status.as_json([found]))["datasets"][0]["state"] == "done"

    rows = [{"row": "no-mv", "n": 3, "fd_backbone": 0.5, "kid_backbone": "x"}, 7]
    write_json(folder / "metrics.json", {"backbone": "net", "token": "cls", "rows": rows})
    write_json(folder / "poses/pose_eval.json", {"images": 5, "median_error_deg": 7.25})
    text = status.as_text([_look()], TARGETS)
    assert "FD and KID of net cls:\n    no-mv              n = 3  FD 0.500\n" in text
    assert "poses: median error 7.2 degrees, 5 images" in text


def test_an_unknown_data_set_is_one_line(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as error, one_line_errors():
        status.main(("demo", "dem"))
    assert re.fullmatch("error: dem is no data set; known are .*demo.*", str(error.value.code))
    assert capsys.readouterr().out == ""


# The real pipeline


def _command(folder: Path, *words: str) -> str:
    command = [
        sys.executable,
        "-m",
        "mirage_steps.tools.status",
        *words,
        "--configfile",
        "mini.yaml",
    ]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def _results(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*")}


def test_the_finished_miniature_and_a_change_of_its_settings(changed):
    before = _results(changed.folder)
    text = _command(changed.folder, "mini")
    assert re.match(r"mini: done, (\d+) of \1 jobs done\n", text)
    assert "step 4 of 4 (100%)" in text and "mv-nobg-hag        n = 12  FD " in text
    assert text.endswith("next: nothing to do\n")
    changed.settings(guidance={"gamma": 2.5}, poses={"starts": 3}, training={"ema": 0.5})
    found = json.loads(_command(changed.folder, "mini", "--json"))["datasets"][-1]
    jobs = {(job["rule"], job["part"]): job for job in found["jobs"]}
    assert jobs["poses", "poses"]["reason"] == "starts 2 -> 3"
    assert jobs["views", "mv-bg-hag"]["reason"] == "gamma 1.5 -> 2.5"
    assert jobs["train", "training"]["reason"] == "ema 0.9999 -> 0.5"
    assert jobs["features", "features"]["state"] == jobs["pose_space", "pose_space"]["state"]
    assert jobs["features", "features"]["state"] == "done"
    assert found["state"] == "stale" and jobs["train", "training"]["state"] == "stale"
    assert _results(changed.folder) == before
