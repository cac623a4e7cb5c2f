"""Which noise for the other poses of a photo? Judged against the same objects rendered from there.

    python benchmarks/photo_noise.py --run results/demo [--photos 16] [--turntables FILE] [--rows 4]

Needs the run's turntables, or others by ``python -m mirage_steps.turntables``, and its crops. Each
row differs in the latents whose keys and values the other poses read (the trajectory) and in the
noise that they start from:

- Inversion by the run's solver, or by DDIM (paper), gives both; its noise keeps the photo's
  outlines. They are removed by random phases above a cutoff, or by white noise there.
- The noised photo: at every timestep the photo with the same white noise, from which the other
  poses start as well; also with the low frequencies of the inverted noise. No network evaluation.
- Edit-friendly (Huberman-Spiegelglas et al. 2024): with independent noise at every timestep.

Views are sampled by the solver of the inversion at its timesteps. Prints means over photos with
95 % intervals, and paired differences from the first row.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.files.text_table import aligned
from mirage_steps.judge import Judge, Turntables, Views, calibrated_judge
from mirage_steps.method.device import autocast
from mirage_steps.method.diffusion import (
    add_noise,
    cumulative_alphas,
    from_pixels,
    keyed_noise,
    sampling_timesteps,
    to_pixels,
)
from mirage_steps.method.evidence import iou, masked_psnr, mean_interval, paired_difference
from mirage_steps.method.inversion import invert, randomize_phases
from mirage_steps.method.multiview import sample_all_poses
from mirage_steps.run import Run

_CUTOFF, _SEED = 6, 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--photos", type=int, default=16, help="at least 2")
    parser.add_argument("--turntables", type=Path, help="the run's by default")
    parser.add_argument("--rows", type=int, default=99, help="only the first so many")
    parser.add_argument("--weights", type=Path, default=Path(settings.WEIGHTS))
    words = parser.parse_args()

    run, folder = Run.load(words.run), words.run
    evidence = settings.Evidence(judged_objects=words.photos)
    files = (folder / name for name in ("crops/crops.h5", "poses/poses.csv"))
    turned = words.turntables or folder / "turntables/turntables.h5"
    judge, truth, _ = calibrated_judge(run, evidence, *files, turned, words.weights)
    images = from_pixels(truth.photos).to(run.backbone.device)
    rows = {}
    for name, row in tqdm(list(ROWS.items())[: words.rows], desc="rows"):
        pairs = [
            row.start(run, image[None], own, n)
            for n, (image, own) in enumerate(
                zip(images, torch.tensor(truth.poses)[:, None], strict=True)
            )
        ]
        rows[name] = judged(judge, truth, views(run, truth, pairs, row))
    print("\n".join(compared("photos", rows)))


class Row(NamedTuple):
    """A trajectory, and the noise of the other poses.

    ``noise`` makes it of the trajectory's own noise and a white one, each (1, 3, S, S). ``noised``
    is None where the trajectory is the inversion's, else whether one noise is that of all
    timesteps. ``views`` is the sampler, ``gamma`` the guidance, the run's by default.
    """

    noise: Callable[[Tensor, Tensor], Tensor]
    noised: bool | None = None
    views: settings.Views | None = None
    gamma: float | None = None

    def start(self, run: Run, image: Tensor, pose: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Trajectory (steps, 1, 3, S, S) and noise of the ``number``-th photo, (1, 3, S, S)."""
        views = self.views or run.sampling.views
        timesteps = sampling_timesteps(views)
        trajectory = invert(run.model, image, pose, timesteps, solver=views.solver)
        count = len(timesteps) if self.noised is False else 1
        white = keyed_noise(_SEED, [number], (count, *image.shape[1:]))[0].to(image.device)
        noise = self.noise(trajectory[0], white[:1])
        if self.noised is None:
            return trajectory, noise
        alphas = cumulative_alphas()[timesteps].to(image.device)
        white = noise if self.noised else white
        whole = image.expand(len(timesteps), -1, -1, -1)
        return add_noise(whole, white.expand_as(whole), alphas)[:, None], noise


def own(noise: Tensor, _: Tensor) -> Tensor:
    """That of the trajectory (paper)."""
    return noise


def scrambled_above(cutoff: int) -> Callable[[Tensor, Tensor], Tensor]:
    """That of the trajectory, with random phases above a frequency."""
    return lambda noise, _: randomize_phases(noise, cutoff, _SEED)


def white(_: Tensor, other: Tensor) -> Tensor:
    """White noise."""
    return other


