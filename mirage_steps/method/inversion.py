"""A given image from every side, by inversion (paper, section 3.3 and Figure 4).

The image is taken to noise in its own pose. That way is computed once; at every step and layer all
other poses read the keys and values of the image as it was there. Its end, the noise, is also where
the other poses start from, as generated views share theirs. There is one difference between the
two: noise that was found by inversion is no white noise. It still shows the image's outlines, and a
small network lets them stand in all poses. :func:`randomise_phases` takes them away.
"""

import contextlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mirage_steps.method.diffusion import from_pixels, to_pixels
from mirage_steps.method.metrics import psnr
from mirage_steps.method.multiview import invert, sample_all_poses, sample_single
from mirage_steps.method.unet import UNet

_CEILING = 99.0  # dB; equal images have no finite ratio


@dataclass(frozen=True)
class Turned:
    """What inversion and sampling made of an image.

    Args:
        views: (k, S, S, 3) uint8, the poses of its category in circular order; in its own pose the
            image itself.
        restored: (S, S, 3) uint8, what the noise gives back in the image's own pose.
        psnr_db: peak signal-to-noise ratio of ``restored`` in dB, at most 99: beyond that 8 bits
            tell no difference.
        evaluations: of the network on the one image, to invert it.
        seconds: of inverting, restoring and turning.
    """

    views: np.ndarray
    restored: np.ndarray
    psnr_db: float
    evaluations: int
    seconds: dict[str, float]


def turn(
    model: UNet,
    image: np.ndarray,
    pose: int,
    *,
    steps: int,
    iterations: int,
    kept: int | None,
    gamma: float,
    batch_size: int,
    stride: int = 1,
    arithmetic: contextlib.AbstractContextManager | None = None,
    seed: int = 0,
) -> Turned:
    """Invert an image and show it in all poses of its category.

    Args:
        model: the network, in evaluation mode.
        image: (S, S, 3) uint8.
        pose: of the image.
        steps: DDIM steps, there and back.
        iterations: of the inversion's fixed point, 1 for plain DDIM inversion.
        kept: as in :func:`randomise_phases`; None leaves the noise as it is (paper).
        gamma: weight of the soft pass in equation 7.
        batch_size: images denoised at once.
        stride: the views take every so many-th of the steps; the photo's way is as ever.
        arithmetic: what the views are made in, such as ``torch.autocast``; the way to noise and
            back, where a single image gains nothing from it, is not.
        seed: of the phases.
    """
    device = next(model.parameters()).device
    own = torch.tensor([pose], device=device)
    started = time.perf_counter()
    trajectory = invert(model, from_pixels(image[None]).to(device), own, steps, iterations)
    inverted = _now(device)
    restored = to_pixels(sample_single(model, trajectory[0], own, steps))[0]
    there_and_back = _now(device)
    # Where the views start: as far from noise as the first step that they take.
    noise = trajectory[(steps - 1) % stride]
    noise = noise if kept is None else randomise_phases(noise, kept, seed)
    with arithmetic or contextlib.nullcontext():
        made = sample_all_poses(model, noise, pose, steps, gamma, batch_size, trajectory, stride)
    views = to_pixels(made)
    views[model.config.siblings(pose).index(pose)] = image
    seconds = {
        "invert": inverted - started,
        "restore": there_and_back - inverted,
        "turn": _now(device) - there_and_back,
    }
    quality = min(psnr(image, restored), _CEILING)
    return Turned(views, restored, quality, steps * iterations, seconds)


def randomise_phases(noise: Tensor, kept: int, seed: int) -> Tensor:
    """Noise of the same spectrum without the outlines in it.

    Where an image's outlines are is in the phases of its Fourier transform (Oppenheim and Lim
    1981). The phases of all frequencies above ``kept`` are moved at random, as in surrogate data
    (Theiler et al. 1992); amplitudes stay, so the noise is neither stronger nor weaker at any
    frequency. The colour channels move together, so that what was grey stays grey. The low
    frequencies, which hold paint and light, stay as they are.

    Args:
        noise: (n, 3, S, S).
        kept: frequencies up to this many cycles per image stay.
        seed: of the phases, the same for all n.

    Returns:
        Of the same shape, real.
    """
    height, width = noise.shape[-2:]
    white = np.random.default_rng([seed, 2]).standard_normal((height, width))
    # The phases of real noise: those of opposite frequencies are opposite, so the result is real.
    turns = np.exp(1j * np.angle(np.fft.fft2(white)))
    frequency = np.hypot(
        np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)[None]
    )
    turns[frequency <= kept] = 1
    factor = torch.from_numpy(turns).to(noise.device)
    moved = torch.fft.ifft2(torch.fft.fft2(noise.double()) * factor)
    return moved.real.to(noise.dtype)


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
