"""Shapes of procedural chairs and armchairs: random proportions, and the boxes of one chair.

A chair stands on the plane z = 0 in its own frame: x to the front, y to its left, z up, centered on
its seat; lengths are about meters.
"""

from dataclasses import dataclass

import numpy as np

from mirage_steps.demo.renderer.car_shapes import Mesh

Bounds = tuple[float, float]

SEAT, BACK, ARM, LEG = range(1, 5)

# Corner number 4 ix + 2 iy + iz of a box; each side's corners run counterclockwise from outside.
_SIDES = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)
_TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])


@dataclass(frozen=True)
class Shape:
    """Proportions of one chair.

    Attributes:
        depth: of the seat, along x.
        width: of the seat, along y, between the armrests if there are any.
        seat: height of the seat's upper side.
        cushion: thickness of the seat.
        height: of the back's upper edge.
        back: thickness of the back.
        gap: between seat and back, bridged by posts; below 0 the back reaches down behind the seat.
        recline: by how much the back's upper edge lies behind its lower one.
        arm: width of an armrest, 0 without.
        arm_height: of an armrest's upper side above the seat.
        arm_depth: thickness of an armrest; one that reaches below the seat is a closed side.
        leg: width of a leg.
        inset: of the legs from the seat's edges.
    """

    depth: float
    width: float
    seat: float
    cushion: float
    height: float
    back: float
    gap: float
    recline: float
    arm: float
    arm_height: float
    arm_depth: float
    leg: float
    inset: float


def draw_shape(rng: np.random.Generator) -> Shape:
    """Draw a chair of wood with thin parts, or with equal chance a stuffed armchair."""
    return _draw_armchair(rng) if rng.random() < 0.5 else _draw_chair(rng)


def _draw_chair(rng: np.random.Generator) -> Shape:
    """A light chair, in one of three cases with open armrests."""
    seat = rng.uniform(0.42, 0.50)
    arm_height = rng.uniform(0.18, 0.25)
    return Shape(
        depth=rng.uniform(0.40, 0.50),
        width=rng.uniform(0.40, 0.52),
        seat=seat,
        cushion=rng.uniform(0.035, 0.09),
        height=seat + rng.uniform(0.38, 0.58),
        back=rng.uniform(0.03, 0.06),
        gap=rng.uniform(0.06, 0.16) if rng.random() < 0.5 else 0.0,
        recline=rng.uniform(0.02, 0.10),
        arm=rng.uniform(0.04, 0.06) if rng.random() < 1 / 3 else 0.0,
        arm_height=arm_height,
        arm_depth=rng.uniform(0.03, 0.05),
        leg=rng.uniform(0.035, 0.055),
        inset=rng.uniform(0.0, 0.03),
    )


def _draw_armchair(rng: np.random.Generator) -> Shape:
    """A stuffed chair with closed sides, on short legs."""
    seat = rng.uniform(0.38, 0.46)
    arm_height = rng.uniform(0.12, 0.24)
    cushion = rng.uniform(0.20, 0.28)
    return Shape(
        depth=rng.uniform(0.50, 0.62),
        width=rng.uniform(0.46, 0.60),
        seat=seat,
        cushion=cushion,
        height=seat + rng.uniform(0.34, 0.56),
        back=rng.uniform(0.12, 0.20),
        gap=-cushion,
        recline=rng.uniform(0.03, 0.12),
        arm=rng.uniform(0.09, 0.16),
        arm_height=arm_height,
        arm_depth=arm_height + cushion * rng.uniform(0.7, 1.0),
        leg=rng.uniform(0.04, 0.07),
        inset=rng.uniform(0.01, 0.05),
    )


def build_mesh(shape: Shape) -> Mesh:
    """All boxes of a chair as one mesh, of components SEAT, BACK, ARM and LEG."""
    front, side = 0.5 * shape.depth, 0.5 * shape.width
    under, rest = shape.seat - shape.cushion, shape.seat + shape.gap
    boxes = [
        (SEAT, _box((-front, front), (-side, side), (under, shape.seat))),
        (BACK, _back(shape, -side, side, rest, shape.height)),
    ]
    for sign in (-1, 1):
        # Legs stand below the outer edges of armrests that are closed sides.
        out = side + (shape.arm if shape.arm_depth > shape.arm_height else 0) - shape.inset
        across = _ordered(sign, out - shape.leg, out)
        for end in (-1, 1):
            along = _ordered(end, front - shape.inset - shape.leg, front - shape.inset)
            boxes.append((LEG, _box(along, across, (0, under))))
        if shape.gap > 0:
            # Posts are as wide as a leg, so that the gap stays open between them.
            post = _ordered(sign, side - shape.leg, side)
            boxes.append((LEG, _back(shape, *post, shape.seat, rest)))
        if shape.arm:
            boxes += _armrest(shape, sign)
    return _mesh(boxes)


def _armrest(shape: Shape, sign: int) -> list[tuple[int, np.ndarray]]:
    """Boxes of the armrest on one side, with a post below an open one."""
    front, side = 0.5 * shape.depth, 0.5 * shape.width
    top = shape.seat + shape.arm_height
    across = _ordered(sign, side, side + shape.arm)
    along = (-front - 0.5 * shape.back, front)
    boxes = [(ARM, _box(along, across, (top - shape.arm_depth, top)))]
    if shape.arm_depth < shape.arm_height:
        post = (front - 2 * shape.leg, front - shape.leg)
        z = (shape.seat - shape.cushion, top - shape.arm_depth)
        boxes.append((LEG, _box(post, across, z)))
    return boxes


def _back(shape: Shape, left: float, right: float, low: float, high: float) -> np.ndarray:
    """Corners (8, 3) of the part of the leaning back between two heights."""
    rear = -0.5 * shape.depth
    slope = shape.recline / (shape.height - shape.seat)
    start, lean = slope * (low - shape.seat), slope * (high - low)
    return _box((rear - shape.back - start, rear - start), (left, right), (low, high), lean)


def _ordered(sign: int, inner: float, outer: float) -> Bounds:
    """Bounds of what lies between two distances from the middle, on the side ``sign``."""
    return (inner, outer) if sign > 0 else (-outer, -inner)


def _box(x: Bounds, y: Bounds, z: Bounds, lean: float = 0.0) -> np.ndarray:
    """Corners (8, 3) of the box between bounds (low, high); its top is ``lean`` further back."""
    corners = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(8, 3)
    corners[1::2, 0] -= lean
    return corners


def _mesh(boxes: list[tuple[int, np.ndarray]]) -> Mesh:
    """Triangles of all boxes, given as component and corners (8, 3)."""
    corners = np.stack([box for _, box in boxes])
    sides = corners[:, _SIDES]
    normals = np.cross(sides[:, :, 1] - sides[:, :, 0], sides[:, :, 3] - sides[:, :, 0])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # Normals that lean outwards near the edges make flat sides look stuffed.
    outwards = sides - corners.mean(1)[:, None, None]
    outwards /= np.linalg.norm(outwards, axis=-1, keepdims=True)
    count = sides.shape[0] * sides.shape[1]
    return Mesh(
        sides.reshape(-1, 3).astype(np.float32),
        (normals[:, :, None] + 0.3 * outwards).reshape(-1, 3).astype(np.float32),
        (4 * np.arange(count)[:, None, None] + _TRIANGLES).reshape(-1, 3).astype(np.int32),
        np.repeat(np.array([component for component, _ in boxes], np.uint8), 12),
    )
