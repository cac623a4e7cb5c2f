"""Some steps of training in one process of several; what a test of torchrun runs."""

import sys

import torch

from mirage_steps.method.processes import Processes
from mirage_steps.method.training import Trainer
from mirage_steps.method.unet import UNetConfig
from mirage_steps.settings import Training

# Two channels and more to a group of the normalization: with one, biases before it have no effect,
# and their gradients are nothing but rounding.
CONFIG = UNetConfig(
    16, 6, (64, 96), blocks=1, attention_below=8, head_dim=8, heads=2, stem=2, prediction="velocity"
)
STEPS = 8


def train(processes: Processes, dtype: torch.dtype, **changed) -> dict:
    """State after some steps on random images."""
    training = Training(
        image_size=16, batch_size=10, dropout=0.0, precision="float32", iterations=STEPS,
        ema=0.9, **changed,
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    try:
        trainer = Trainer(CONFIG, training, processes)
        figures = []
        for number in range(STEPS):
            chance = torch.Generator().manual_seed(number)
            images = torch.rand(10, 16, 16, 3, generator=chance, dtype=torch.float32).to(dtype)
            poses = torch.randint(0, 6, (10,), generator=chance)
            images = (images * 2 - 1).permute(0, 3, 1, 2)
            figures.append(trainer.step(images[trainer.share], poses[trainer.share]))
    finally:
        torch.set_default_dtype(torch.float32)
    means = torch.stack(figures)
    processes.total(loss := means[:, 0].clone())
    return {**trainer.state(), "loss": loss, "norm": means[:, 1]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Processes.joined("cpu") as here:
        found = train(
            here, getattr(torch, sys.argv[2]), optimizer=sys.argv[3], accumulation=int(sys.argv[4])
        )
        torch.save(found, f"{sys.argv[1]}/{here.rank}.pt")
