"""Training loop of the stand-in networks, on random views of rendered scenes."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from mirage_steps.demo.stand_ins.augment import View, random_view
from mirage_steps.demo.stand_ins.scenes import Scenes
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import log
from mirage_steps.files.terminal import progress
from mirage_steps.settings import Settings

_LOG_EVERY = 200


class StandInTraining(Settings):
    """Training of a stand-in network."""

    epochs: float = Field(gt=0, description="How often each scene is seen.")
    batch_size: int = Field(ge=2, description="Images a step.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.02, ge=0, description="Weight decay of matrices.")
    warmup: int = Field(100, ge=0, description="Steps over which the learning rate rises.")
    precision: str = Field("auto", description="auto, float32 or bfloat16.")
    seed: int = Field(0, ge=0, description="Seed of weights, windows, colors and prompts.")

    def steps(self, scenes: int) -> int:
        """Optimizer steps for so many scenes."""
        return max(1, round(self.epochs * scenes / self.batch_size))


def fit(
    model: torch.nn.Module,
    loss_of: Callable[[View, torch.Generator], Tensor],
    scenes: Scenes,
    settings: StandInTraining,
    size: Callable[[int], int],
) -> list[float]:
    """Train a network in place; gives the loss of every step.

    Args:
        model: in training mode.
        loss_of: scalar loss of the model on a batch; draws its augmentation from the generator.
        scenes: images and truth.
        settings: of the training.
        size: side of the images in pixels, by the step from 0.
    """
    started = time.time()
    rng = torch.Generator().manual_seed(settings.seed)
    optimizers = _optimizers(model, settings)
    steps = settings.steps(len(scenes.image))
    rate = _rate(settings.warmup, steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, rate) for one in optimizers]
    losses: list[float] = []
    for step in progress(range(steps), unit="step"):
        rows = torch.randint(len(scenes.image), (settings.batch_size,), generator=rng)
        loss = loss_of(random_view(scenes, rows, size(step), rng), rng)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if (step + 1) % _LOG_EVERY == 0:
            log.info("step %d: loss %.3f", step + 1, sum(losses[-_LOG_EVERY:]) / _LOG_EVERY)
    log.info("trained in %.0f s, last loss %.3f", time.time() - started, losses[-1])
    return losses


def _optimizers(
    model: torch.nn.Module, settings: StandInTraining
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the matrices of linear layers, AdamW for all other parameters.

    Together they learned faster here than AdamW alone; Muon takes neither embeddings nor
    convolutions.
    """
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    matrices = {id(weight) for weight in linear}
    others = [p for p in model.parameters() if id(p) not in matrices]
    rate, decay = settings.learning_rate, settings.weight_decay
    # Scaled to AdamW's usual step size, so that one learning rate serves both.
    muon = torch.optim.Muon(linear, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)


def _rate(warmup: int, steps: int) -> Callable[[int], float]:
    """Share of the peak learning rate by the step: linear warmup, then a cosine to zero."""
    warmup = min(warmup, steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def write_scores(out: Path, scores: object, card: str) -> None:
    """Write ``evaluation.json`` and the model card, ``README.md``, to the folder of the weights."""
    log.info("%s", scores)
    write_json(out / "evaluation.json", vars(scores))
    (out / "README.md").write_text(card, encoding="utf-8")
