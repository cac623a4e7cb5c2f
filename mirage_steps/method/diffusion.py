"""The diffusion process: schedule, training objective, deterministic sampler (section 3.2)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

T = 1000


def cumulative_alphas() -> Tensor:
    """alpha_t of equations 3 and 4, (T,) float64: the cumulative product of 1 - beta_t.

    The linear schedule of DDPM and DDIM, beta from 1e-4 to 0.02. DDIM writes alpha for what DDPM
    calls alpha-bar; the paper follows DDIM.
    """
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), dim=0)


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Equation 3.

    Args:
        x0: (n, ...) clean images.
        noise: of the same shape, standard normal.
        alpha: (n,) alpha_t of each image.
    """
    alpha = alpha.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


def antithetic_steps(count: int) -> Tensor:
    """Random time steps in pairs t, T - 1 - t, as DDIM draws them, (count,) on the CPU."""
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
    """Predicted noise from a network's output at x_t.

    Args:
        output: of the network.
        x: its input, of the same shape.
        alpha: alpha_t.
        prediction: ``noise`` or ``velocity``.
    """
    if prediction == "noise":
        return output
    return alpha**0.5 * output + (1 - alpha) ** 0.5 * x


def ddim_steps(count: int, stride: int = 1) -> list[tuple[int, int]]:
    """Pairs (t, next t) of a sampler with evenly spaced steps, from noise to image.

    DDIM's "uniform" spacing: for 50 steps t = 980, 960, ..., 0. After the last comes -1, the clean
    image, at which alpha is 1. A stride takes every so many-th of these t, the last 0 as ever.
    """
    times = [number * T // count for number in range(0, count, stride)]
    return list(zip(reversed(times), reversed([-1, *times[:-1]]), strict=True))


def ddim_step(x: Tensor, noise: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """Equation 4: from x_t to x at the next step, given the predicted noise.

    Args:
        x: images at the present step.
        noise: predicted, of the same shape.
        alpha: alpha_t, in (0, 1).
        alpha_next: alpha of the next step, 1 for the clean image.
    """
    x0 = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * noise


def ddim_sample(
    denoise: Callable[[Tensor, int, float], Tensor],
    noise: Tensor,
    steps: int,
    progress: Callable = lambda steps: steps,
    stride: int = 1,
) -> Tensor:
    """Deterministic DDIM from noise to images.

    Args:
        denoise: from images (n, ...), the number of the step taken, from 0, and its alpha to
            predicted noise.
        noise: x_T, standard normal.
        steps: number of steps.
        progress: wraps the list of steps, such as ``tqdm``.
        stride: as of :func:`ddim_steps`.

    Returns:
        Images of the same shape, not clamped.
    """
    alphas = cumulative_alphas().tolist()
    x = noise
    for number, (t, t_next) in enumerate(progress(ddim_steps(steps, stride))):
        alpha_next = alphas[t_next] if t_next >= 0 else 1.0
        noise = denoise(x, number, alphas[t]).to(x.dtype)
        x = ddim_step(x, noise, alphas[t], alpha_next)
    return x


def ddim_invert(
    denoise: Callable[[Tensor, int, float], Tensor],
    images: Tensor,
    steps: int,
    iterations: int = 1,
    progress: Callable = lambda steps: steps,
) -> Tensor:
    """Equation 4 backwards: the noise from which :func:`ddim_sample` makes given images, nearly.

    Going up from x to the x' of the next noisier step would take the noise predicted at x', which
    is not known yet: x' solves x' = step(x, denoise(x')). Plain DDIM inversion, the paper's, puts
    the prediction at x in its place. That is the first iterate of a fixed-point iteration from
    x' = x, and more iterates come as close to the solution as the arithmetic allows (the
    iterations of ReNoise, Garibi et al. 2024, without its averaging).

    Args:
        denoise: as of :func:`ddim_sample`.
        images: (n, ...) in [-1, 1].
        steps: number of steps.
        iterations: of the fixed point at every step, 1 for plain DDIM inversion; ``denoise`` is
            called ``steps * iterations`` times.
        progress: wraps the list of steps, such as ``tqdm``.

    Returns:
        The trajectory (steps, n, ...): x at the start of every step of the sampler, x_T first.
    """
    alphas = cumulative_alphas().tolist()
    x, trajectory = images, []
    for number, (t, t_next) in progress(list(enumerate(ddim_steps(steps)))[::-1]):
        alpha_next = alphas[t_next] if t_next >= 0 else 1.0
        noisier = x
        for _ in range(iterations):
            noise = denoise(noisier, number, alphas[t]).to(x.dtype)
            noisier = ddim_step(x, noise, alpha_next, alphas[t])
        x = noisier
        trajectory.append(x)
    return torch.stack(trajectory[::-1])


def keyed_noise(seed: int, indices: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that depends on the seed and each object's index alone.

    Returns:
        (len(indices), *shape) float32 on the CPU.
    """
    rows = [np.random.default_rng([seed, index]).standard_normal(shape) for index in indices]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def to_pixels(x: Tensor) -> np.ndarray:
    """Images (n, 3, H, W) in [-1, 1] as (n, H, W, 3) uint8."""
    x = (x.float().clamp(-1, 1) + 1) * 127.5
    return x.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_pixels(images: np.ndarray) -> Tensor:
    """(n, H, W, 3) uint8 as (n, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
