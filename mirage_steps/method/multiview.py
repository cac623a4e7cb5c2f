"""Views of one object: shared noise, cross-frame attention, hard-attention guidance (section 3.3).

Optimized; the tests compare it with the literal equations:

- all views of an object and its reference are one batch; the reference attends to itself, so it
  needs no separate pass;
- the soft and the hard pass of equation 7 differ only from the first cross-frame attention on: the
  layers before it run once, the layers after it as one batch;
- embeddings of all timesteps and poses are computed before the loop.

The paper leaves open whether the reference is guided too ("the same procedure"). By default it is
not, and soft and hard pass read the same keys and values;
``guidance.reference: guided`` is the other reading, with a reference of the hard pass's own.

In all functions ``model`` is the network in evaluation mode, ``timesteps`` go from noise to image,
``solver`` is one of :data:`SOLVERS`. Images come out not clamped.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mirage_steps.method.diffusion import SOLVERS, Denoiser, noise_from_output
from mirage_steps.method.unet import Frames, UNet
from mirage_steps.settings import Guidance


def denoise_views(
    model: UNet, x: Tensor, embedding: Tensor, alpha: float, guidance: Guidance
) -> Tensor:
    """Predicted noise of references and their views at one timestep, of the shape of ``x``.

    The reference runs plain self-attention. Every view attends to the reference's keys
    and values of the same timestep and layer, in the middle and the decoder (equation 6); its soft
    and hard predictions combine as in equation 7.

    Args:
        x: (objects, 1 + views, 3, S, S), the reference first.
        embedding: (objects, 1 + views, embedding).
        alpha: alpha_t.
        guidance: where views read the reference, and how they are guided.
    """
    views = x.shape[1] - 1
    frames = Frames.of(views, guidance)
    embedding = embedding.flatten(0, 1)
    output = model.decode(model.encode(x.flatten(0, 1), embedding, frames), embedding, frames)
    output = output.unflatten(0, (len(x), -1)).to(x.dtype)  # bfloat16 is too coarse below
    if frames.hard:
        unguided = 0 if frames.hard_reference else 1
        soft, hard = output[:, unguided : 1 + views], output[:, 1 + views :]
        # Equation 7. Soft and hard pass have the same input, and the weights add up to one, so the
        # equation holds for the noise that follows from a velocity as for the noise itself.
        guided = (1 - guidance.gamma) * hard + guidance.gamma * soft
        output = torch.cat([output[:, :unguided], guided], dim=1)
    return noise_from_output(output, x, alpha, model.config.prediction)


@torch.inference_mode()
def sample_views(
    model: UNet,
    noise: Tensor,
    poses: Tensor,
    timesteps: list[int],
    guidance: Guidance,
    trajectory: Tensor | None = None,
    solver: str = "ddim",
) -> Tensor:
    """Objects (objects, 1 + views, 3, S, S) in their reference pose and other poses.

    Args:
        noise: (objects, 3, S, S), shared by all frames of an object, or one for each frame,
            (objects, 1 + views, 3, S, S).
        poses: (objects, 1 + views) int, the reference's first.
        guidance: as in :func:`denoise_views`.
        trajectory: (len(timesteps), objects, 3, S, S), the references at each of the timesteps
            where they are given images: their keys and values are read along it.
    """
    embeddings = _embeddings(model, poses, timesteps)
    references = {} if trajectory is None else dict(zip(timesteps, trajectory, strict=True))
    x = noise if noise.ndim == 5 else noise[:, None].expand(-1, poses.shape[1], -1, -1, -1)

    def denoise(x: Tensor, t: int, alpha: float) -> Tensor:
        if references:
            x = torch.cat([references[t][:, None], x[:, 1:]], dim=1)
        return denoise_views(model, x, embeddings[t], alpha, guidance)

    return SOLVERS[solver].sample(denoise, x, timesteps)


@torch.inference_mode()
def sample_all_poses(
    model: UNet,
    noise: Tensor,
    reference: int,
    timesteps: list[int],
    guidance: Guidance,
    batch_size: int,
    trajectory: Tensor | None = None,
    solver: str = "ddim",
    poses: Sequence[int] | None = None,
) -> Tensor:
    """One object in every pose of its category, (k, 3, S, S) in circular order.

    Views depend on the reference alone (equation 1), so they may be made a few at a time, and some
    may be left out.

    Args:
        noise: (1, 3, S, S), shared, or one for each pose of the category, (k, 3, S, S).
        reference: pose of the reference.
        guidance: as in :func:`denoise_views`.
        batch_size: images denoised at once, the reference and guided views among them.
        trajectory: (len(timesteps), 1, 3, S, S) where the reference is a given image.
        poses: distinct ones of the category, to make only these, in this order.
    """
    siblings = model.config.siblings(reference)
    wanted = siblings if poses is None else poses
    others = [pose for pose in wanted if pose != reference]
    size = max(1, (batch_size - 1) // (2 if guidance.hard else 1))
    noise, images = noise.expand(len(siblings), -1, -1, -1), dict[int, Tensor]()
    for start in range(0, max(1, len(others)), size):  # once for the reference alone, too
        chosen = [reference, *others[start : start + size]]
        asked = torch.tensor([chosen], device=noise.device)
        own = noise[[siblings.index(pose) for pose in chosen]][None]
        made = sample_views(model, own, asked, timesteps, guidance, trajectory, solver)[0]
        images |= zip(chosen, made.to(noise.dtype), strict=True)
    return torch.stack([images[pose] for pose in wanted])


@torch.inference_mode()
def sample_single(
    model: UNet, noise: Tensor, poses: Tensor, timesteps: list[int], solver: str = "ddim"
) -> Tensor:
    """Single images (n, 3, S, S) from noise (n, 3, S, S) in poses (n,), by plain self-attention."""
    return SOLVERS[solver].sample(single_denoiser(model, poses, timesteps), noise, timesteps)


def single_denoiser(model: UNet, poses: Tensor, timesteps: list[int]) -> Denoiser:
    """Predicted noise of single images (n, 3, S, S) in poses (n,) at any of the timesteps."""
    embeddings = _embeddings(model, poses, timesteps)

    def denoise(x: Tensor, t: int, alpha: float) -> Tensor:
        output = model.decode(model.encode(x, embeddings[t]), embeddings[t])
        return noise_from_output(output, x, alpha, model.config.prediction)

    return denoise


def _embeddings(model: UNet, poses: Tensor, timesteps: list[int]) -> dict[int, Tensor]:
    """Embeddings (*poses.shape, embedding) at every timestep."""
    times = torch.tensor(timesteps, device=poses.device).repeat_interleave(poses.numel())
    flat = model.embed(times, poses.flatten().repeat(len(timesteps)))
    return dict(zip(timesteps, flat.unflatten(0, (len(timesteps), *poses.shape)), strict=True))


def distinct_choice(rng: np.random.Generator, shares: np.ndarray, count: int) -> np.ndarray:
    """``count`` different indices, each drawn with a probability of ``count`` times its share.

    Systematic sampling (Madow 1949). Probabilities above 1 are cut, the others raised.

    Args:
        rng: of the draw.
        shares: (n,) positive, of any sum; n > count.
        count: how many.
    """
    wanted = count * shares / shares.sum()
    while (wanted > 1 + 1e-9).any():
        wanted = np.minimum(wanted, 1)
        others = wanted < 1
        wanted[others] *= (count - (~others).sum()) / wanted[others].sum()
    order = rng.permutation(len(wanted))
    edges = np.cumsum(wanted[order])
    places = np.searchsorted(edges, rng.random() + np.arange(count), side="right")
    return order[np.minimum(places, len(order) - 1)]
