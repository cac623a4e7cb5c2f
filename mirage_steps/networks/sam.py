"""Load segment-anything: published weights, a checkpoint file, or the embedded stand-in."""

import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor
from torch.nn import functional

from mirage_steps.errors import UserError, first_line, is_of_system
from mirage_steps.files.command import log
from mirage_steps.files.project import project_path
from mirage_steps.method.device import out_of_memory
from mirage_steps.networks.fetching import resolve
from mirage_steps.networks.names import network_name
from mirage_steps.networks.tiny_sam import build_tiny_sam
from mirage_steps.settings import WEIGHTS

# Width of the image encoder's tokens -> architecture.
_ARCHITECTURES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
# The parts of segment-anything, behind the prefix of a wrapping such as `module.`
_PART = re.compile(r"(|.*?\.)(image_encoder|prompt_encoder|mask_decoder)\.")
# Beginnings of names that only another model has.
_OTHERS = {
    "mask_decoder.hf_": "SAM-HQ",
    "image_encoder.layers.": "MobileSAM",
    "image_encoder.trunk.": "SAM 2",
    "vision_encoder.": "SAM of transformers",
}


def load_sam(sam: str, device: torch.device, weights: Path = Path(WEIGHTS)) -> Sam:
    """A segment-anything model in evaluation mode.

    Args:
        sam: ``vit_b``, ``vit_l`` or ``vit_h`` (Meta's weights, fetched once), a file with the
            weights of one of these, or the folder of a stand-in.
        device: where the model goes.
        weights: folder of fetched networks.

    Raises:
        UserError: weights that are missing, cannot be fetched, or are of another model.
    """
    path = resolve(sam, "masks.sam", weights)
    stand_in = path.is_dir()
    what = "stand-in with its model.safetensors" if stand_in else "checkpoint of segment-anything"
    try:
        place, state = _unwrapped(_read(path / "model.safetensors" if stand_in else path))
        model = build_tiny_sam() if stand_in else _network(state)
        _fill(model, place, state)
    except Exception as error:  # torch.load raises nearly anything on damaged files
        if out_of_memory(error) or is_of_system(error):
            raise
        raise UserError(
            f"masks.sam {path}: not a {what} ({first_line(error)}); give one of ViT-B, ViT-L "
            "or ViT-H"
        ) from None
    fuse_attention(model)
    return model.to(device).eval().requires_grad_(False)


def fuse_attention(model: Sam) -> None:
    """Compute the attention of published image encoders in a faster way, equal up to rounding."""
    for block in model.image_encoder.blocks:
        if block.attn.use_rel_pos:
            block.attn.forward = partial(attend, block.attn)


def attend(layer: Attention, x: Tensor) -> Tensor:
    """An attention layer of segment-anything, without its matrix of all pairs of patches.

    It adds to the logit of a query and a key two products of the query with relative position
    embeddings, one for the row of the key and one for its column. Here the query gets its products
    with all rows and columns as further channels, and the key a one at its row and its column: the
    product of both is the same sum, and a fused kernel does the rest.

    Args:
        layer: with its weights.
        x: tokens (n, h, w, width).

    Returns:
        Tokens of the same shape.
    """
    rows, columns = x.shape[1:3]
    qkv = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(3, 0, 4, 1, 2, 5)
    query, key, value = qkv  # each (n, heads, h, w, channels)
    by_row = get_rel_pos(rows, rows, layer.rel_pos_h)
    by_column = get_rel_pos(columns, columns, layer.rel_pos_w)
    row_terms = torch.einsum("nahwc,hkc->nahwk", query, by_row)
    column_terms = torch.einsum("nahwc,wkc->nahwk", query, by_column)
    row = torch.eye(rows).to(key)[:, None].expand(-1, columns, -1)
    column = torch.eye(columns).to(key).expand(rows, -1, -1)
    place = torch.cat([row, column], -1).expand(*key.shape[:2], -1, -1, -1)
    query = torch.cat([query * layer.scale, row_terms, column_terms], -1).flatten(2, 3)
    key = torch.cat([key, place], -1).flatten(2, 3)
    padded = functional.pad(value, (0, rows + columns)).flatten(2, 3)  # the kernel wants one shape
    found = functional.scaled_dot_product_attention(query, key, padded, scale=1.0)
    found = found[..., : value.shape[-1]].transpose(1, 2).flatten(2)
    return layer.proj(found.unflatten(1, (rows, columns)))


def sam_name(sam: str) -> str:
    """Name of the model in tables; only stand-ins are folders."""
    return network_name(sam, stand_in=project_path(sam).is_dir())


def _read(path: Path) -> object:
    """Content of a checkpoint of torch or of a safetensors file, whatever its name."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files that are refused anyway
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: object) -> tuple[str, dict[str, Tensor]]:
    """Where in a checkpoint the weights of segment-anything are, and the tensors there.

    Raises:
        ValueError: there are none, or several sets of them.
    """
    found = list(_sets(content))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"holds weights {len(found)} times: {', '.join(p for p, _ in found)}")
    names = list(content) if isinstance(content, dict) else [f"a {type(content).__name__}"]
    raise ValueError(f"holds {', '.join(map(str, names[:4]))}" + ", ..." * (len(names) > 4))


def _sets(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Sets of tensors with parts of segment-anything, each with its place in a checkpoint.

    They are at its top or in a dictionary there, as in ``{"model": ...}``.
    """
    inner = content.items() if isinstance(content, dict) else ()
    for place, part in [("", content), *((f"{name}.", part) for name, part in inner)]:
        if isinstance(part, dict):
            names = [
                n for n, value in part.items() if isinstance(n, str) and torch.is_tensor(value)
            ]
            for prefix in dict.fromkeys(match[1] for match in map(_PART.match, names) if match):
                own = {n.removeprefix(prefix): part[n] for n in names if n.startswith(prefix)}
                yield f"{place}{prefix}", own


def _network(state: dict[str, Tensor]) -> Sam:
    """The network of published size that has an image encoder as wide as this."""
    embedding = state.get("image_encoder.pos_embed")
    width = None if embedding is None else embedding.shape[-1]
    if width not in _ARCHITECTURES:
        found = "an unknown image encoder" + (f" of width {width}" if width else "")
        raise ValueError(f"{found}{_guess(state)}, known widths are {list(_ARCHITECTURES)}")
    return sam_model_registry[_ARCHITECTURES[width]](checkpoint=None)


def _fill(model: Sam, place: str, state: dict[str, Tensor]) -> None:
    """Load weights that are exactly the model's; what is of none of its parts is left out."""
    own = model.state_dict()
    both = own.keys() & state.keys()
    others = state.keys() - both
    problems = {
        "missing": own.keys() - both,
        "unknown": {name for name in others if _PART.match(name)},
        "of another shape": {name for name in both if own[name].shape != state[name].shape},
        "not finite": {name for name in both if not state[name].isfinite().all()},
    }
    told = [f"{len(names)} {what}, as {min(names)}" for what, names in problems.items() if names]
    if told:
        where = f" in {place}" if place else ""
        raise ValueError(f"its weights{where}{_guess(state)}: {'; '.join(told)}")
    if place or others:
        without = f", without {', '.join(sorted(others))}" if others else ""
        log.info("masks.sam: weights taken from %s%s", place or "the file", without)
    model.load_state_dict({name: state[name] for name in own})


def _guess(state: dict[str, Tensor]) -> str:
    """The other model that has such names, in brackets."""
    found = [model for start, model in _OTHERS.items() if any(n.startswith(start) for n in state)]
    return f" [{found[0]}?]" if found else ""
