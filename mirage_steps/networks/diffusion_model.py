"""A trained diffusion model on disk: ``model.safetensors`` and ``config.json``."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mirage_steps.errors import UserError, first_line
from mirage_steps.files.atomic import atomic, write_json
from mirage_steps.method.unet import UNet, UNetConfig, build


def save_model(folder: Path, model: UNet, about: dict) -> None:
    """Write a network; ``about`` goes into config.json, the ``seed`` of its weights among it.

    Raises:
        UserError: the disk is full or gone.
    """
    write_json(folder / "config.json", {"unet": asdict(model.config), **about})
    path = folder / "model.safetensors"
    try:
        with atomic(path) as temporary:
            weights = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(weights, temporary)
    except SafetensorError as error:
        raise UserError(f"{path}: {error}; the checkpoint is kept: run again") from None


def load_model(folder: Path, device: torch.device, untrained: bool = False) -> UNet:
    """The network of a training folder, in evaluation mode.

    Args:
        folder: with config.json and model.safetensors.
        device: of the network.
        untrained: draw the weights that training started from instead of loading the trained ones.

    Raises:
        UserError: a file is missing, damaged, or of another version.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        model = build(UNetConfig(**config["unet"]), config["seed"])
        weights = model.state_dict() if untrained else load_file(folder / "model.safetensors")
        if weights.keys() != model.state_dict().keys():
            raise UserError(f"{folder}: made by another version; rerun the training")
        model.load_state_dict(weights)
    except FileNotFoundError as error:
        path = error.filename or folder / "model.safetensors"  # safetensors names none
        raise UserError(f"{path}: no such file; run the training step first") from None
    except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: not a trained model ({first_line(error)}); rerun the training"
        ) from None
    return model.to(device).eval().requires_grad_(False)
