"""The training of the diffusion model: data order, optimizers, EMA, loop (paper, section 3.2).

A step is the same in one process, with gradient accumulation, or in several processes: each draws
the random numbers of the whole batch and takes its share. All randomness depends on seed and step
only, so a resumed run equals an uninterrupted one without generator states, on the CPU bit for bit.
"""

import contextlib
import copy
import functools
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.method import diffusion
from mirage_steps.method.device import autocast
from mirage_steps.method.processes import Processes
from mirage_steps.method.unet import UNet, UNetConfig, build

# Iterations that orthogonalize an update; torch's default is 5 (docs/experiments.md compares).
_NEWTON_SCHULZ = 3
# Of Muon (Jordan 2024): Nesterov's momentum, and the polynomial of an iteration.
_MOMENTUM, _QUINTIC = 0.95, (3.4445, -4.7750, 2.0315)
# Images stay on the accelerator if they take at most this share of its free memory.
_COPIED, _AT_ONCE = 0.25, 1024
_WARM, _TIMED = 2, 5  # steps that choose kernels and allocate, and steps that are timed


class Hooks(Protocol):
    """Callbacks of the loop: ``stop_requested`` in every process, the others in the first only."""

    def stop_requested(self) -> bool: ...  # whether to save and exit after this step
    def log(self, record: dict[str, float]) -> None: ...
    def save(self) -> None: ...
    def sample(self) -> None: ...
    def stepped(self) -> None: ...  # after everything is saved


def train(trainer: "Trainer", batches: "Batches", hooks: Hooks) -> bool:
    """Train to the last step, or until a stop is requested; returns whether all steps are done.

    Raises:
        UserError: the loss is not finite.
    """
    training, processes, recent = trainer.training, trainer.processes, []
    while trainer.done < training.iterations:
        recent.append(trainer.step(*batches.batch(trainer.done, trainer.share)))
        last = trainer.done == training.iterations
        stop = processes.largest(hooks.stop_requested()) and not last
        save = last or stop or trainer.done % training.checkpoint_every == 0
        if save or trainer.done % training.log_every == 0:
            # Only here metrics leave the device, which synchronizes with it.
            means = torch.stack(recent).mean(0).cpu()
            loss, norm = processes.total(means[:1]).item(), means[1].item()
            if not math.isfinite(loss + norm):  # never checkpoint NaNs
                raise UserError(
                    f"the loss is not finite at step {trainer.done}; the last checkpoint is kept: "
                    "try precision: float32 or a lower learning_rate"
                )
            record = {"step": trainer.done, "loss": loss, "gradient_norm": norm}
            if processes.first:
                hooks.log({**record, "learning_rate": trainer.learning_rate})
            recent.clear()
        if processes.first:
            if save:
                hooks.save()
            hooks.stepped()
        if stop:
            processes.largest(0)  # wait: torchrun kills a process that still saves
            return False
        if processes.first and (last or trainer.done % training.sample_every == 0):
            hooks.sample()
    return True


