"""The training of the diffusion model: objective, optimisers, averaged weights (section 3.2).

A step is the same whether one process makes it at once, in parts, or several together: all draw
what is random for the whole batch and take their share of it.
"""

import contextlib
import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from mirage_steps import settings
from mirage_steps.method import diffusion
from mirage_steps.method.device import autocast
from mirage_steps.method.optimizers import optimizers
from mirage_steps.method.processes import Processes
from mirage_steps.method.unet import UNetConfig, build


class Trainer:
    """Network, averaged network, optimiser and schedule; one :meth:`step` an iteration.

    All randomness of a step is drawn from the seed and the step's number, so a resumed run needs no
    generator states to equal an uninterrupted one.

    Args:
        config: shape of the network.
        training: batch, optimiser, arithmetic.
        processes: this one among those that train together.
    """

    def __init__(self, config: UNetConfig, training: settings.Training, processes: Processes):
        self.config, self.training = config, training
        self.processes, self.device = processes, processes.device
        self.model = build(config, training.seed).to(self.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = optimizers(self.model, training.optimizer, training.learning_rate)
        self.schedules = [LambdaLR(one, _rate(training)) for one in self.optimizers]
        self.alphas = diffusion.cumulative_alphas().to(self.device)
        self.done = 0
        # Gradients are exchanged while the backward pass still goes on.
        self._parallel = DistributedDataParallel(self.model) if processes.count > 1 else self.model

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def share(self) -> slice:
        """What of every batch is this process's."""
        return share(self.training.batch_size, self.processes.rank, self.processes.count)

    def step(self, images: Tensor, poses: Tensor) -> Tensor:
        """One optimiser step on a batch.

        Args:
            images: (b, 3, S, S) in [-1, 1], the :attr:`share` of this process.
            poses: (b,).

        Returns:
            (2,), on the device: loss per value, summed over the processes that of the whole batch;
            norm of the gradient, the same in all.
        """
        seed, own = self.training.seed, self.share
        images, poses = images.to(self.device), poses.to(self.device)
        torch.manual_seed(_step_seed(seed, self.done))
        times = diffusion.antithetic_steps(self.training.batch_size)[own].to(self.device)
        # In the order of the images' memory, in which the noise is drawn.
        whole = images.new_empty(self.training.batch_size, *images.shape[2:], images.shape[1])
        noise = torch.randn_like(whole.permute(0, 3, 1, 2))[own]
        if self.processes.rank:
            torch.manual_seed(_step_seed(seed, self.done, self.processes.rank))  # of the dropout
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.model.train()
        loss = images.new_zeros(())
        count = self.training.accumulation
        parts = [share(len(images), number, count) for number in range(count)]
        for part in parts:
            last = self.processes.count == 1 or part is parts[-1]
            with contextlib.nullcontext() if last else self._parallel.no_sync():
                loss += self._backward(images[part], poses[part], times[part], noise[part])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self._average()
        self.done += 1
        return torch.stack([loss / images[0].numel(), norm])

    def _backward(self, images: Tensor, poses: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Gradients of a part of the batch, added to those before; its share of the loss."""
        with autocast(self.device, self.training.precision):
            noisy = diffusion.add_noise(images, noise, self.alphas[times])
            predicted = self._parallel(noisy, times, poses)
        if self.config.prediction == "velocity":
            target = diffusion.velocity(images, noise, self.alphas[times])
        else:
            target = noise
        weight = len(images) / self.training.batch_size
        loss = diffusion.squared_error(predicted, target) * weight
        # The mean over the processes, that DistributedDataParallel takes, is of their shares' sums.
        (loss * self.processes.count).backward()
        return loss.detach()

    def _average(self) -> None:
        """Exponential moving average whose window grows with the run until it is ``ema`` long.

        At the start the averaged weights would otherwise be dominated by the untrained ones.
        """
        decay = min(self.training.ema, (1 + self.done) / (10 + self.done))
        averaged, current = list(self.ema.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, [value.detach() for value in current], 1 - decay)

    def state(self) -> dict:
        """Everything a resumed run needs, as tensors and plain values."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict) -> None:
        """Go on from what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.done = state["done"]
        for schedule in self.schedules:
            schedule.last_epoch = self.done


def _rate(training: settings.Training):
    """Factor of the learning rate at each step."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
        if training.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / training.iterations, 1.0)))

    return factor


def share(count: int, number: int, of: int) -> slice:
    """The part of ``count`` rows, numbered from 0, when they are divided as evenly as can be."""
    return slice(number * count // of, (number + 1) * count // of)


def _step_seed(seed: int, step: int, *more: int) -> int:
    return int(np.random.SeedSequence([seed, step, *more]).generate_state(1, np.uint32)[0])
