"""DINOv2 (Oquab et al. 2023) by torch's own transformer layers, from a folder of ``transformers``.

The same numbers as ``transformers`` gives, without its import, which takes longer than everything
else that a step does before its first image. Models that are not plain DINOv2 (registers, gated
feed-forward layers, weights in several files) are left to ``transformers``.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

_WEIGHTS = "model.safetensors"
_KEYS = {
    "hidden_size", "patch_size", "num_channels", "num_attention_heads", "mlp_ratio",
    "layer_norm_eps", "num_hidden_layers",
}  # fmt: skip
# torch's name of each part of a layer, and transformers'.
_PARTS = {
    "self_attn.out_proj": "attention.output.dense",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
}


class Dinov2(nn.Module):
    """A plain DINOv2.

    Args:
        config: content of its ``config.json``.
        state: its weights under transformers' names.

    Raises:
        KeyError: a weight is missing.
        RuntimeError: a weight has another shape than the configuration says.
    """

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        with torch.device("meta"):
            self.patches = nn.Conv2d(config["num_channels"], width, patch, stride=patch)
            layer = nn.TransformerEncoderLayer(
                width,
                config["num_attention_heads"],
                int(width * config["mlp_ratio"]),
                dropout=0.0,
                activation=functional.gelu,
                layer_norm_eps=config["layer_norm_eps"],
                batch_first=True,
                norm_first=True,
            )
            norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
            self.encoder = nn.TransformerEncoder(
                layer, config["num_hidden_layers"], norm, enable_nested_tensor=False
            )
        state = {name: value.float() for name, value in state.items()}
        self.register_buffer("cls_token", state["embeddings.cls_token"])
        self.register_buffer("positions", state["embeddings.position_embeddings"])
        weights = {
            f"patches.{end}": state[f"embeddings.patch_embeddings.projection.{end}"]
            for end in ("weight", "bias")
        }
        for end in ("weight", "bias"):
            weights[f"encoder.norm.{end}"] = state[f"layernorm.{end}"]
        for number in range(config["num_hidden_layers"]):
            for name, value in _layer(state, f"encoder.layer.{number}").items():
                weights[f"encoder.layers.{number}.{name}"] = value
        buffers = {"cls_token": self.cls_token, "positions": self.positions}
        self.load_state_dict({**weights, **buffers}, assign=True)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (n, 1 + T, width), CLS first, of normalised images (n, 3, H, W)."""
        patches = self.patches(pixel_values)
        positions = self._positions(*patches.shape[2:])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.encoder(tokens + positions)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, 1 + rows * columns, width), scaled as DINOv2 does."""
        side = round((self.positions.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return self.positions
        summary, grid = self.positions[:, :1], self.positions[:, 1:]
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([summary, grid.flatten(2).transpose(1, 2)], dim=1)


def is_plain(folder: Path, config: dict) -> bool:
    """Whether a model's folder holds what :class:`Dinov2` can be."""
    plain = (
        config.get("model_type") == "dinov2"
        and config.keys() >= _KEYS
        and not config.get("use_swiglu_ffn", False)
        and config.get("hidden_act") == "gelu"
        and config.get("qkv_bias", True)
        and (folder / _WEIGHTS).is_file()
    )
    if not plain:
        return False
    # Where DINOv2 is part of a larger model its weights have longer names.
    with safe_open(folder / _WEIGHTS, "pt") as file:
        return any(name.startswith("encoder.layer.") for name in file.keys())


def load_dinov2(folder: Path) -> Dinov2:
    """The model of a folder for which :func:`is_plain` holds."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Dinov2(config, load_file(folder / _WEIGHTS))


def _layer(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights of a layer under torch's names.

    DINOv2 scales what attention and feed-forward layers put out, channel by channel; the scales
    go into their last matrices.
    """
    weights = {}
    for end in ("weight", "bias"):
        qkv = [state[f"{name}.attention.attention.{p}.{end}"] for p in ("query", "key", "value")]
        weights[f"self_attn.in_proj_{end}"] = torch.cat(qkv)
        for torchs, theirs in _PARTS.items():
            weights[f"{torchs}.{end}"] = state[f"{name}.{theirs}.{end}"]
    scales = {"self_attn.out_proj": "layer_scale1", "linear2": "layer_scale2"}
    for part, scale in scales.items():
        factor = state[f"{name}.{scale}.lambda1"]
        weights[f"{part}.weight"] = weights[f"{part}.weight"] * factor[:, None]
        weights[f"{part}.bias"] = weights[f"{part}.bias"] * factor
    return weights
