"""Targets of the stand-in backbone's patch tokens: the position on the object's surface.

The code of a patch depends on that patch only (foreground, part, position on the surface),
not on the pose or the camera of the image.
"""

import math

import torch
from torch import Tensor

# Codes have about the norm that the last layer normalization gives a token at the start.
_SCALE = 6.0
_FOREGROUND = 1.5
_POSITION = (1.3, 1.3, 0.8)
_PART = 0.45
_WAVE = 0.3


def code_dim(parts: int) -> int:
    """Entries of a code, for a kind with so many parts, the background included."""
    return 1 + 3 + (parts - 1) + 5


def surface_code(foreground: Tensor, position: Tensor, parts: Tensor) -> Tensor:
    """Codes of patches.

    The first entry separates foreground from background and has by far the most variance over a
    set, so that it becomes the tokens' first principal component; the others are zero off the
    object. Among foreground patches the position along and across it varies most.

    Args:
        foreground: (...), share of the patch that the object covers, [0, 1].
        position: (..., 3), mean surface position of the covered share, [-1, 1].
        parts: (..., P), share of the patch that each part but the background covers.

    Returns:
        (..., ``code_dim(1 + P)``).
    """
    x, y, z = (math.pi * position).unbind(-1)
    waves = torch.stack([x.sin(), x.cos(), y.sin(), y.cos(), z.cos()], -1)
    place = torch.cat([position * position.new_tensor(_POSITION), _WAVE * waves], -1)
    side = _FOREGROUND * (2 * foreground - 1)
    return _SCALE * torch.cat([side[..., None], foreground[..., None] * place, _PART * parts], -1)


def code_basis(dim: int, parts: int) -> Tensor:
    """(``code_dim(parts)``, dim) orthonormal rows: the fixed random directions of the codes.

    Random directions, since a code along single channels would be at odds with the last layer
    normalization, which gives every channel a gain of its own.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(dim, code_dim(parts), generator=generator))[0].T.contiguous()
