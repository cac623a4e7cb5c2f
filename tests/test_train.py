"""Training: resume, checkpoints, data order, EMA weights, optimizers."""

import json
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train_tiny import tiny

from mirage_steps import train
from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import write_csv, write_json
from mirage_steps.files.h5 import create_h5, open_h5, write_names
from mirage_steps.files.records import read_metrics
from mirage_steps.files.tables import read_labels
from mirage_steps.files.tensors import write_tensors
from mirage_steps.method.device import choose_threads
from mirage_steps.method.processes import Processes
from mirage_steps.method.training import (
    Batches,
    KernelMuon,
    Trainer,
    copy_images,
    make_optimizers,
    orthogonalize,
)
from mirage_steps.method.unet import UNet, UNetConfig, build, preset
from mirage_steps.networks.diffusion_model import load_model, save_model
from mirage_steps.run import crop_views
from mirage_steps.settings import Guidance, NovelViews, Training, Views

ALONE = Processes(torch.device("cpu"))
IMAGES, POSES, SIZE = 12, 4, 32
SETTINGS = Training(
    preset="small", image_size=SIZE, iterations=6, batch_size=4, learning_rate=1e-3,
    schedule="cosine", warmup=2, ema=0.9, dropout=0.1, checkpoint_every=2, log_every=1,
    sample_every=100, precision="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    """Checkpoints of a few megabytes that wait for no disk, steps of a few milliseconds."""
    monkeypatch.setattr(train, "preset", tiny)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def run(data, folder: Path, training: Training) -> dict[str, torch.Tensor]:
    train.main(**data, out=folder, checkpoints=folder / "checkpoints", training=training)
    return load_file(folder / "model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*.pt"))


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_weights(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert SETTINGS.dropout > 0
    expected = run(data, tmp_path / "plain", SETTINGS)
    found = run(data, tmp_path / "compiled", SETTINGS.model_copy(update={"compile": True}))
    assert any((tmp_path / "cache").iterdir())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "told, lines",
    [
        ("no compiler found", "no compiler found"),
        ("Python.h: fatal error: none", "failed\nPython.h: fatal error: none\n"),
    ],
)
def test_a_compiler_that_fails_is_told_in_one_line(data, tmp_path, monkeypatch, told, lines):
    def fail(graph, inputs):
        raise RuntimeError(lines)

    def compile_it(self, options):
        self._compiled_call_impl = torch.compile(self._call_impl, backend=fail)

    monkeypatch.setattr(UNet, "compile", compile_it)
    with pytest.raises(UserError, match=rf"training.compile true: .*\({told}\); set it to false"):
        run(data, tmp_path, SETTINGS.model_copy(update={"compile": True}))


def stop_after(monkeypatch, steps: int) -> None:
    """Make the process die in the middle of a step, as a kill would."""
    original = Trainer.step

    def step(self, *batch):
        if self.done == steps:
            raise KeyboardInterrupt
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "step", step)


def test_fewer_threads_are_used_only_where_all_of_them_crawl(monkeypatch):
    """Seconds of a step by the number of threads, and the number that is chosen."""
    for seconds, chosen in (
        ({1: 1.0, 3: 1.0, 4: 5.0}, 1), ({1: 4.0, 3: 1.0, 4: 5.0}, 3), ({1: 4.0, 3: 0.8, 4: 1.0}, 4),
        ({1: 1.0}, 1),
    ):  # fmt: skip
        used, clock = [max(seconds)], [0.0]

        def work(seconds=seconds, used=used, clock=clock):
            clock[0] += seconds[used[0]]

        monkeypatch.setattr(torch, "get_num_threads", lambda used=used: used[0])
        monkeypatch.setattr(torch, "set_num_threads", lambda n, used=used: used.__setitem__(0, n))
        assert choose_threads(work, lambda clock=clock: clock[0]) == used[0] == chosen


def test_samples_may_come_before_the_first_losses_and_are_made_up_for(data, tmp_path):
    settings = SETTINGS.model_copy(update={"log_every": 5, "sample_every": 1})
    run(data, tmp_path, settings)
    grids = tmp_path / "checkpoints/samples"
    assert [path.name for path in sorted(grids.iterdir())] == [f"{n:07d}.png" for n in range(1, 7)]
    (grids / "0000006.png").unlink()  # killed between the last checkpoint and its samples
    run(data, tmp_path, settings)
    assert (grids / "0000006.png").exists()


def test_hours_become_steps_once(data, tmp_path, monkeypatch):
    """And a resumed run keeps their number, however fast the machine is now."""
    hours = SETTINGS.model_copy(update={"hours": 10 / 3600, "iterations": 999})
    plan = tmp_path / "checkpoints/budget.json"
    with monkeypatch.context() as stopped:
        stopped.setattr(train, "seconds_per_step", lambda *_: 1.0)
        stop_after(stopped, 5)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path, hours)
    assert json.loads(plan.read_text())["iterations"] == 9  # a twentieth is for all else
    monkeypatch.setattr(train, "seconds_per_step", lambda *_: 1e9)
    run(data, tmp_path, hours)
    assert json.loads((tmp_path / "config.json").read_text())["iterations"] == 9
    as_steps = SETTINGS.model_copy(update={"iterations": 9})
    expected = run(data, tmp_path / "steps", as_steps)
    for key, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, expected[key])
    # A batch of another size takes another time.
    monkeypatch.setattr(train, "seconds_per_step", lambda *_: 2.0)
    run(data, tmp_path, hours.model_copy(update={"batch_size": hours.batch_size + 1}))
    assert json.loads(plan.read_text())["iterations"] == 4


def test_the_time_of_a_step_is_measured(data, tmp_path):
    run(data, tmp_path, SETTINGS.model_copy(update={"hours": 1e-9}))
    plan = json.loads((tmp_path / "checkpoints/budget.json").read_text())
    assert plan["iterations"] == 1 and 0 < plan["step_seconds"] < 10


def test_a_rehearsal_changes_nothing(data):
    images, labels = np.zeros((4, SIZE, SIZE, 3), np.uint8), np.arange(4)
    found = []
    for rehearsed in (False, True):
        trainer = Trainer(tiny("small", SIZE, POSES, 0.1), SETTINGS, ALONE)
        batch = Batches(images, labels, SETTINGS).batch(0)
        for _ in range(2):
            if rehearsed:
                trainer.rehearse(*batch)
            trainer.step(*batch)
        found.append(trainer.state())
    for one, other in zip(*(state["model"].values() for state in found), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resumed_equals_uninterrupted_to_the_bit(data, tmp_path, monkeypatch, stop, optimizer):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer})
    whole = run(data, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "parts", settings)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    parts = run(data, tmp_path / "parts", settings)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    steps = [record["step"] for record in read_metrics(tmp_path / "parts" / "checkpoints")]
    assert steps == list(range(1, 7))


def _command(data, folder: Path, iterations: int) -> list[str]:
    return [
        sys.executable, str(Path(__file__).with_name("train_tiny.py")), "--crops",
        str(data["crops"]), "--poses", str(data["poses"]), "--out", str(folder), "--checkpoints",
        f"{folder}/checkpoints", "--preset", "small", "--image-size", str(SIZE), "--iterations",
        str(iterations), "--batch-size", "4", "--dropout", "0.1", "--log-every", "1",
        "--checkpoint-every", "3", "--sample-every", "100000",
    ]  # fmt: skip


def _start(command: list[str], **more) -> subprocess.Popen:
    root = Path(train.__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    return subprocess.Popen(
        command, env=environment, text=True, start_new_session=True,
        **{"stderr": subprocess.PIPE, **more},
    )  # fmt: skip


@pytest.mark.slow
def test_kills_and_stops_at_random_steps_change_no_bit(data, tmp_path):
    """Killed and asked to leave at random steps; all that a checkpoint holds is compared."""
    iterations = 90
    rng = np.random.default_rng(0)
    stops = sorted(rng.choice(np.arange(1, iterations - 30), 3, replace=False).tolist())
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    whole = _start(_command(data, tmp_path / "whole", iterations))
    assert whole.communicate(timeout=300)[1] and whole.returncode == 0
    command, resumed = _command(data, tmp_path / "parts", iterations), []
    for step, number in zip(stops, signals, strict=True):
        began, process = time.time(), _start(command)
        deadline = time.monotonic() + 120
        while (last := _last_step(tmp_path / "parts", began)) < step:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, number)
        output = process.communicate(timeout=60)[1]
        assert process.returncode == (143 if number == signal.SIGTERM else -number), output
        assert not (tmp_path / "parts/model.safetensors").exists()
        resumed += [int(found) for found in re.findall(r"resuming after step (\d+)", output)]
        assert last < iterations
    process = _start(command)
    output = process.communicate(timeout=300)[1]
    assert process.returncode == 0, output
    resumed += [int(found) for found in re.findall(r"resuming after step (\d+)", output)]
    assert len(resumed) == 3 and resumed == sorted(resumed)
    states = [
        torch.load(tmp_path / name / f"checkpoints/step-{iterations:07d}.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    one, other = (flatten(state) for state in states)
    assert one.keys() == other.keys()
    assert sum(isinstance(value, torch.Tensor) for value in one.values()) > 300
    for name, value in one.items():
        same = torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        assert same, name
    pair = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())
    records = [read_metrics(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    without_time = [[{**record, "time": 0} for record in part] for part in records]
    assert without_time[0] == without_time[1]


def _last_step(folder: Path, since: float = 0) -> int:
    """The last step that was made since a time."""
    records = read_metrics(folder / "checkpoints")
    return records[-1]["step"] if records and records[-1]["time"] > since else 0


def flatten(state: object, name: str = "") -> dict[str, object]:
    """Leaves of a nested state by their places."""
    if not isinstance(state, (dict, list, tuple)):
        return {name: state}
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, part in parts for k, v in flatten(part, f"{name}/{key}").items()}


def test_a_job_saves_and_leaves_before_its_time_is_over(data, tmp_path):
    whole = run(data, tmp_path / "whole", SETTINGS)
    arguments = {**data, "out": tmp_path / "run", "checkpoints": tmp_path / "run/checkpoints"}
    for done in range(1, 6):
        with pytest.raises(SystemExit) as left:
            train.main(**arguments, training=SETTINGS, runtime=0.1)
        assert left.value.code == train.TIME_IS_UP
        assert checkpoints(tmp_path / "run")[-1] == f"step-{done:07d}.pt"
        assert not (tmp_path / "run/checkpoints/lock.json").exists()
    found = run(data, tmp_path / "run", SETTINGS)
    for name, value in whole.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize(
    ("minutes", "seconds"), [(0, math.inf), (1, 30), (60, 57 * 60), (2880, 2870 * 60)]
)
def test_part_of_the_time_is_left_for_what_comes_after(monkeypatch, minutes, seconds):
    trainer = Trainer(tiny("tiny", SIZE, POSES, 0.0), SETTINGS, ALONE)
    outputs, now = train.Outputs(trainer, None, None, 60 * minutes), 0.0
    monkeypatch.setattr(train, "_STARTED", 0.0)
    monkeypatch.setattr(train.time, "monotonic", lambda: now)
    now = min(seconds, 1e9)
    assert not outputs.stop_requested()
    now += 1
    assert outputs.stop_requested() == math.isfinite(seconds)


def test_a_second_training_is_kept_out_of_the_folder(data, tmp_path):
    process = _start(_command(data, tmp_path / "run", 100_000))
    try:
        deadline = time.monotonic() + 120
        while _last_step(tmp_path / "run") < 1:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(UserError, match=f"training here .process {process.pid} on .*wait for"):
            run(data, tmp_path / "run", SETTINGS)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_changed_settings_restart_the_training(data, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "run", SETTINGS)
    stale = tmp_path / "run/checkpoints/samples/9999999.png"  # of the training before
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    changed = SETTINGS.model_copy(update={"learning_rate": 1e-4})
    found = run(data, tmp_path / "run", changed)
    assert "restarting: learning_rate changed; the old checkpoint is" in caplog.text
    assert not stale.exists()
    expected = run(data, tmp_path / "fresh", changed)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_changed_poses_restart_the_training(data, tmp_path, caplog):
    run(data, tmp_path / "run", SETTINGS)
    text = data["poses"].read_text().replace("1.png,1", "1.png,2")
    data["poses"].write_text(text)
    run(data, tmp_path / "run", SETTINGS)
    assert "restarting: poses changed" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "previous-step-0000006.pt").exists()


def test_fewer_iterations_restart_the_training(data, tmp_path, caplog):
    constant = SETTINGS.model_copy(update={"schedule": "constant"})
    run(data, tmp_path / "run", constant)
    shorter = constant.model_copy(update={"iterations": 3})
    found = run(data, tmp_path / "run", shorter)
    assert "iterations changed" in caplog.text
    for name, value in run(data, tmp_path / "fresh", shorter).items():
        assert torch.equal(value, found[name]), name


def test_a_longer_run_goes_on_from_the_shorter(data, tmp_path):
    constant = SETTINGS.model_copy(update={"schedule": "constant"})
    run(data, tmp_path / "run", constant.model_copy(update={"iterations": 3}))
    found = run(data, tmp_path / "run", constant)
    for name, value in run(data, tmp_path / "fresh", constant).items():
        assert torch.equal(value, found[name]), name


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    original = Trainer.step

    def step(self, *batch):
        values = original(self, *batch)
        return values * float("nan") if self.done == 4 else values

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(UserError, match="not finite at step 4"):
        run(data, tmp_path / "run", SETTINGS)
    assert checkpoints(tmp_path / "run") == ["step-0000002.pt"]


def test_poses_without_images_are_not_trained(data, tmp_path):
    (tmp_path / "poses.json").write_text('{"k": 6, "categories": 1}')
    with pytest.raises(UserError, match=r"has images in 4 of 6 poses"):
        run(data, tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()


def test_the_newest_two_checkpoints_are_kept(data, tmp_path):
    run(data, tmp_path / "run", SETTINGS)
    assert checkpoints(tmp_path / "run") == ["step-0000004.pt", "step-0000006.pt"]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(byte ^ 1 for byte in content[middle : middle + 8])
        + (content[middle + 8 :])
    )


def _empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_cut, _flip, _empty])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(data, tmp_path, caplog, damage):
    whole = run(data, tmp_path / "run", SETTINGS)
    newest = tmp_path / "run/checkpoints/step-0000006.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    found = run(data, tmp_path / "run", SETTINGS)
    assert "step-0000006.pt: damaged" in caplog.text
    assert (newest.parent / "damaged.pt").exists()
    assert checkpoints(tmp_path / "run") == ["step-0000004.pt", "step-0000006.pt"]
    for name, value in whole.items():
        assert torch.equal(value, found[name]), name
    steps = [record["step"] for record in read_metrics(newest.parent)]
    assert steps == list(range(1, 7))


def test_a_full_disk_keeps_the_checkpoint_before(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole", SETTINGS)
    save = torch.save

    def full(state, file):
        """With a limit of the size of files, which fails in the middle as a full disk does."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = 3_000_000 if state["done"] == 4 else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            save(state, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="step-0000004.pt: File too large; .*; the checkpoints"):
            run(data, tmp_path / "run", SETTINGS)
    folder = tmp_path / "run/checkpoints"
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["metrics.jsonl", "step-0000002.pt"]
    found = run(data, tmp_path / "run", SETTINGS)
    for name, value in whole.items():
        assert torch.equal(value, found[name]), name


def test_what_can_be_read_is_put_aside_not_what_is_damaged(data, tmp_path):
    run(data, tmp_path / "run", SETTINGS)
    folder = tmp_path / "run/checkpoints"
    (folder / "step-0000006.pt").write_bytes(b"damaged")
    run(data, tmp_path / "run", SETTINGS.model_copy(update={"seed": 1}))
    assert torch.load(folder / "previous-step-0000004.pt", weights_only=True)["done"] == 4


def test_damaged_checkpoints_alone_are_named(data, tmp_path):
    run(data, tmp_path / "run", SETTINGS)
    for path in (tmp_path / "run/checkpoints").glob("step-*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step-0000004.pt: damaged.*; .*move .*/step-\*.pt away"):
        run(data, tmp_path / "run", SETTINGS)
    assert checkpoints(tmp_path / "run") == ["step-0000004.pt", "step-0000006.pt"]


def test_sigterm_to_the_whole_job_saves_and_leaves(data, tmp_path):
    """As a scheduler does it: the shell, the step and the log's tee get the signal together."""
    root = Path(train.__file__).parents[1]
    rules = (root / "rules" / "common.smk").read_text()
    pipe = re.search(r"2>&1 \|.*\{log:q\}\)", rules)[0].replace("{log:q}", "log.txt")
    command = shlex.join(_command(data, Path("run"), 100_000))
    process = _start(
        ["bash", "-c", f"set -euo pipefail; {command} {pipe}"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=None,
    )  # fmt: skip
    metrics = tmp_path / "run" / "checkpoints" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    # Bash goes at once, the step finishes what it does.
    while not checkpoints(tmp_path / "run") or metrics.with_name("lock.json").exists():
        assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
        time.sleep(0.1)
    saved = torch.load(metrics.with_name(checkpoints(tmp_path / "run")[-1]), weights_only=True)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert saved["done"] == steps[-1]
    assert "SIGTERM: saving a checkpoint" in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_epoch_shows_every_image_once(data):
    with open_h5(data["crops"]) as file:
        labels = read_labels(data["poses"], data["crops"])
        source = Batches(file["images"], labels, SETTINGS)
        batches = [source.batch(step) for step in range(6)]
        pixels = np.concatenate([images.numpy() for images, _ in batches]).reshape(24, -1)
        for epoch in (pixels[:12], pixels[12:]):
            assert len(np.unique(epoch, axis=0)) == IMAGES
        assert not np.array_equal(pixels[:12], pixels[12:])
        again = source.batch(1)
        assert torch.equal(again[0], batches[1][0]) and torch.equal(again[1], batches[1][1])
        copied = torch.from_numpy(file["images"][:])
        same = Batches(file["images"], labels, SETTINGS, copied).batch(1)
        assert torch.equal(same[0], batches[1][0]) and torch.equal(same[1], batches[1][1])


def test_images_are_copied_to_an_accelerator_where_they_fit(monkeypatch):
    images = np.zeros((10, SIZE, SIZE, 3), np.uint8)
    assert copy_images(images, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * images.nbytes, 0))
    assert copy_images(images, torch.device("cuda")) is None


def test_batches_may_be_larger_than_the_data(data):
    with open_h5(data["crops"]) as file:
        labels = read_labels(data["poses"], data["crops"])
        big = SETTINGS.model_copy(update={"batch_size": 31})
        images, poses = Batches(file["images"], labels, big).batch(2)
    assert images.shape == (31, 3, SIZE, SIZE) and len(poses) == 31


def test_ema_weights_are_the_literal_average(data):
    config = UNetConfig(SIZE, POSES, (32,), blocks=1, attention_below=4, stem=4)
    trainer = Trainer(config, SETTINGS, ALONE)
    expected = [p.detach().clone() for p in trainer.model.parameters()]
    for number in range(4):
        trainer.step(torch.rand(4, 3, SIZE, SIZE), torch.arange(4))
        decay = min(SETTINGS.ema, (1 + number) / (10 + number))
        for mean, now in zip(expected, trainer.model.parameters(), strict=True):
            mean.mul_(decay).add_(now.detach(), alpha=1 - decay)
    for mean, found in zip(expected, trainer.ema.parameters(), strict=True):
        torch.testing.assert_close(found, mean)


def test_a_few_steps_on_one_batch_lower_its_loss(data):
    """The gradient reaches the weights."""
    config = UNetConfig(SIZE, POSES, (32,), blocks=1, attention_below=4, stem=4)
    settings = SETTINGS.model_copy(
        update={"iterations": 1000, "dropout": 0.0, "learning_rate": 3e-3, "batch_size": 16}
    )
    trainer = Trainer(config, settings, ALONE)
    images, poses = torch.zeros(16, 3, SIZE, SIZE), torch.zeros(16, dtype=torch.long)
    losses = [trainer.step(images, poses)[0].item() for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_untrained_model_is_what_training_started_from(data, tmp_path):
    run(data, tmp_path / "run", SETTINGS)
    untrained = load_model(tmp_path / "run", torch.device("cpu"), untrained=True)
    start = build(untrained.config, SETTINGS.seed)
    trained = load_model(tmp_path / "run", torch.device("cpu"))
    for name, value in start.state_dict().items():
        assert torch.equal(value, untrained.state_dict()[name]), name
    assert not torch.equal(trained.conv_in.weight, untrained.conv_in.weight)


def test_images_of_128_pixels_are_trained_and_shown_in_all_poses(tmp_path, monkeypatch):
    """By the preset small itself."""
    monkeypatch.setattr(train, "preset", preset)
    monkeypatch.setattr(train, "_SAMPLE_STEPS", 1)
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), np.uint8)
    with create_h5(tmp_path / "crops.h5") as file:
        file["images"] = images
        write_names(file, list("abcd"))
    rows = [(name, pose, 0.5, 0) for pose, name in enumerate("abcd")]
    write_csv(tmp_path / "poses.csv", ("image", "pose", "distance", "category"), rows)
    write_json(tmp_path / "poses.json", {"k": POSES, "categories": 1, "images": [1] * POSES})
    files = {"crops": tmp_path / "crops.h5", "poses": tmp_path / "poses.csv"}
    sizes = {"image_size": 128, "iterations": 1, "batch_size": 2, "checkpoint_every": 1}
    run(files, tmp_path / "training", SETTINGS.model_copy(update=sizes))
    model = load_model(tmp_path / "training", torch.device("cpu"))
    views = Views(steps=2, solver="dpm-solver++", precision="float32")
    shown = crop_views(model, images[0], 0, views, Guidance(), NovelViews())
    np.testing.assert_array_equal(shown.views[0], images[0])
    strip = tiles.contact_sheet(shown.views[None], [0], shown.poses, "a photo")
    assert strip.width == POSES * 130 + 2


