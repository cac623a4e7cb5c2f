"""Compare training recipes at equal time, on the crops and poses of a finished run.

    python benchmarks/training.py --run results/demo --out DIR [--minutes 10] [--seeds 0 1]
                                  [--variants base adam] [--samples 100]

Every variant trains for the same time: the speed of all is measured first, interleaved, then each
gets the number of steps that fit, so that other load on the machine does not matter. The last tenth
of the crops is held out. Measures, smaller is better:

- error: squared error of the predicted clean image on held-out crops, in thousandths, per value of
  images in [-1, 1], mean over ten noise levels;
- FD and KID of generated against held-out crops, mean patch token of the backbone given.

Finished variants are stored in ``--out``, one JSON file each, and skipped: an interrupted run
resumes, and seeds may run in parallel. The total is about variants x seeds x (minutes + 1).
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import torch
import yaml
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.files.atomic import write_json
from mirage_steps.files.tables import read_labels
from mirage_steps.method import diffusion
from mirage_steps.method.device import autocast
from mirage_steps.method.metrics import frechet_from_features, kernel_distance
from mirage_steps.method.multiview import sample_single
from mirage_steps.method.processes import Processes
from mirage_steps.method.training import Trainer
from mirage_steps.method.unet import preset
from mirage_steps.networks.backbone import Backbone
from mirage_steps.settings import Training, load

CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
DEMO = load(yaml.safe_load(CONFIG.read_text())).datasets["demo"].training
SIZE = DEMO.image_size
TIMES = torch.arange(50, diffusion.T, 100)  # the ten noise levels
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One recipe: what differs from the base, and why one might want it."""

    what: str
    training: dict = dataclasses.field(default_factory=dict)
    network: dict = dataclasses.field(default_factory=dict)
    times: Callable[[int], torch.Tensor] | None = None


def middle_times(count: int) -> torch.Tensor:
    """Timesteps from a logit-normal around t = 310: more of those at which shapes are decided."""
    return (torch.sigmoid(1.2 * torch.randn(count) - 0.8) * diffusion.T).long()


