"""Poses as clusters of maps in pose space (paper, section 3.1)."""

from dataclasses import dataclass

import numpy as np

from mirage_steps.method.circle import circular_distance, circular_mean, shortest_cycle


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
        kmeans = KMeans(k, n_init=starts, random_state=seed, copy_x=False).fit(flat)
        centroids = kmeans.cluster_centers_
        gaps = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
        return cls(centroids[shortest_cycle(gaps)].astype(np.float32), means)

    def nearest(self, values: np.ndarray, valid: np.ndarray) -> tuple[int, float]:
        """Nearest pose of a map (T, c) that is ``valid`` (T,) off padding, and distance to it."""
        filled = np.where(valid[:, None], values, self.means).ravel()
        gaps = np.linalg.norm(self.centroids - filled, axis=1)
        return int(gaps.argmin()), float(gaps.min())


def score_azimuths(poses: np.ndarray, azimuths: np.ndarray, k: int, categories: int = 1) -> dict:
    """How well poses agree with true azimuths.

    Args:
        poses: (n,) pose of each image, 0..k-1 in circular order.
        azimuths: (n,) true azimuth in degrees.
        k: number of poses, of all categories together.
        categories: number of categories, each with equally many poses in a circle of their own.

    Returns:
        ``median_error_deg`` and ``share_within_30_deg`` of the distances to the circular mean of
        the image's pose; ``order_errors``, breaks of the poses' circular order; and the mean and
        count of every pose.
    """
    members = [azimuths[poses == pose] for pose in range(k)]
    means = [circular_mean(found) if len(found) else None for found in members]
    circles = np.array(means, float).reshape(categories, -1)  # NaN for None
    errors = circular_distance(azimuths, circles.ravel()[poses])
    return {
        "images": len(azimuths),
        "median_error_deg": float(np.median(errors)),
        "share_within_30_deg": float((errors <= 30).mean()),
        "order_errors": sum(order_errors(circle[~np.isnan(circle)]) for circle in circles),
        "poses": [
            {"pose": pose, "images": len(found), "mean_azimuth_deg": mean}
            for pose, (found, mean) in enumerate(zip(members, means, strict=True))
        ],
    }


def order_errors(means: np.ndarray, tolerance: float = 15.0) -> int:
    """Breaks of a circular order, in the better of the two directions.

    Where every step goes forward, the steps around add up to one turn, however wide their gaps.
    A step back must be made good by a turn more, so the turns after the first count the breaks.

    Args:
        means: (k,) mean azimuth of the poses in their order, in degrees.
        tolerance: steps back by less than this many degrees are no break: such poses are
            interchangeable.
    """
    steps, farthest = np.roll(means, -1) - means, 360 - tolerance
    turns = [(farthest - (farthest - way) % 360).sum() / 360 for way in (steps, -steps)]
    return max(round(min(turns)) - 1, 0)


def score_labels(clusters: np.ndarray, labels: list[str], k: int) -> dict:
    """How well clusters (n,), 0..k-1, agree with n true labels, such as coarse viewpoints.

    Returns:
        ``purity``, the share of images whose label is the most frequent of their cluster;
        ``purity_of_chance``, that of one cluster; ``normalized_mutual_information`` in [0, 1]; and
        the count of every label in every cluster.
    """
    from sklearn.metrics import normalized_mutual_info_score

    names, numbers = np.unique(labels, return_inverse=True)
    counts = np.zeros((k, len(names)), np.int64)
    np.add.at(counts, (clusters, numbers), 1)
    return {
        "images": len(labels),
        "purity": float(counts.max(1).sum() / len(labels)),
        "purity_of_chance": float(counts.sum(0).max() / len(labels)),
        "normalized_mutual_information": float(normalized_mutual_info_score(numbers, clusters)),
        "labels": names.tolist(),
        "counts": counts.tolist(),
    }
