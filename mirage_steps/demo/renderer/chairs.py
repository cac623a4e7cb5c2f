"""Procedural images of chairs with known azimuth, mask, parts and surface positions.

The second category after ``cars``, for data sets that mix two. Pure: an image follows from a seed
and an index.
"""

import numpy as np

from mirage_steps.demo.renderer import rendering
from mirage_steps.demo.renderer.chair_shapes import ARM, BACK, LEG, SEAT, build_mesh, draw_shape
from mirage_steps.demo.renderer.rendering import SPAN, Hits, Rendering, from_hsv

__all__ = ["PARTS", "SPAN", "Rendering", "render"]

PARTS: tuple[str, ...] = ("background", "seat", "back", "arm", "leg")

# So that a chair and a car of the same seed and index are independent.
_STREAM = 2


def render(
    seed: int, index: int, size: int = 96, placement: float = 1.0, azimuth: float | None = None
) -> Rendering:
    """Render chair number ``index`` of the data set with seed ``seed``.

    Args:
        size: side S of the square image, in pixels.
        placement: randomness of scale and offset in the frame, 0 (fixed and centered) to 1.
        azimuth: in degrees, of the same chair on a turntable; its own by default.
    """
    rng = np.random.default_rng([seed, index, _STREAM])
    drawn = float(rng.uniform(0, 360))
    azimuth = drawn if azimuth is None else azimuth
    shape = draw_shape(rng)
    mesh = build_mesh(shape)
    camera = rendering.draw_camera(azimuth, mesh, placement, SPAN, None, rng)
    palette = _draw_palette(rng)
    gloss = float(rng.uniform(0, 0.15))
    environment = rendering.draw_environment(rendering.draw_sky(azimuth, rng), rng)
    half = 0.5 * np.array([shape.depth, shape.width]) + np.array([0, shape.arm]) - 0.03
    solid = rendering.Solid(mesh, half, shape.seat)

    def surface(hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = hits.component
        return part, palette[part], np.full(len(part), gloss)

    return rendering.render(solid, surface, camera, environment, azimuth, size)


def _draw_palette(rng: np.random.Generator) -> np.ndarray:
    """(5, 3) colors of PARTS: fabric or paint for what one leans on, wood or metal for legs."""
    colors = np.zeros((len(PARTS), 3))
    colors[SEAT] = _draw_fabric(rng)
    colors[BACK] = colors[SEAT] if rng.random() < 0.5 else _draw_fabric(rng)
    wood = from_hsv(rng.uniform(0.04, 0.11), rng.uniform(0.4, 0.8), rng.uniform(0.15, 0.65))
    metal = np.full(3, rng.uniform(0.05, 0.5))
    colors[LEG] = wood if rng.random() < 0.65 else metal
    colors[ARM] = colors[(SEAT, BACK, LEG)[int(rng.integers(3))]]
    return colors


def _draw_fabric(rng: np.random.Generator) -> np.ndarray:
    """(3,) color, often strong."""
    strength = rng.uniform(0.35, 0.95) if rng.random() < 0.75 else rng.uniform(0, 0.1)
    return from_hsv(rng.uniform(), strength, rng.uniform(0.2, 0.9))
