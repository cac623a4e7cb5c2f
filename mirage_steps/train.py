"""Train the pose-conditioned diffusion model (paper, section 3.2 and appendix A).

Writes ``model.safetensors`` (the EMA weights), ``config.json`` and ``loss.png`` into the output
folder. Files that must survive a failed job are in ``--checkpoints``: the newest two checkpoints,
``metrics.jsonl`` with losses and scores of views, its plot ``loss.png``, and sample grids. An
interrupted run resumes from there with the same result, on the CPU bit for bit; changed settings or
data restart it. A lock with a heartbeat keeps a second training out of the folder.

With ``--processes`` several processes train together, one per GPU; torchrun starts them. The batch
is divided among them.
"""

import contextlib
import gc
import hashlib
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mirage_steps import settings
from mirage_steps.errors import UserError, rerun
from mirage_steps.files import plots, tiles
from mirage_steps.files.atomic import atomic, located, write_json
from mirage_steps.files.checkpoints import Checkpoints, load_checkpoint
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.lock import Lock
from mirage_steps.files.records import BUDGET, read_json, read_metrics
from mirage_steps.files.tables import read_labels, read_pose_counts
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import autocast, choose_threads, compile_advice, memory_advice
from mirage_steps.method.diffusion import ddim_timesteps, keyed_noise, to_pixels
from mirage_steps.method.multiview import sample_single
from mirage_steps.method.processes import Processes, launch, launched
from mirage_steps.method.training import Batches, Trainer, copy_images, seconds_per_step, train
from mirage_steps.method.unet import UNetConfig, preset
from mirage_steps.networks.diffusion_model import load_model, save_model
from mirage_steps.networks.fetching import pretrained
from mirage_steps.training_scores import TrainingScores

# Raised by hand when a change invalidates old checkpoints or models; other edits must not cost days
# of training.
VERSION = 7

# Exit code at the time limit of a job: retry (EX_TEMPFAIL of sysexits.h).
TIME_IS_UP = 75

_TRAINING = 0.95  # share of the hours; the rest is for checkpoints, samples and scores
_SAMPLE_STEPS = 25
_STARTED = time.monotonic()


def main(
    *,
    crops: Path,
    poses: Path,
    out: Path,
    checkpoints: Path,
    estimator: Path | None = None,
    training: settings.Training = settings.Training(),
    runtime: float = 0,
    device: str = "auto",
) -> None:
    """Train the pose-conditioned diffusion model.

    Args:
        crops: crops.h5.
        poses: poses.csv.
        out: Folder for model.safetensors, config.json and loss.png.
        checkpoints: Folder for the checkpoints, metrics.jsonl and sample grids.
        estimator: The run's pose_estimator.safetensors, to score views while training.
        training: The network and its training.
        runtime: Minutes that a scheduler gives the job, 0 for no limit; before they are over the
            training saves and ends with exit code 75, to be called again.
        device: auto, cpu or cuda.
    """
    _require_batch(training)
    labels = read_labels(poses, crops)
    k, categories = read_pose_counts(poses)
    _require_images(labels, k, poses)
    config = preset(training.preset, training.image_size, k, training.dropout, categories)
    with contextlib.ExitStack() as stack:
        images = stack.enter_context(open_h5(crops, "images"))["images"]
        _require_size(images.shape[1], training, crops)
        if training.processes > 1 and not launched():
            raise SystemExit(launch(training.processes, device))
        processes = stack.enter_context(Processes.joined(device))
        if processes.count != training.processes:
            raise UserError(
                f"training.processes {training.processes}, but torchrun started {processes.count}; "
                "run this command without torchrun, it starts torchrun itself"
            )
        remedy = "raise it, which splits the batch into smaller micro-batches"
        stack.enter_context(memory_advice("training.accumulation", training.accumulation, remedy))
        if training.compile:
            stack.enter_context(compile_advice("training.compile"))
            if processes.first:
                log.info("training.compile: compiling at the first step, which takes minutes")
        lock = stack.enter_context(Lock(checkpoints, "training")) if processes.first else None
        batches = Batches(images, labels, training, copy_images(images, processes.device))
        if training.hours != "none":
            training = _within_hours(config, training, processes, batches, checkpoints)
        trainer = Trainer(config, training, processes)
        store = Checkpoints(checkpoints, _fingerprint(training, crops, poses))
        if not _resume(trainer, store):
            _start_from_pretrained(trainer)
            _use_threads(trainer, batches)
        if training.compile:
            trainer.compile()
        scores = _scores(trainer, estimator, crops, poses, device)
        hooks = Outputs(trainer, store, lock, 60 * runtime, scores)
        stack.enter_context(hooks.bar)
        if processes.first:
            hooks.sample_if_missing()
        if not train(trainer, batches, hooks):
            raise SystemExit(hooks.exit_code)
        if processes.first:
            lock.require()
            _save(trainer, out)
            plots.loss_curve(out / "loss.png", read_metrics(checkpoints))


