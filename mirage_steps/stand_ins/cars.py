"""Procedural pictures of cars with known azimuth, mask, parts and surface positions.

Pure: everything about a picture follows from a seed and an index. Rays are cast at the meshes of
``car_shapes`` by Embree; windows, lights, grille and plate are painted by where a ray hits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from mirage_steps.stand_ins.car_shapes import (
    BODY,
    CABIN,
    DEMO_FAMILIES,
    FAMILIES,
    MIRROR,
    STAND_IN_FAMILIES,
    WHEEL,
    Family,
    Mesh,
    Shape,
    build_mesh,
    cabin_half_width,
    draw_shape,
)

__all__ = [
    "DEMO_FAMILIES", "FAMILIES", "PARTS", "STAND_IN_FAMILIES", "Family", "Rendering", "render",
]  # fmt: skip

PARTS: tuple[str, ...] = (
    "background", "paint", "glass", "wheel", "head light", "tail light", "grille", "plate", "trim",
)  # fmt: skip
_BACKGROUND, _PAINT, _GLASS, _WHEEL, _HEAD, _TAIL, _GRILLE, _PLATE, _TRIM = range(len(PARTS))

SPAN = (0.55, 0.90)
"""Share of the frame that the longer side of the car's box fills at placement 1."""

_SAMPLES = 3  # per pixel and axis


@dataclass(frozen=True)
class Rendering:
    """One picture and what the renderer knows about it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        mask: (S, S) float32, share of the pixel that the car covers.
        azimuth_deg: degrees in [0, 360): 0 front to the camera, 90 the car faces image-left,
            180 rear to the camera, 270 it faces image-right.
        part: (S, S) uint8, index into PARTS of the most frequent part among the pixel's rays that
            hit the car; 0 where none does.
        position: (S, S, 3) float32, mean over those rays of the surface position in the car's own
            bounding box, [-1, 1]: x along the car (front positive), y across it (its left
            positive), z up; 0 off the car.
    """

    image: np.ndarray
    mask: np.ndarray
    azimuth_deg: float
    part: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class _Look:
    """Colours (linear RGB in [0, 1]) and style of one car and its surroundings."""

    paint: np.ndarray
    gloss: float
    glass: np.ndarray
    rim: np.ndarray
    spokes: int
    trim: np.ndarray
    grille_colour: np.ndarray
    grille: tuple[float, float]  # half-width as a share of the car's, height as a share of its face
    lamp: tuple[float, float]  # inner edge and height, likewise
    tail: tuple[float, float]
    warm: float  # yellowness of the head lights
    sky: np.ndarray  # (2, 3) at the horizon and above
    ground: np.ndarray
    waves: np.ndarray  # (n, 4) frequency x, y, phase, amplitude of the slow texture
    light: np.ndarray  # unit vector towards the light
    ambient: float


@dataclass(frozen=True)
class _Camera:
    """Pinhole camera: ray = forward + u right + v up, u and v within the window's bounds."""

    centre: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray
    window: tuple[float, float, float]  # u and v of the window's centre, and its side


def render(
    seed: int,
    index: int,
    families: Sequence[str],
    size: int = 96,
    placement: float = 1.0,
    span: tuple[float, float] = SPAN,
    overhang: float | None = None,
) -> Rendering:
    """Render car number ``index`` of the endless set ``seed``.

    Args:
        families: names from FAMILIES; each car belongs to one of them.
        size: side S of the square picture, in pixels.
        placement: randomness of scale and offset in the frame, 0 (fixed and centred) to 1.
        span: bounds of the share of the frame that the longer side of the car's box fills, at
            placement 1; beyond 1 the frame cuts the car.
        overhang: share of the car's box that lies beyond the edge of the frame nearest to where
            the car was drawn: 0 touches the edge, below 0 leaves room; None leaves the car alone.
    """
    rng = np.random.default_rng([seed, index])
    azimuth = float(rng.uniform(0, 360))
    shape = draw_shape(FAMILIES[families[int(rng.integers(len(families)))]], rng)
    mesh = build_mesh(shape)
    camera = _draw_camera(azimuth, mesh, placement, span, overhang, rng)
    look = _draw_look(azimuth, rng)
    rays = _rays(camera, size * _SAMPLES)
    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, mesh.faces)
    origins = np.broadcast_to(camera.centre.astype(np.float32), rays.shape).copy()
    found = scene.run(origins, rays, query="INTERSECT", output=True)
    hit = np.flatnonzero(found["primID"] >= 0)
    face, u, v = found["primID"][hit], found["u"][hit, None], found["v"][hit, None]
    corners = mesh.faces[face]
    normal = (1 - u - v) * mesh.normals[corners[:, 0]]
    normal += u * mesh.normals[corners[:, 1]] + v * mesh.normals[corners[:, 2]]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    point = camera.centre + rays[hit] * found["tfar"][hit, None]
    part, albedo, gloss = _surface(point, normal, mesh.kinds[face], shape, look)
    colour = _shade(point, normal, rays[hit], albedo, gloss, shape, look)
    # The surroundings are smooth: one ray a pixel is enough for them.
    behind = _background(_rays(camera, size), camera, shape, look)
    return _resolve(behind, hit, colour, part, point, mesh, azimuth)


