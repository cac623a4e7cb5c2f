"""Step 6: train the pose-conditioned diffusion model (paper, section 3.2 and appendix A).

Writes ``model.safetensors`` (the averaged weights), ``config.json`` and ``loss.png`` into the
output folder. What must survive a failed job lives in a folder of its own, ``--checkpoints``: the
newest two checkpoints, ``metrics.jsonl`` and sample grids while it runs. A run that was stopped
goes on from there, to the bit as if it had not been; settings or data that changed since start it
anew. A lock with a heartbeat keeps a second training out of the folder.

Under torchrun several processes train together, each on a GPU of its own:
``torchrun --nproc-per-node 4 -m mirage_steps.train ...``. The batch is divided among them.
"""

import contextlib
import hashlib
import json
import math
import signal
import time
from pathlib import Path
from typing import TextIO

import h5py
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import plots as pictures
from mirage_steps.files import tiles
from mirage_steps.files.atomic import atomic, write_json
from mirage_steps.files.checkpoints import Checkpoints
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.lock import Lock
from mirage_steps.files.tables import read_labels, read_pose_counts
from mirage_steps.method import diffusion
from mirage_steps.method.device import autocast
from mirage_steps.method.multiview import sample_single
from mirage_steps.method.processes import Processes
from mirage_steps.method.training import Trainer
from mirage_steps.method.unet import preset

# Raised by hand when a change makes old checkpoints or models wrong; an edit that does not, such
# as a reformatting, must never cost days of training.
VERSION = 3

# Exit code where the time is up: to be tried again (EX_TEMPFAIL of sysexits.h).
TIME_IS_UP = 75

_SAMPLE_STEPS = 25
_STARTED = time.monotonic()


