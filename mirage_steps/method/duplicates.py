"""Near-duplicates among images, by small thumbnails: no network decides what is one photo."""

from collections.abc import Iterator

import numpy as np

SIDE = 16  # pixels of a thumbnail
# Root mean square in gray levels of 0..255. Copies, smaller copies and JPEG are below it, other
# images and neighbors on a turntable above (docs/pose_discovery.md).
MOST = 4.0
_SHARE = 0.25  # of the usual distance to the nearest other image
_ROWS = 1024  # compared at once, so that memory grows by the thumbnails alone


def near_duplicates(thumbnails: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """For each image the first one that it repeats, itself where it repeats none.

    Images are compared with the first of each group only, so a slow turn makes no chain.

    Args:
        thumbnails: (n, SIDE, SIDE, 3) uint8.
        limit: from :func:`duplicate_limit`.

    Returns:
        (n,) indices; (n,) correlation with that image, in [-1, 1].
    """
    of = np.arange(len(thumbnails))
    firsts: list[int] = []
    for rows in _slices(len(thumbnails)):
        block, start = _vectors(thumbnails[rows]), rows.start
        nearest, own = np.full(len(block), np.inf), _distances(block, block)
        for part in _slices(len(firsts)):
            before = np.array(firsts[part])
            distances = _distances(block, _vectors(thumbnails[before]))
            closest = distances.argmin(1)
            found = distances[np.arange(len(block)), closest]
            closer = found < nearest
            of[rows][closer], nearest[closer] = before[closest[closer]], found[closer]
        for place in range(len(block)):
            if nearest[place] > limit:
                of[start + place] = start + place
                firsts.append(start + place)
                closer = np.flatnonzero(own[place, place + 1 :] < nearest[place + 1 :]) + place + 1
                of[start + closer], nearest[closer] = start + place, own[place, closer]
    return of, _correlations(thumbnails, of)


def duplicate_limit(thumbnails: np.ndarray) -> float:
    """Largest distance of near-duplicates, in gray levels: where images are alike, a smaller one.

    Args:
        thumbnails: (n, SIDE, SIDE, 3) uint8.
    """
    count = len(thumbnails)
    sample = np.unique(np.linspace(0, count - 1, _ROWS).astype(int))
    some, nearest = _vectors(thumbnails[sample]), np.full(len(sample), np.inf)
    for rows in _slices(count):
        distances = _distances(some, _vectors(thumbnails[rows]))
        other = np.where(distances > MOST, distances, np.inf)  # however often each is repeated
        nearest = np.minimum(nearest, other.min(1))
    return float(min(MOST, _SHARE * np.median(nearest)))


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _vectors(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails without brightness and tint as (n, SIDE * SIDE * 3) float32."""
    values = thumbnails.astype(np.float32)
    values -= values.mean((1, 2), keepdims=True)
    return values.reshape(len(values), -1) / np.float32(values[0].size ** 0.5)


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m) of vectors (n, d) and (m, d)."""
    squares = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return np.sqrt(np.maximum(squares, 0))


def _correlations(thumbnails: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Correlation of each image with that of its index (n,); 1 with itself."""
    found, repeats = np.ones(len(of)), np.flatnonzero(of != np.arange(len(of)))
    for part in _slices(len(repeats)):
        here = repeats[part]
        one, other = (_vectors(thumbnails[rows]) for rows in (here, of[here]))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found[here] = (one * other).sum(1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found