_STEM_2 = {"stem": 2, "widths": (32, 96, 192, 192)}
VARIANTS = {
    "base": Variant("the demo, as config/config.yaml has it"),
    "adam": Variant("Adam, rate 1e-3", {"optimizer": "adam", "learning_rate": 1e-3}),
    "middle": Variant("more timesteps of middle noise (logit-normal)", times=middle_times),
    "stem 2": Variant("2 x 2 blocks, a level of width 32 more", network=_STEM_2),
    "batch 16": Variant("16 images a step", {"batch_size": 16}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a data set's finished results")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="weights/stand-in-dinov2-cars")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=100)
    words = parser.parse_args()

    with h5py.File(words.run / "crops/crops.h5") as file:
        images = file["images"][:]
    labels = read_labels(words.run / "poses/poses.csv", words.run / "crops/crops.h5")
    cut = len(images) - len(images) // 10
    known, held_out = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
    k = int(labels.max()) + 1

    setup = {"run": str(words.run), "minutes": words.minutes, "samples": words.samples}
    setup |= {"backbone": words.backbone, "resolution": words.resolution}
    seconds = seconds_a_step(words.out / "setup.json", setup, words.variants, k, known)
    print(seconds, flush=True)
    features = settings.Backbone(model=words.backbone, resolution=words.resolution)
    network = Backbone.load(features, CPU)
    # Seeds outside: after half the time there is one seed of everything.
    for seed in words.seeds:
        for name in words.variants:
            place = words.out / f"{name.replace(' ', '-')}-{seed}.json"
            if not place.exists():
                steps = max(round(60 * words.minutes / seconds[name]), 1)
                trainer = make_trainer(name, k, steps, seed)
                for _ in tqdm(range(steps), desc=f"{name}, seed {seed}", mininterval=5.0):
                    one_step(trainer, VARIANTS[name], known)
                found = measure(trainer, held_out, words.samples, network)
                row = {"variant": name, "seed": seed, "steps": steps}
                write_json(place, {**row, **found})
            print(place.read_text(), flush=True)
    print(table(words.out, words.variants))


def make_trainer(name: str, poses: int, steps: int, seed: int) -> Trainer:
    variant = VARIANTS[name]
    changed = {**variant.training, "iterations": steps, "seed": seed}
    training = Training(**{**DEMO.model_dump(), **changed})
    config = preset(training.preset, SIZE, poses, training.dropout)
    return Trainer(dataclasses.replace(config, **variant.network), training, Processes(CPU))


def seconds_a_step(
    path: Path, setup: dict, names: list[str], poses: int, known: tuple
) -> dict[str, float]:
    """Measured speeds of the variants, kept in ``path`` with what they were measured for."""
    kept = json.loads(path.read_text()) if path.exists() else {"setup": setup, "seconds": {}}
    if kept["setup"] != setup:
        sys.exit(f"{path}: was made with {kept['setup']}; give another --out")
    missing = [name for name in names if name not in kept["seconds"]]
    if missing:
        kept["seconds"] |= speeds(missing, poses, known)
        write_json(path, kept)
    return kept["seconds"]


def speeds(names: list[str], poses: int, known: tuple) -> dict[str, float]:
    """Seconds per step, the median of eight interleaved ones, so that other load affects all."""
    trainers = {name: make_trainer(name, poses, 1000, 0) for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(10):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            one_step(trainer, VARIANTS[name], known)
            if repetition > 1:  # the first steps choose kernels and allocate
                spent[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in spent.items()}


def one_step(trainer: Trainer, variant: Variant, known: tuple) -> None:
    images, labels = known
    rng = np.random.default_rng([trainer.training.seed, trainer.done])
    chosen = rng.integers(len(images), size=trainer.training.batch_size)
    replaced = patch.object(diffusion, "antithetic_timesteps", variant.times)
    with replaced if variant.times else nullcontext():
        trainer.step(diffusion.from_pixels(images[chosen]), torch.from_numpy(labels[chosen]))


@torch.inference_mode()
def measure(trainer: Trainer, held_out: tuple, samples: int, network: Backbone) -> dict:
    """Error and distances of the EMA weights."""
    images, poses = diffusion.from_pixels(held_out[0]), torch.from_numpy(held_out[1])
    generator = torch.Generator().manual_seed(0)
    errors = []
    with autocast(CPU, trainer.training.precision):
        for t in TIMES.tolist():
            times = torch.full((len(images),), t)
            alpha = trainer.alphas[times]
            noise = torch.randn(images.shape, generator=generator)
            output = trainer.ema(diffusion.add_noise(images, noise, alpha), times, poses)
            difference = output.float() - diffusion.velocity(images, noise, alpha)
            # From the velocity the clean image follows with this factor.
            errors.append((1 - alpha[0].item()) * difference.square().mean().item())
        noise = diffusion.keyed_noise(0, list(range(samples)), (3, SIZE, SIZE))
        asked = poses[torch.arange(samples) % len(poses)]
        made = np.concatenate([
            diffusion.to_pixels(sample_single(trainer.ema, x, p, diffusion.ddim_timesteps(25)))
            for x, p in zip(noise.split(50), asked.split(50), strict=True)
        ])  # fmt: skip
    real = network.feature(held_out[0], "mean-patch")
    fake = network.feature(made, "mean-patch")
    return {
        "samples": samples,
        "error": round(1000 * float(np.mean(errors)), 3),
        "errors": {t: round(1000 * e, 3) for t, e in zip(TIMES.tolist(), errors, strict=True)},
        "FD": round(frechet_from_features(real, fake), 4),
        "KID": round(kernel_distance(real, fake), 6),
    }


def table(folder: Path, names: list[str]) -> str:
    """Markdown: one row a variant, each seed's figures."""
    lines = ["| variant | what | steps | error | FD | KID |", "|---|---|---|---|---|---|"]
    for name in names:
        files = sorted(folder.glob(f"{name.replace(' ', '-')}-[0-9]*.json"))
        rows = [json.loads(file.read_text()) for file in files]
        cells = (
            ", ".join(str(row[key]) for row in rows) for key in ("steps", "error", "FD", "KID")
        )
        lines.append(f"| {name} | {VARIANTS[name].what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
