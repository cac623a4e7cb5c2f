"""Loading segment-anything: published weights, a checkpoint file, or the embedded stand-in."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from mirage_steps.stand_ins.tiny_sam import build_tiny_sam
from mirage_steps.support.errors import UserError
from mirage_steps.support.fetch import fetch

_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
# File and SHA-256 of the weights that Meta publishes (segment-anything's README).
PUBLISHED = {
    "vit_b": (
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": (
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": (
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
# Width of the image encoder's tokens -> architecture.
_ARCHITECTURES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


def load_sam(sam: str, device: torch.device) -> Sam:
    """Load a segment-anything model in evaluation mode.

    Args:
        sam: ``vit_b``, ``vit_l`` or ``vit_h`` (Meta's weights, fetched once), a checkpoint file
            of one of these, or the folder of a stand-in.
        device: where the model goes.

    Raises:
        UserError: weights that are not there, cannot be fetched, or are of another model.
    """
    path = Path(sam)
    if sam in PUBLISHED:
        file, digest = PUBLISHED[sam]
        model = _from_checkpoint(fetch(_URL + file, digest, f"masks.sam {sam}"))
    elif path.is_dir():
        model = _stand_in(path)
    elif path.is_file():
        model = _from_checkpoint(path)
    else:
        raise UserError(
            f"masks.sam {sam}: no such file or folder, and none of {', '.join(PUBLISHED)}"
        )
    return model.to(device).eval().requires_grad_(False)


def _from_checkpoint(path: Path) -> Sam:
    """Build the architecture whose weights a checkpoint holds."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = sam_model_registry[_architecture(state)](checkpoint=None)
        model.load_state_dict(state)
    except (pickle.UnpicklingError, RuntimeError, LookupError, EOFError, ValueError) as error:
        raise UserError(
            f"masks.sam {path}: not a checkpoint of segment-anything ({_first_line(error)}); "
            "delete it if its download broke off"
        ) from None
    return model


def _architecture(state: Mapping[str, torch.Tensor]) -> str:
    """Name of the architecture by the width of the image encoder's position embedding."""
    if not isinstance(state, Mapping) or "image_encoder.pos_embed" not in state:
        raise ValueError("no image_encoder.pos_embed in it")
    width = state["image_encoder.pos_embed"].shape[-1]
    if width not in _ARCHITECTURES:
        raise ValueError(f"an image encoder of width {width}, known are {list(_ARCHITECTURES)}")
    return _ARCHITECTURES[width]


def _stand_in(folder: Path) -> Sam:
    """The small model that comes with the project, for demonstrations without a download."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"masks.sam {folder}: has no model.safetensors")
    try:
        return build_tiny_sam(weights)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"masks.sam {weights}: not the stand-in's weights ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    """What went wrong, short enough for one line."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
