"""Novel views of a given image, by inversion (paper, section 3.3 and Figure 4).

The image is inverted to noise in its own pose by the solver of the views, DDIM as in the paper or
DPM-Solver++, and the trajectory is stored, the latent at each timestep. All other poses read, at
timestep t and every layer, the keys and values of the trajectory's latent at t: those of a
generated reference, which the sampler would lead through the same latents. (DDIM inversion itself
gave the network that latent with the next, noisier timestep; see :func:`ddim_invert`.)

The views start from the trajectory's noise, as generated views share theirs. But noise from
inversion is not white: it shows the image's outlines, and a small network would reproduce them in
all poses. :func:`randomize_phases` removes them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mirage_steps.method.diffusion import SOLVERS, ddim_invert
from mirage_steps.method.multiview import sample_all_poses, sample_single, single_denoiser
from mirage_steps.method.unet import UNet
from mirage_steps.settings import Guidance


@torch.inference_mode()
def invert(
    model: UNet,
    images: Tensor,
    poses: Tensor,
    timesteps: list[int],
    iterations: int = 1,
    solver: str = "ddim",
) -> Tensor:
    """The trajectory of images to noise, by the inverse of a solver with plain self-attention.

    Args:
        model: the network, in evaluation mode; runs ``len(timesteps) * iterations`` times.
        images: (n, 3, S, S) in [-1, 1].
        poses: (n,) int, of the images.
        timesteps: from noise to image.
        iterations: of the fixed point at every timestep, 1 for plain inversion (paper).
        solver: of :data:`SOLVERS`.

    Returns:
        (len(timesteps), n, 3, S, S), the latent at each of the timesteps, the noise first.

    Raises:
        ValueError: more iterations than one, of another solver than ``ddim``.
    """
    denoise = single_denoiser(model, poses, timesteps)
    if solver == "ddim":
        return ddim_invert(denoise, images, timesteps, iterations)
    if iterations > 1:
        raise ValueError(f"{solver}: only the inversion by ddim is refined")
    return SOLVERS[solver].invert(denoise, images, timesteps)


def reconstruct(
    model: UNet, trajectory: Tensor, poses: Tensor, timesteps: list[int], solver: str = "ddim"
) -> Tensor:
    """Images sampled from the inverted noise, (n, 3, S, S), not clamped; cf. :func:`invert`."""
    return sample_single(model, trajectory[0], poses, timesteps, solver)


@torch.inference_mode()
def novel_views(
    model: UNet,
    image: Tensor,
    pose: int,
    trajectory: Tensor,
    timesteps: list[int],
    *,
    cutoff: int | None,
    guidance: Guidance,
    batch_size: int,
    seed: int = 0,
    solver: str = "ddim",
    poses: Sequence[int] | None = None,
) -> Tensor:
    """An image in all poses of its category, (k, 3, S, S) in circular order, not clamped.

    Args:
        model: the network, in evaluation mode.
        image: (1, 3, S, S) in [-1, 1], returned in its own pose.
        pose: of the image.
        trajectory: (len(timesteps), 1, 3, S, S) of :func:`invert`.
        timesteps: that the image was inverted at; the views are sampled at the same.
        cutoff: as in :func:`randomize_phases`; None leaves the noise as it is (paper).
        guidance: where the views read the trajectory, and how they are guided.
        batch_size: images denoised at once.
        seed: of the phases.
        solver: of the views.
        poses: distinct ones of the category, to make only these, in this order.
    """
    noise = trajectory[0] if cutoff is None else randomize_phases(trajectory[0], cutoff, seed)
    wanted = model.config.siblings(pose) if poses is None else poses
    views = sample_all_poses(
        model, noise, pose, timesteps, guidance, batch_size, trajectory, solver, wanted
    )
    if pose in wanted:
        views[wanted.index(pose)] = image[0]
    return views


def randomize_phases(noise: Tensor, cutoff: int, seed: int) -> Tensor:
    """Noise of the same spectrum without the outlines in it.

    Where an image's outlines are is in the phases of its Fourier transform (Oppenheim and Lim
    1981). The phases of all frequencies above ``cutoff`` are shifted at random, as in surrogate
    data (Theiler et al. 1992); amplitudes stay, so the noise is neither stronger nor weaker at any
    frequency. The color channels shift together, so that what was gray stays gray. The low
    frequencies, which hold paint and light, stay as they are.

    Args:
        noise: (n, 3, S, S).
        cutoff: frequencies up to this many cycles per image stay.
        seed: of the phases, the same for all n.

    Returns:
        Of the same shape, real.
    """
    height, width = noise.shape[-2:]
    white = np.random.default_rng([seed, 2]).standard_normal((height, width))
    # The phases of real noise: those of opposite frequencies are opposite, so the result is real.
    shifts = np.exp(1j * np.angle(np.fft.fft2(white)))
    frequency = np.hypot(
        np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)[None]
    )
    shifts[frequency <= cutoff] = 1
    factor = torch.from_numpy(shifts).to(noise.device)
    shifted = torch.fft.ifft2(torch.fft.fft2(noise.double()) * factor)
    return shifted.real.to(noise.dtype)