def mixed_above(cutoff: int) -> Callable[[Tensor, Tensor], Tensor]:
    """That of the trajectory up to a frequency, white noise above it."""
    return lambda noise, other: mixed(noise, other, cutoff)


_DDIM = settings.Views(solver="ddim", steps=50, last_timestep=0)
_LATE = settings.Views(solver="dpm-solver++", steps=15, last_timestep=5)
scrambled = scrambled_above(_CUTOFF)
ROWS = {
    f"random phases above {_CUTOFF}": Row(scrambled),
    "the same, gamma 1.5": Row(scrambled, gamma=1.5),
    "random phases above 3": Row(scrambled_above(3)),
    "random phases above 10": Row(scrambled_above(10)),
    "its own noise (paper)": Row(own),
    f"white above {_CUTOFF}": Row(mixed_above(_CUTOFF)),
    "white above 2": Row(mixed_above(2)),
    "white": Row(white),
    "noised photo": Row(white, noised=True),
    f"noised photo, low of inversion to {_CUTOFF}": Row(mixed_above(_CUTOFF), noised=True),
    "edit-friendly": Row(white, noised=False),
    f"15 steps of DPM-Solver++ to timestep 5, random phases above {_CUTOFF}": Row(
        scrambled, views=_LATE
    ),
    f"50 steps of DDIM, random phases above {_CUTOFF}": Row(scrambled, views=_DDIM),
    "50 steps of DDIM, its own noise (paper)": Row(own, views=_DDIM),
}


def mixed(low: Tensor, high: Tensor, cutoff: int) -> Tensor:
    """The frequencies of ``low`` up to so many cycles per image, the others of ``high``."""
    side = low.shape[-1]
    cycles = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    kept = torch.hypot(cycles[:, None], cycles[None]) <= cutoff
    one, other = (torch.fft.fft2(noise.double()) for noise in (low, high))
    return torch.fft.ifft2(torch.where(kept, one, other)).real.to(low.dtype)


def views(run: Run, truth: Turntables, pairs: list[tuple[Tensor, Tensor]], row: Row) -> Views:
    """The photos in all poses, from trajectories and noises."""
    sampler, guidance = row.views or run.sampling.views, run.sampling.guidance
    if row.gamma is not None:
        guidance = guidance.model_copy(update={"gamma": row.gamma})
    timesteps, found, poses, given = sampling_timesteps(sampler), [], [], []
    for photo, own, (trajectory, noise) in zip(truth.photos, truth.poses, pairs, strict=True):
        with autocast(run.backbone.device, sampler.precision):
            made = sample_all_poses(
                run.model, noise, int(own), timesteps, guidance, sampler.batch_size, trajectory,
                sampler.solver,
            )  # fmt: skip
        siblings = run.model.config.siblings(int(own))
        pixels = to_pixels(made)
        pixels[siblings.index(int(own))] = photo
        found.append(pixels)
        poses.append(siblings)
        given.append(siblings.index(int(own)))
    return Views(np.stack(found), np.array(poses), np.array(given))


def judged(judge: Judge, truth: Turntables, made: Views) -> dict[str, np.ndarray]:
    """Every measure, (n,)."""
    seen, shape = judge.see_views(made.images), made.poses.shape
    psnr = [masked_psnr(made.images[i], truth.views[i], truth.masks[i]) for i in np.ndindex(shape)]
    overlap = [iou(seen.masks[i], truth.masks[i]) for i in np.ndindex(shape)]
    return {
        "near": made.mean(judge.shows(seen, made.poses)),
        **judge.similarity(seen, made.poses, made.given),
        "PSNR": made.mean(np.reshape(psnr, shape)),
        "IoU": made.mean(np.reshape(overlap, shape)),
    }


def compared(unit: str, rows: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """A table of the rows' means, each with its paired difference from the first row's.

    Args:
        unit: what is counted, such as photos.
        rows: by name, values (n,) of every measure.
    """
    first = next(iter(rows.values()))
    table = [["", *(f"{key}, less first row" for key in first)]]
    for name, row in rows.items():
        cells = [
            str(mean_interval(values)) if row is first
            else f"{mean_interval(values).value:.2f}, {paired_difference(values, first[key])}"
            for key, values in row.items()
        ]  # fmt: skip
        table.append([name, *cells])
    return [f"{len(first['near'])} {unit}", "", *aligned(table, "<" * len(table[0]))]


if __name__ == "__main__":
    main()
