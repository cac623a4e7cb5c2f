"""Shapes of procedural mugs: families of profiles and handles, and the meshes of one mug.

A mug stands on the plane z = 0 in its own frame, its axis at x = y = 0: the print is on the side
towards x, the handle towards y, z is up. The body is a lathe, a loft along its wall from the foot
over the rim to the floor inside; the handle is a loft along a curve from wall to wall.
"""

from dataclasses import dataclass

import numpy as np

from mirage_steps.demo.renderer.car_shapes import Mesh, Range, mesh_of_lofts, superellipse

BODY, HANDLE = range(2)

_HEIGHTS = np.array([0.0, 1 / 3, 2 / 3, 1.0])  # of the radii of a profile, in heights


@dataclass(frozen=True)
class Family:
    """Ranges of the proportions of one kind of mug.

    Attributes:
        height: of the mug, where a car is 1 long.
        radii: of the wall at the foot, at a third and at two thirds of the height, and at the rim,
            in heights; one draw places a mug between the two ends of all four.
        reach: of the handle from the wall, in heights.
        ends: lower and upper end of the handle, in heights.
        square: exponent of the handle's curve: 2 is half an ellipse, more is like a D.
        ear: by how much the handle reaches further above than below.
        flat: width of the handle's cross-section along the wall over its thickness.
    """

    height: Range
    radii: tuple[Range, Range, Range, Range]
    reach: Range
    ends: tuple[Range, Range]
    square: Range = (2.0, 2.6)
    ear: Range = (-0.1, 0.1)
    flat: Range = (1.0, 1.5)


# fmt: off
FAMILIES: dict[str, Family] = {
    "straight": Family((0.66, 0.76), ((0.38, 0.46), (0.38, 0.46), (0.38, 0.46), (0.38, 0.46)),
                       (0.26, 0.34), ((0.16, 0.24), (0.76, 0.86)), square=(2.2, 3.4)),
    "tapered": Family((0.64, 0.76), ((0.29, 0.35), (0.34, 0.41), (0.39, 0.47), (0.44, 0.53)),
                      (0.26, 0.36), ((0.20, 0.28), (0.72, 0.84)), ear=(0.1, 0.3)),
    "barrel": Family((0.62, 0.72), ((0.36, 0.40), (0.46, 0.52), (0.46, 0.52), (0.38, 0.44)),
                     (0.26, 0.34), ((0.18, 0.26), (0.74, 0.84)), flat=(1.4, 2.4)),
    "tulip": Family((0.66, 0.76), ((0.28, 0.33), (0.43, 0.49), (0.41, 0.47), (0.43, 0.50)),
                    (0.26, 0.36), ((0.24, 0.32), (0.74, 0.86)), ear=(0.0, 0.3)),
    "espresso": Family((0.50, 0.58), ((0.40, 0.46), (0.52, 0.58), (0.58, 0.64), (0.60, 0.68)),
                       (0.34, 0.44), ((0.26, 0.34), (0.76, 0.88)), square=(2.0, 2.3)),
    "bell": Family((0.64, 0.74), ((0.36, 0.41), (0.37, 0.42), (0.40, 0.46), (0.52, 0.60)),
                   (0.26, 0.36), ((0.16, 0.26), (0.70, 0.80)), ear=(0.0, 0.3)),
    "stein": Family((0.74, 0.84), ((0.38, 0.44), (0.36, 0.41), (0.34, 0.39), (0.33, 0.38)),
                    (0.24, 0.34), ((0.12, 0.20), (0.78, 0.88)), square=(2.6, 4.0),
                    flat=(1.4, 2.6)),
    "camper": Family((0.58, 0.68), ((0.48, 0.54), (0.47, 0.53), (0.46, 0.52), (0.46, 0.52)),
                     (0.28, 0.38), ((0.18, 0.28), (0.74, 0.86)), flat=(1.6, 2.6)),
    "globe": Family((0.58, 0.68), ((0.34, 0.39), (0.52, 0.57), (0.52, 0.58), (0.40, 0.46)),
                    (0.28, 0.36), ((0.20, 0.30), (0.72, 0.82))),
    "teacup": Family((0.48, 0.58), ((0.30, 0.38), (0.50, 0.58), (0.60, 0.68), (0.64, 0.74)),
                     (0.32, 0.44), ((0.28, 0.38), (0.76, 0.90)), ear=(0.1, 0.4)),
    "latte": Family((0.76, 0.86), ((0.26, 0.30), (0.30, 0.34), (0.34, 0.39), (0.38, 0.44)),
                    (0.24, 0.32), ((0.18, 0.28), (0.74, 0.86)), square=(2.0, 3.4),
                    ear=(0.0, 0.3)),
}
# fmt: on
DEMO_FAMILIES: tuple[str, ...] = ("straight", "tapered", "barrel", "tulip", "espresso")
STAND_IN_FAMILIES: tuple[str, ...] = ("bell", "stein", "camper", "globe", "teacup", "latte")