def _draw_camera(
    azimuth: float,
    mesh: Mesh,
    placement: float,
    span: tuple[float, float],
    overhang: float | None,
    rng: np.random.Generator,
) -> _Camera:
    """A camera that sees the car from ``azimuth``, its window around the car's box."""
    turn = np.deg2rad(azimuth)
    lift = np.deg2rad(rng.uniform(4, 24))
    distance = 0.62 / np.tan(0.5 * np.deg2rad(rng.uniform(16, 42)))
    target = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0)).astype(float)
    # Standing at angle `azimuth` from the car's nose, counter-clockwise from above, one sees its
    # left side at 90 degrees: its nose is then at image-left.
    aside = np.array([np.cos(turn), np.sin(turn), 0])
    forward = -np.cos(lift) * aside - np.array([0, 0, np.sin(lift)])
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    centre = target - distance * forward
    seen = mesh.vertices - centre
    depth = seen @ forward
    u, v = seen @ right / depth, seen @ up / depth
    low, high = np.array([u.min(), v.min()]), np.array([u.max(), v.max()])
    middle_share = 0.5 * sum(span)
    share = middle_share + placement * rng.uniform(-0.5, 0.5) * (span[1] - span[0])
    side = (high - low).max() / share
    # What the box leaves free of the frame is what it may be off the centre by.
    slack = np.abs(side - (high - low)) * 0.5 * 0.92
    drawn = rng.uniform(-1, 1, 2)
    offset = placement * drawn * slack * (0.7, 0.45)
    if overhang is not None:
        axis = np.abs(drawn).argmax()
        extent = high[axis] - low[axis]
        offset[axis] = np.sign(drawn[axis]) * (0.5 * (side - extent) + overhang * extent)
    window = 0.5 * (low + high) + offset
    return _Camera(centre, forward, right, up, (float(window[0]), float(window[1]), float(side)))


def _rays(camera: _Camera, size: int) -> np.ndarray:
    """(size * size, 3) float32 ray directions, row by row from the top left, not normalised."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    u0, v0, side = camera.window
    across = (u0 + side * steps)[None, :, None] * camera.right
    upward = (v0 - side * steps)[:, None, None] * camera.up
    return (camera.forward + across + upward).reshape(-1, 3).astype(np.float32)


def _draw_look(azimuth: float, rng: np.random.Generator) -> _Look:
    """Draw paint, details, surroundings and light."""
    if rng.random() < 0.72:
        paint = _from_hsv(rng.uniform(), rng.uniform(0.60, 0.98), rng.uniform(0.40, 0.95))
    else:
        paint = _from_hsv(rng.uniform(), rng.uniform(0, 0.06), rng.choice([0.93, 0.72, 0.42, 0.13]))
    waves = np.stack([rng.normal(0, 5, 6), rng.normal(0, 5, 6), rng.uniform(0, 6.3, 6),
                      rng.uniform(0.005, 0.022, 6)], -1)  # fmt: skip
    sky = np.stack([
        _from_hsv(rng.uniform(), rng.uniform(0, 0.08), rng.uniform(0.80, 0.96)),
        _from_hsv(rng.uniform(0.45, 0.7), rng.uniform(0.02, 0.20), rng.uniform(0.80, 0.98)),
    ])  # fmt: skip
    # The light stands behind the camera, to one side: no picture is against the light.
    beside = np.deg2rad(azimuth + rng.uniform(-65, 65))
    height = np.deg2rad(rng.uniform(40, 70))
    light = np.array([np.cos(height) * np.cos(beside), np.cos(height) * np.sin(beside),
                      np.sin(height)])  # fmt: skip
    grey = rng.uniform(0.05, 0.10)
    return _Look(
        paint=paint,
        gloss=float(rng.uniform(0.1, 0.4)),
        glass=_from_hsv(rng.uniform(0.5, 0.65), rng.uniform(0.1, 0.3), rng.uniform(0.07, 0.17)),
        rim=np.full(3, rng.uniform(0.45, 0.75)),
        spokes=int(rng.integers(5, 9)),
        trim=np.full(3, grey) if rng.random() < 0.6 else paint * 0.75,
        grille_colour=np.full(3, rng.uniform(0.04, 0.16)),
        grille=(rng.uniform(0.30, 0.48), rng.uniform(0.16, 0.32)),
        lamp=(rng.uniform(0.50, 0.60), rng.uniform(0.18, 0.30)),
        tail=(rng.uniform(0.52, 0.68), rng.uniform(0.20, 0.42)),
        warm=float(rng.uniform(0.0, 0.45)),
        sky=sky,
        ground=_from_hsv(rng.uniform(), rng.uniform(0, 0.14), rng.uniform(0.40, 0.64)),
        waves=waves,
        light=light,
        ambient=float(rng.uniform(0.42, 0.60)),
    )


def _from_hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) RGB of a colour whose hue, saturation and value are all in [0, 1]."""
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 - saturation + saturation * np.clip(ramp, 0, 1))


