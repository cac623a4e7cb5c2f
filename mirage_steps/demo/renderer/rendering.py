"""One procedural image of an object on the ground: camera, rays, environment, light.

What ``cars``, ``chairs`` and ``mugs`` share. Pure: all randomness comes from the generator that is
passed in, so that an image follows from a seed and an index. Embree casts the rays.

An object stands on the plane z = 0 in its own frame: x to the front, y to its left, z up; it is
about one unit long or high.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from mirage_steps.demo.renderer.car_shapes import Mesh

SPAN = (0.55, 0.90)
"""Share of the frame that the longer side of the object's box fills at placement 1."""

_SAMPLES = 3  # per pixel and axis


@dataclass(frozen=True)
class Rendering:
    """One image and what the renderer knows about it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        mask: (S, S) float32, share of the pixel that the object covers.
        azimuth_deg: degrees in [0, 360): 0 front to the camera, 90 it faces image-left,
            180 rear to the camera, 270 it faces image-right.
        part: (S, S) uint8, index into the category's PARTS of the most frequent part among the
            pixel's rays that hit the object; 0 where none does.
        position: (S, S, 3) float32, mean over those rays of the surface position in the object's
            own bounding box, [-1, 1]: x along it (front positive), y across it (its left
            positive), z up; 0 off the object.
    """

    image: np.ndarray
    mask: np.ndarray
    azimuth_deg: float
    part: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class Camera:
    """Pinhole camera: ray = forward + u right + v up, u and v within the window's bounds."""

    center: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray
    window: tuple[float, float, float]  # u and v of the window's center, and its side


@dataclass(frozen=True)
class Solid:
    """The object, and its extent for shadow and occlusion.

    Attributes:
        mesh: its triangles.
        footprint: (2,) half its length and half its width on the ground, for the shadow.
        height: up to which it darkens towards the ground and throws its shadow.
    """

    mesh: Mesh
    footprint: np.ndarray
    height: float


@dataclass(frozen=True)
class Sky:
    """Sky and light; colors are linear RGB in [0, 1].

    Attributes:
        colors: (2, 3) at the horizon and above.
        waves: (n, 4) frequency x, y, phase and amplitude of the slow texture.
        light: (3,) unit vector towards the light.
    """

    colors: np.ndarray
    waves: np.ndarray
    light: np.ndarray


@dataclass(frozen=True)
class Environment:
    """Sky, color (3,) of the ground, and ambient light in [0, 1]."""

    sky: Sky
    ground: np.ndarray
    ambient: float


@dataclass(frozen=True)
class Hits:
    """Where n rays hit an object.

    Attributes:
        number: (n,) number of the ray, row by row from the top left.
        ray: (n, 3) its direction, not normalized.
        point: (n, 3) in the object's frame.
        normal: (n, 3) of length 1.
        component: (n,) of the mesh, of the triangle that was hit.
    """

    number: np.ndarray
    ray: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    component: np.ndarray


