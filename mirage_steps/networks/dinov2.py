"""DINOv2 (Oquab et al. 2023).

It loads in 0.02 seconds, transformers' ``Dinov2Model`` in 2.6 (two cores; all other imports of the
command ``novel_views`` take 1.5). Models that are not plain DINOv2 (registers, gated feed-forward
layers, weights in several files) are loaded by transformers.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

_PLAIN = {"model_type": "dinov2", "hidden_act": "gelu", "use_swiglu_ffn": False, "qkv_bias": True}
# transformers' name of a part of the network, and its name here.
_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "patches",
    "encoder.layer.": "layers.",
    "attention.output.dense": "projection",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
    "layernorm": "norm",
}


class _Layer(nn.Module):
    """A pre-norm transformer layer, (n, T, width) to the same."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*qkv)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))


class Dinov2(nn.Module):
    """A plain DINOv2 without weights.

    Args:
        config: content of its ``config.json``.
    """

    def __init__(self, config: dict):
        super().__init__()
        width, patch, eps = config["hidden_size"], config["patch_size"], config["layer_norm_eps"]
        places = 1 + (config["image_size"] // patch) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, places, width))
        self.patches = nn.Conv2d(config["num_channels"], width, patch, stride=patch)
        heads, hidden = config["num_attention_heads"], int(width * config["mlp_ratio"])
        layers = (_Layer(width, heads, hidden, eps) for _ in range(config["num_hidden_layers"]))
        self.layers, self.norm = nn.Sequential(*layers), nn.LayerNorm(width, eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (n, 1 + T, width), CLS first, of normalized images (n, 3, H, W)."""
        patches = self.patches(pixel_values)
        positions = self._positions(*patches.shape[2:])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.layers(tokens + positions))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, 1 + rows * columns, width), interpolated as DINOv2 does."""
        side = round((self.positions.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return self.positions
        cls, grid = self.positions[:, :1], self.positions[:, 1:]
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)


def load_dinov2(folder: Path, config: dict) -> Dinov2 | None:
    """The model of a folder, None where it is not a plain DINOv2 in one file.

    Args:
        folder: of transformers.
        config: content of its ``config.json``.

    Raises:
        KeyError: a weight is missing.
        RuntimeError: a weight has another shape than the configuration says.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file() or not _PLAIN.items() <= config.items():
        return None
    # In a larger model their names begin with `dinov2.`
    state = {k.removeprefix("dinov2."): value.float() for k, value in load_file(weights).items()}
    for number in range(config["num_hidden_layers"]):
        _merge(state, f"encoder.layer.{number}.")
    for name in list(state):
        renamed = name
        for theirs, ours in _NAMES.items():
            renamed = renamed.replace(theirs, ours)
        state[renamed] = state.pop(name)
    with torch.device("meta"):
        model = Dinov2(config)
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    return model


def _merge(state: dict[str, Tensor], layer: str) -> None:
    """Give a layer one matrix for query, key and value, and no layer scale.

    DINOv2 scales what attention and feed-forward layers put out, channel by channel; the scales
    go into their last matrices.
    """
    for end in ("weight", "bias"):
        parts = (f"{layer}attention.attention.{name}.{end}" for name in ("query", "key", "value"))
        state[f"{layer}qkv.{end}"] = torch.cat([state.pop(name) for name in parts])
    for last, scale in (("attention.output.dense", "layer_scale1"), ("mlp.fc2", "layer_scale2")):
        factor = state.pop(f"{layer}{scale}.lambda1")
        state[f"{layer}{last}.weight"] = state[f"{layer}{last}.weight"] * factor[:, None]
        state[f"{layer}{last}.bias"] = state[f"{layer}{last}.bias"] * factor