def test_crops_of_another_size_are_refused(data, tmp_path):
    other = SETTINGS.model_copy(update={"image_size": 64})
    with pytest.raises(UserError, match="training.image_size is 64"):
        run(data, tmp_path / "run", other)


def test_damaged_model_is_named(data, tmp_path):
    with pytest.raises(UserError, match="run the training step first"):
        load_model(tmp_path, torch.device("cpu"))
    run(data, tmp_path / "run", SETTINGS)
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="not a trained model"):
        load_model(tmp_path / "run", torch.device("cpu"))


def test_a_model_with_tensors_of_other_names_is_refused(data, tmp_path):
    weights = run(data, tmp_path / "run", SETTINGS)
    weights["down.0.block.norm1.weight"] = weights.pop("encoder.8x8_block0.norm1.weight")
    arrays = {name: value.numpy() for name, value in weights.items()}
    text = (tmp_path / "run/config.json").read_text()
    write_tensors(tmp_path / "run/model.safetensors", arrays, text)
    with pytest.raises(UserError, match="run: made by another version; .*--forcerun train"):
        load_model(tmp_path / "run", torch.device("cpu"))


def test_a_model_is_used_with_its_own_configuration_alone(data, tmp_path):
    """Whatever is changed in it: some values would be believed, others end in the library."""
    weights = run(data, tmp_path / "run", SETTINGS)
    path = tmp_path / "run/config.json"
    whole = path.read_text()
    for old, new in (
        ('"velocity"', '"vdlocity"'), ('"dropout": 0.', '"dropout": 1.'),
        ('"categories": 1', '"categories": 0'), ('"image_size": 32', '"image_size": 65'),
        ('"seed": 0', '"seed": 4'), ('"stem": 4', '"stem": 0'), ("{", "["), ("\n", ""),
    ):  # fmt: skip
        assert old in whole
        path.write_text(whole.replace(old, new))
        for untrained in (False, True):
            with pytest.raises(UserError, match=r"config.json: is not that of .*--forcerun train"):
                load_model(tmp_path / "run", torch.device("cpu"), untrained)
    path.write_text(whole)
    save_file(weights, tmp_path / "run/model.safetensors")
    with pytest.raises(UserError, match="it has no checksum, so an earlier version wrote it"):
        load_model(tmp_path / "run", torch.device("cpu"))


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_every_parameter_has_one_optimizer(optimizer):
    model = build(preset("small", SIZE, POSES, 0.0), 0)
    found = []
    for each in make_optimizers(model, optimizer, 1e-3):
        owned = [p for group in each.param_groups for p in group["params"]]
        found += getattr(each, "kernels", owned)
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_step_like_their_matrices(layout):
    """Against torch's Muon on plain matrices, the literal reading of the docstring."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 4, 3, 3, generator=generator)
    kernel = torch.nn.Parameter(start.clone(memory_format=layout))
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    ours = KernelMuon([kernel], 0.01)
    literal = torch.optim.Muon(
        [matrix], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", ns_steps=3
    )
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3, generator=generator)
        kernel.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
        ours.step()
        literal.step()
        ours.zero_grad()
        assert kernel.grad is None
    assert not torch.equal(kernel, start)
    # torch's works in bfloat16.
    torch.testing.assert_close(kernel.flatten(1), matrix, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16), (3, 1)])
def test_a_matrix_is_orthogonalized_by_the_literal_iteration(shape):
    """On the matrix itself in float64; with five iterations all singular values come near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    literal = matrix.double() / matrix.double().norm()
    for _ in range(3):
        gram = literal @ literal.T
        literal = a * literal + b * gram @ literal + c * gram @ gram @ literal
    found = orthogonalize(matrix, 3)
    torch.testing.assert_close(found.double(), literal, rtol=1e-4, atol=1e-5)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(12, 60), 5))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_kernel_that_muon_could_not_change_is_refused():
    """A matrix that is a copy would be trained in the kernel's place, and nobody would notice."""
    kernel = torch.nn.Parameter(torch.randn(4, 6, 3, 3).transpose(0, 1))
    with pytest.raises(ValueError, match="neither contiguous nor channels_last"):
        KernelMuon([kernel], 0.01)