def _background(rays: np.ndarray, camera: _Camera, shape: Shape, look: _Look) -> np.ndarray:
    """(n, 3) float32 colours of sky and ground, with the car's soft shadow."""
    slope = rays[:, 2] / np.linalg.norm(rays, axis=1)
    texture = _slow_texture(rays @ camera.right, rays @ camera.up, look)
    high = np.clip(slope * 3.0, 0, 1)[:, None]
    sky = look.sky[0] * (1 - high) + look.sky[1] * high
    away = camera.centre[2] / np.maximum(-slope, 1e-3)
    reach = (away / np.linalg.norm(rays, axis=1))[:, None]
    place = camera.centre[:2] + rays[:, :2] * reach
    shadow = _shadow(place, shape, look)
    haze = np.clip(away / 25, 0, 0.35)[:, None]
    ground = look.ground * (1 - haze) + look.sky[0] * 0.8 * haze
    ground = ground * (1 - shadow[:, None])
    mix = _smooth_step(slope, 0.018, -0.018)[:, None]
    colour = sky * (1 - mix) + ground * mix
    return (colour * (1 + texture[:, None])).astype(np.float32)


def _slow_texture(u: np.ndarray, v: np.ndarray, look: _Look) -> np.ndarray:
    """(n,) relative brightness of the background's low-frequency texture."""
    total = np.zeros_like(u)
    for frequency_u, frequency_v, phase, amplitude in look.waves.astype(np.float32):
        total += amplitude * np.sin(frequency_u * u + frequency_v * v + phase)
    return total


def _shadow(place: np.ndarray, shape: Shape, look: _Look) -> np.ndarray:
    """(n,) darkness in [0, 1] of the ground at ``place`` (n, 2)."""
    half = np.array([0.44, 0.5 * shape.width - 0.03])
    close = np.linalg.norm(np.maximum(np.abs(place) - half, 0), axis=1)
    shift = -0.35 * shape.height * look.light[:2] / look.light[2]
    cast = np.linalg.norm(np.maximum(np.abs(place - shift) - half, 0), axis=1)
    return 0.60 * np.exp(-((close / 0.05) ** 2)) + 0.25 * np.exp(-((cast / 0.10) ** 2))


