"""Angles, and the circular order of poses around the object."""

from collections.abc import Iterator

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
        best = min(_moves(tour), key=lambda moved: _length(moved, distances))
        if _length(best, distances) >= _length(tour, distances) - 1e-12:
            return tour
        tour = best


def _moves(tour: np.ndarray) -> Iterator[np.ndarray]:
    """All tours one reversal of a stretch, or one move of a point, away."""
    count = len(tour)
    for i in range(count - 1):
        for j in range(i + 2, count + 1):
            yield np.concatenate([tour[:i], tour[i:j][::-1], tour[j:]])
    for i in range(count):
        rest = np.delete(tour, i)
        for j in range(count - 1):
            yield np.insert(rest, j, tour[i])