def main(
    *,
    crops: Path,
    poses: Path,
    out: Path,
    checkpoints: Path,
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
        training: The network and its training.
        runtime: Minutes that a scheduler gives the job, 0 for no limit; before they are over the
            training saves and ends with exit code 75, to be called again.
        device: auto, cpu or cuda.
    """
    if training.batch_size < training.processes * training.accumulation:
        raise UserError(
            f"training.batch_size {training.batch_size}: too small for {training.processes} "
            f"processes with {training.accumulation} parts each"
        )
    labels = read_labels(poses, crops)
    k, categories = read_pose_counts(poses)
    config = preset(training.preset, training.image_size, k, training.dropout, categories)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_h5(crops, "images"))
        if file["images"].shape[1] != training.image_size:
            raise UserError(
                f"{crops}: crops are {file['images'].shape[1]} pixels wide, training.image_size "
                f"is {training.image_size}; rerun the crops step"
            )
        processes = stack.enter_context(Processes.joined(device))
        if processes.count != training.processes:
            raise UserError(
                f"training.processes {training.processes}, but {processes.count} run; start them "
                f"by torchrun --nproc-per-node {training.processes} -m mirage_steps.train"
            )
        lock = stack.enter_context(Lock(checkpoints, "training")) if processes.first else None
        trainer = Trainer(config, training, processes)
        if processes.first:
            log.info(
                "%s U-Net, %.1f M parameters, %d images, %d poses, on %s",
                training.preset, trainer.parameters / 1e6, len(labels), config.poses,
                processes.device if processes.count == 1 else f"{processes.count} processes",
            )  # fmt: skip
        data = Data(file["images"], labels, training)
        made_with = {**_fingerprint(training), **_identity(crops, poses)}
        store = Checkpoints(checkpoints, made_with)
        _resume(trainer, store)
        _train(trainer, data, store, Stop(runtime), lock)
        if processes.first:
            lock.require()
            _write_model(trainer, out)
            pictures.loss_curve(out / "loss.png", read_metrics(checkpoints))


class Data:
    """Batches of images and poses that depend on the seed and the step alone.

    Args:
        images: (n, S, S, 3) uint8 in HDF5.
        labels: (n,) poses.
        training: batch size and seed.
    """

    def __init__(self, images: h5py.Dataset, labels: np.ndarray, training: settings.Training):
        self.images, self.labels, self.training = images, labels, training
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """A share of the batch of a step; every epoch has a new order.

        Returns:
            Images (b, 3, S, S) in [-1, 1] and poses (b,).
        """
        size, count = self.training.batch_size, len(self.labels)
        places = range(step * size, (step + 1) * size)[share]
        epochs = {place // count for place in places}
        self._orders = {
            epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch)
            for epoch in epochs
        }
        chosen = [int(self._orders[place // count][place % count]) for place in places]
        # HDF5 reads one chunk an image; its fancy indexing would be slower and wants sorted rows.
        pixels = np.stack([self.images[index] for index in chosen])
        return diffusion.from_pixels(pixels), torch.from_numpy(self.labels[chosen])

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.training.seed, epoch]).permutation(len(self.labels))


def _train(
    trainer: Trainer, data: Data, store: Checkpoints, stop: "Stop", lock: Lock | None
) -> None:
    """The loop: step, record, sample, checkpoint; all but the steps in the first process alone."""
    training, processes, recent = trainer.training, trainer.processes, []
    store.folder.mkdir(parents=True, exist_ok=True)
    with (
        open(store.folder / "metrics.jsonl", "a") as metrics,
        tqdm(
            total=training.iterations, initial=trainer.done, unit="step", mininterval=5.0,
            disable=not processes.first,
        ) as bar,
    ):  # fmt: skip
        while trainer.done < training.iterations:
            recent.append(trainer.step(*data.batch(trainer.done, trainer.share)))
            last = trainer.done == training.iterations
            leave = processes.any(stop.asked) and not last
            save = last or leave or trainer.done % training.checkpoint_every == 0
            # What is saved was looked at before: numbers gone bad would be resumed for ever.
            if save or trainer.done % training.log_every == 0:
                # Only here the figures leave the device, and the step waits for them.
                means = torch.stack(recent).mean(0).cpu()
                loss, norm = processes.total(means[:1]).item(), means[1].item()
                if not math.isfinite(loss + norm):
                    raise UserError(
                        f"the loss is not finite at step {trainer.done}; the last checkpoint is "
                        "kept: try precision: float32 or a lower learning_rate"
                    )
                if processes.first:
                    rate = trainer.optimizers[0].param_groups[0]["lr"]
                    _record(metrics, trainer.done, loss, norm, rate)
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                recent.clear()
            # Before the progress bar, whose pipe may be gone when a scheduler ends the job.
            if save and processes.first:
                lock.require()
                store.save(trainer.state())
            bar.update()
            if leave:
                # Together: torchrun would end the one that still saves once another has left.
                processes.any(False)
                raise SystemExit(stop.code)
            if processes.first and (last or trainer.done % training.sample_every == 0):
                _sample(trainer, store.folder)


def _record(metrics: TextIO, step: int, loss: float, norm: float, rate: float) -> None:
    """Write a line of ``metrics.jsonl``."""
    record = {"step": step, "loss": loss, "gradient_norm": norm, "learning_rate": rate}
    print(json.dumps({**record, "time": round(time.time(), 1)}), file=metrics, flush=True)


class Stop:
    """Notices SIGTERM, Ctrl-C and the end of the time, and lets the step in hand finish.

    Args:
        runtime: minutes since the start of the process, 0 for no limit. Of these a twentieth, but
            at least half a minute and at most ten, is left for saving and for what comes after.
    """

    def __init__(self, runtime: float):
        self.code, self._asked = 143, False
        seconds = 60 * runtime
        self._limit = seconds - min(max(seconds / 20, 30), 600) if runtime else math.inf
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @property
    def asked(self) -> bool:
        """Whether to save and leave, with exit code :attr:`code`."""
        if not self._asked and time.monotonic() - _STARTED > self._limit:
            self._asked, self.code = True, TIME_IS_UP
            log.warning("the time is nearly over: saving a checkpoint, then leaving")
        return self._asked

    def _ask(self, number: int, _: object) -> None:
        self._asked = True
        log.warning("%s: saving a checkpoint, then leaving", signal.Signals(number).name)


def _identity(crops: Path, poses: Path) -> dict[str, str]:
    """Hashes of what is trained on."""
    found = {}
    for name, path in (("crops", crops), ("poses", poses)):
        with open(path, "rb") as content:
            found[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def _fingerprint(training: settings.Training) -> dict:
    """Settings that a checkpoint must have been made with to be gone on from."""
    kept = training.model_dump(mode="json", exclude=set(training.untracked))
    if training.schedule == "constant":
        kept.pop("iterations")  # a longer run begins as the shorter one
    return {"version": VERSION, **kept}


def _resume(trainer: Trainer, store: Checkpoints) -> None:
    """Go on from the newest checkpoint, all processes from the same."""
    processes, state = trainer.processes, None
    if processes.first:
        state = store.newest(trainer.training.iterations)
    done = processes.largest(state["done"] if state else 0)
    if done:
        trainer.restore(state or store.load(done))
    if processes.first:
        records = [r for r in read_metrics(store.folder) if done and r["step"] <= done]
        with atomic(store.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        if done:
            log.info("resuming after step %d", done)


def read_metrics(folder: Path) -> list[dict]:
    """Records of ``metrics.jsonl``; a line cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _sample(trainer: Trainer, folder: Path) -> None:
    """A grid with one noise a row and all poses in columns, from the averaged weights."""
    poses = trainer.config.poses
    shape = (3, trainer.config.image_size, trainer.config.image_size)
    noise = diffusion.keyed_noise(trainer.training.seed, [0, 1, 2], shape).to(trainer.device)
    with autocast(trainer.device, trainer.training.precision):
        images = sample_single(
            trainer.ema,
            noise.repeat_interleave(poses, 0),
            torch.arange(poses, device=trainer.device).repeat(3),
            _SAMPLE_STEPS,
        )
    grid = diffusion.to_pixels(images)
    tiles.grid(folder / "samples" / f"{trainer.done:07d}.png", grid, columns=poses)


def _write_model(trainer: Trainer, out: Path) -> None:
    weights = {key: value.contiguous() for key, value in trainer.ema.state_dict().items()}
    write_json(
        out / "config.json",
        {
            "unet": trainer.config.as_dict(),
            "seed": trainer.training.seed,
            "iterations": trainer.training.iterations,
            "parameters": trainer.parameters,
        },
    )
    try:
        with atomic(out / "model.safetensors") as path:
            save_file(weights, path)
    except SafetensorError as error:
        raise UserError(
            f"{out / 'model.safetensors'}: {error}; the checkpoint is kept: run again"
        ) from None


if __name__ == "__main__":
    run(main)
