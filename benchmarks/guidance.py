"""Does hard-attention guidance help, from which training length on, and does autoguidance?

    python benchmarks/guidance.py --run results/demo \
        [--checkpoints step-*.pt] [--weak step-0000500.pt] [--objects 16] [--steps 16]

Judges generated objects by pose control and consistency (docs/evidence.md) with the EMA weights of
each checkpoint: unguided, and by hard-attention guidance. With ``--weak`` also by autoguidance
(Karras et al. 2024) of the run's own model: what it predicts is extrapolated away from what that
earlier state of the training predicts, both with cross-frame attention. The solver and the last
timestep are the run's. Guided rows are printed for as many steps, and for half of them: a guided
step costs about twice as much.
"""

import argparse
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from photo_noise import compared
from torch import Tensor
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.files.checkpoints import load_checkpoint
from mirage_steps.judge import Judge, Views, calibrated_judge
from mirage_steps.method.device import autocast
from mirage_steps.method.diffusion import SOLVERS, keyed_noise, sampling_timesteps, to_pixels
from mirage_steps.method.multiview import denoise_views
from mirage_steps.method.unet import UNet
from mirage_steps.run import Run, reference_pose

_SEED = 23
_UNGUIDED, _GUIDED = settings.Guidance(gamma=1.0), settings.Guidance(gamma=1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    parser.add_argument("--weak", type=Path)
    parser.add_argument("--objects", type=int, default=16, help="at least 2")
    parser.add_argument("--steps", type=int, help="of the unguided rows; the run's by default")
    parser.add_argument("--weights", type=Path, default=Path(settings.WEIGHTS))
    words = parser.parse_args()

    run, folder = Run.load(words.run, device="cpu"), words.run
    turned = folder / "turntables/turntables.h5"
    judge, _, _ = calibrated_judge(
        run, settings.Evidence(), folder / "crops/crops.h5", folder / "poses/poses.csv",
        turned if turned.exists() else None, words.weights,
    )  # fmt: skip

    def row(
        model: UNet, guidance: settings.Guidance, steps: int, **auto: object
    ) -> dict[str, np.ndarray]:
        sampler = run.sampling.views.model_copy(update={"steps": steps})
        made = [sample(model, n, sampler, guidance, **auto) for n in range(words.objects)]
        views = Views(*map(np.array, zip(*made, strict=True)))
        return judged(judge, views)

    full = words.steps or run.sampling.views.steps
    half, quarter = full // 2, full // 4
    lengths = {path.stem: averaged(run.model, path) for path in words.checkpoints}
    for name, model in tqdm({**lengths, "final": run.model}.items(), desc="training lengths"):
        rows = {
            f"{name}: unguided, {full} steps": row(model, _UNGUIDED, full),
            f"{name}: HAG 1.5, {full} steps": row(model, _GUIDED, full),
            f"{name}: HAG 1.5, {half} steps": row(model, _GUIDED, half),
        }
        print("\n".join(compared("objects", rows)), flush=True)
    if words.weak:
        weak = averaged(run.model, words.weak)
        rows = {"unguided": row(run.model, _UNGUIDED, full)}
        for weight in (1.25, 1.5, 2.0, 3.0):
            name = f"autoguidance {weight:g}, {half} steps"
            rows[name] = row(run.model, _UNGUIDED, half, weak=weak, weight=weight)
        name = f"HAG 1.5 and autoguidance 1.5, {quarter} steps"
        rows[name] = row(run.model, _GUIDED, quarter, weak=weak, weight=1.5)
        print("\n".join(compared("objects", rows)))


def averaged(model: UNet, checkpoint: Path) -> UNet:
    """The EMA network of a checkpoint."""
    found = deepcopy(model)
    found.load_state_dict(load_checkpoint(checkpoint)["ema"])
    return found.eval()


@torch.inference_mode()
def sample(
    model: UNet,
    number: int,
    sampler: settings.Views,
    guidance: settings.Guidance,
    weak: UNet | None = None,
    weight: float = 1.0,
) -> tuple[np.ndarray, list[int], int]:
    """A generated object (k, S, S, 3) uint8, its poses, and the column of its reference.

    With ``weak``, the noise is predicted as weight times that of the model less (weight - 1) times
    that of the weak one (equation 3 of Karras et al. 2024).
    """
    own = reference_pose(model.config, number, _SEED)
    poses = model.config.siblings(own)
    order = [own, *(pose for pose in poses if pose != own)]
    asked, timesteps = torch.tensor([order]), sampling_timesteps(sampler)
    side, solve = model.config.image_size, SOLVERS[sampler.solver].sample

    def embedded(network: UNet, t: int) -> Tensor:
        return network.embed(torch.full((len(order),), t), asked[0])[None]

    def denoise(x: Tensor, t: int, alpha: float) -> Tensor:
        noise = denoise_views(model, x, embedded(model, t), alpha, guidance)
        if weak is not None:
            other = denoise_views(weak, x, embedded(weak, t), alpha, guidance)
            noise = weight * noise - (weight - 1) * other
        return noise

    noise = keyed_noise(_SEED, [number], (3, side, side))[:, None]
    with autocast(torch.device("cpu"), sampler.precision):
        made = solve(denoise, noise.expand(-1, len(order), -1, -1, -1), timesteps)
    return to_pixels(made[0])[[order.index(pose) for pose in poses]], poses, poses.index(own)


def judged(judge: Judge, made: Views) -> dict[str, np.ndarray]:
    """Every measure, (n,)."""
    seen = judge.see_views(made.images)
    near = made.mean(judge.shows(seen, made.poses))
    return {"near": near, **judge.similarity(seen, made.poses, made.given)}


if __name__ == "__main__":
    main()
