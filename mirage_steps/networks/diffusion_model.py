"""A trained diffusion model on disk: ``model.safetensors`` and ``config.json``."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mirage_steps.errors import UserError
from mirage_steps.method.unet import UNet, UNetConfig, build


def load_model(folder: Path, device: torch.device, untrained: bool = False) -> UNet:
    """The network of a training folder, in evaluation mode.

    Args:
        folder: with config.json and model.safetensors.
        device: where it shall run.
        untrained: draw the weights that training started from instead of loading the trained ones.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        model = build(UNetConfig.from_dict(config["unet"]), config["seed"])
        if not untrained:
            model.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; run the training step first") from None
    except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: not a trained model ({reason}); rerun training") from None
    return model.to(device).eval().requires_grad_(False)
