"""Surface of an object from its silhouettes, by votes of the views."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, label, map_coordinates
from skimage.measure import marching_cubes

from mirage_steps.errors import UserError
from mirage_steps.method.cameras import Camera

LEAST_VIEWS = 3
"""Fewer silhouettes enclose no volume."""

_BLUR = 1 / 80  # of the hull's longest side: finer parts are noise of the silhouettes
_COARSE = 48  # voxels along the object's longest side, to find its extent


@dataclass(frozen=True)
class Hull:
    """Occupancy (nx, ny, nz) in [0, 1] of cubic voxels.

    ``origin`` (3,) is the first voxel's center, ``pitch`` the side.
    """

    occupancy: np.ndarray
    origin: np.ndarray
    pitch: float


def carve(
    masks: np.ndarray, cameras: Sequence[Camera], size: int = 128, share: float = 0.9
) -> Hull:
    """Soft visual hull: what a share of the views that hold it in their frame see as object.

    Args:
        masks: (k, S, S) in [0, 1].
        cameras: of each.
        size: voxels along the hull's longest side.
        share: in (0, 1]; 1 is the intersection of all views.

    Raises:
        UserError: too few masks show anything, or they have no volume in common.
    """
    seen = [index for index, mask in enumerate(masks) if (mask > 0.5).any()]
    if len(seen) < LEAST_VIEWS:
        raise UserError(
            f"masks of {len(seen)} of {len(masks)} views show an object; a mesh needs at least "
            f"{LEAST_VIEWS}"
        )
    masks, cameras = masks[seen].astype(np.float32), [cameras[index] for index in seen]
    # No object is larger than the farthest corner of the widest frame.
    half = 0.75 * max((1 + 2 * max(map(abs, one.offset))) / one.scale for one in cameras)
    low, high = np.full(3, -half), np.full(3, half)
    for count in (_COARSE, _COARSE, size):
        pitch = float((high - low).max() / count)
        axes = [
            np.arange(a + pitch / 2, b, pitch, dtype=np.float32)
            for a, b in zip(low, high, strict=True)
        ]
        occupancy = _votes(masks, cameras, axes, share)
        inside = np.argwhere(occupancy > 0.5)
        if not len(inside):
            raise UserError("the silhouettes have no volume in common: views of one object?")
        start = np.array([axis[0] for axis in axes])
        low, high = start + (inside.min(0) - 2) * pitch, start + (inside.max(0) + 2) * pitch
    return Hull(occupancy, start, pitch)


def _votes(
    masks: np.ndarray, cameras: Sequence[Camera], axes: Sequence[np.ndarray], share: float
) -> np.ndarray:
    """The lowest mask value at each voxel, but for those that may vote against it."""
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    side = masks.shape[1]
    values = np.empty((len(masks), *points.shape[:3]), np.float32)
    for value, mask, camera in zip(values, masks, cameras, strict=True):
        place = camera.project(points)
        x, y = np.moveaxis(place * side - 0.5, -1, 0)
        value[...] = map_coordinates(mask, [y, x], order=1, mode="nearest")
        value[((place < 0) | (place > 1)).any(-1)] = np.inf  # abstains, and is sorted last
    values.sort(axis=0)
    holding = np.isfinite(values).sum(0)
    # The frames hold the whole object: what most do not hold is outside of it.
    voted_on = 2 * holding > len(masks)
    against = np.floor((1 - share) * holding + 1e-9).astype(int)
    voted = np.take_along_axis(values, against[None], 0)[0]
    return np.where(voted_on, voted, 0)


def surface(hull: Hull) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (n, 3) and faces (m, 3) of the hull's largest part, by marching cubes.

    Raises:
        UserError: the hull has but thin parts.
    """
    sigma = _BLUR * max(hull.occupancy.shape)
    margin = int(np.ceil(4 * sigma))
    field = gaussian_filter(np.pad(hull.occupancy, margin), sigma)
    parts, _ = label(field > 0.5, np.ones((3, 3, 3)))
    if not parts.any():
        raise UserError("the silhouettes have hardly any volume in common: views of one object?")
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    # Voxels beside the part are kept: they place the surface between voxels.
    field[(parts > 0) & (parts != largest)] = 0
    vertices, faces, _, _ = marching_cubes(field, 0.5, gradient_direction="ascent")
    return (vertices - margin) * hull.pitch + hull.origin, faces
