"""Random windows and colors of rendered scenes, a batch at a time, on torch tensors.

Every function draws from the generator it is given and changes nothing in place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.demo.stand_ins.scenes import Scenes


@dataclass(frozen=True)
class View:
    """A batch of training images and their truth.

    Attributes:
        image: (n, 3, s, s) float32 RGB in [0, 1].
        foreground: (n, s, s) float32 coverage in [0, 1].
        position: (n, 3, s, s) float32, position times coverage.
        parts: (n, P, s, s) float32, coverage by each part but the background.
    """

    image: Tensor
    foreground: Tensor
    position: Tensor
    parts: Tensor


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """(n,) numbers uniform in [low, high)."""
    return low + (high - low) * torch.rand(n, generator=rng)


def random_windows(n: int, rng: torch.Generator) -> Tensor:
    """(n, 4) windows (center x, center y, half-width, half-height), the image being [-1, 1]^2.

    Most of them are nearly the whole image; windows may leave it a little, as the pipeline's
    crops do, whose outside repeats the edge.
    """
    half = torch.where(
        torch.rand(n, generator=rng) < 0.7,
        uniform(n, 0.9, 1.05, rng),
        uniform(n, 0.5, 0.95, rng),
    )
    aspect = torch.exp(uniform(n, -0.12, 0.12, rng))
    slack = (1 - half).clamp(min=0) + 0.06
    x, y = (uniform(n, -1, 1, rng) * slack for _ in range(2))
    return torch.stack([x, y, half * aspect, half / aspect], 1)


def random_view(scenes: Scenes, rows: Tensor, size: int, rng: torch.Generator) -> View:
    """Cut a random window of each scene ``rows`` (n,), scale it to ``size``, mirror half of them.

    A mirrored car is a car again whose left and right are exchanged: y changes its sign. Kinds of
    which that is not true are not mirrored.
    """
    n, kind = len(rows), KINDS[scenes.kind]
    windows = random_windows(n, rng)
    mirror = torch.where(torch.rand(n, generator=rng) < 0.5 * kind.mirrored, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = windows[:, 2] * mirror, windows[:, 0]
    theta[:, 1, 1], theta[:, 1, 2] = windows[:, 3], windows[:, 1]
    grid = functional.affine_grid(theta, [n, 3, size, size], align_corners=False)
    index = rows.numpy()
    image = torch.from_numpy(scenes.image[index]).permute(0, 3, 1, 2).float() / 255
    coverage = torch.from_numpy(scenes.foreground[index]).float()[:, None] / 255
    position = torch.from_numpy(scenes.position[index]).permute(0, 3, 1, 2).float() * coverage
    part = torch.from_numpy(scenes.part[index])[:, None].float()
    smooth = _sample(torch.cat([image, coverage, position], 1), grid, "bilinear")
    part = _sample(part, grid, "nearest")[:, 0].long()
    parts = functional.one_hot(part, len(kind.parts)).permute(0, 3, 1, 2)[:, 1:].float()
    flip = torch.stack([torch.ones(n), mirror, torch.ones(n)], 1)[..., None, None]
    foreground = smooth[:, 3]
    return View(smooth[:, :3], foreground, flip * smooth[:, 4:7], parts * foreground[:, None])


def _sample(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(values, grid, mode, padding_mode="border", align_corners=False)


def random_colors(image: Tensor, rng: torch.Generator) -> Tensor:
    """Change the colors of images (n, 3, s, s) in [0, 1]: mixing, light, gray, blur, noise."""
    n = len(image)
    # Mild, since it is their color that tells headlights from taillights.
    mixing = torch.eye(3) + 0.08 * torch.randn(n, 3, 3, generator=rng)
    mixing = mixing / mixing.sum(2, keepdim=True).clamp(min=0.5)
    gray = (torch.rand(n, generator=rng) < 0.04)[:, None, None]
    mixing = torch.where(gray, torch.full((3, 3), 1 / 3), mixing)
    image = torch.einsum("nij,njyx->niyx", mixing, image)
    mean = image.mean((1, 2, 3), keepdim=True)
    contrast = uniform(n, 0.65, 1.35, rng)[:, None, None, None]
    image = (image - mean) * contrast + mean + uniform(n, -0.16, 0.16, rng)[:, None, None, None]
    soft = functional.avg_pool2d(functional.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = uniform(n, -0.8, 1.0, rng).clamp(min=0)[:, None, None, None]
    image = image + blur * (soft - image)
    noise = uniform(n, 0, 0.03, rng)[:, None, None, None]
    image = image + noise * torch.randn(image.shape, generator=rng)
    return image.clamp(0, 1)
