"""How well poses and categories agree with the truth, where it is known."""

import numpy as np

from mirage_steps.method.circle import circular_distance, circular_mean


def score_azimuths(poses: np.ndarray, azimuths: np.ndarray, k: int, categories: int = 1) -> dict:
    """How well poses agree with true azimuths.

    Args:
        poses: (n,) pose of each image, 0..k-1 in circular order.
        azimuths: (n,) true azimuth in degrees.
        k: number of poses, of all categories together.
        categories: number of categories, each with equally many poses in a circle of their own.

    Returns:
        ``median_error_deg`` and ``share_within_30_deg`` of the distances to the circular mean of
        the image's pose; ``share_opposite``, of the images 150 degrees and more from the direction
        that most images of their pose have, such as front for rear; ``order_errors``, breaks of
        the poses' circular order; and the mean and count of every pose.
    """
    members = [azimuths[poses == pose] for pose in range(k)]
    means = [circular_mean(found) if len(found) else None for found in members]
    circles = np.array(means, float).reshape(categories, -1)  # NaN for None
    errors = circular_distance(azimuths, circles.ravel()[poses])
    usual = np.array([_densest(found) for found in members])
    opposite = circular_distance(azimuths, usual[poses]) >= 150
    return {
        "images": len(azimuths),
        "median_error_deg": float(np.median(errors)),
        "share_within_30_deg": float((errors <= 30).mean()),
        "share_opposite": float(opposite.mean()),
        "order_errors": sum(order_errors(circle[~np.isnan(circle)]) for circle in circles),
        "poses": [
            {"pose": pose, "images": len(found), "mean_azimuth_deg": mean}
            for pose, (found, mean) in enumerate(zip(members, means, strict=True))
        ],
    }


def _densest(azimuths: np.ndarray) -> float:
    """Middle in degrees of the 60 degrees with most of the azimuths (n,), to 5 degrees.

    Of images half of which show the rear, the mean direction is neither.
    """
    counts = np.bincount((azimuths % 360 // 5).astype(int), minlength=72)
    windows = np.sum([np.roll(counts, -step) for step in range(12)], axis=0)
    # The middle one, where several windows hold as many.
    best = np.flatnonzero(windows == windows.max())
    return float((best[len(best) // 2] * 5 + 30) % 360)


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