class Trainer:
    """Network, EMA network, optimizers and schedule; one :meth:`step` an iteration.

    Args:
        config: shape of the network.
        training: batch, optimizer, arithmetic.
        processes: this one among those that train together.
    """

    def __init__(self, config: UNetConfig, training: settings.Training, processes: Processes):
        self.config, self.training = config, training
        self.processes, self.device = processes, processes.device
        self.model = build(config, training.seed).to(self.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = make_optimizers(self.model, training.optimizer, training.learning_rate)
        self.alphas = diffusion.cumulative_alphas().to(self.device)
        self.done = 0
        # Gradients are exchanged during the backward pass.
        self._parallel: Any = self.model
        if processes.count > 1:
            self._parallel = DistributedDataParallel(self.model)

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def learning_rate(self) -> float:
        """Of the next step: linear warmup, then constant or cosine to zero."""
        training, step = self.training, self.done
        rate = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
        if training.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(step / training.iterations, 1.0)))
        return training.learning_rate * rate

    @property
    def share(self) -> slice:
        """The rows of every batch that are this process's."""
        return share(self.training.batch_size, self.processes.rank, self.processes.count)

    def compile(self) -> None:
        """Compile the trained network, at its next step; checkpoints and EMA remain as they are.

        With torch's own random numbers, so that dropout does not change.
        """
        self.model.compile(options={"fallback_random": True})

    def step(self, images: Tensor, poses: Tensor) -> Tensor:
        """One optimizer step on this process's share of a batch, (b, 3, S, S) and (b,).

        Returns:
            (2,), on the device: loss per value, summed over the processes that of the whole batch;
            norm of the gradient, the same in all.
        """
        images, poses = _to(self.device, images), _to(self.device, poses)
        times, noise = self._draw(images)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.model.train()
        loss, count = images.new_zeros(()), self.training.accumulation
        for number in range(count):
            rows = share(len(images), number, count)
            exchange = self.processes.count == 1 or number == count - 1
            with contextlib.nullcontext() if exchange else self._parallel.no_sync():
                loss += self._backward(images[rows], poses[rows], times[rows], noise[rows])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
            optimizer.step()
        self._update_ema()
        self.done += 1
        return torch.stack([loss / images[0].numel(), norm])

    def rehearse(self, images: Tensor, poses: Tensor) -> None:
        """Forward and backward pass of a step that changes nothing."""
        times, noise = self._draw(images)
        rows = share(len(images), 0, self.training.accumulation)
        self._backward(images[rows], poses[rows], times[rows], noise[rows])
        self.model.zero_grad(set_to_none=True)

    def _draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """This process's share of the timesteps (b,) and the noise (b, 3, S, S) of a batch."""
        size, seed = self.training.batch_size, self.training.seed
        torch.manual_seed(_step_seed(seed, self.done))
        times = _to(self.device, diffusion.antithetic_timesteps(size)[self.share])
        # Drawn in the order of the images' memory, which is channels last.
        whole = images.new_empty(size, *images.shape[2:], images.shape[1]).permute(0, 3, 1, 2)
        noise = torch.randn_like(whole)[self.share]
        if self.processes.rank:
            torch.manual_seed(_step_seed(seed, self.done, self.processes.rank))  # of the dropout
        return times, noise

    def _backward(self, images: Tensor, poses: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Add the gradients of some rows to those before; returns their share of the loss."""
        with autocast(self.device, self.training.precision):
            noisy = diffusion.add_noise(images, noise, self.alphas[times])
            predicted = self._parallel(noisy, times, poses)
        if self.config.prediction == "velocity":
            target = diffusion.velocity(images, noise, self.alphas[times])
        else:
            target = noise
        weight = len(images) / self.training.batch_size
        loss = diffusion.squared_error(predicted, target) * weight
        # DistributedDataParallel takes the mean over the processes; the batch needs their sum.
        (loss * self.processes.count).backward()
        return loss.detach()

    def _update_ema(self) -> None:
        """Move the EMA weights; their window grows with the run until it is ``ema`` long.

        At the start the EMA weights would otherwise be dominated by the untrained ones.
        """
        decay = min(self.training.ema, (1 + self.done) / (10 + self.done))
        averaged: list[Tensor] = list(self.ema.parameters())
        current: list[Tensor] = [value.detach() for value in self.model.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def state(self) -> dict:
        """Everything a resumed run needs, as tensors and plain values."""
        return {
            "done": self.done,
            "threads": torch.get_num_threads(),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def start_from(self, model: UNet) -> None:
        """Take the weights of a trained network of the same shape, before the first step.

        With another number of poses, their embeddings remain at random.
        """
        weights = model.state_dict()
        if model.config.poses != self.config.poses:
            del weights["pose_embedding.weight"]
        for own in (self.model, self.ema):
            own.load_state_dict({**own.state_dict(), **weights})

    def restore(self, state: dict) -> None:
        """Continue from what :meth:`state` returned."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.done = state["done"]
        if self.device.type == "cpu":  # the bits of a sum depend on it
            torch.set_num_threads(min(state["threads"], torch.get_num_threads()))


class Batches:
    """Batches of images and poses that depend on the seed and the step alone.

    Args:
        images: (n, S, S, 3) uint8, an array or an HDF5 dataset.
        labels: (n,) poses.
        training: batch size and seed.
        copied: all images in the memory of an accelerator, to spare reading them in every epoch.
    """

    def __init__(
        self,
        images: Sequence,
        labels: np.ndarray,
        training: settings.Training,
        copied: Tensor | None = None,
    ):
        self.images, self.labels, self.training = images, labels, training
        self.copied = copied
        self._order = functools.lru_cache(2)(self._draw_order)  # a batch may span two epochs

    def batch(self, step: int, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Images (b, 3, S, S) in [-1, 1] and poses (b,) of a step; every epoch has a new order."""
        size, count = self.training.batch_size, len(self.labels)
        places = range(step * size, (step + 1) * size)[share]
        chosen = [int(self._order(place // count)[place % count]) for place in places]
        if self.copied is not None:
            pixels = self.copied[_to(self.copied.device, torch.tensor(chosen))]
        else:
            # One chunk an image; HDF5's fancy indexing would be slower and wants sorted rows.
            pixels = np.stack([self.images[index] for index in chosen])
        return diffusion.from_pixels(pixels), torch.from_numpy(self.labels[chosen])

    def _draw_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.training.seed, epoch]).permutation(len(self.labels))


def _to(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on a device; a CUDA device does not make the CPU wait for its work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def copy_images(images: Any, device: torch.device) -> Tensor | None:
    """All images (n, S, S, 3) uint8 on a CUDA device, where they take little of its free memory.

    Returns:
        None on the CPU, or where they would take more than a quarter of the memory.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if math.prod(images.shape) > _COPIED * free:
        return None
    copied = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), _AT_ONCE):  # the machine's memory need not hold them all
        part = slice(start, start + _AT_ONCE)
        copied[part] = torch.from_numpy(images[part])
    return copied


