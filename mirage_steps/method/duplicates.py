"""Near-duplicates among images, by small thumbnails: no network decides what is one photo."""

from collections.abc import Iterable, Iterator

import numpy as np
import scipy  # loads its parts on their first use

SIDE = 16  # pixels of a thumbnail
# Root mean square in gray levels of 0..255. Copies, smaller copies and JPEG are below it, other
# images and neighbors on a turntable above (docs/pose_discovery.md).
MOST = 4.0
_SHARE = 0.25  # of the usual distance to the nearest other image
_ROWS = 1024  # compared at once, so that memory grows by the thumbnails alone
_DIMENSIONS = 8  # of the tree


def near_duplicates(thumbnails: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """For each image the nearest one that it repeats, itself where it repeats none.

    Images are compared with the first of each group only, so a slow turn makes no chain. Only those
    that a tree finds near in the leading principal components are compared: an orthogonal
    projection makes no distance larger, so none is missed.

    Args:
        thumbnails: (n, SIDE, SIDE, 3) uint8.
        limit: from :func:`duplicate_limit`.

    Returns:
        (n,) indices; (n,) correlation with that image, in [-1, 1].
    """
    count, basis = len(thumbnails), _components(thumbnails)
    places = np.concatenate([_vectors(thumbnails[rows]) @ basis for rows in _slices(count)])
    tree = scipy.spatial.cKDTree(places)
    of, nearest = np.arange(count), np.full(count, np.inf)
    for first in range(count):
        if nearest[first] <= limit:  # it repeats an image before it
            continue
        found = np.array(tree.query_ball_point(places[first], limit * (1 + 1e-4)))
        later = found[found > first]
        for rows in _slices(len(later)):
            near = later[rows]
            distances = _distances(_vectors(thumbnails[[first]]), _vectors(thumbnails[near]))[0]
            closer = (distances <= limit) & (distances < nearest[near])
            of[near[closer]], nearest[near[closer]] = first, distances[closer]
    return of, _correlations(thumbnails, of)


def nearest_images(
    some: np.ndarray, batches: Iterable[np.ndarray], own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each image the nearest of others: its index (n,), and the distance (n,) in gray levels.

    Args:
        some: (n, SIDE, SIDE, 3) uint8 thumbnails.
        batches: the others, each (m, SIDE, SIDE, 3), one after another.
        own: (n,) indices among the others of the images themselves, which do not count.
    """
    vectors, start = _vectors(some), 0
    indices, nearest = np.full(len(some), -1), np.full(len(some), np.inf)
    for batch in batches:
        distances = _distances(vectors, _vectors(batch))
        if own is not None:
            here = (own >= start) & (own < start + len(batch))
            distances[here, own[here] - start] = np.inf
        closest = distances.argmin(1)
        found = distances[np.arange(len(some)), closest]
        closer = found < nearest
        indices[closer], nearest[closer] = start + closest[closer], found[closer]
        start += len(batch)
    return indices, nearest


def duplicate_limit(thumbnails: np.ndarray) -> float:
    """Largest distance of near-duplicates, in gray levels: where images are alike, a smaller one.

    Args:
        thumbnails: (n, SIDE, SIDE, 3) uint8.
    """
    some = _sample(thumbnails)
    nearest = np.full(len(some), np.inf)
    for rows in _slices(len(thumbnails)):
        distances = _distances(some, _vectors(thumbnails[rows]))
        other = np.where(distances > MOST, distances, np.inf)  # however often each is repeated
        nearest = np.minimum(nearest, other.min(1))
    return float(min(MOST, _SHARE * np.median(nearest)))


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _sample(thumbnails: np.ndarray) -> np.ndarray:
    """Vectors of some thumbnails, evenly spaced."""
    rows = np.linspace(0, len(thumbnails) - 1, _ROWS).astype(int)
    return _vectors(thumbnails[np.unique(rows)])


def _components(thumbnails: np.ndarray) -> np.ndarray:
    """Leading principal components of some thumbnails' vectors, (SIDE * SIDE * 3, _DIMENSIONS).

    About zero, not about their mean: any orthonormal directions would do.
    """
    some = _sample(thumbnails).astype(np.float64)
    return np.linalg.eigh(some.T @ some)[1][:, -_DIMENSIONS:]


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
