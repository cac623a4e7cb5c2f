"""Procedural images of cars with known azimuth, mask, parts and surface positions.

Pure: an image follows from a seed and an index. Rays are cast at the meshes of ``car_shapes``;
windows, lights, grille and plate are painted by where a ray hits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mirage_steps.demo.renderer import rendering
from mirage_steps.demo.renderer.car_shapes import (
    BODY,
    CABIN,
    DEMO_FAMILIES,
    FAMILIES,
    MIRROR,
    STAND_IN_FAMILIES,
    WHEEL,
    Family,
    Shape,
    build_mesh,
    cabin_half_width,
    draw_shape,
)
from mirage_steps.demo.renderer.rendering import SPAN, Hits, Rendering, from_hsv

__all__ = [
    "DEMO_FAMILIES", "FAMILIES", "PARTS", "SPAN", "STAND_IN_FAMILIES", "Family", "Rendering",
    "render",
]  # fmt: skip

PARTS: tuple[str, ...] = (
    "background", "paint", "glass", "wheel", "headlight", "taillight", "grille", "plate", "trim",
)  # fmt: skip
_BACKGROUND, _PAINT, _GLASS, _WHEEL, _HEAD, _TAIL, _GRILLE, _PLATE, _TRIM = range(len(PARTS))


@dataclass(frozen=True)
class _Look:
    """Colors (linear RGB in [0, 1]) and style of one car."""

    paint: np.ndarray
    gloss: float
    glass: np.ndarray
    rim: np.ndarray
    spokes: int
    trim: np.ndarray
    grille_color: np.ndarray
    grille: tuple[float, float]  # half-width as a share of the car's, height as a share of its face
    lamp: tuple[float, float]  # inner edge and height, likewise
    tail: tuple[float, float]
    warm: float  # yellowness of the headlights


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
    """Render car number ``index`` of the data set with seed ``seed``.

    Args:
        families: names from FAMILIES; each car belongs to one of them.
        size: side S of the square image, in pixels.
        placement: randomness of scale and offset in the frame, 0 (fixed and centered) to 1.
        span: bounds of the share of the frame that the longer side of the car's box fills, at
            placement 1; beyond 1 the frame cuts the car.
        overhang: share of the car's box that lies beyond the edge of the frame nearest to where
            the car was drawn: 0 touches the edge, below 0 leaves room; None leaves the car alone.
        azimuth: in degrees, of the same car on a turntable; its own by default.
    """
    rng = np.random.default_rng([seed, index])
    drawn = float(rng.uniform(0, 360))
    azimuth = drawn if azimuth is None else azimuth
    shape = draw_shape(FAMILIES[families[int(rng.integers(len(families)))]], rng)
    mesh = build_mesh(shape)
    camera = rendering.draw_camera(azimuth, mesh, placement, span, overhang, rng)
    look, environment = _draw_look(azimuth, rng)
    solid = rendering.Solid(mesh, np.array([0.44, 0.5 * shape.width - 0.03]), shape.height)
    return rendering.render(
        solid, partial(_surface, shape=shape, look=look), camera, environment, azimuth, size
    )


def _draw_look(azimuth: float, rng: np.random.Generator) -> tuple[_Look, rendering.Environment]:
    """Draw paint and details, and the environment."""
    if rng.random() < 0.72:
        paint = from_hsv(rng.uniform(), rng.uniform(0.60, 0.98), rng.uniform(0.40, 0.95))
    else:
        paint = from_hsv(rng.uniform(), rng.uniform(0, 0.06), rng.choice([0.93, 0.72, 0.42, 0.13]))
    sky = rendering.draw_sky(azimuth, rng)
    gray = rng.uniform(0.05, 0.10)
    look = _Look(
        paint=paint,
        gloss=float(rng.uniform(0.1, 0.4)),
        glass=from_hsv(rng.uniform(0.5, 0.65), rng.uniform(0.1, 0.3), rng.uniform(0.07, 0.17)),
        rim=np.full(3, rng.uniform(0.45, 0.75)),
        spokes=int(rng.integers(5, 9)),
        trim=np.full(3, gray) if rng.random() < 0.6 else paint * 0.75,
        grille_color=np.full(3, rng.uniform(0.04, 0.16)),
        grille=(rng.uniform(0.30, 0.48), rng.uniform(0.16, 0.32)),
        lamp=(rng.uniform(0.50, 0.60), rng.uniform(0.18, 0.30)),
        tail=(rng.uniform(0.52, 0.68), rng.uniform(0.20, 0.42)),
        warm=float(rng.uniform(0.0, 0.45)),
    )
    return look, rendering.draw_environment(sky, rng)


def _surface(hits: Hits, shape: Shape, look: _Look) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part (n,), albedo (n, 3) and gloss (n,) of the surface where rays hit it."""
    point, normal, component = hits.point, hits.normal, hits.component
    part = np.full(len(point), _PAINT, np.uint8)
    body, cabin, wheel = (component == one for one in (BODY, CABIN, WHEEL))
    part[body] = _body_part(point[body], normal[body], shape, look)
    part[cabin] = np.where(_is_glass(point[cabin], normal[cabin], shape), _GLASS, _PAINT)
    part[wheel] = _WHEEL
    palette = np.stack([
        look.paint, look.paint, look.glass, np.full(3, 0.05),
        np.array([1.0, 1.0 - 0.15 * look.warm, 0.95 - 0.8 * look.warm]),
        np.array([0.80, 0.03, 0.04]), look.grille_color, np.array([0.93, 0.93, 0.88]), look.trim,
    ])  # fmt: skip
    albedo = palette[part]
    albedo[wheel] = _wheel_color(point[wheel], shape, look)
    albedo *= 1 - 0.45 * (body & _is_seam(point, normal, shape))[:, None]
    stripes = (part == _GRILLE) & (np.sin(point[:, 2] * 400) > 0.3)
    albedo[stripes] += 0.16
    gloss = np.array([0, look.gloss, 0.75, 0.02, 0.3, 0.2, 0.05, 0.05, 0.05])[part]
    gloss[component == MIRROR] = look.gloss
    return part, albedo, gloss


