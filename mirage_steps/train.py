"""Step 6: train the pose-conditioned diffusion model (paper, section 3.2 and appendix A).

Writes ``model.safetensors`` (the averaged weights), ``config.json`` and ``loss.png`` into the
output folder. What must survive a failed job lives in a folder of its own, ``--checkpoints``: the
newest checkpoint, ``metrics.jsonl`` and sample grids while it runs. A run that was stopped goes on
from there; settings or data that changed since start it anew.
"""

import copy
import hashlib
import json
import math
import signal
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.core import diffusion
from mirage_steps.core.multiview import sample_single
from mirage_steps.core.optimizers import optimizers
from mirage_steps.core.unet import UNetConfig, build, preset
from mirage_steps.support import pictures, tiles
from mirage_steps.support.device import autocast, choose_device
from mirage_steps.support.errors import UserError
from mirage_steps.support.files import atomic, write_json
from mirage_steps.support.h5 import open_h5
from mirage_steps.support.labels import read_circles, read_labels
from mirage_steps.support.step import log, run

# Raised by hand when a change makes old checkpoints or models wrong; an edit that does not, such
# as a reformatting, must never cost days of training.
VERSION = 3

_SAMPLE_STEPS = 25


def main(
    *,
    crops: Path,
    poses: Path,
    out: Path,
    checkpoints: Path,
    training: settings.Training = settings.Training(),
    device: str = "auto",
) -> None:
    """Train the pose-conditioned diffusion model.

    Args:
        crops: crops.h5.
        poses: poses.csv.
        out: Folder for model.safetensors, config.json and loss.png.
        checkpoints: Folder for the checkpoint, metrics.jsonl and sample grids.
        training: The network and its training.
        device: auto, cpu or cuda.
    """
    labels = read_labels(poses, crops)
    where = choose_device(device)
    k, categories = read_circles(poses)
    config = preset(training.preset, training.image_size, k, training.dropout, categories)
    with open_h5(crops, "images") as file:
        if file["images"].shape[1] != training.image_size:
            raise UserError(
                f"{crops}: crops are {file['images'].shape[1]} pixels wide, training.image_size "
                f"is {training.image_size}; rerun the crops step"
            )
        trainer = Trainer(config, training, where)
        log.info(
            "%s U-Net, %.1f M parameters, %d images, %d poses, on %s",
            training.preset, trainer.parameters / 1e6, len(labels), config.poses, where,
        )  # fmt: skip
        _train(
            trainer, Data(file["images"], labels, training), checkpoints, _identity(crops, poses)
        )
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

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (b, 3, S, S) in [-1, 1] and poses (b,) of a step; every epoch a new order."""
        size, count = self.training.batch_size, len(self.labels)
        places = range(step * size, (step + 1) * size)
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


class Trainer:
    """Network, averaged network, optimiser and schedule; one :meth:`step` an iteration.

    All randomness of a step is drawn from the seed and the step's number, so a resumed run needs no
    generator states to equal an uninterrupted one.
    """

    def __init__(self, config: UNetConfig, training: settings.Training, device: torch.device):
        self.config, self.training, self.device = config, training, device
        self.model = build(config, training.seed).to(device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = optimizers(self.model, training.optimizer, training.learning_rate)
        self.schedules = [LambdaLR(one, _rate(training)) for one in self.optimizers]
        self.alphas = diffusion.cumulative_alphas().to(device)
        self.done = 0

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(self, images: Tensor, poses: Tensor) -> Tensor:
        """One optimiser step on a batch; loss per value and gradient norm, (2,), on the device."""
        torch.manual_seed(_step_seed(self.training.seed, self.done))
        images, poses = images.to(self.device), poses.to(self.device)
        times = diffusion.antithetic_steps(len(images)).to(self.device)
        noise = torch.randn_like(images)
        self.model.train()
        with autocast(self.device, self.training.precision):
            noisy = diffusion.add_noise(images, noise, self.alphas[times])
            predicted = self.model(noisy, times, poses)
        if self.config.prediction == "velocity":
            target = diffusion.velocity(images, noise, self.alphas[times])
        else:
            target = noise
        loss = diffusion.squared_error(predicted, target)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self._average()
        self.done += 1
        return torch.stack([loss.detach() / images[0].numel(), norm])

    def _average(self) -> None:
        """Exponential moving average whose window grows with the run until it is ``ema`` long.

        At the start the averaged weights would otherwise be dominated by the untrained ones.
        """
        decay = min(self.training.ema, (1 + self.done) / (10 + self.done))
        averaged, current = list(self.ema.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, [value.detach() for value in current], 1 - decay)

    def state(self) -> dict:
        """Everything a resumed run needs, as tensors and plain values."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict) -> None:
        """Go on from what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.done = state["done"]
        for schedule in self.schedules:
            schedule.last_epoch = self.done


def _rate(training: settings.Training):
    """Factor of the learning rate at each step."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
        if training.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / training.iterations, 1.0)))

    return factor


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint32)[0])


