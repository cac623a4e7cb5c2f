"""Reasons not to trust the object and the pose of an image, each with its limit.

The same for the images of a data set (screening) and for photos (``Run``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mirage_steps.method.foreground import separation
from mirage_steps.method.pose_estimator import Detection

# Share of the variance of a photo's scores that lies between foreground and background. Photos of
# the demo's cars have 0.88 and more.
_SEPARATION = 0.7
_LARGEST = 0.75  # share of the foreground in its largest part
_CUT = 0.5  # share of an object's width or height that lies on one edge of the image
WHOLE = 0.95  # share of the image that a box fills as if it were the whole


@dataclass(frozen=True)
class PhotoWarning:
    """A reason not to trust the result, with the measure and its limit."""

    reason: str
    measure: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.reason} ({self.measure} {self.value:.3g}, limit {self.limit:.3g})"

    @property
    def excess(self) -> float:
        """How far beyond its limit the value is, 1 at the limit."""
        low, high = sorted((max(self.value, 1e-3), max(self.limit, 1e-3)))
        return high / low


@dataclass(frozen=True)
class Clearness:
    """How clear an object is that PCA 1 found.

    Args:
        separation: share of the variance of the scores between foreground and background.
        largest_part: share of the foreground in the object, its largest connected part.
        cut: share of the object's width or height on that edge of the image that has most.
    """

    separation: float
    largest_part: float
    cut: float

    @classmethod
    def of(cls, found: Detection, threshold: float) -> "Clearness":
        """That of a detection; ``threshold`` is the foreground's."""
        valid, mask = ~np.isnan(found.scores), found.region.mask
        foreground = (found.scores > threshold).sum()
        share = min(float(mask.sum() / max(foreground, 1)), 1.0)
        return cls(separation(found.scores[valid], threshold), share, _cut(mask, valid))

    def warnings(self) -> Iterator[PhotoWarning]:
        """What speaks against the object."""
        if self.separation < _SEPARATION:
            reason = "the foreground is undecided: scores do not separate object and background"
            yield PhotoWarning(reason, "separation", self.separation, _SEPARATION)
        if self.largest_part < _LARGEST:
            reason = "the foreground is in several parts, and the largest is used; give a box"
            yield PhotoWarning(reason, "its share", self.largest_part, _LARGEST)


def _cut(mask: np.ndarray, valid: np.ndarray) -> float:
    """Share of an object's width or height on one edge, of bool (g, g) object and image."""
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    width, height = mask.any(0).sum(), mask.any(1).sum()
    across = max(mask[row].sum() for row in rows[[0, -1]]) / max(width, 1)
    along = max(mask[:, column].sum() for column in columns[[0, -1]]) / max(height, 1)
    return float(max(across, along))


def cut_warnings(clear: Clearness) -> Iterator[PhotoWarning]:
    """Whether the border of the image cuts the object."""
    if clear.cut > _CUT:
        reason = "the object reaches the border, which may cut it"
        yield PhotoWarning(reason, "share of its side on the edge", clear.cut, _CUT)


def whole_warnings(area: float) -> Iterator[PhotoWarning]:
    """Whether a box of this share of the image's area is the whole image."""
    if area > WHOLE:
        reason = "the object's box is the whole image"
        yield PhotoWarning(reason, "share of the image", area, WHOLE)


def far_warnings(distance: float, far: float) -> Iterator[PhotoWarning]:
    """Whether an object is farther from its pose than nearly all training images."""
    if distance > far:
        reason = "far from every pose; 99% of the training images are nearer to one"
        yield PhotoWarning(reason, "distance", distance, far)
