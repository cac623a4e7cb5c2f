"""How close few network evaluations come to 1000 steps of DDIM, by solver.

    python benchmarks/solvers.py --run results/demo [--objects 4] [--views 2] [--cache FOLDER]
        [--evaluations 8 10 12 15 25 50] [--precision float32] [--device cpu]

From the same noise all solvers tend to the same image. Prints the median PSNR of images to those of
1000 DDIM steps in float32: single images, views with cross-frame attention, and views with the
run's guidance as well. ``--cache`` keeps the 1000-step images for another call.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mirage_steps.method.device import autocast, choose_device
from mirage_steps.method.diffusion import SOLVERS, keyed_noise, to_pixels
from mirage_steps.method.metrics import psnr
from mirage_steps.method.multiview import sample_single, sample_views
from mirage_steps.method.unet import UNet
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.run import stored_sampling
from mirage_steps.settings import Guidance

_SEED, _EXACT = 0, ("ddim", 1000)


@dataclass(frozen=True)
class Case:
    """Images to sample: of all poses, plain, or views of the first pose under guidance."""

    model: UNet
    noise: Tensor  # (objects, 3, S, S)
    poses: Tensor  # (objects, 1 + views)
    guidance: Guidance | None

    def sample(self, solver: str, evaluations: int, precision: str) -> np.ndarray:
        """(n, S, S, 3) uint8, without the references of views."""
        timesteps = SOLVERS[solver].timesteps(evaluations)
        with autocast(self.noise.device, precision):
            if self.guidance is None:
                poses = self.poses[:, 0]
                return to_pixels(sample_single(self.model, self.noise, poses, timesteps, solver))
            images = sample_views(
                self.model, self.noise, self.poses, timesteps, self.guidance, solver=solver
            )
        return to_pixels(images[:, 1:].flatten(0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--views", type=int, default=2, help="of each object")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[8, 10, 12, 15, 25, 50])
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32")
    parser.add_argument("--cache", type=Path, help="folder for the 1000-step images")
    parser.add_argument("--device", default="auto")
    words = parser.parse_args()
    print("| images | solver |", *(f"{count} |" for count in words.evaluations))
    print("|---|---|" + "---|" * len(words.evaluations))
    for name, case in cases(words.run, words.objects, words.views, words.device):
        exact = exact_images(case, words.cache and words.cache / f"{name}.npy")
        for solver in SOLVERS:
            print(f"| {name} | {solver} |", end="", flush=True)
            for count in words.evaluations:
                made = case.sample(solver, count, words.precision)
                ratios = [min(psnr(*pair), 99.0) for pair in zip(exact, made, strict=True)]
                print(f" {np.median(ratios):.1f} dB |", end="", flush=True)
            print()


def cases(run: Path, objects: int, views: int, device: str) -> Iterator[tuple[str, Case]]:
    """Single images, and views without and with the run's guidance, of the same noise."""
    where = choose_device(device)
    model = load_model(run / "training", where)
    side, k = model.config.image_size, model.config.poses // model.config.categories
    noise = keyed_noise(_SEED, list(range(objects)), (3, side, side)).to(where)
    places = 5 * torch.arange(objects)[:, None] + 3 * torch.arange(1 + views)
    stored = stored_sampling(run).guidance
    soft = stored.model_copy(update={"gamma": 1.0})
    chosen = {"single": None, "views, gamma 1": soft}
    if stored.hard:
        chosen[f"views, gamma {stored.gamma:g}"] = stored
    for name, guidance in chosen.items():
        yield name, Case(model, noise, (places % k).to(where), guidance)


def exact_images(case: Case, path: Path | None) -> np.ndarray:
    """Images of 1000 DDIM steps in float32, read from ``path`` if they were kept there."""
    if path and path.exists():
        return np.load(path)
    images = case.sample(*_EXACT, "float32")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, images)
    return images


if __name__ == "__main__":
    main()
