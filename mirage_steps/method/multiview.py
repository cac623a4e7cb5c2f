"""Views of one object: shared noise, cross-frame attention, hard-attention guidance (section 3.3).

Written for speed, with the literal equations as its test:

- all views of an object and its reference are one batch, and the reference attends to itself as any
  view attends to it, so it needs no pass of its own;
- the soft and the hard pass of equation 7 differ only from the first cross-frame attention on;
  what lies before it is computed once, what lies behind it runs as one batch;
- embeddings of all steps and poses are computed before the loop.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mirage_steps.method.diffusion import (
    ddim_invert,
    ddim_sample,
    ddim_steps,
    noise_from_output,
)
from mirage_steps.method.unet import Frames, UNet


def denoise_views(model: UNet, x: Tensor, embedding: Tensor, alpha: float, gamma: float) -> Tensor:
    """Predicted noise of references and their views at one step.

    The reference runs plain self-attention, unguided. Every view attends to the reference's keys
    and values of the same step and layer, in bottleneck and decoder (equation 6); its soft and hard
    predictions combine as in equation 7.

    Args:
        model: the network, in evaluation mode.
        x: (objects, 1 + views, 3, S, S), the reference first.
        embedding: (objects, 1 + views, embedding).
        alpha: alpha_t of the step.
        gamma: weight of the soft pass; at 1 the hard pass is left out.

    Returns:
        Of the shape of ``x``.
    """
    views = x.shape[1] - 1
    frames = Frames(views, hard=gamma != 1 and views > 0)
    embedding = embedding.flatten(0, 1)
    h, skips = model.encode(x.flatten(0, 1), embedding)
    output = model.decode(
        frames.spread(h), [frames.spread(skip) for skip in skips], frames.spread(embedding), frames
    ).unflatten(0, (-1, frames.count))
    output = output.to(x.dtype)  # equation 7 enlarges small differences: not for bfloat16
    if frames.hard:
        reference, soft, hard = output.split([1, views, views], dim=1)
        # Equation 7. Soft and hard pass have the same input, and the weights add up to one, so the
        # equation holds for the noise that follows from a velocity as for the noise itself.
        output = torch.cat([reference, (1 - gamma) * hard + gamma * soft], dim=1)
    return noise_from_output(output, x, alpha, model.config.prediction)


@torch.inference_mode()
def sample_views(
    model: UNet,
    noise: Tensor,
    poses: Tensor,
    steps: int,
    gamma: float,
    progress: Callable = lambda steps: steps,
    trajectory: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    """Generate objects, each in its reference pose and in other poses, from shared noise.

    Args:
        model: the network, in evaluation mode.
        noise: (objects, 3, S, S), the same x_T for all frames of an object.
        poses: (objects, 1 + views) int, the reference's first.
        steps: DDIM steps.
        gamma: as in :func:`denoise_views`.
        progress: wraps the list of steps.
        trajectory: (steps, objects, 3, S, S) of :func:`invert`, where the references are given
            images: their keys and values are those of their own way to noise.
        stride: as of :func:`mirage_steps.method.diffusion.ddim_steps`.

    Returns:
        (objects, 1 + views, 3, S, S), not clamped.
    """
    embeddings = step_embeddings(model, poses.flatten(), steps, stride)
    embeddings = embeddings.unflatten(1, tuple(poses.shape))
    x = noise[:, None].expand(-1, poses.shape[1], -1, -1, -1)

    def denoise(x: Tensor, number: int, alpha: float) -> Tensor:
        if trajectory is not None:
            # Counted from the last step, at t = 0, where any stride arrives.
            there = trajectory[stride * (number - len(embeddings)) + stride - 1]
            x = torch.cat([there[:, None], x[:, 1:]], dim=1)
        return denoise_views(model, x, embeddings[number], alpha, gamma)

    return ddim_sample(denoise, x, steps, progress, stride)


@torch.inference_mode()
def sample_all_poses(
    model: UNet,
    noise: Tensor,
    reference: int,
    steps: int,
    gamma: float,
    batch_size: int,
    trajectory: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    """One object in every pose of its category, the reference in its own.

    Views depend on the reference alone (equation 1), so they may be made a few at a time.

    Args:
        model: the network, in evaluation mode.
        noise: (1, 3, S, S).
        reference: pose of the reference.
        steps: DDIM steps.
        gamma: as in :func:`denoise_views`.
        batch_size: images denoised at once, the reference and guided views among them.
        trajectory: (steps, 1, 3, S, S) where the reference is a given image.
        stride: as of :func:`mirage_steps.method.diffusion.ddim_steps`.

    Returns:
        (k, 3, S, S) in circular order, not clamped.
    """
    poses = model.config.siblings(reference)
    others = [pose for pose in poses if pose != reference]
    size = max(1, (batch_size - 1) // (2 if gamma != 1 else 1))
    images = noise.new_empty(len(poses), *noise.shape[1:])
    for start in range(0, len(others), size):
        chosen = [reference, *others[start : start + size]]
        asked = torch.tensor([chosen], device=noise.device)
        made = sample_views(
            model, noise, asked, steps, gamma, trajectory=trajectory, stride=stride
        )[0]
        images[[poses.index(pose) for pose in chosen]] = made.to(images.dtype)
    return images


@torch.inference_mode()
def sample_single(
    model: UNet,
    noise: Tensor,
    poses: Tensor,
    steps: int,
    progress: Callable = lambda steps: steps,
) -> Tensor:
    """Generate single images with plain self-attention.

    Args:
        model: the network, in evaluation mode.
        noise: (n, 3, S, S).
        poses: (n,) int.
        steps: DDIM steps.
        progress: wraps the list of steps.

    Returns:
        (n, 3, S, S), not clamped.
    """
    return ddim_sample(_single(model, poses, steps), noise, steps, progress)


@torch.inference_mode()
def invert(
    model: UNet,
    images: Tensor,
    poses: Tensor,
    steps: int,
    iterations: int = 1,
    progress: Callable = lambda steps: steps,
) -> Tensor:
    """The way of given images to noise, by DDIM inversion with plain self-attention.

    Args:
        model: the network, in evaluation mode.
        images: (n, 3, S, S) in [-1, 1].
        poses: (n,) int.
        steps: DDIM steps.
        iterations: of the fixed point at every step, 1 for plain DDIM inversion; the network is
            evaluated ``steps * iterations`` times.
        progress: wraps the list of steps.

    Returns:
        (steps, n, 3, S, S), the noise first.
    """
    return ddim_invert(_single(model, poses, steps), images, steps, iterations, progress)


def _single(model: UNet, poses: Tensor, steps: int) -> Callable[[Tensor, int, float], Tensor]:
    """Predicted noise of single images in poses (n,), as the sampler asks for it."""
    embeddings = step_embeddings(model, poses, steps)

    def denoise(x: Tensor, number: int, alpha: float) -> Tensor:
        embedding = embeddings[number]
        output = model.decode(*model.encode(x, embedding), embedding)
        return noise_from_output(output, x, alpha, model.config.prediction)

    return denoise


def step_embeddings(model: UNet, poses: Tensor, steps: int, stride: int = 1) -> Tensor:
    """Embeddings of all DDIM steps taken, (steps, n, embedding), for poses (n,)."""
    times = torch.tensor([t for t, _ in ddim_steps(steps, stride)], device=poses.device)
    count = len(poses)
    flat = model.embed(times.repeat_interleave(count), poses.repeat(len(times)))
    return flat.unflatten(0, (len(times), count))