def seconds_per_step(trainer: Trainer, batches: Batches) -> float:
    """Median time of some first steps, reading included; the trainer has then done them."""
    times = []
    for step in range(_WARM + _TIMED):
        start = time.perf_counter()
        trainer.step(*batches.batch(step, trainer.share)).cpu()  # waits for the device
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM:])


class KernelMuon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for kernels of convolutions as well as for matrices.

    Muon makes the rows of every update nearly orthonormal. A kernel (out, in, h, w) is taken as the
    matrix (out, in * h * w) of the linear map that the convolution applies at every place. Steps
    are scaled to Adam's usual size, so that one learning rate serves both.

    Args:
        parameters: of two or four dimensions, whose ``grad`` each step reads.
        rate: learning rate.
    """

    def __init__(self, parameters: list[nn.Parameter], rate: float):
        self.kernels = parameters
        self._matrices = [nn.Parameter(_as_matrix(p.detach(), like=p)) for p in parameters]
        for kernel, matrix in zip(self.kernels, self._matrices, strict=True):
            if kernel.data_ptr() != matrix.data_ptr():
                raise ValueError("a kernel is neither contiguous nor channels_last")
        super().__init__(self._matrices, {"lr": rate})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Change the parameters by the gradients they hold."""
        (group,) = self.param_groups
        for kernel, matrix in zip(self.kernels, self._matrices, strict=True):
            if kernel.grad is None:
                continue
            gradient, state = _as_matrix(kernel.grad, like=kernel), self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalize(gradient.lerp(state["momentum_buffer"], _MOMENTUM))
            matrix.sub_(update, alpha=group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the kernels."""
        for parameter in self.kernels:
            parameter.grad = None


def orthogonalize(matrix: Tensor, iterations: int = _NEWTON_SCHULZ) -> Tensor:
    """A matrix (m, n) float32 with all its singular values brought near 1 (Newton-Schulz).

    An iteration turns X into (a + b G + c G^2) X, where G = X X^T. G and this polynomial commute,
    so all iterations act on G alone, which is square and small, and X is multiplied once. That
    needs float32: torch's Muon works on X in bfloat16, which takes thirty times as long on a CPU
    without such arithmetic.
    """
    a, b, c = _QUINTIC
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    gram, eye = wide @ wide.T, torch.eye(len(wide), device=wide.device)
    factor = eye
    for _ in range(iterations):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(eye, alpha=a)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    wide = factor @ wide
    return wide.T if len(matrix) > matrix.shape[1] else wide


def _as_matrix(kernel: Tensor, like: Tensor) -> Tensor:
    """A kernel (out, in, h, w) as (out, in * h * w), in the order of the memory of ``like``.

    The columns' order does not matter to Muon, and only in the memory's order both share memory.
    """
    if kernel.ndim == 2:
        return kernel
    if like.is_contiguous(memory_format=torch.channels_last):
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.reshape(len(kernel), -1)


def make_optimizers(model: UNet, name: str, rate: float) -> list[torch.optim.Optimizer]:
    """The optimizers of ``training.optimizer``; every parameter is in exactly one of them.

    Args:
        model: to be trained.
        name: ``adam`` (DDIM), or ``muon``: for the matrices and kernels of the hidden layers, and
            Adam for what comes first or last, the embeddings, and all vectors.
        rate: learning rate of all.
    """
    if name == "adam":
        return [torch.optim.Adam(model.parameters(), lr=rate, fused=True)]
    middle = (model.middle_block0, model.middle_attention, model.middle_block1)
    layers = (model.encoder, *middle, model.decoder)
    hidden = [p for layer in layers for p in layer.parameters() if p.ndim > 1]
    chosen = {id(parameter) for parameter in hidden}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [KernelMuon(hidden, rate), torch.optim.Adam(others, lr=rate, fused=True)]


def share(count: int, number: int, of: int) -> slice:
    """Rows of share ``number``, from 0, when ``count`` rows are divided as evenly as can be."""
    return slice(number * count // of, (number + 1) * count // of)


def _step_seed(seed: int, step: int, *more: int) -> int:
    return int(np.random.SeedSequence([seed, step, *more]).generate_state(1, np.uint32)[0])
