"""The diffusion process: schedule, training objective, deterministic samplers (section 3.2)."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mirage_steps.errors import UserError
from mirage_steps.settings import Views

T = 1000
# Where evenly spaced log signal-to-noise ratios end at the latest: noise of 3 %
# (benchmarks/solvers.py).
_LAST = 5

# From images (n, ...), a timestep and its alpha to predicted noise of the images' shape.
Denoiser = Callable[[Tensor, int, float], Tensor]


def cumulative_alphas() -> Tensor:
    """alpha_t of equations 3 and 4, (T,) float64: the cumulative product of 1 - beta_t.

    The linear schedule of DDPM and DDIM, beta from 1e-4 to 0.02. DDIM writes alpha for what DDPM
    calls alpha-bar; the paper follows DDIM.
    """
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), dim=0)


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Equation 3, for clean images and standard normal noise (n, ...) and alpha_t (n,)."""
    alpha = alpha.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


def antithetic_timesteps(count: int) -> Tensor:
    """Random timesteps in pairs t, T - 1 - t, as DDIM draws them, (count,) on the CPU."""
    half = torch.randint(0, T, (count // 2 + 1,))
    return torch.cat([half, T - 1 - half])[:count]


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Equation 2: squared error summed over an image, averaged over the batch, as in DDIM."""
    wide = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    return (wide - target).square().flatten(1).sum(1).mean()


def velocity(x0: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """What a velocity network predicts: sqrt(alpha) noise - sqrt(1 - alpha) x0.

    From "Progressive distillation" (Salimans and Ho 2022). At high noise it asks for the image, at
    low noise for the noise, so that no step is trivial; the shapes are those of :func:`add_noise`.
    """
    alpha = alpha.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * x0


def noise_from_output(output: Tensor, x: Tensor, alpha: float, prediction: str) -> Tensor:
    """Predicted noise from a network's output at its input x_t, both of one shape.

    ``prediction`` is what the output means: ``noise`` or ``velocity``.
    """
    if prediction == "noise":
        return output
    return alpha**0.5 * output + (1 - alpha) ** 0.5 * x


def ddim_timesteps(count: int, last: int = 0) -> list[int]:
    """Evenly spaced timesteps from noise to image: 980, 960, ..., 0 for 50 (DDIM's "uniform").

    ``last`` is lowered where there is no place for so many.
    """
    last = min(last, T - count)
    return [last + number * (T - last) // count for number in reversed(range(count))]


def logsnr_timesteps(count: int, last: int = _LAST) -> list[int]:
    """Timesteps from 999, as evenly spaced in the log signal-to-noise ratio as can be.

    Many are consecutive at the end, where whole timesteps are too coarse. ``last`` is at least 5,
    and lowered where there is no place for so many.
    """
    among = range(T - 1, min(max(last, _LAST), T - count) - 1, -1)
    logsnr = cumulative_alphas().logit()[list(among)].numpy()
    found = [-1]
    for number, even in enumerate(np.linspace(logsnr[0], logsnr[-1], count)):
        left = len(among) - (count - number)  # so many must follow
        found.append(min(left, max(int(np.abs(logsnr - even).argmin()), found[-1] + 1)))
    return [among[place] for place in found[1:]]


def ddim_step(x: Tensor, noise: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """Equation 4: from x_t to x at the next timestep, given the predicted noise.

    ``alpha_next`` is 1 where the next x is the clean image.
    """
    x0 = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * noise


def ddim_sample(denoise: Denoiser, noise: Tensor, timesteps: list[int]) -> Tensor:
    """Deterministic DDIM from x at the first timestep to images, not clamped."""
    x = noise
    for t, alpha, alpha_next in _steps(timesteps):
        x = ddim_step(x, denoise(x, t, alpha).to(x.dtype), alpha, alpha_next)
    return x


def dpm_solver_sample(denoise: Denoiser, noise: Tensor, timesteps: list[int]) -> Tensor:
    """DPM-Solver++(2M) from x at the first timestep to images, not clamped.

    Algorithm 2 of Lu et al. 2022, one network evaluation a step as DDIM. DDIM holds the predicted
    image constant over a step; this extrapolates it linearly from the last two predictions in
    lambda, half the log signal-to-noise ratio. The first step and the one to the clean image, where
    lambda is infinite, are DDIM's.
    """
    return deque(_second_order(denoise, noise, _steps(timesteps)), maxlen=1).pop()


def _second_order(
    denoise: Denoiser, x: Tensor, steps: list[tuple[int, float, float]]
) -> Iterator[Tensor]:
    """x after each of the steps of DPM-Solver++(2M), towards the image or towards the noise.

    Args:
        denoise: evaluated once a step, at its start.
        x: at the start of the first step.
        steps: (t, alpha at t, alpha after the step).
    """
    before, h_before = None, 0.0
    for t, alpha, alpha_next in steps:
        x0 = (x - (1 - alpha) ** 0.5 * denoise(x, t, alpha).to(x.dtype)) / alpha**0.5
        extrapolated, h = x0, 0.0
        if alpha_next < 1:
            h = (_logit(alpha_next) - _logit(alpha)) / 2
            if before is not None:
                extrapolated = x0 + h / h_before / 2 * (x0 - before)
        kept = ((1 - alpha_next) / (1 - alpha)) ** 0.5  # of what is not the image
        x = alpha_next**0.5 * extrapolated + kept * (x - alpha**0.5 * extrapolated)
        before, h_before = x0, h
        yield x


def _logit(alpha: float) -> float:
    """The log signal-to-noise ratio, twice the lambda of DPM-Solver."""
    return math.log(alpha / (1 - alpha))


def ddim_invert(
    denoise: Denoiser, images: Tensor, timesteps: list[int], iterations: int = 1
) -> Tensor:
    """DDIM inversion (equation 4 backwards): noise from which :func:`ddim_sample` gives the images.

    Equation 4 leads from x' at timestep t to the less noisy x by the noise predicted at (x', t).
    Going back from x, x' is not known yet: it solves x' = step(x, denoise(x', t)). Plain DDIM
    inversion, the paper's, predicts at (x, t) instead: the latent before the step, with the
    timestep after it. So the latent is all that is approximated, every timestep of the sampler is
    asked for once, and the image, which is before timestep 0, needs none of its own. (The other
    reading, x with the timestep of x, would never ask for the last timestep, and reconstructs
    worse where the noise is known in closed form: ``tests/test_inversion.py``.)

    That is the first iterate of a fixed-point iteration from x' = x, and more iterates come as
    close to the solution as the arithmetic allows (the iterations of ReNoise, Garibi et al. 2024,
    without its averaging).

    Args:
        denoise: predicts the noise; called ``len(timesteps) * iterations`` times, from the last
            timestep to the first.
        images: (n, ...) in [-1, 1].
        timesteps: of the sampler, from noise to image.
        iterations: of the fixed point at every timestep, 1 for plain DDIM inversion.

    Returns:
        The trajectory (len(timesteps), n, ...): the latent at each of the timesteps, the noise
        first; not the images, which have no timestep.
    """
    x, trajectory = images, []
    for t, alpha, alpha_next in reversed(_steps(timesteps)):
        noisier = x
        for _ in range(iterations):
            noisier = ddim_step(x, denoise(noisier, t, alpha).to(x.dtype), alpha_next, alpha)
        x = noisier
        trajectory.append(x)
    return torch.stack(trajectory[::-1])


def dpm_solver_invert(denoise: Denoiser, images: Tensor, timesteps: list[int]) -> Tensor:
    """Noise from which :func:`dpm_solver_sample` nearly restores the images: 2M towards the noise.

    The sampler's differential equation, solved towards the noise by the method of the same order.
    From the image to the last timestep the step is that of :func:`ddim_invert`. As many network
    evaluations as timesteps. (The paper inverts by DDIM, whose error is of first order.)

    Args:
        denoise: predicts the noise; called at the last timestep twice, with the image and with the
            latent, and never at the first.
        images: (n, ...) in [-1, 1].
        timesteps: of the sampler, from noise to image.

    Returns:
        The trajectory, as in :func:`ddim_invert`.
    """
    steps = _steps(timesteps)[::-1]
    t, alpha, _ = steps[0]
    x = ddim_step(images, denoise(images, t, alpha).to(images.dtype), 1.0, alpha)
    towards_noise = [(t, alpha, noisier) for (t, alpha, _), (_, noisier, _) in pairwise(steps)]
    trajectory = [x, *_second_order(denoise, x, towards_noise)]
    return torch.stack(trajectory[::-1])


class Solver(NamedTuple):
    """How images follow from noise and back, and at which timesteps the network is evaluated.

    ``timesteps`` are those for a number of evaluations, and for the last of them if given.
    """

    sample: Callable[[Denoiser, Tensor, list[int]], Tensor]
    invert: Callable[[Denoiser, Tensor, list[int]], Tensor]
    timesteps: Callable[..., list[int]]


# By ``views.solver``. From the same noise all tend to the same image with more timesteps.
SOLVERS = {
    "ddim": Solver(ddim_sample, ddim_invert, ddim_timesteps),
    "dpm-solver++": Solver(dpm_solver_sample, dpm_solver_invert, logsnr_timesteps),
}


def sampling_timesteps(views: Views) -> list[int]:
    """Timesteps of a sampler, from noise to image.

    At the last of them the predicted image is the result. Where little noise is left, a small
    network predicts the noise hardly better than zero, so steps there leave grain.
    """
    return SOLVERS[views.solver].timesteps(views.steps, views.last_timestep)


def _steps(timesteps: list[int]) -> list[tuple[int, float, float]]:
    """(t, alpha at t, alpha at the next timestep) of every step; 1 for the clean image."""
    alphas = cumulative_alphas()[timesteps].tolist()
    return list(zip(timesteps, alphas, [*alphas[1:], 1.0], strict=True))


def keyed_noise(seed: int, indices: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, keyed by the seed and each object's index alone.

    (len(indices), *shape) float32 on the CPU.
    """
    rows = [np.random.default_rng([seed, index]).standard_normal(shape) for index in indices]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def frame_noise(seed: int, indices: list[int], frames: int, shape: tuple[int, ...]) -> Tensor:
    """Noise for each frame of an object, the first of them that of :func:`keyed_noise`.

    (len(indices), frames, *shape) float32 on the CPU.
    """
    first = keyed_noise(seed, indices, shape)[:, None].numpy()
    others = [
        [np.random.default_rng([seed, index, 3, frame]).standard_normal(shape) for frame in rest]
        for rest in [range(1, frames)]
        for index in indices
    ]
    rows = np.concatenate([first, np.array(others).reshape(len(indices), -1, *shape)], axis=1)
    return torch.from_numpy(rows.astype(np.float32))


def to_pixels(x: Tensor) -> np.ndarray:
    """Images (n, 3, H, W) in [-1, 1] as (n, H, W, 3) uint8.

    Raises:
        UserError: the network makes values that are not finite.
    """
    if not x.isfinite().all():
        raise UserError(
            "the diffusion model makes images that are not finite: its training diverged, or "
            "views.precision does not suffice; look at training/loss.png and try float32"
        )
    x = (x.float().clamp(-1, 1) + 1) * 127.5
    return x.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_pixels(images: np.ndarray | Tensor) -> Tensor:
    """(n, H, W, 3) uint8 as (n, 3, H, W) float32 in [-1, 1]; a tensor stays on its device."""
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.array(images))
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)