def test_training_starts_from_pretrained_weights(data, tmp_path):
    """With a rate of almost nothing they stay; the content of the file belongs to the run."""
    first = run(data, tmp_path / "first", SETTINGS)
    path = tmp_path / "first/model.safetensors"
    still = {"pretrained": str(path), "learning_rate": 1e-12, "optimizer": "adam", "iterations": 2}
    settings = SETTINGS.model_copy(update=still)
    second = run(data, tmp_path / "second", settings)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-6)
    before = train._fingerprint(settings, **data)
    run(data, tmp_path / "first", SETTINGS.model_copy(update={"iterations": 1, "seed": 5}))
    assert train._fingerprint(settings, **data) != before


def test_pretrained_weights_for_other_poses_come_without_their_embeddings(data, tmp_path):
    other = build(tiny("small", SIZE, POSES + 1, 0.1), 7)
    save_model(tmp_path / "other", other, {"seed": 7})
    path = tmp_path / "other/model.safetensors"
    still = {"pretrained": str(path), "learning_rate": 1e-12, "optimizer": "adam", "iterations": 1}
    found = run(data, tmp_path, SETTINGS.model_copy(update=still))
    own = build(tiny("small", SIZE, POSES, 0.1), SETTINGS.seed).state_dict()
    embeddings = "pose_embedding.weight"
    for key, value in {**other.state_dict(), embeddings: own[embeddings]}.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


def test_pretrained_weights_of_another_shape_are_refused(data, tmp_path):
    config = replace(tiny("small", SIZE, POSES, 0.1), embedding=48)
    save_model(tmp_path / "other", build(config, 0), {"seed": 0})
    path = tmp_path / "other/model.safetensors"
    with pytest.raises(UserError, match="embedding 48 in place of"):
        run(data, tmp_path, SETTINGS.model_copy(update={"pretrained": str(path)}))
    with pytest.raises(UserError, match=r"training\.pretrained .*: no such file"):
        run(data, tmp_path, SETTINGS.model_copy(update={"pretrained": str(tmp_path / "none")}))