class Outputs:
    """The hooks of the loop: metrics, checkpoints, samples, a progress bar, and when to stop.

    Args:
        trainer, store, lock: those of the training; no lock in all processes but the first.
        seconds: of the job since the start of the process, 0 for no limit. A twentieth, but at
            least half a minute and at most ten, is left for saving and for what comes after.
        scores: of the views, whenever samples are written.
    """

    def __init__(
        self,
        trainer: Trainer,
        store: Checkpoints,
        lock: Lock | None,
        seconds: float,
        scores: Callable[[], dict[str, float]] | None = None,
    ):
        self.trainer, self.store, self.lock, self.scores = trainer, store, lock, scores
        self.bar = progress(
            total=trainer.training.iterations, initial=trainer.done, unit="step",
            disable=not trainer.processes.first,
        )  # fmt: skip
        self.exit_code, self._stop = 143, False
        self._limit = seconds - min(max(seconds / 20, 30), 600) if seconds else math.inf
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: object) -> None:
        self._stop = True
        log.warning("%s: saving a checkpoint and exiting", signal.Signals(number).name)

    def stop_requested(self) -> bool:
        """Whether to save and exit with :attr:`exit_code`: on a signal or at the time limit."""
        if not self._stop and time.monotonic() - _STARTED > self._limit:
            self._stop, self.exit_code = True, TIME_IS_UP
            log.warning("time limit: saving a checkpoint and exiting")
        return self._stop

    def log(self, record: dict[str, float]) -> None:
        """Append a line to ``metrics.jsonl``."""
        path = self.store.folder / "metrics.jsonl"
        with located(path), open(path, "a") as file:
            print(json.dumps({**record, "time": round(time.time(), 1)}), file=file)
        if "loss" in record:
            self.bar.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)

    def save(self) -> None:
        """Write a checkpoint, if the folder is still this process's."""
        self.lock.require()
        self.store.save(self.trainer.state())

    def stepped(self) -> None:
        """Move the progress bar, whose pipe may be gone when a scheduler ends the job."""
        self.bar.update()

    @property
    def grid(self) -> Path:
        """The sample grid of this step."""
        return self.store.folder / "samples" / f"{self.trainer.done:07d}.png"

    def sample_if_missing(self) -> None:
        """Sample where a training was stopped after the checkpoint of this step."""
        done, training = self.trainer.done, self.trainer.training
        due = done and (done == training.iterations or done % training.sample_every == 0)
        if due and not self.grid.exists():
            self.sample()

    def sample(self) -> None:
        """Write a grid with one noise a row and all poses in columns, and score views.

        From the EMA weights. ``loss.png`` beside them shows losses and scores so far.
        """
        config, device = self.trainer.config, self.trainer.device
        shape, seed = (3, config.image_size, config.image_size), self.trainer.training.seed
        noise = keyed_noise(seed, [0, 1, 2], shape).to(device).repeat_interleave(config.poses, 0)
        poses = torch.arange(config.poses, device=device).repeat(3)
        with autocast(device, self.trainer.training.precision):
            images = sample_single(self.trainer.ema, noise, poses, ddim_timesteps(_SAMPLE_STEPS))
        found = self._scored()
        # Samples that are not finite do not end the training; a loss does. The grid is written
        # after the scores, so if it exists, this step has been scored.
        grid = tiles.tile(to_pixels(images.nan_to_num()), columns=config.poses)
        tiles.save_image(self.grid, grid)
        if found:
            self.log({"step": self.trainer.done, **found})
            log.info("scores %s", ", ".join(f"{key} {value:g}" for key, value in found.items()))
        plots.loss_curve(self.store.folder / "loss.png", read_metrics(self.store.folder))

    def _scored(self) -> dict[str, float]:
        """Scores of views; empty where there are none."""
        try:
            return self.scores() if self.scores else {}
        except UserError as error:  # views that are not finite end no training either
            log.warning("no scores at step %d: %s", self.trainer.done, error)
            return {}


