"""Procedural pictures of chairs with known azimuth, mask, parts and surface positions.

The second category beside ``cars``, for data sets that mix two. Pure: everything about a picture
follows from a seed and an index.
"""

import numpy as np

from mirage_steps.demo.renderer import rendering
from mirage_steps.demo.renderer.chair_shapes import ARM, BACK, LEG, SEAT, build_mesh, draw_shape
from mirage_steps.demo.renderer.rendering import SPAN, Hits, Rendering, from_hsv

__all__ = ["PARTS", "SPAN", "Rendering", "render"]

PARTS: tuple[str, ...] = ("background", "seat", "back", "arm", "leg")

# So that a chair and a car of the same seed and index have nothing in common.
_STREAM = 2


def render(seed: int, index: int, size: int = 96, placement: float = 1.0) -> Rendering:
    """Render chair number ``index`` of the endless set ``seed``.

    Args:
        size: side S of the square picture, in pixels.
        placement: randomness of scale and offset in the frame, 0 (fixed and centred) to 1.
    """
    rng = np.random.default_rng([seed, index, _STREAM])
    azimuth = float(rng.uniform(0, 360))
    shape = draw_shape(rng)
    mesh = build_mesh(shape)
    camera = rendering.draw_camera(azimuth, mesh, placement, SPAN, None, rng)
    palette = _draw_palette(rng)
    gloss = float(rng.uniform(0, 0.15))
    around = rendering.draw_surroundings(rendering.draw_sky(azimuth, rng), rng)
    half = 0.5 * np.array([shape.depth, shape.width]) + np.array([0, shape.arm]) - 0.03
    solid = rendering.Solid(mesh, half, shape.seat)

    def surface(hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return hits.kind, palette[hits.kind], np.full(len(hits.kind), gloss)

    return rendering.render(solid, surface, camera, around, azimuth, size)


def _draw_palette(rng: np.random.Generator) -> np.ndarray:
    """(5, 3) colours of PARTS: fabric or paint for what one leans on, wood or metal for legs."""
    colours = np.zeros((len(PARTS), 3))
    colours[SEAT] = _draw_fabric(rng)
    colours[BACK] = colours[SEAT] if rng.random() < 0.5 else _draw_fabric(rng)
    wood = from_hsv(rng.uniform(0.04, 0.11), rng.uniform(0.4, 0.8), rng.uniform(0.15, 0.65))
    metal = np.full(3, rng.uniform(0.05, 0.5))
    colours[LEG] = wood if rng.random() < 0.65 else metal
    colours[ARM] = colours[(SEAT, BACK, LEG)[int(rng.integers(3))]]
    return colours


def _draw_fabric(rng: np.random.Generator) -> np.ndarray:
    """(3,) colour, often strong."""
    strength = rng.uniform(0.35, 0.95) if rng.random() < 0.75 else rng.uniform(0, 0.1)
    return from_hsv(rng.uniform(), strength, rng.uniform(0.2, 0.9))