def _train(trainer: Trainer, data: Data, folder: Path, identity: dict) -> None:
    """The loop: step, record, sample, checkpoint; SIGTERM saves before it leaves."""
    training = trainer.training
    fingerprint = _fingerprint(training, identity)
    _resume(trainer, folder, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    stopped, recent = _Stop(), []
    with (
        open(folder / "metrics.jsonl", "a") as metrics,
        tqdm(total=training.iterations, initial=trainer.done, unit="step", mininterval=5.0) as bar,
    ):
        while trainer.done < training.iterations:
            recent.append(trainer.step(*data.batch(trainer.done)))
            last = trainer.done == training.iterations
            save = last or stopped.asked or trainer.done % training.checkpoint_every == 0
            # What is saved was looked at before: numbers gone bad would be resumed for ever.
            if save or trainer.done % training.record_every == 0:
                # Only here the figures leave the device, and the step waits for them.
                loss, norm = torch.stack(recent).mean(0).tolist()
                if not math.isfinite(loss + norm):
                    raise UserError(
                        f"the loss is not finite at step {trainer.done}; the last checkpoint is "
                        "kept: try precision: float32 or a lower learning_rate"
                    )
                rate = trainer.optimizers[0].param_groups[0]["lr"]
                record = {"step": trainer.done, "loss": loss, "gradient_norm": norm}
                print(json.dumps({**record, "learning_rate": rate}), file=metrics, flush=True)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                recent.clear()
            # Before the progress bar, whose pipe may be gone when a scheduler ends the job.
            if save:
                save_checkpoint(trainer, folder, fingerprint)
            bar.update()
            if stopped.asked and not last:
                raise SystemExit(143)
            if last or trainer.done % training.sample_every == 0:
                _sample(trainer, folder)


class _Stop:
    """Notices SIGTERM and Ctrl-C and lets the step in hand finish."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        log.warning("%s: saving a checkpoint, then leaving", signal.Signals(number).name)


def _identity(crops: Path, poses: Path) -> dict[str, str]:
    """Hashes of what is trained on."""
    found = {}
    for name, path in (("crops", crops), ("poses", poses)):
        with open(path, "rb") as content:
            found[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def _fingerprint(training: settings.Training, identity: dict) -> dict:
    """What a checkpoint must have been made with to be gone on from."""
    kept = training.model_dump(mode="json", exclude=set(training.untracked))
    if training.schedule == "constant":
        kept.pop("iterations")  # a longer run begins as the shorter one
    return {"version": VERSION, **kept, **identity}


def save_checkpoint(trainer: Trainer, folder: Path, fingerprint: dict) -> None:
    """Write ``checkpoint.pt``, whole or not at all."""
    with atomic(folder / "checkpoint.pt") as path:
        torch.save({"fingerprint": fingerprint, **trainer.state()}, path)


def _resume(trainer: Trainer, folder: Path, fingerprint: dict) -> None:
    """Go on from the folder's checkpoint if it was made with the same settings and data."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        return
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        before = state.pop("fingerprint")
        changed = sorted(
            key for key in {*before, *fingerprint} if before.get(key) != fingerprint.get(key)
        )
        if state["done"] > trainer.training.iterations:
            changed.append("iterations")
        if not changed:
            trainer.restore(state)
    except Exception as error:
        # torch.load raises many types on a damaged file; each means the same to the user.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(f"{path}: damaged ({reason}); delete it to start anew") from None
    if changed:
        kept = path.replace(folder / "checkpoint.previous.pt")
        log.warning("starting anew: %s changed; the old is %s", ", ".join(changed), kept)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        return
    records = [record for record in read_metrics(folder) if record["step"] <= trainer.done]
    with atomic(folder / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    log.info("resuming after step %d", trainer.done)


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
    with atomic(out / "model.safetensors") as path:
        save_file(weights, path)


if __name__ == "__main__":
    run(main)
