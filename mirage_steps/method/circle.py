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
    tours = (_improve(_nearest_tour(distances, start), distances) for start in range(count))
    best = min(tours, key=lambda tour: round(_length(tour, distances), 12))
    best = np.roll(best, -int(np.flatnonzero(best == 0)[0]))
    return best if best[1] < best[-1] else np.roll(best[::-1], 1)


def _length(tour: np.ndarray, distances: np.ndarray) -> float:
    return float(distances[tour, np.roll(tour, -1)].sum())


def _nearest_tour(distances: np.ndarray, start: int) -> np.ndarray:
    tour, left = [start], set(range(len(distances))) - {start}
    while left:
        nearest = min(left, key=lambda point: (distances[tour[-1], point], point))
        tour.append(nearest)
        left.remove(nearest)
    return np.array(tour)


def _improve(tour: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Take the best 2-opt or single-point move until there is none."""
    length = _length(tour, distances)
    while True:
        candidates = [(length, -1, tour)]
        for number, moved in enumerate(_moves(tour)):
            candidates.append((_length(moved, distances), number, moved))
        best = min(candidates, key=lambda candidate: candidate[:2])
        if best[0] >= length - 1e-12:
            return tour
        length, _, tour = best


def _moves(tour: np.ndarray):
    """All tours one reversal of a stretch, or one move of a point, away."""
    count = len(tour)
    for i in range(count - 1):
        for j in range(i + 2, count + 1):
            yield np.concatenate([tour[:i], tour[i:j][::-1], tour[j:]])
    for i in range(count):
        rest = np.delete(tour, i)
        for j in range(count - 1):
            yield np.insert(rest, j, tour[i])
