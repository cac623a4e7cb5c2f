"""Angles, and the circular order of poses around the object."""

import numpy as np


def circular_mean(degrees: np.ndarray) -> float:
    """Mean direction of angles, in [0, 360) degrees."""
    radians = np.radians(degrees)
    return float(np.degrees(np.arctan2(np.sin(radians).mean(), np.cos(radians).mean())) % 360)


def circular_distance(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    """Smallest angle between directions, in [0, 180] degrees."""
    return np.abs((np.asarray(a) - b + 180) % 360 - 180)


def shortest_cycle(distances: np.ndarray) -> np.ndarray:
    """Order in which points lie around a circle: a short closed tour through all of them.

    Neighboring poses share most of what is visible, so their maps are close, and the tour that
    visits all at the least total distance follows the circle. Improved from every nearest-
    neighbor start by 2-opt and by moving single points, until neither helps; deterministic.

    Args:
        distances: (k, k) symmetric, non-negative.

    Returns:
        (k,) permutation that starts with 0; of the two directions the one whose second entry is
        smaller than its last.
    """
    count = len(distances)
    if count <= 3:
        return np.arange(count)
    tours = (_improved(_nearest_tour(distances, start), distances) for start in range(count))
    best = min(tours, key=lambda tour: round(_length(tour, distances), 12))
    best = np.roll(best, -int(best.argmin()))
    return best if best[1] < best[-1] else np.roll(best[::-1], 1)


def _length(tour: np.ndarray, distances: np.ndarray) -> float:
    return float(distances[tour, np.roll(tour, -1)].sum())


def _nearest_tour(distances: np.ndarray, start: int) -> np.ndarray:
    tour = [start]
    while len(tour) < len(distances):
        gaps = distances[tour[-1]].copy()
        gaps[tour] = np.inf
        tour.append(int(gaps.argmin()))
    return np.array(tour)


def _improved(tour: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The tour after the best move, again and again until none shortens it."""
    while True:
        after = np.roll(tour, -1)
        edges = distances[tour, after]
        # 2-opt: edges a and b give way to those between their starts and between their ends.
        reversal = distances[np.ix_(tour, tour)] + distances[np.ix_(after, after)]
        reversal -= edges[:, None] + edges
        own = np.arange(len(tour))
        reversal[own, own] = 0
        # Point a leaves its two edges, and edge b opens for it; its own edges cannot.
        before = np.roll(tour, 1)
        saved = np.roll(edges, 1) + edges - distances[before, after]
        move = distances[np.ix_(tour, tour)] + distances[np.ix_(tour, after)] - edges
        move -= saved[:, None]
        move[own, own] = move[own, own - 1] = 0
        a, b = np.unravel_index(reversal.argmin(), reversal.shape)
        c, d = np.unravel_index(move.argmin(), move.shape)
        if min(reversal[a, b], move[c, d]) >= -1e-12:
            return tour
        if reversal[a, b] <= move[c, d]:
            low, high = sorted((a, b))
            tour = np.concatenate(
                [tour[: low + 1], tour[low + 1 : high + 1][::-1], tour[high + 1 :]]
            )
        else:
            rest = tour[tour != tour[c]]
            place = int(np.flatnonzero(rest == tour[d])[0])
            tour = np.insert(rest, place + 1, tour[c])