def _body_part(p: np.ndarray, normal: np.ndarray, shape: Shape, look: _Look) -> np.ndarray:
    """(n,) parts of the lower body at ``p`` (n, 3)."""
    part = np.full(len(p), _PAINT, np.uint8)
    half = 0.5 * shape.width
    across = np.abs(p[:, 1]) / half
    front, rear = p[:, 0] > 0.44, p[:, 0] < -0.44
    top = np.where(p[:, 0] > 0, shape.nose, shape.tail)
    up = (p[:, 2] - shape.clearance) / (top - shape.clearance)
    part[up < 0.17] = _TRIM
    for x in shape.axles:
        away = np.hypot(p[:, 0] - x, p[:, 2] - shape.wheel)
        arch = (away < 1.20 * shape.wheel) & (np.abs(normal[:, 1]) > 0.3)
        part[arch & (up < 0.85)] = _TRIM
    part[(front | rear) & (up < 0.30)] = _TRIM
    width, height = look.grille
    part[front & (across < width) & (np.abs(up - 0.60) < height / 2)] = _GRILLE
    inner, height = look.lamp
    part[front & (p[:, 0] > 0.455) & (across > inner) & (np.abs(up - 0.68) < height / 2)] = _HEAD
    inner, height = look.tail
    part[rear & (p[:, 0] < -0.462) & (across > inner) & (np.abs(up - 0.70) < height / 2)] = _TAIL
    plate_up = np.where(front, 0.32, 0.46)
    on_plate = (across < 0.24) & (np.abs(up - plate_up) < 0.085) & (np.abs(normal[:, 0]) > 0.6)
    part[(front | rear) & on_plate] = _PLATE
    return part


def _is_glass(p: np.ndarray, normal: np.ndarray, shape: Shape) -> np.ndarray:
    """(n,) whether the cabin at ``p`` (n, 3) is a window."""
    x, z = p[:, 0], p[:, 2]
    frame = 0.075 * shape.height
    above = z > shape.belt + 0.35 * frame
    side = (np.abs(normal[:, 1]) > 0.75) & above & (z < shape.roof(x) - frame)
    side &= z < shape.height - frame
    # Windshield posts: the windows of the sides stop short of the sloping ends of the cabin.
    side &= (z < shape.roof(x + 0.03) - 0.2 * frame) & (z < shape.roof(x - 0.04) - 0.2 * frame)
    for pillar in shape.pillars:
        side &= np.abs(x - pillar) > 0.012
    side &= x > shape.window_end
    screen = np.abs(p[:, 1]) < cabin_half_width(shape, z) - 0.030
    screen &= above & (z < shape.height - 0.45 * frame)
    forward = screen & (x > shape.roof_front - 0.01) & (normal[:, 0] > 0.2)
    backward = screen & (x < shape.roof_rear + 0.01) & (normal[:, 0] < -0.2)
    backward &= z > shape.belt + 0.8 * frame
    return side | forward | backward


def _is_seam(p: np.ndarray, normal: np.ndarray, shape: Shape) -> np.ndarray:
    """(n,) whether a door's gap or a door's handle is at ``p`` (n, 3)."""
    on_side = np.abs(normal[:, 1]) > 0.6
    doors = (shape.cowl - 0.03, *shape.pillars, max(shape.deck, shape.axles[1] + 0.09))
    gaps = np.zeros(len(p), bool)
    for x in doors:
        gaps |= np.abs(p[:, 0] - x) < 0.0035
    gaps &= (p[:, 2] > shape.clearance + 0.05) & (p[:, 2] < shape.belt)
    for x in shape.pillars:
        beside, below = np.abs(p[:, 0] - x - 0.035), np.abs(p[:, 2] - shape.belt + 0.04)
        gaps |= (beside < 0.018) & (below < 0.004)
    return gaps & on_side


def _wheel_color(p: np.ndarray, shape: Shape, look: _Look) -> np.ndarray:
    """(n, 3) albedo of tires and rims at ``p`` (n, 3)."""
    nearest = np.where(p[:, 0] > 0, *shape.axles)
    across, up = p[:, 0] - nearest, p[:, 2] - shape.wheel
    radius = np.hypot(across, up) / shape.wheel
    spokes = np.cos(look.spokes * np.arctan2(up, across)) > -0.35
    rim = (radius < 0.64) & (spokes | (radius > 0.56) | (radius < 0.18))
    outside = np.abs(p[:, 1]) > 0.5 * shape.width * 0.985 - 0.02
    color = np.full((len(p), 3), 0.055)
    color[rim & outside] = look.rim
    return color
