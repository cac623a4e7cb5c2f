"""Training in several processes and in parts of a batch equals that of one process at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_together import train
from workflow import Project

from mirage_steps.errors import UserError
from mirage_steps.files.records import read_metrics
from mirage_steps.method.processes import Processes, launch
from mirage_steps.method.training import share
from mirage_steps.settings import Training
from mirage_steps.train import main

ROOT = Path(__file__).parents[1]
ALONE = Processes(torch.device("cpu"))
TINY = ROOT / "tests/train_tiny.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


@pytest.mark.parametrize(("count", "of"), [(10, 1), (10, 2), (10, 3), (7, 7), (128, 5)])
def test_shares_are_even_and_whole(count, of):
    parts = [range(count)[share(count, number, of)] for number in range(of)]
    assert [row for part in parts for row in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def tensors(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state by their places."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    if not isinstance(state, (dict, list, tuple)):
        return {}
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, part in parts for k, v in tensors(part, f"{name}/{key}").items()}


def difference(one: dict, other: dict) -> float:
    """Largest relative difference of a tensor: norm of the difference by the norm."""
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys() and len(one) > 100
    return max(
        float((other[key].double() - value.double()).norm() / value.double().norm().clamp(1e-12))
        for key, value in one.items()
    )


def together(folder: Path, processes: int, dtype: str, optimizer: str, accumulation: int) -> list:
    words = [folder, dtype, optimizer, accumulation]
    script = ROOT / "tests/train_together.py"
    subprocess.run(
        [*TORCHRUN, f"--nproc-per-node={processes}", script, *map(str, words)],
        env=ENVIRONMENT, check=True, timeout=300,
    )  # fmt: skip
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    ("dtype", "limit", "processes", "accumulation"),
    [
        ("float64", 1e-10, 2, 2),
        pytest.param("float64", 1e-10, 2, 1, marks=pytest.mark.slow),
        pytest.param("float32", 1e-5, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(tmp_path, dtype, limit, processes, accumulation):
    alone = train(ALONE, getattr(torch, dtype), optimizer="adam")
    found = together(tmp_path, processes, dtype, "adam", accumulation)
    assert difference(found[0], found[1]) == 0.0
    assert difference(alone, found[0]) <= limit


def test_parts_of_a_batch_equal_the_whole():
    """Also where they are not of one size."""
    whole = train(ALONE, torch.float64, optimizer="adam")
    for accumulation in (3, 10):
        parts = train(ALONE, torch.float64, optimizer="adam", accumulation=accumulation)
        assert difference(whole, parts) <= 1e-10


def test_another_batch_makes_a_difference():
    """The measure of these tests sees what it should: here the network of one seed and another."""
    one, other = (train(ALONE, torch.float64, optimizer="adam", seed=seed) for seed in (0, 1))
    assert difference(one, other) > 0.1


SMALL = (
    "--preset small --image-size 32 --batch-size 5 --dropout 0 --precision float32"
    " --log-every 1 --checkpoint-every 2 --sample-every 1000 --schedule cosine"
).split()  # fmt: skip


def _train(data: dict, out: Path, processes: int, *more: str) -> subprocess.CompletedProcess:
    words = [
        sys.executable, TINY, "--crops", data["crops"], "--poses", data["poses"],
        "--out", out, "--checkpoints", out / "checkpoints", "--processes", processes, *SMALL, *more,
    ]  # fmt: skip
    return subprocess.run(
        list(map(str, words)), env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, text=True,
        stderr=subprocess.PIPE, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_the_step_trains_with_two_processes_and_goes_on_with_one(data, tmp_path):
    for name, counts in (("alone", (1,)), ("two", (2, 1))):
        for iterations, count in zip((6,) if len(counts) == 1 else (4, 6), counts, strict=True):
            words = ("--iterations", iterations, "--schedule", "constant")
            done = _train(data, tmp_path / name, count, *words)
            assert done.returncode == 0, done.stderr
    assert "resuming after step 4" in done.stderr
    alone, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "two"))
    assert max(
        float((two[key] - value).norm() / value.norm().clamp(1e-12)) for key, value in alone.items()
    ) < 1e-4  # fmt: skip
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / name / "checkpoints")]
        for name in ("alone", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 6
    assert [path.name for path in (tmp_path / "two").glob("*.run.json")] == ["train.run.json"]


def test_a_mistake_among_several_processes_is_one_line(data, tmp_path):
    done = _train(data, tmp_path / "run", 2, "--image-size", "48")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: ") and "--forcerun crops" in line


@pytest.mark.slow
def test_a_mistake_that_one_process_finds_is_one_line(data, tmp_path):
    """The other waits for it."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-0000002.pt").write_bytes(b"damaged")
    done = _train(data, tmp_path / "run", 2, "--iterations", "2")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ") and "like all checkpoints" in lines[0]