Surface = Callable[[Hits], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Part (n,), albedo (n, 3) and gloss (n,), all but the part in [0, 1], of hits."""


def render(
    solid: Solid,
    surface: Surface,
    camera: Camera,
    environment: Environment,
    azimuth: float,
    size: int,
) -> Rendering:
    """Render an object seen from ``azimuth`` (degrees) as a square image of side ``size``."""
    hits = _trace(solid.mesh, camera, size * _SAMPLES)
    part, albedo, gloss = surface(hits)
    color = _shade(hits, albedo, gloss, solid.height, environment)
    # The background is smooth: one ray a pixel is enough.
    behind = _background(_rays(camera, size), camera, solid, environment)
    return _resolve(behind, hits, color, part, solid.mesh, azimuth)


def draw_camera(
    azimuth: float,
    mesh: Mesh,
    placement: float,
    span: tuple[float, float],
    overhang: float | None,
    rng: np.random.Generator,
) -> Camera:
    """A camera that sees the object from ``azimuth``, its window around the object's box.

    Args:
        azimuth: degrees.
        mesh: the object.
        placement: randomness of scale and offset in the frame, 0 (fixed and centered) to 1.
        span: bounds of the share of the frame that the longer side of the object's box fills, at
            placement 1; beyond 1 the frame cuts the object.
        overhang: share of the object's box that lies beyond the edge of the frame nearest to where
            it was drawn: 0 touches the edge, below 0 leaves room; None leaves it alone.
        rng: what is drawn from.
    """
    angle = np.deg2rad(azimuth)
    lift = np.deg2rad(rng.uniform(4, 24))
    distance = 0.62 / np.tan(0.5 * np.deg2rad(rng.uniform(16, 42)))
    target = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0)).astype(float)
    # Standing at angle `azimuth` from the object's front, counterclockwise from above, one sees
    # its left side at 90 degrees: its front is then at image-left.
    aside = np.array([np.cos(angle), np.sin(angle), 0])
    forward = -np.cos(lift) * aside - np.array([0, 0, np.sin(lift)])
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    center = target - distance * forward
    seen = mesh.vertices - center
    depth = seen @ forward
    u, v = seen @ right / depth, seen @ up / depth
    low, high = np.array([u.min(), v.min()]), np.array([u.max(), v.max()])
    middle_share = 0.5 * sum(span)
    share = middle_share + placement * rng.uniform(-0.5, 0.5) * (span[1] - span[0])
    side = (high - low).max() / share
    # What the box leaves free of the frame is what it may be off the center by.
    slack = np.abs(side - (high - low)) * 0.5 * 0.92
    drawn = rng.uniform(-1, 1, 2)
    offset = placement * drawn * slack * (0.7, 0.45)
    if overhang is not None:
        axis = np.abs(drawn).argmax()
        extent = high[axis] - low[axis]
        offset[axis] = np.sign(drawn[axis]) * (0.5 * (side - extent) + overhang * extent)
    window = 0.5 * (low + high) + offset
    return Camera(center, forward, right, up, (float(window[0]), float(window[1]), float(side)))


def _rays(camera: Camera, size: int) -> np.ndarray:
    """(size * size, 3) float32 ray directions, row by row from the top left, not normalized."""
    steps = (np.arange(size) + 0.5) / size - 0.5
    u0, v0, side = camera.window
    across = (u0 + side * steps)[None, :, None] * camera.right
    upward = (v0 - side * steps)[:, None, None] * camera.up
    return (camera.forward + across + upward).reshape(-1, 3).astype(np.float32)


def _trace(mesh: Mesh, camera: Camera, size: int) -> Hits:
    """Cast size * size rays at a mesh."""
    rays = _rays(camera, size)
    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, mesh.faces)
    origins = np.broadcast_to(camera.center.astype(np.float32), rays.shape).copy()
    found = scene.run(origins, rays, query="INTERSECT", output=True)
    hit = np.flatnonzero(found["primID"] >= 0)
    face, u, v = found["primID"][hit], found["u"][hit, None], found["v"][hit, None]
    corners = mesh.faces[face]
    normal = (1 - u - v) * mesh.normals[corners[:, 0]]
    normal += u * mesh.normals[corners[:, 1]] + v * mesh.normals[corners[:, 2]]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    point = camera.center + rays[hit] * found["tfar"][hit, None]
    return Hits(hit, rays[hit], point, normal, mesh.components[face])


def draw_sky(azimuth: float, rng: np.random.Generator) -> Sky:
    """Draw sky and light for an object seen from ``azimuth`` (degrees)."""
    waves = np.stack([rng.normal(0, 5, 6), rng.normal(0, 5, 6), rng.uniform(0, 6.3, 6),
                      rng.uniform(0.005, 0.022, 6)], -1)  # fmt: skip
    colors = np.stack([
        from_hsv(rng.uniform(), rng.uniform(0, 0.08), rng.uniform(0.80, 0.96)),
        from_hsv(rng.uniform(0.45, 0.7), rng.uniform(0.02, 0.20), rng.uniform(0.80, 0.98)),
    ])  # fmt: skip
    # The light stands behind the camera, to one side: no image is against the light.
    bearing = np.deg2rad(azimuth + rng.uniform(-65, 65))
    height = np.deg2rad(rng.uniform(40, 70))
    light = np.array([np.cos(height) * np.cos(bearing), np.cos(height) * np.sin(bearing),
                      np.sin(height)])  # fmt: skip
    return Sky(colors, waves, light)


def draw_environment(sky: Sky, rng: np.random.Generator) -> Environment:
    """Draw the ground under a sky, and the share of ambient light."""
    ground = from_hsv(rng.uniform(), rng.uniform(0, 0.14), rng.uniform(0.40, 0.64))
    return Environment(sky, ground, float(rng.uniform(0.42, 0.60)))


def from_hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) RGB of a color whose hue, saturation and value are all in [0, 1]."""
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 - saturation + saturation * np.clip(ramp, 0, 1))


