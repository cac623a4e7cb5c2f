"""Shapes of procedural cars: families of proportions, and the meshes of one car.

A car stands on the plane z = 0 in its own frame: x to the front, y to its left, z up; its length
is about one unit, centered on x = 0. Body and cabin are lofts along x of rounded cross-sections.
"""

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]

BODY, CABIN, WHEEL, MIRROR = range(4)


@dataclass(frozen=True)
class Family:
    """Ranges of the proportions of one body style.

    Heights are fractions of the car's height, positions along the car are fractions of its length
    from the front (0) to the rear (1), ``width`` and ``height`` are fractions of its length.
    """

    width: Range
    height: Range
    nose: Range  # height of the hood at the front
    belt: Range  # height of the lower edge of the windows
    tail: Range  # height of the body at the rear
    cowl: Range  # foot of the windshield
    roof_front: Range
    roof_rear: Range
    deck: Range  # foot of the rear window
    clearance: Range = (0.13, 0.17)
    wheel: Range = (0.066, 0.074)  # radius, in lengths
    boxiness: Range = (4.0, 5.5)  # exponent of the cross-section
    panel_sides: float = 0.0  # chance that the rear half of the cabin has no windows


# fmt: off
FAMILIES: dict[str, Family] = {
    "sedan": Family((0.38, 0.42), (0.30, 0.33), (0.50, 0.56), (0.62, 0.66), (0.62, 0.68),
                    (0.27, 0.32), (0.42, 0.46), (0.65, 0.70), (0.80, 0.85)),
    "hatchback": Family((0.42, 0.47), (0.36, 0.41), (0.50, 0.56), (0.58, 0.63), (0.58, 0.64),
                        (0.24, 0.28), (0.38, 0.43), (0.84, 0.90), (0.955, 0.98),
                        wheel=(0.076, 0.086)),
    "suv": Family((0.40, 0.44), (0.37, 0.42), (0.56, 0.62), (0.61, 0.66), (0.60, 0.66),
                  (0.26, 0.31), (0.36, 0.41), (0.86, 0.91), (0.955, 0.98),
                  clearance=(0.18, 0.23), wheel=(0.080, 0.092), boxiness=(4.5, 6.5)),
    "coupe": Family((0.42, 0.46), (0.27, 0.30), (0.50, 0.57), (0.63, 0.68), (0.66, 0.72),
                    (0.32, 0.38), (0.48, 0.53), (0.60, 0.65), (0.84, 0.90),
                    clearance=(0.11, 0.15)),
    "van": Family((0.38, 0.42), (0.42, 0.48), (0.42, 0.48), (0.52, 0.57), (0.52, 0.57),
                  (0.12, 0.17), (0.25, 0.30), (0.93, 0.96), (0.97, 0.985),
                  clearance=(0.11, 0.15), boxiness=(6.0, 8.0), panel_sides=0.5),
    "wagon": Family((0.38, 0.42), (0.31, 0.34), (0.50, 0.56), (0.61, 0.66), (0.60, 0.66),
                    (0.26, 0.31), (0.40, 0.45), (0.86, 0.91), (0.96, 0.98)),
    "pickup": Family((0.36, 0.40), (0.34, 0.38), (0.56, 0.62), (0.62, 0.66), (0.60, 0.64),
                     (0.25, 0.30), (0.35, 0.40), (0.54, 0.60), (0.58, 0.64),
                     clearance=(0.19, 0.24), wheel=(0.074, 0.084), boxiness=(5.0, 7.0)),
    "minivan": Family((0.39, 0.43), (0.36, 0.40), (0.47, 0.53), (0.56, 0.61), (0.56, 0.61),
                      (0.17, 0.22), (0.33, 0.38), (0.88, 0.93), (0.96, 0.985),
                      boxiness=(4.5, 6.0)),
    "fastback": Family((0.40, 0.44), (0.28, 0.32), (0.49, 0.56), (0.62, 0.67), (0.64, 0.71),
                       (0.29, 0.35), (0.44, 0.49), (0.59, 0.65), (0.90, 0.95),
                       wheel=(0.066, 0.076)),
    "jeep": Family((0.43, 0.48), (0.44, 0.50), (0.54, 0.60), (0.58, 0.63), (0.57, 0.62),
                   (0.30, 0.36), (0.34, 0.40), (0.92, 0.96), (0.95, 0.98),
                   clearance=(0.20, 0.25), wheel=(0.092, 0.106), boxiness=(7.0, 9.0)),
    "limousine": Family((0.31, 0.36), (0.24, 0.28), (0.52, 0.58), (0.62, 0.66), (0.62, 0.68),
                        (0.23, 0.27), (0.33, 0.37), (0.74, 0.79), (0.85, 0.89),
                        wheel=(0.056, 0.064)),
}
# fmt: on
DEMO_FAMILIES: tuple[str, ...] = ("sedan", "hatchback", "suv", "coupe", "van")
STAND_IN_FAMILIES: tuple[str, ...] = (
    "wagon", "pickup", "minivan", "fastback", "jeep", "limousine",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Proportions of one car, in lengths, after the fractions of its family were drawn.

    ``cowl`` to ``deck`` and ``axles`` are x coordinates (front positive), ``pillars`` too.
    """

    width: float
    height: float
    nose: float
    belt: float
    tail: float
    cowl: float
    roof_front: float
    roof_rear: float
    deck: float
    clearance: float
    wheel: float
    boxiness: float
    axles: tuple[float, float]
    pillars: tuple[float, ...]
    window_end: float  # no side window behind this x
    tumblehome: float  # share of the width that the cabin loses from belt to roof

    def roof(self, x: np.ndarray) -> np.ndarray:
        """Height of the cabin's center line at ``x``; the belt's where there is no cabin."""
        knots = np.array([self.deck, self.roof_rear, self.roof_front, self.cowl])
        heights = np.array([self.belt, self.height, self.height, self.belt])
        sag = 0.03 * self.height * (2 * x - self.roof_front - self.roof_rear) ** 2 / 0.5
        return np.interp(x, knots, heights) - np.where(x > knots[0], np.minimum(sag, 0.02), 0)


@dataclass(frozen=True)
class Mesh:
    """Triangles of one car.

    ``vertices`` and ``normals`` (n, 3) float32; ``faces`` (m, 3) int32; ``components`` (m,) one of
    BODY, CABIN, WHEEL, MIRROR.
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    components: np.ndarray


def draw_shape(family: Family, rng: np.random.Generator) -> Shape:
    """Draw the proportions of one car of ``family``."""

    def draw(bounds: Range) -> float:
        return float(rng.uniform(*bounds))

    height = draw(family.height)
    along = {
        name: 0.5 - draw(getattr(family, name)) for name in ("cowl", "roof_front", "roof_rear")
    }
    deck = min(0.5 - draw(family.deck), along["roof_rear"] - 0.01)
    radius = draw(family.wheel)
    front = 0.5 - rng.uniform(0.09, 0.11) - radius
    rear = -0.5 + rng.uniform(0.10, 0.13) + radius
    middle = 0.5 * (along["roof_front"] + along["roof_rear"]) + rng.uniform(-0.02, 0.04)
    cabin = along["cowl"] - deck
    pillars = (middle,) if cabin < 0.6 else (middle + 0.06, middle - 0.14)
    paneled = rng.random() < family.panel_sides
    return Shape(
        width=draw(family.width),
        height=height,
        nose=height * draw(family.nose),
        belt=height * draw(family.belt),
        tail=height * draw(family.tail),
        deck=deck,
        clearance=height * draw(family.clearance),
        wheel=radius,
        boxiness=draw(family.boxiness),
        axles=(front, rear),
        pillars=pillars,
        window_end=pillars[0] if paneled else -0.5,
        tumblehome=rng.uniform(0.10, 0.22),
        **along,
    )


def build_mesh(shape: Shape) -> Mesh:
    """Meshes of body, cabin, four wheels and two mirrors, as one."""
    parts = [(BODY, _body(shape)), (CABIN, _cabin(shape))]
    for x in shape.axles:
        for side in (-1.0, 1.0):
            parts.append((WHEEL, _wheel(shape, x, side)))
    for side in (-1.0, 1.0):
        parts.append((MIRROR, _mirror(shape, side)))
    return mesh_of_lofts(parts)


def mesh_of_lofts(parts: list[tuple[int, np.ndarray]]) -> Mesh:
    """One mesh of closed lofts, given as component and rings (stations, points, 3)."""
    vertices, normals, faces, components, offset = [], [], [], [], 0
    for component, rings in parts:
        points, triangles = _skin(rings)
        vertices.append(points)
        normals.append(_vertex_normals(points, triangles))
        faces.append(triangles + offset)
        components.append(np.full(len(triangles), component, np.uint8))
        offset += len(points)
    return Mesh(
        np.concatenate(vertices).astype(np.float32),
        np.concatenate(normals).astype(np.float32),
        np.concatenate(faces).astype(np.int32),
        np.concatenate(components),
    )


def superellipse(points: int, exponent: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """(points,) offsets across and up of a rounded box in [-1, 1]^2."""
    angle = (np.arange(points) + 0.5) * 2 * np.pi / points
    cos, sin = np.cos(angle), np.sin(angle)
    radius = (np.abs(cos) ** exponent + np.abs(sin) ** exponent) ** (-1 / exponent)
    return cos * radius, sin * radius


def _stations(first: float, last: float, count: int) -> np.ndarray:
    """(count,) x from ``first`` down to ``last``, denser at both ends."""
    even = np.linspace(0, 1, count)
    return first + (last - first) * (0.5 * even + 0.25 * (1 - np.cos(np.pi * even)))


def _body(shape: Shape) -> np.ndarray:
    """(stations, points, 3) rings of the lower body."""
    x = _stations(0.5, -0.5, 36)
    knots = np.array([-0.5, -0.46, shape.deck, shape.cowl, 0.42, 0.5])
    tops = np.array([shape.tail - 0.012, shape.tail, shape.belt, shape.belt,
                     shape.nose + 0.012, shape.nose - 0.012])  # fmt: skip
    if shape.deck < -0.45:
        knots, tops = np.delete(knots, 1), np.delete(tops, 1)
    top = np.interp(x, knots, tops)
    end = np.clip((np.abs(x) - 0.40) / 0.10, 0, 1)
    bottom = shape.clearance + 0.025 * end**2
    half = 0.5 * shape.width * (1 - 0.16 * end**2.5)
    # The two outermost stations shrink, which rounds the edges of the front and the rear.
    inset = np.clip((np.abs(x) - 0.487) / 0.013, 0, 1) ** 2
    half = half * (1 - 0.07 * inset)
    middle, rise = 0.5 * (top + bottom), 0.5 * (top - bottom) * (1 - 0.10 * inset)
    across, up = superellipse(32, shape.boxiness)
    # Sides lean in towards the shoulders, as on most cars.
    lean = 1 - 0.05 * np.clip(up, 0, 1)
    y = half[:, None] * (across * lean)
    z = middle[:, None] + rise[:, None] * up
    return np.stack([np.broadcast_to(x[:, None], y.shape), y, z], -1)


def cabin_half_width(shape: Shape, z: np.ndarray) -> np.ndarray:
    """Half the cabin's width at height ``z``, before its edges are rounded."""
    rise = np.clip((z - shape.belt) / (shape.height - shape.belt), 0, 1)
    return 0.5 * shape.width * 0.91 * (1 - shape.tumblehome * rise)


def _cabin(shape: Shape) -> np.ndarray:
    """(stations, points, 3) rings of the cabin, its foot sunk into the body."""
    x = _stations(shape.cowl, shape.deck, 30)
    top = shape.roof(x)
    foot = np.full_like(x, shape.belt - 0.05 * shape.height)
    across, up = superellipse(32, 6.0)
    z = 0.5 * (top + foot)[:, None] + 0.5 * (top - foot)[:, None] * up
    y = cabin_half_width(shape, z) * across
    return np.stack([np.broadcast_to(x[:, None], y.shape), y, z], -1)


def _wheel(shape: Shape, x: float, side: float) -> np.ndarray:
    """(rings, points, 3) rings of one wheel, from the hub outwards and to the inside."""
    angle = np.arange(28) * 2 * np.pi / 28
    outer = 0.5 * shape.width * 0.985
    radius = shape.wheel * np.array([0.1, 0.62, 0.66, 0.93, 1.0, 1.0, 0.9])
    depth = np.array([-0.010, -0.014, 0.0, 0.0, -0.012, -0.07, -0.075])
    y = side * np.broadcast_to((outer + depth)[:, None], (7, 28))
    if side < 0:
        angle = -angle
    rings = [x + radius[:, None] * np.cos(angle), y, shape.wheel + radius[:, None] * np.sin(angle)]
    return np.stack(rings, -1)[::-1]


def _mirror(shape: Shape, side: float) -> np.ndarray:
    """(rings, points, 3) rings of one side mirror."""
    t = np.linspace(-0.98, 0.98, 7)
    across, up = superellipse(10, 3.0)
    radius = np.sqrt(1 - t**4)[:, None]
    x = shape.cowl - 0.05 - 0.012 * t[:, None] + 0 * across
    y = side * (0.5 * shape.width * 0.97 + 0.016) + 0.020 * radius * across
    z = shape.belt + 0.018 + 0.016 * radius * up
    return np.stack([x, y, z], -1)


def _skin(rings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (n, 3) and faces (m, 3) of a loft (stations, points, 3), closed by flat caps."""
    stations, points = rings.shape[:2]
    index = np.arange(stations * points).reshape(stations, points)
    right = np.roll(index, -1, axis=1)
    a, b, c, d = index[:-1], right[:-1], index[1:], right[1:]
    sides = np.concatenate([np.stack([a, c, b], -1), np.stack([b, c, d], -1)]).reshape(-1, 3)
    # Caps own their vertices, so that their normals stay flat.
    count = stations * points
    vertices = [rings.reshape(-1, 3)]
    faces = [sides]
    for ring, order in ((rings[0], (0, 1, 2)), (rings[-1], (0, 2, 1))):
        vertices += [ring, ring.mean(0, keepdims=True)]
        rim = count + np.arange(points)
        fan = np.stack([np.full(points, count + points), rim, np.roll(rim, -1)], -1)
        faces.append(fan[:, order])
        count += points + 1
    return np.concatenate(vertices), np.concatenate(faces)


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(n, 3) unit normals, the area-weighted mean over the faces of each vertex."""
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for axis in range(3):
        weights = np.repeat(face_normals[:, axis], 3)
        normals[:, axis] = np.bincount(faces.reshape(-1), weights, len(vertices))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
