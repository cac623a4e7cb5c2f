"""Cameras on a turntable.

The object's frame is that of the renderer: x to the front, y to its left, z up.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """A camera that looks at the origin.

    Attributes:
        azimuth_deg: 0 sees the front, 90 the left side.
        elevation_deg: above the horizon.
        scale: sides of the frame that a unit of length at the origin's depth covers.
        offset: of the origin from the middle of the frame, right and down, in sides of the frame.
        perspective: one over the distance to the origin; 0 is orthographic.
    """

    azimuth_deg: float
    elevation_deg: float
    scale: float
    offset: tuple[float, float] = (0.0, 0.0)
    perspective: float = 0.0

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) unit vectors: right, up, forward."""
        a, e = np.radians([self.azimuth_deg, self.elevation_deg])
        right = np.array([-np.sin(a), np.cos(a), 0])
        forward = -np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        return np.stack([right, np.cross(right, forward), forward])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Place of points (..., 3) in the frame, right and down from the top left, in its sides."""
        right, up, forward = np.moveaxis(points @ self.axes.T.astype(points.dtype), -1, 0)
        scale = self.scale / (1 + self.perspective * forward)
        return np.stack(
            [0.5 + self.offset[0] + right * scale, 0.5 + self.offset[1] - up * scale], -1
        )

    def rays(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions, each (size * size, 3), through the pixels from the top left."""
        steps = (np.arange(size) + 0.5) / size - 0.5
        across = ((steps - self.offset[0]) / self.scale)[None, :, None] * self.axes[0]
        upward = ((self.offset[1] - steps) / self.scale)[:, None, None] * self.axes[1]
        plane, forward = (across + upward).reshape(-1, 3), self.axes[2]
        directions = forward + self.perspective * plane
        # Start well in front of the object, behind the pinhole's own plane.
        back = 0.95 / self.perspective if self.perspective > 0.1 else 9.0
        return plane - back * directions, directions