def _background(
    rays: np.ndarray, camera: Camera, solid: Solid, environment: Environment
) -> np.ndarray:
    """(n, 3) float32 colors of sky and ground, with the object's soft shadow."""
    slope = rays[:, 2] / np.linalg.norm(rays, axis=1)
    texture = _slow_texture(rays @ camera.right, rays @ camera.up, environment.sky.waves)
    high = np.clip(slope * 3.0, 0, 1)[:, None]
    sky = environment.sky.colors[0] * (1 - high) + environment.sky.colors[1] * high
    away = camera.center[2] / np.maximum(-slope, 1e-3)
    reach = (away / np.linalg.norm(rays, axis=1))[:, None]
    place = camera.center[:2] + rays[:, :2] * reach
    shadow = _shadow(place, solid, environment.sky.light)
    haze = np.clip(away / 25, 0, 0.35)[:, None]
    ground = environment.ground * (1 - haze) + environment.sky.colors[0] * 0.8 * haze
    ground = ground * (1 - shadow[:, None])
    mix = _smooth_step(slope, 0.018, -0.018)[:, None]
    color = sky * (1 - mix) + ground * mix
    return (color * (1 + texture[:, None])).astype(np.float32)


def _slow_texture(u: np.ndarray, v: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """(n,) relative brightness of the background's low-frequency texture."""
    total = np.zeros_like(u)
    for frequency_u, frequency_v, phase, amplitude in waves.astype(np.float32):
        total += amplitude * np.sin(frequency_u * u + frequency_v * v + phase)
    return total


def _shadow(place: np.ndarray, solid: Solid, light: np.ndarray) -> np.ndarray:
    """(n,) darkness in [0, 1] of the ground at ``place`` (n, 2)."""
    half = solid.footprint
    close = np.linalg.norm(np.maximum(np.abs(place) - half, 0), axis=1)
    shift = -0.35 * solid.height * light[:2] / light[2]
    cast = np.linalg.norm(np.maximum(np.abs(place - shift) - half, 0), axis=1)
    return 0.60 * np.exp(-((close / 0.05) ** 2)) + 0.25 * np.exp(-((cast / 0.10) ** 2))


def _smooth_step(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 at ``start``, 1 at ``end``, smooth between; ``start`` may exceed ``end``."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _shade(
    hits: Hits, albedo: np.ndarray, gloss: np.ndarray, height: float, environment: Environment
) -> np.ndarray:
    """(n, 3) colors under one light, the sky and the ground."""
    normal, light = hits.normal, environment.sky.light
    view = hits.ray / np.linalg.norm(hits.ray, axis=1, keepdims=True)
    facing = np.sum(normal * view, axis=1, keepdims=True)
    mirrored = view - 2 * facing * normal
    lambert = np.clip(normal @ light, 0, 1)
    # The sky lights what looks up; what looks down or sits low gets the ground's dim light.
    hemisphere = environment.ambient * (0.72 + 0.28 * normal[:, 2])
    occlusion = 0.55 + 0.45 * _smooth_step(hits.point[:, 2], 0.0, 0.4 * height)
    diffuse = albedo * ((hemisphere + 0.68 * lambert) * occlusion)[:, None]
    up = _smooth_step(mirrored[:, 2], -0.1, 0.35)[:, None]
    seen = environment.ground * 0.55 * (1 - up) + environment.sky.colors[1] * up
    fresnel = 0.25 + 0.75 * (1 - np.clip(-facing, 0, 1)) ** 3
    highlight = np.clip(mirrored @ light, 0, 1) ** 30
    shine = gloss[:, None] * (0.6 * seen * fresnel + 0.8 * highlight[:, None])
    return (diffuse + shine).astype(np.float32)


def _resolve(
    behind: np.ndarray,
    hits: Hits,
    color: np.ndarray,
    part: np.ndarray,
    mesh: Mesh,
    azimuth: float,
) -> Rendering:
    """Average the rays of every pixel.

    ``behind`` (S * S, 3) is the background; ``color`` (n, 3) and ``part`` (n,) are of the hits.
    """
    size = round(len(behind) ** 0.5)
    fine = size * _SAMPLES
    pixel = (hits.number // fine) // _SAMPLES * size + (hits.number % fine) // _SAMPLES

    def pixel_sums(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(pixel, column, size * size) for column in values.T], -1)

    count = np.bincount(pixel, minlength=size * size)[:, None]
    mask = count / _SAMPLES**2
    image = behind * (1 - mask) + pixel_sums(np.clip(color, 0, 1)) / _SAMPLES**2
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    inside = np.clip(2 * (hits.point - low) / (high - low) - 1, -1, 1)
    position = pixel_sums(inside) / np.maximum(count, 1)
    parts = int(part.max(initial=0)) + 1
    votes = np.bincount(pixel * parts + part, minlength=size * size * parts)
    return Rendering(
        image=np.round(255 * np.clip(image, 0, 1)).astype(np.uint8).reshape(size, size, 3),
        mask=mask.astype(np.float32).reshape(size, size),
        azimuth_deg=azimuth,
        part=votes.reshape(size, size, parts).argmax(-1).astype(np.uint8),
        position=position.astype(np.float32).reshape(size, size, 3),
    )