def test_more_processes_than_cards_are_refused_before_any_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^training.processes 3: .* has 2; set it to 2$"):
        launch(3, "auto")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"accumulation": 6}, "training.batch_size 5: too small for 1 processes with 6 micro"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(data, tmp_path, changed, message):
    training = Training(preset="small", image_size=32, batch_size=5, **changed)
    with pytest.raises(UserError, match=message):
        main(**data, out=tmp_path, checkpoints=tmp_path / "checkpoints", training=training)


def test_slurm_gives_several_processes_their_cards_on_one_node(tmp_path):
    """By a recording sbatch: torchrun joins the cards of one machine only."""
    project, fake = Project(tmp_path / "project"), tmp_path / "fake"
    project.settings(training={"processes": 4})
    fake.mkdir()
    for name in ("sbatch", "sacct", "squeue", "scancel", "sinfo", "sacctmgr", "scontrol"):
        ends = f'printf "%s\\n" "$*" >> {tmp_path}/asked; exit 1' if name == "sbatch" else "exit 0"
        (fake / name).write_text(f"#!/bin/sh\n{ends}\n")
        (fake / name).chmod(0o755)
    poses = ("poses/poses.csv", "poses/poses.json", "poses/pose_estimator.safetensors")
    for name in ("crops/crops.h5", *poses):
        project[name].parent.mkdir(parents=True, exist_ok=True)
        project[name].touch()
    project.run(
        "--profile", "profiles/slurm", "--retries", "0", "--allowed-rules", "train",
        "--", "results/mini/training/model.safetensors",
        ok=False, env={**ENVIRONMENT, "PATH": f"{fake}:{os.environ['PATH']}"},
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text().split("--wrap")[0].split()
    assert "--nodes=1" in asked and "--gpus=4" in asked


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(data, tmp_path):
    code = "import os, sys; os.kill(os.getpid(), 9) if 'RANK' in os.environ else None; "
    code += "from mirage_steps.method.processes import launch; launch(2, 'cpu')"
    (tmp_path / "killed.py").write_text(code)
    words = [sys.executable, tmp_path / "killed.py"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert "UserError: process 0 of the training: killed by SIGKILL" in done.stderr


@pytest.mark.slow
def test_sigterm_to_all_processes_saves_once_and_leaves(data, tmp_path):
    """As a scheduler does it, to all processes together; none waits for another."""
    words = [
        sys.executable, TINY, "--crops", data["crops"],
        "--poses", data["poses"], "--out", tmp_path, "--checkpoints", tmp_path / "checkpoints",
        "--processes", 2, *SMALL, "--iterations", 100_000, "--checkpoint-every", 100_000,
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, words)), env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, text=True,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "checkpoints")) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in output, output
    last = read_metrics(tmp_path / "checkpoints")[-1]["step"]
    saved = [path.name for path in (tmp_path / "checkpoints").glob("step-*.pt")]
    assert saved == [f"step-{last:07d}.pt"], output
    assert not (tmp_path / "checkpoints/lock.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_a_signal_never_ends_in_an_abort(tmp_path):
    """Where torchrun's thread is inside its store at that moment; here it always is."""
    (tmp_path / "signalled.py").write_text("""
import threading
from torch.distributed import TCPStore, run
from torch.distributed.elastic.multiprocessing import SignalException
from mirage_steps.method.processes import launch

server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
entered = threading.Event()

def heartbeat():
    while True:
        client.compare_set("key", "value", "value")
        entered.set()

def signalled(_):
    threading.Thread(target=heartbeat, daemon=True).start()
    entered.wait()
    raise SignalException("as torchrun's handler does", sigval=15)

run.run = signalled
raise SystemExit(launch(2, "cpu"))
""")
    words = [sys.executable, tmp_path / "signalled.py"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr


@pytest.mark.parametrize(("codes", "expected"), [((143, 75), 75), ((143, 143), 143), ((1, 143), 1)])
def test_the_reason_of_one_process_counts_before_the_signal_that_ends_the_others(
    monkeypatch, codes, expected
):
    """So the time limit, code 75, is told even if another process had not yet reached it."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import errors

    failures = {
        rank: errors.ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")
        for rank, code in enumerate(codes)
    }

    def failed(_: object) -> None:
        raise errors.ChildFailedError("training", failures)

    monkeypatch.setattr(run, "run", failed)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert launch(2, "cpu") == expected
