"""SAM prompts from a coarse foreground map: a box and one to three inside points."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """Prompts for one image, in fractions of its side.

    Attributes:
        box: (4,) x0, y0, x1, y1.
        points: (n, 2) x, y of points inside the object.
    """

    box: np.ndarray
    points: np.ndarray


def coarse_prompt(
    coverage: np.ndarray, rng: np.random.Generator, jitter: float = 0.03, max_points: int = 3
) -> Prompt:
    """Draw prompts from the coverage of patches.

    Args:
        coverage: (g, g), the object's share of each patch.
        rng: draws the points and the errors.
        jitter: standard deviation of the box's edges, in sides of the image.
        max_points: most points to give; at least one is given.
    """
    grid = len(coverage)
    on = coverage >= min(0.5, coverage.max())
    rows, columns = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / grid
    box = np.clip(box + jitter * rng.normal(size=4), 0, 1)
    # Points come from patches that are wholly object where there are any.
    inside = np.argwhere(coverage >= min(0.95, coverage.max()))
    chosen = inside[rng.integers(len(inside), size=rng.integers(1, max_points + 1))]
    centers = (chosen[:, ::-1] + rng.uniform(0.25, 0.75, chosen.shape)) / grid
    return Prompt(box, centers)
