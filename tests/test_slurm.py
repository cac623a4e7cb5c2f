"""The miniature on a real SLURM, with a training that is stopped in every way there is.

One run from photos to ``fid.txt``, as on a cluster, told in the order of the tests: each takes it
over where the one before left it. ``tests/slurm/run.sh`` starts a cluster of one node for them.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow import Project

pytestmark = pytest.mark.skipif(
    "MIRAGE_TEST_SLURM" not in os.environ,
    reason="needs a SLURM cluster of its own: make test-slurm",
)

ONE_THREAD = ("--max-threads", "1")
# The users' profile, and what a cluster of one small node without accounting needs besides.
ON_SLURM = (
    "--workflow-profile", "profiles/slurm", *ONE_THREAD,
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5",
)  # fmt: skip
MODEL = "results/mini/training/model.safetensors"
EVERY_RULE = {
    "dataset", "features", "foreground", "crops", "crop_features", "pose_space", "poses", "train",
    "real", "views", "masks", "embed", "fid",
}  # fmt: skip


class Run:
    """A project whose jobs SLURM runs."""

    def __init__(self, folder: Path):
        self.project = Project(folder / "slurm")
        self.process: subprocess.Popen | None = None
        self.output = folder / "snakemake.txt"
        self.seen: set[str] = set()  # trainings that were looked at

    def start(self, *words: str) -> None:
        with open(self.output, "w") as output:
            self.process = self.project.start(*ON_SLURM, *words, output=output)

    def finish(self) -> None:
        """Wait for the end of Snakemake."""
        assert self.process.wait(timeout=600) == 0, self.output.read_text()[-6000:]

    def jobs(self) -> list[tuple[str, str, str]]:
        """Numbers, states and rules of all jobs, ended ones too."""
        found = slurm("squeue", "--noheader", "--states=all", "--format=%i|%T|%k|%Z")
        rows = [line.split("|") for line in found.splitlines()]
        folder = str(self.project.folder)
        return [
            (number, state, re.sub("^rule_|_wildcards_.*$", "", comment))
            for number, state, comment, place in sorted(rows, key=lambda row: int(row[0]))
            if place == folder
        ]

    def state(self, number: str) -> str:
        return next(state for each, state, _ in self.jobs() if each == number)

    def next_training(self) -> str:
        """Number of the next training, once it has done some steps."""
        until(lambda: self._unseen(), "a job that trains", self)
        number = self._unseen()[-1]
        self.seen.add(number)
        self.await_steps(number)
        return number

    def _unseen(self) -> list[str]:
        return [
            number for number, _, rule in self.jobs() if rule == "train" and number not in self.seen
        ]

    def await_steps(self, number: str) -> None:
        """Return after a checkpoint and some steps of a training that has just begun."""
        until(lambda: "on cpu" in self.log(number), f"the start of job {number}", self)
        began = self.step()
        until(lambda: self.step() > began + 10 and self.saved(), "steps and a checkpoint", self)

    def log(self, number: str) -> str:
        path = self.project.folder / f".snakemake/slurm_logs/rule_train/mini/{number}.log"
        return path.read_text() if path.exists() else ""

    def step(self) -> int:
        """Last recorded step."""
        path = self.project["training/checkpoints/metrics.jsonl"]
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return json.loads(whole[-1])["step"] if whole else 0

    def saved(self) -> int:
        """Step of the newest checkpoint."""
        files = self.project["training/checkpoints"].glob("step-*.pt")
        return max((int(path.stem.removeprefix("step-")) for path in files), default=0)

    def ended(self, number: str, state: str) -> bool:
        """Whether a training is in a state, and its process gone, which may still save before."""
        lock = self.project["training/checkpoints/lock.json"]
        return self.state(number) == state and not lock.exists()

    def resumed(self, number: str) -> int:
        """The step after which a training went on."""
        found = re.findall(r"resuming after step (\d+)", self.log(number))
        assert found, self.log(number)
        return int(found[-1])


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def until(condition: Callable[[], object], what: str, run: Run, seconds: float = 400) -> None:
    """Wait for a condition while Snakemake runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        ended = run.process.poll() is not None
        assert not ended and time.monotonic() < deadline, (
            f"no {what}; {run.jobs()}\n{run.output.read_text()[-6000:]}"
        )
        time.sleep(0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Under way to a training without end; its first job gets one minute, later ones more."""
    run = Run(tmp_path_factory.mktemp("slurm"))
    run.project.settings(
        training={
            "iterations": 1000000, "schedule": "constant", "checkpoint_every": 10,
            "sample_every": 1000000, "optimizer": "adam",
        }
    )  # fmt: skip
    run.start("--set-resources", "train:runtime=1 if attempt == 1 else 30", "--", MODEL)
    yield run
    if run.process.poll() is None:
        os.killpg(run.process.pid, signal.SIGKILL)
    for number, _, _ in run.jobs():
        slurm("scancel", number)


def test_training_leaves_before_its_time_is_over(run):
    first = run.next_training()
    until(lambda: run.ended(first, "FAILED"), "end of the first training", run)
    assert "time limit: saving a checkpoint" in run.log(first)
    assert run.saved() == run.step()


def test_training_that_reaches_the_time_limit_has_saved(run):
    saved = run.saved()
    second = run.next_training()
    assert run.resumed(second) == saved
    slurm("scontrol", "update", f"JobId={second}", "TimeLimit=1")
    until(lambda: run.ended(second, "TIMEOUT"), "time limit", run)
    assert "SIGTERM: saving a checkpoint" in run.log(second)
    assert run.saved() == run.step() > saved


def test_cancelled_training_goes_on_in_a_new_job(run):
    saved = run.saved()
    third = run.next_training()
    assert run.resumed(third) == saved
    slurm("scancel", third)
    until(lambda: run.ended(third, "CANCELLED"), "end of the canceled training", run)
    assert run.saved() == run.step() > saved


def test_requeued_training_goes_on_in_the_same_job(run):
    saved = run.saved()
    fourth = run.next_training()
    assert run.resumed(fourth) == saved
    slurm("scontrol", "requeue", fourth)
    until(lambda: run.ended(fourth, "PENDING"), "requeued training", run)
    saved = run.saved()
    until(lambda: run.state(fourth) == "RUNNING", "requeued training at work", run)
    run.await_steps(fourth)
    assert run.resumed(fourth) == saved


def test_training_goes_on_after_its_node_went_down(run):
    (fourth,) = [n for n, state, rule in run.jobs() if rule == "train" and state == "RUNNING"]
    saved = run.saved()
    slurm("scontrol", "update", "NodeName=localhost", "State=DOWN", "Reason=test")
    until(lambda: run.state(fourth) == "PENDING", "job back in the queue", run)
    # Refused where the node has come back by itself (ReturnToService=2), which it may do first.
    resume = ("scontrol", "update", "NodeName=localhost", "State=RESUME")
    subprocess.run(resume, capture_output=True, timeout=60)
    until(lambda: run.state(fourth) == "RUNNING", "job at work again", run)
    run.await_steps(fourth)
    assert run.resumed(fourth) >= saved


def test_second_trainer_is_refused_after_snakemake_died(run):
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.wait()
    (fourth,) = [n for n, state, rule in run.jobs() if rule == "train" and state == "RUNNING"]
    run.project.run("--unlock")
    output = run.project.run(*ONE_THREAD, "--", MODEL, ok=False)
    assert "another process is training here" in output
    assert run.state(fourth) == "RUNNING"
    slurm("scancel", fourth)
    deadline = time.monotonic() + 60
    while not run.ended(fourth, "CANCELLED"):
        assert time.monotonic() < deadline, run.jobs()
        time.sleep(0.5)
    assert run.saved() == run.step()


def test_it_ends_as_if_nothing_had_happened(run, tmp_path):
    """The same model, to the bit, as of an undisturbed training on as many threads."""
    saved = run.saved()
    run.project.settings(training={"iterations": saved + 20})
    local = Project(tmp_path / "local")
    shutil.copy(run.project.folder / "mini.yaml", local.folder)
    for name in ("crops", "poses"):
        shutil.copytree(run.project[name], local[name])
    run.start("--", "results/mini/fid.txt")
    with open(tmp_path / "local.txt", "w") as output:
        reference = local.start(*ONE_THREAD, "--allowed-rules", "train", "--", MODEL, output=output)
    run.finish()
    assert f"resuming after step {saved}\n" in run.project["logs/train.log"].read_text()
    assert reference.wait(timeout=600) == 0, (tmp_path / "local.txt").read_text()[-6000:]
    assert "resuming" not in local["logs/train.log"].read_text()
    assert "stand-in" in run.project["fid.txt"].read_text()
    assert {rule for _, _, rule in run.jobs()} == EVERY_RULE
    assert run.project["training/model.safetensors"].read_bytes() == (
        local["training/model.safetensors"].read_bytes()
    )