@dataclass(frozen=True)
class Shape:
    """Proportions of one mug, in the units of its frame.

    Attributes:
        height: of the rim.
        radii: (4,) of the wall's outside at even heights from the foot to the rim.
        wall: its thickness.
        ends: heights of the handle's lower and upper end.
        reach: of the handle's middle line from the wall.
        square, ear, flat: as of the family.
        thickness: of the handle.
    """

    height: float
    radii: np.ndarray
    wall: float
    ends: tuple[float, float]
    reach: float
    square: float
    ear: float
    flat: float
    thickness: float

    def radius(self, z: np.ndarray | float) -> np.ndarray:
        """Outer radius of the wall at height ``z``: the cubic through ``radii``."""
        polynomial = np.polyfit(_HEIGHTS * self.height, self.radii, 3)
        return np.polyval(polynomial, np.clip(z, 0, self.height))


def draw_shape(family: Family, rng: np.random.Generator) -> Shape:
    """Draw the proportions of one mug of ``family``."""
    height = rng.uniform(*family.height)
    wide = rng.uniform()
    return Shape(
        height=height,
        radii=height * np.array([low + wide * (high - low) for low, high in family.radii]),
        wall=rng.uniform(0.024, 0.042),
        ends=(height * rng.uniform(*family.ends[0]), height * rng.uniform(*family.ends[1])),
        reach=height * rng.uniform(*family.reach),
        square=rng.uniform(*family.square),
        ear=rng.uniform(*family.ear),
        flat=rng.uniform(*family.flat),
        thickness=rng.uniform(0.050, 0.070),
    )


def build_mesh(shape: Shape) -> Mesh:
    """Meshes of body and handle, as one; each is closed, and the handle's ends are in the wall."""
    return mesh_of_lofts([(BODY, _body(shape)), (HANDLE, _handle(shape))])


def _body(shape: Shape) -> np.ndarray:
    """(stations, points, 3) rings from the foot up outside, over the rim and down inside."""
    half = 0.5 * shape.wall
    foot = np.array([0.0, 0.15, 0.5, 1.0]) * half
    rise = np.linspace(2 * half, shape.height - half, 20)
    turn = np.linspace(0, np.pi, 9)[1:-1]
    sink = np.linspace(shape.height - half, 2 * shape.wall, 18)
    # Of the floor inside, with a round corner; its middle is a flat cap.
    corner = shape.radius(2 * shape.wall) - shape.wall - np.array([0.1, 0.4, 1.0]) * shape.wall
    lip = shape.radius(shape.height - half) - half
    radius = np.concatenate([
        shape.radius(foot) - half * np.array([1.0, 0.5, 0.15, 0.0]), shape.radius(rise),
        lip + half * np.cos(turn), shape.radius(sink) - shape.wall, corner,
    ])  # fmt: skip
    z = np.concatenate([
        foot, rise, shape.height - half + half * np.sin(turn), sink,
        np.array([1.6, 1.2, 1.0]) * shape.wall,
    ])  # fmt: skip
    angle = -np.arange(64) * 2 * np.pi / 64
    across = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)])[:, None]
    return np.stack([*across, np.broadcast_to(z[:, None], across[0].shape)], -1)


def _handle(shape: Shape) -> np.ndarray:
    """(stations, points, 3) rings along the handle, from its upper end to its lower one."""
    low, high = shape.ends
    angle = np.linspace(0.5 * np.pi, -0.5 * np.pi, 28)
    power = 2 / shape.square
    out = np.abs(np.cos(angle)) ** power
    up = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    z = 0.5 * (low + high) + 0.5 * (high - low) * up
    # Between the ends, which lie in the middle of the wall, its base is a straight line.
    ends = shape.radius(np.array([low, high])) - 0.5 * shape.wall
    reach = (shape.reach + 0.5 * shape.wall) * (1 + shape.ear * up)
    y = np.interp(z, [low, high], ends) + reach * out
    y_step, z_step = np.gradient(y), np.gradient(z)
    y_step[[0, -1]], z_step[[0, -1]] = (1, -1), 0  # straight out of the wall
    length = np.hypot(y_step, z_step)
    across, thick = superellipse(14, 2.6)
    across, thick = (0.5 * shape.thickness * one[None] for one in (shape.flat * across, thick))
    # Thickness is along the curve's normal in the plane x = 0.
    rings = np.stack([
        np.broadcast_to(across, (len(y), across.shape[1])),
        y[:, None] - (z_step / length)[:, None] * thick,
        z[:, None] + (y_step / length)[:, None] * thick,
    ], -1)  # fmt: skip
    # The ends follow the middle of the wall, so that no corner comes out on either side.
    x, _, z_end = np.moveaxis(rings[[0, -1]], -1, 0)
    rings[[0, -1], :, 1] = np.sqrt((shape.radius(z_end) - 0.5 * shape.wall) ** 2 - x**2)
    return rings