def _fingerprint(training: settings.Training, crops: Path, poses: Path) -> dict:
    """Settings and hashes of the data that a checkpoint must have been made with to be resumed."""
    # `hours` has been converted to `iterations`.
    made_with = training.model_dump(
        mode="json", exclude={"hours", "pretrained", *training.untracked}
    )
    if training.schedule == "constant":
        made_with.pop("iterations")  # a longer run begins as the shorter one
    files = {"crops": crops, "poses": poses}
    if training.pretrained != "none":
        files["pretrained"] = pretrained(training.pretrained)
    for name, path in files.items():
        with open(path, "rb") as content:
            made_with[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return {"version": VERSION, **made_with}


def _start_from_pretrained(trainer: Trainer) -> None:
    """Load the weights that ``training.pretrained`` names, if any, before the first step."""
    if trainer.training.pretrained == "none":
        return
    path = pretrained(trainer.training.pretrained)
    model, ours = load_model(path.parent, trainer.device), asdict(trainer.config)
    theirs = asdict(model.config)
    free = ("dropout", "poses", "categories")
    wrong = [key for key in ours if key not in free and _listed(ours[key]) != _listed(theirs[key])]
    if wrong:
        differences = ", ".join(f"{key} {theirs[key]} in place of {ours[key]}" for key in wrong)
        raise UserError(
            f"training.pretrained {path}: has {differences}; it needs the preset and the image "
            "size of this run"
        )
    trainer.start_from(model)
    if trainer.processes.first:
        other = model.config.poses != trainer.config.poses
        without = " except the pose embeddings" if other else ""
        log.info("starting from the weights of %s%s", path, without)


def _listed(value: object) -> object:
    """A tuple as the list that it becomes in JSON."""
    return list(value) if isinstance(value, tuple) else value


def _require_batch(training: settings.Training) -> None:
    """Refuse a batch of which some process or micro-batch would get no image."""
    if training.batch_size < training.processes * training.accumulation:
        raise UserError(
            f"training.batch_size {training.batch_size}: too small for {training.processes} "
            f"processes with {training.accumulation} micro-batches each"
        )


def _require_size(side: int, training: settings.Training, crops: Path) -> None:
    """Refuse crops of another size than the network's images."""
    if side != training.image_size:
        raise UserError(
            f"{crops}: crops are {side} pixels wide, training.image_size is "
            f"{training.image_size}; {rerun('crops')}"
        )


def _require_images(labels: np.ndarray, k: int, poses: Path) -> None:
    """Refuse poses without images: the model would be asked for what it never saw."""
    if (found := np.unique(labels)).tolist() != list(range(k)):
        raise UserError(
            f"{poses}: has images in {len(found)} of {k} poses, and the model would never see the "
            "others; lower poses.k"
        )


def _scores(
    trainer: Trainer, estimator: Path | None, crops: Path, poses: Path, device: str
) -> TrainingScores | None:
    """What scores views while training, in the first process and where it is asked for."""
    objects = trainer.training.scored_objects
    if not (estimator and objects and trainer.processes.first):
        return None
    with memory_advice("training.scored_objects", objects, "set it to 0"):
        return TrainingScores(trainer.ema, estimator, crops, poses, trainer.training, device)


def _save(trainer: Trainer, out: Path) -> None:
    """Write the EMA network, with what its weights depend on."""
    training = trainer.training
    about = {"seed": training.seed, "iterations": training.iterations}
    if trainer.device.type == "cpu":
        about["threads"] = torch.get_num_threads()
    save_model(out, trainer.ema, {**about, "parameters": trainer.parameters})


def _within_hours(
    config: UNetConfig,
    training: settings.Training,
    processes: Processes,
    batches: Batches,
    checkpoints: Path,
) -> settings.Training:
    """The settings with the iterations that ``training.hours`` allows.

    Measured when a training with these settings first starts and kept in ``budget.json``: the
    learning rate follows from their number, so a resumed run must have the same on any machine.
    """
    hours, path, iterations = float(training.hours), checkpoints / BUDGET, 0
    measured_with = training.model_dump(
        mode="json", exclude={"hours", "iterations", *training.untracked}
    )
    about: dict[str, object] = {"hours": hours, "poses": config.poses, "settings": measured_with}
    if processes.first and about.items() <= (kept := read_json(path)).items():
        iterations = kept.get("iterations", 0)
    iterations = processes.largest(iterations)
    if not iterations:
        trial = Trainer(config, training, processes)
        _use_threads(trial, batches)
        if training.compile:
            trial.compile()
        microseconds = processes.largest(round(1e6 * seconds_per_step(trial, batches)))
        del trial
        gc.collect()  # a compiled network refers to itself
        iterations = max(1, int(_TRAINING * hours * 3600e6 / microseconds))
        if processes.first:
            found = {"iterations": iterations, "step_seconds": microseconds / 1e6}
            write_json(path, about | found)
    if processes.first:
        log.info("training.hours %g: %d steps, kept in %s", hours, iterations, path)
    return training.model_copy(update={"iterations": iterations})


def _use_threads(trainer: Trainer, batches: Batches) -> None:
    """Train with fewer threads of the CPU where other processes keep some of them waiting."""
    if trainer.device.type != "cpu" or trainer.processes.count > 1:
        return
    most, batch = torch.get_num_threads(), batches.batch(0)
    chosen = choose_threads(lambda: trainer.rehearse(*batch))
    if chosen < most:
        log.info(
            "using %d of %d threads, which is faster while other processes use the CPU",
            chosen, most,
        )  # fmt: skip


def _resume(trainer: Trainer, store: Checkpoints) -> int:
    """Continue from the newest checkpoint, all processes from the same; gives the steps done."""
    processes, training, state = trainer.processes, trainer.training, None
    if processes.first:
        state = store.newest(training.iterations)
    done = processes.largest(state["done"] if state else 0)
    if done:
        trainer.restore(state or load_checkpoint(store.path(done)))
    if processes.first:
        records = [r for r in read_metrics(store.folder) if r["step"] <= done]
        with atomic(store.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        where = processes.device if processes.count == 1 else f"{processes.count} processes"
        log.info(
            "%s U-Net, %.1f M parameters, %d poses, on %s",
            training.preset, trainer.parameters / 1e6, trainer.config.poses, where,
        )  # fmt: skip
        if done:
            log.info("resuming after step %d", done)
    return done


if __name__ == "__main__":
    run(main)
