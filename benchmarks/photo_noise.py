"""Which noise for the other poses of a photo? Judged against the same objects rendered from there.

    python benchmarks/photo_noise.py --run results/demo [--photos 16] [--inversion-steps 25]

Needs the run's turntables and crops. Each row differs in the latents whose keys and values the
other poses read (the trajectory) and in the noise that they start from:

- DDIM inversion (paper), also refined by fixed-point iteration, gives both; its noise keeps the
  photo's outlines. They are removed by random phases above a cutoff, or by white noise there.
- The noised photo: at every timestep the photo with the same white noise, from which the other
  poses start as well; also with the low frequencies of the inverted noise. No network evaluation.
- Edit-friendly (Huberman-Spiegelglas et al. 2024): with independent noise at every timestep.

Prints means over photos with 95 % intervals, and paired differences from the first row.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_steps.files.text_table import aligned
from mirage_steps.judge import Judge, Turntables, Views, calibrated_judge
from mirage_steps.method.device import autocast
from mirage_steps.method.diffusion import (
    SOLVERS,
    add_noise,
    cumulative_alphas,
    from_pixels,
    keyed_noise,
    to_pixels,
)
from mirage_steps.method.evidence import iou, masked_psnr, mean_interval, paired_difference
from mirage_steps.method.inversion import invert, randomize_phases
from mirage_steps.method.multiview import sample_all_poses
from mirage_steps.run import Run, inversion_timesteps
from mirage_steps.settings import WEIGHTS, Evidence

_CUTOFF, _SEED = 6, 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--photos", type=int, default=16, help="at least 2")
    parser.add_argument("--inversion-steps", type=int, help="by default the run's")
    parser.add_argument("--stride", type=int, help="by default the run's")
    parser.add_argument("--rows", type=int, default=99, help="only the first so many")
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS))
    words = parser.parse_args()

    run, folder = Run.load(words.run), words.run
    evidence = Evidence(judged_objects=words.photos)
    files = (folder / name for name in ("crops/crops.h5", "poses/poses.csv"))
    turned = folder / "turntables/turntables.h5"
    judge, truth, _ = calibrated_judge(run, evidence, *files, turned, words.weights)
    images = from_pixels(truth.photos).to(run.backbone.device)
    given = {"inversion_steps": words.inversion_steps, "stride": words.stride}
    given = {key: value for key, value in given.items() if value}
    chosen = run.sampling.novel_views.model_copy(update=given)
    timesteps, stride = inversion_timesteps(run.sampling.views, chosen), chosen.stride
    trajectories = {
        refined: [
            invert(run.model, image[None], own, timesteps, refined)
            for image, own in zip(tqdm(images, desc=f"inversion {refined}"),
                                  torch.tensor(truth.poses)[:, None], strict=True)
        ]
        for refined in (1, 3)
    }  # fmt: skip
    rows = {}
    for name, noised in tqdm(list(variants(timesteps).items())[: words.rows], desc="rows"):
        pairs = [noised(images[n][None], {key: one[n] for key, one in trajectories.items()}, n)
                 for n in range(len(images))]  # fmt: skip
        rows[name] = judged(judge, truth, views(run, truth, pairs, timesteps, stride))
    print("\n".join(compared("photos", rows)))


# From a photo (1, 3, S, S), its inversions by the number of iterations and its number to the
# trajectory (timesteps, 1, 3, S, S) at those of the inversion, and the noise of the other poses.
Variant = Callable[[Tensor, dict[int, Tensor], int], tuple[Tensor, Tensor]]


def variants(timesteps: list[int]) -> dict[str, Variant]:
    """The rows by name."""
    alphas = cumulative_alphas()[timesteps]

    def white(image: Tensor, number: int, times: int = 1) -> Tensor:
        return keyed_noise(_SEED, [number], (times, *image.shape[1:]))[0].to(image.device)

    def scrambled(own: Tensor, _: Tensor) -> Tensor:
        return randomize_phases(own, _CUTOFF, _SEED)

    def noised(image: Tensor, noise: Tensor) -> Tensor:
        whole = image.expand(len(alphas), -1, -1, -1)
        return add_noise(whole, noise.expand_as(whole), alphas.to(image.device))[:, None]

    def inverted(start: Callable[[Tensor, Tensor], Tensor], refined: int = 1) -> Variant:
        """The trajectory of the inversion, and a noise that follows from its own and from white."""
        return lambda image, found, n: (
            found[refined],
            start(found[refined][0], white(image, n)),
        )

    def straight(start: Callable[[Tensor, Tensor], Tensor]) -> Variant:
        """The photo with one noise at all timesteps."""

        def made(image: Tensor, found: dict[int, Tensor], n: int) -> tuple[Tensor, Tensor]:
            noise = start(found[1][0], white(image, n))
            return noised(image, noise), noise

        return made

    def independent(image: Tensor, found: dict[int, Tensor], n: int) -> tuple[Tensor, Tensor]:
        noise = white(image, n, len(alphas))
        return noised(image, noise), noise[:1]

    return {
        f"random phases above {_CUTOFF}": inverted(
            lambda own, _: randomize_phases(own, _CUTOFF, _SEED)
        ),
        "paper": inverted(lambda own, _: own),
        "refined, paper's noise": inverted(lambda own, _: own, 3),
        "refined, random phases": inverted(scrambled, 3),
        f"white above {_CUTOFF}": inverted(lambda own, other: mixed(own, other, _CUTOFF)),
        "white above 2": inverted(lambda own, other: mixed(own, other, 2)),
        "white": inverted(lambda _, other: other),
        "noised photo": straight(lambda _, other: other),
        f"noised photo, low of inversion to {_CUTOFF}": straight(
            lambda own, other: mixed(own, other, _CUTOFF)
        ),
        "edit-friendly": independent,
    }


def mixed(low: Tensor, high: Tensor, cutoff: int) -> Tensor:
    """The frequencies of ``low`` up to so many cycles per image, the others of ``high``."""
    side = low.shape[-1]
    cycles = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    kept = torch.hypot(cycles[:, None], cycles[None]) <= cutoff
    one, other = (torch.fft.fft2(noise.double()) for noise in (low, high))
    return torch.fft.ifft2(torch.where(kept, one, other)).real.to(low.dtype)


def views(
    run: Run,
    truth: Turntables,
    pairs: list[tuple[Tensor, Tensor]],
    timesteps: list[int],
    stride: int,
) -> Views:
    """The photos in all poses, from trajectories and noises."""
    sampling = run.sampling
    taken = SOLVERS[sampling.views.solver].subsample(timesteps, stride)
    found, poses, given = [], [], []
    for photo, own, (trajectory, noise) in zip(truth.photos, truth.poses, pairs, strict=True):
        steps = trajectory[[timesteps.index(t) for t in taken]]
        with autocast(run.backbone.device, sampling.views.precision):
            made = sample_all_poses(
                run.model, noise, int(own), taken, sampling.guidance, sampling.views.batch_size,
                steps, sampling.views.solver,
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
