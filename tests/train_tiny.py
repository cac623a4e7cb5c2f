"""The training step with a tiny network in place of every preset, as a command for tests."""

import os

from mirage_steps import train
from mirage_steps.files.command import run
from mirage_steps.method.unet import UNetConfig


def tiny(name: str, image_size: int, poses: int, dropout: float, categories: int = 1) -> UNetConfig:
    """Two levels with attention, of a size that trains in milliseconds.

    Two channels in a group of the normalization: with one, biases before it have no effect, and
    their gradients are nothing but rounding.
    """
    return UNetConfig(
        image_size, poses, (64, 64), blocks=1, attention_below=4, head_dim=8, heads=2, stem=4,
        dropout=dropout, prediction="velocity", categories=categories,
    )  # fmt: skip


if __name__ == "__main__":
    train.preset = tiny
    os.fsync = lambda file: None  # tests wait for no disk
    run(train.main)
