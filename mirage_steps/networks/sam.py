"""Load segment-anything: published weights, a checkpoint file, or the embedded stand-in."""

from pathlib import Path

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from mirage_steps.errors import UserError, first_line
from mirage_steps.networks.fetching import resolve
from mirage_steps.networks.names import network_name
from mirage_steps.networks.tiny_sam import build_tiny_sam
from mirage_steps.settings import WEIGHTS

# Width of the image encoder's tokens -> architecture.
_ARCHITECTURES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


def load_sam(sam: str, device: torch.device, weights: Path = Path(WEIGHTS)) -> Sam:
    """A segment-anything model in evaluation mode.

    Args:
        sam: ``vit_b``, ``vit_l`` or ``vit_h`` (Meta's weights, fetched once), a checkpoint file
            of one of these, or the folder of a stand-in.
        device: where the model goes.
        weights: folder of fetched networks.

    Raises:
        UserError: weights that are missing, cannot be fetched, or are of another model.
    """
    path = resolve(sam, "masks.sam", weights)
    try:
        if path.is_dir():
            what = "a stand-in with its model.safetensors"
            model = build_tiny_sam(path / "model.safetensors")
        else:
            what = "a checkpoint of segment-anything"
            model = _from_checkpoint(path)
    except Exception as error:  # torch.load raises nearly anything on damaged files
        raise UserError(f"masks.sam {path}: not {what} ({first_line(error)})") from None
    return model.to(device).eval().requires_grad_(False)


def sam_name(sam: str) -> str:
    """Name of the model in tables; only stand-ins are folders."""
    return network_name(sam, stand_in=Path(sam).is_dir())


def _from_checkpoint(path: Path) -> Sam:
    """The architecture whose weights a checkpoint holds, with these weights."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    width = state["image_encoder.pos_embed"].shape[-1]
    if width not in _ARCHITECTURES:
        raise ValueError(f"an image encoder of width {width}, known are {list(_ARCHITECTURES)}")
    model = sam_model_registry[_ARCHITECTURES[width]](checkpoint=None)
    model.load_state_dict(state)
    return model