def _smooth_step(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 at ``start``, 1 at ``end``, smooth between; ``start`` may exceed ``end``."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _surface(
    point: np.ndarray, normal: np.ndarray, kind: np.ndarray, shape: Shape, look: _Look
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part (n,), albedo (n, 3) and mirror-likeness (n,) of the surface at ``point`` (n, 3)."""
    part = np.full(len(point), _PAINT, np.uint8)
    body, cabin, wheel = kind == BODY, kind == CABIN, kind == WHEEL
    part[body] = _body_part(point[body], normal[body], shape, look)
    part[cabin] = np.where(_is_glass(point[cabin], normal[cabin], shape), _GLASS, _PAINT)
    part[wheel] = _WHEEL
    palette = np.stack([
        look.paint, look.paint, look.glass, np.full(3, 0.05),
        np.array([1.0, 1.0 - 0.15 * look.warm, 0.95 - 0.8 * look.warm]),
        np.array([0.80, 0.03, 0.04]), look.grille_colour, np.array([0.93, 0.93, 0.88]), look.trim,
    ])  # fmt: skip
    albedo = palette[part]
    albedo[wheel] = _wheel_colour(point[wheel], shape, look)
    albedo *= 1 - 0.45 * (body & _is_seam(point, normal, shape))[:, None]
    stripes = (part == _GRILLE) & (np.sin(point[:, 2] * 400) > 0.3)
    albedo[stripes] += 0.16
    gloss = np.array([0, look.gloss, 0.75, 0.02, 0.3, 0.2, 0.05, 0.05, 0.05])[part]
    gloss[(kind == MIRROR)] = look.gloss
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
    # Windscreen posts: the windows of the sides stop short of the sloping ends of the cabin.
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


def _wheel_colour(p: np.ndarray, shape: Shape, look: _Look) -> np.ndarray:
    """(n, 3) albedo of tyres and rims at ``p`` (n, 3)."""
    nearest = np.where(p[:, 0] > 0, *shape.axles)
    across, up = p[:, 0] - nearest, p[:, 2] - shape.wheel
    radius = np.hypot(across, up) / shape.wheel
    spokes = np.cos(look.spokes * np.arctan2(up, across)) > -0.35
    rim = (radius < 0.64) & (spokes | (radius > 0.56) | (radius < 0.18))
    outside = np.abs(p[:, 1]) > 0.5 * shape.width * 0.985 - 0.02
    colour = np.full((len(p), 3), 0.055)
    colour[rim & outside] = look.rim
    return colour


def _shade(
    point: np.ndarray, normal: np.ndarray, rays: np.ndarray, albedo: np.ndarray,
    gloss: np.ndarray, shape: Shape, look: _Look,
) -> np.ndarray:  # fmt: skip
    """(n, 3) colours under one light, the sky and the ground."""
    view = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    facing = np.sum(normal * view, axis=1, keepdims=True)
    mirrored = view - 2 * facing * normal
    lambert = np.clip(normal @ look.light, 0, 1)
    # The sky lights what looks up; what looks down or sits low gets the ground's dim light.
    hemisphere = look.ambient * (0.72 + 0.28 * normal[:, 2])
    occlusion = 0.55 + 0.45 * _smooth_step(point[:, 2], 0.0, 0.4 * shape.height)
    diffuse = albedo * ((hemisphere + 0.68 * lambert) * occlusion)[:, None]
    up = _smooth_step(mirrored[:, 2], -0.1, 0.35)[:, None]
    around = look.ground * 0.55 * (1 - up) + look.sky[1] * up
    fresnel = 0.25 + 0.75 * (1 - np.clip(-facing, 0, 1)) ** 3
    highlight = np.clip(mirrored @ look.light, 0, 1) ** 30
    shine = gloss[:, None] * (0.6 * around * fresnel + 0.8 * highlight[:, None])
    return (diffuse + shine).astype(np.float32)


def _resolve(
    behind: np.ndarray, hit: np.ndarray, colour: np.ndarray, part: np.ndarray, point: np.ndarray,
    mesh: Mesh, azimuth: float,
) -> Rendering:  # fmt: skip
    """Average the rays of every pixel.

    ``behind`` (S * S, 3) is the background; ``hit`` (n,) are the numbers of the rays that hit the
    car, ``colour``, ``part`` and ``point`` what they found.
    """
    size = round(len(behind) ** 0.5)
    fine = size * _SAMPLES
    pixel = (hit // fine) // _SAMPLES * size + (hit % fine) // _SAMPLES

    def pixel_sums(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(pixel, column, size * size) for column in values.T], -1)

    count = np.bincount(pixel, minlength=size * size)[:, None]
    mask = count / _SAMPLES**2
    image = behind * (1 - mask) + pixel_sums(np.clip(colour, 0, 1)) / _SAMPLES**2
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    inside = np.clip(2 * (point - low) / (high - low) - 1, -1, 1)
    position = pixel_sums(inside) / np.maximum(count, 1)
    votes = np.bincount(pixel * len(PARTS) + part, minlength=size * size * len(PARTS))
    return Rendering(
        image=np.round(255 * np.clip(image, 0, 1)).astype(np.uint8).reshape(size, size, 3),
        mask=mask.astype(np.float32).reshape(size, size),
        azimuth_deg=azimuth,
        part=votes.reshape(size, size, len(PARTS)).argmax(-1).astype(np.uint8),
        position=position.astype(np.float32).reshape(size, size, 3),
    )
