"""Procedural images of mugs with known azimuth, mask, parts and surface positions.

Pure: an image follows from a seed and an index. A print covers the side at azimuth 0, the handle is
at 90 degrees: one of them is in view from everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mirage_steps.demo.renderer import rendering
from mirage_steps.demo.renderer.mug_shapes import (
    DEMO_FAMILIES,
    FAMILIES,
    HANDLE,
    STAND_IN_FAMILIES,
    Shape,
    build_mesh,
    draw_shape,
)
from mirage_steps.demo.renderer.rendering import SPAN, Hits, Rendering, from_hsv

__all__ = [
    "DEMO_FAMILIES", "FAMILIES", "PARTS", "SPAN", "STAND_IN_FAMILIES", "Rendering", "render",
]  # fmt: skip

PARTS: tuple[str, ...] = ("background", "outside", "print", "rim", "inside", "handle")
_BACKGROUND, _OUTSIDE, _PRINT, _RIM, _INSIDE, _HANDLE = range(len(PARTS))

# So that a mug and a car of the same seed and index are independent.
_STREAM = 3


@dataclass(frozen=True)
class _Look:
    """Colors and print of one mug.

    Attributes:
        palette: (6, 3) linear RGB in [0, 1] of PARTS.
        gloss: in [0, 1].
        pattern: of the print: disc, square, star or stripes.
        half: half the print's angle around the mug in radians, and half its height in heights.
        middle: height of the print's middle, in heights.
    """

    palette: np.ndarray
    gloss: float
    pattern: str
    half: tuple[float, float]
    middle: float


def render(
    seed: int,
    index: int,
    families: Sequence[str],
    size: int = 96,
    placement: float = 1.0,
    span: tuple[float, float] = SPAN,
    overhang: float | None = None,
    azimuth: float | None = None,
) -> Rendering:
    """Render mug number ``index`` of the data set with seed ``seed``.

    Args:
        families: names from FAMILIES; each mug belongs to one of them.
        size: side S of the square image, in pixels.
        placement: randomness of scale and offset in the frame, 0 (fixed and centered) to 1.
        span: bounds of the share of the frame that the longer side of the mug's box fills, at
            placement 1; beyond 1 the frame cuts the mug.
        overhang: share of the mug's box that lies beyond the edge of the frame nearest to where
            the mug was drawn: 0 touches the edge, below 0 leaves room; None leaves the mug alone.
        azimuth: in degrees, of the same mug on a turntable; its own by default.
    """
    rng = np.random.default_rng([seed, index, _STREAM])
    drawn = float(rng.uniform(0, 360))
    azimuth = drawn if azimuth is None else azimuth
    shape = draw_shape(FAMILIES[families[int(rng.integers(len(families)))]], rng)
    mesh = build_mesh(shape)
    camera = rendering.draw_camera(azimuth, mesh, placement, span, overhang, rng)
    look = _draw_look(rng)
    environment = rendering.draw_environment(rendering.draw_sky(azimuth, rng), rng)
    solid = rendering.Solid(mesh, np.full(2, 0.66 * shape.radii[0]), 0.5 * shape.height)
    return rendering.render(
        solid, partial(_surface, shape=shape, look=look), camera, environment, azimuth, size
    )


def _draw_look(rng: np.random.Generator) -> _Look:
    """Draw glaze and print, whose colors differ much."""
    glaze = _draw_color(rng)
    other = _contrast(glaze, rng)
    inside = _draw_color(rng) if rng.random() < 0.5 else glaze
    rim, handle = (_draw_color(rng) if rng.random() < 0.3 else glaze for _ in range(2))
    palette = np.stack([np.zeros(3), glaze, other, rim, inside, handle])
    return _Look(
        palette=palette,
        gloss=float(rng.uniform(0.1, 0.4)),
        pattern=("disc", "square", "star", "stripes")[int(rng.integers(4))],
        half=(np.deg2rad(rng.uniform(60, 70)), rng.uniform(0.26, 0.34)),
        middle=rng.uniform(0.46, 0.54),
    )


def _draw_color(rng: np.random.Generator) -> np.ndarray:
    """(3,) color of a glaze, often strong."""
    if rng.random() < 0.72:
        return from_hsv(rng.uniform(), rng.uniform(0.60, 0.98), rng.uniform(0.40, 0.95))
    return from_hsv(rng.uniform(), rng.uniform(0, 0.06), rng.choice([0.93, 0.72, 0.42, 0.13]))


def _contrast(color: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3,) color: the most different from ``color`` of some."""
    return max((_draw_color(rng) for _ in range(6)), key=lambda one: np.abs(one - color).sum())


def _surface(hits: Hits, shape: Shape, look: _Look) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part (n,), albedo (n, 3) and gloss (n,) of the surface where rays hit it."""
    x, y, z = hits.point.T
    within = np.hypot(x, y) < shape.radius(z) - 0.5 * shape.wall
    part = np.where(_is_print(hits.point, shape, look), _PRINT, _OUTSIDE)
    part[within] = _INSIDE
    part[z > shape.height - shape.wall] = _RIM
    part[hits.component == HANDLE] = _HANDLE
    albedo = look.palette[part]
    # The deeper inside, the less light arrives.
    depth = np.clip((shape.height - z) / shape.height, 0, 1)
    albedo = albedo * np.where(part == _INSIDE, 0.85 - 0.45 * depth, 1)[:, None]
    return part.astype(np.uint8), albedo, np.where(part == _INSIDE, 0.05, look.gloss)


def _is_print(point: np.ndarray, shape: Shape, look: _Look) -> np.ndarray:
    """(n,) whether the outside at ``point`` (n, 3) is printed on."""
    around = np.arctan2(point[:, 1], point[:, 0]) / look.half[0]
    up = (point[:, 2] / shape.height - look.middle) / look.half[1]
    if look.pattern == "disc":
        return around**2 + up**2 < 1
    if look.pattern == "star":
        rays = 0.72 + 0.28 * np.cos(5 * np.arctan2(around, up))
        return np.hypot(around, up) < 1.15 * rays
    on = np.maximum(np.abs(around), np.abs(up)) < 1
    return on & (np.cos(3 * np.pi * around) > -0.4) if look.pattern == "stripes" else on
