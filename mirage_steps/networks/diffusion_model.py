"""A trained diffusion model on disk: ``model.safetensors`` and ``config.json``.

The text of config.json is also in model.safetensors, whose checksum thus covers both.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from mirage_steps.errors import UserError, first_line, rerun
from mirage_steps.files.atomic import write_json
from mirage_steps.files.tensors import read_tensors, write_tensors
from mirage_steps.method.device import out_of_memory
from mirage_steps.method.unet import UNet, UNetConfig, build


def save_model(folder: Path, model: UNet, about: dict) -> None:
    """Write a network; ``about`` goes into config.json, the ``seed`` of its weights among it.

    Raises:
        OSError: of the disk.
    """
    path = folder / "config.json"
    write_json(path, {"unet": asdict(model.config), **about})
    weights = {key: value.cpu().numpy() for key, value in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", weights, path.read_text(encoding="utf-8"))


def load_model(folder: Path, device: torch.device, untrained: bool = False) -> UNet:
    """The network of a training folder, in evaluation mode.

    Args:
        folder: with config.json and model.safetensors.
        device: of the network.
        untrained: draw the weights that training started from instead of loading the trained ones.

    Raises:
        UserError: a file is missing, damaged, or of another version.
        OSError: a file may not be read.
    """
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        path = folder / "model.safetensors"
        arrays, configuration = read_tensors(path)
        if text != configuration:
            raise UserError(
                f"{folder / 'config.json'}: is not that of {path}; restore it, or {rerun('train')}"
            )
        config = json.loads(text)
        model = build(UNetConfig(**config["unet"]), config["seed"])
        if not untrained:
            weights = {key: torch.from_numpy(one) for key, one in arrays.items()}
            if weights.keys() != model.state_dict().keys():
                raise UserError(f"{folder}: made by another version; {rerun('train')}")
            model.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the training step first") from None
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"{path}: not a trained model ({first_line(error)}); {rerun('train')}"
        ) from None
    return model.to(device).eval().requires_grad_(False)
