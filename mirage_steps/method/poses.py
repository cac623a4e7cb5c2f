"""Poses as clusters of maps in pose space (paper, section 3.1)."""

import warnings
from dataclasses import dataclass

import numpy as np

from mirage_steps.method.circle import shortest_cycle


def object_maps(
    values: np.ndarray, shown: np.ndarray, mask_background: bool = True, normalize: bool = True
) -> np.ndarray:
    """Maps by which poses are compared (section 3.1).

    Zero is the mean of all objects. Where the background keeps its own far-off values, as in the
    paper, outlines weigh more than what they enclose. Where maps are not normalized, as in the
    paper, those that show little of their object lie together near zero, whatever its pose.

    Args:
        values: (n, T, c) tokens projected by PCA 2.
        shown: bool (n, T), patches on the image that show the object.
        mask_background: set all other patches to zero.
        normalize: scale each map to Euclidean length 1; one that shows nothing stays zero.

    Returns:
        (n, T, c) float32.
    """
    maps = np.where(shown[..., None], values, 0) if mask_background else values
    maps = maps.astype(np.float32)
    if not normalize:
        return maps
    lengths = np.linalg.norm(maps, axis=(1, 2), keepdims=True)
    return maps / np.maximum(lengths, np.finfo(np.float32).tiny)


def fill_padding(maps: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Set padding to the mean of its position, in place, so that it says nothing about the pose.

    Args:
        maps: (n, T, c).
        valid: bool (n, T), False on padding.

    Returns:
        (T, c) float32 means; the overall mean where a position is valid in no map.
    """
    counts = valid.sum(0)[:, None]
    sums = maps.sum(0, dtype=np.float64, where=valid[..., None])
    overall = sums.sum(0) / max(counts.sum(), 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall).astype(np.float32)
    np.copyto(maps, means, where=~valid[..., None])
    return means


@dataclass(frozen=True)
class PoseModel:
    """Poses in circular order.

    Args:
        centroids: (k, T * c) float32 mean maps.
        means: (T, c) float32, the values of padding.
    """

    centroids: np.ndarray
    means: np.ndarray

    @classmethod
    def fit(
        cls, maps: np.ndarray, valid: np.ndarray, k: int, starts: int, seed: int
    ) -> "PoseModel":
        """Cluster maps by Euclidean K-Means and number the clusters around the circle.

        Args:
            maps: (n, T, c) float32, of :func:`object_maps`; changed by :func:`fill_padding`.
            valid: bool (n, T), False on padding.
            k: number of poses.
            starts, seed: of K-Means; the run with the least inertia is kept.
        """
        from sklearn.cluster import KMeans  # takes a second, for which nearest() need not wait

        means = fill_padding(maps, valid)
        flat = maps.reshape(len(maps), -1)
        with warnings.catch_warnings():
            # Fewer distinct maps than poses: the caller counts the images of each pose.
            warnings.filterwarnings("ignore", "Number of distinct clusters")
            kmeans = KMeans(k, n_init=starts, random_state=seed, copy_x=False).fit(flat)
        centroids = kmeans.cluster_centers_
        gaps = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
        return cls(centroids[shortest_cycle(gaps)].astype(np.float32), means)

    def nearest(self, values: np.ndarray, valid: np.ndarray) -> tuple[int, float]:
        """Nearest pose of a map (T, c) that is ``valid`` (T,) off padding, and distance to it."""
        filled = np.where(valid[:, None], values, self.means).ravel()
        gaps = np.linalg.norm(self.centroids - filled, axis=1)
        return int(gaps.argmin()), float(gaps.min())
