"""What speaks for a number of poses: stability, separation, clusters that share a pose, truth."""

import numpy as np

from mirage_steps.method.circle import circular_mean
from mirage_steps.method.pose_scores import order_errors, score_azimuths
from mirage_steps.method.poses import PoseModel

# Least cosine between the difference of two neighbors and the direction of rotation.
_AROUND = 1 / 3
_SILHOUETTE_SAMPLE = 2000  # images; its time grows with their square


def judge_number(
    maps: np.ndarray,
    k: int,
    *,
    starts: int,
    halves: int,
    seed: int,
    azimuths: np.ndarray | None = None,
    method: str = "kmeans",
    normalized: bool = False,
) -> dict:
    """What speaks for ``k`` poses of these maps, and what against.

    Args:
        maps: (n, d) float32, padding filled, of images in random order; n >= 2 k.
        k: number of poses, at least 4.
        starts: of K-Means.
        halves: how often the images are split in two.
        seed: of K-Means and of the halves.
        azimuths: (n,) true ones in degrees, NaN where unknown; None where all are.
        method: of clustering.
        normalized: whether the maps have length 1.

    Returns:
        ``stability``, the adjusted mutual information in [-1, 1] of the poses that two halves of
        the images give to all of them, and ``order_errors_of_halves``, breaks of one half's
        circular order by that of the other, both means over the splits; ``silhouette``;
        ``smallest``, images of the smallest cluster; ``shared``, groups of clusters that share a
        pose (:func:`shared_poses`); and, with azimuths, ``median_error_deg`` and ``order_errors``.
    """
    from sklearn.metrics import adjusted_mutual_info_score, silhouette_score

    def fit(part: np.ndarray) -> PoseModel:
        whole = np.ones((len(part), 1), bool)
        return PoseModel.fit(part[:, None].copy(), whole, k, starts, seed, method, normalized)

    agreements, breaks = [], []
    for number in range(halves):
        order = np.random.default_rng([seed, number]).permutation(len(maps))
        parts = order[: len(order) // 2], order[len(order) // 2 :]
        one, other = (nearest(maps, fit(maps[part])) for part in parts)
        agreements.append(adjusted_mutual_info_score(one, other))
        means = [circular_mean(one[other == pose] * 360 / k) for pose in np.unique(other)]
        breaks.append(order_errors(np.array(means), tolerance=360 / k))
    model = fit(maps)
    labels = nearest(maps, model)
    counts = np.bincount(labels, minlength=k)
    sample = min(len(maps), _SILHOUETTE_SAMPLE)
    found = {
        "k": k,
        "stability": float(np.mean(agreements)),
        "order_errors_of_halves": float(np.mean(breaks)),
        "silhouette": float(silhouette_score(maps[:sample], labels[:sample])),
        "smallest": int(counts.min()),
        "shared": shared_poses(model.mean_maps, counts),
    }
    if azimuths is not None:
        known = ~np.isnan(azimuths)
        scores = score_azimuths(labels[known], azimuths[known], k)
        found |= {key: scores[key] for key in ("median_error_deg", "order_errors")}
    return found


def shared_poses(centroids: np.ndarray, counts: np.ndarray) -> list[list[int]]:
    """Groups of clusters that share a pose, each of two or more, by their places.

    The difference between the centroids of adjacent poses is mostly rotation; that between two
    clusters of one pose is something else, such as shape. The direction of rotation at two
    neighbors on the tour is the vector from the two centroids before them to the two after them.
    Neighbors share a pose if the cosine between this vector and their difference is below 1/3. The
    pair with the smallest cosine is merged to its mean, repeatedly.

    Args:
        centroids: (k, d), in circular order.
        counts: (k,) images of each.
    """
    groups = [[place] for place in range(len(centroids))]
    while len(groups) > 3:
        weights = [np.maximum(counts[group], 1) for group in groups]
        pairs = zip(groups, weights, strict=True)
        shares = _around(np.stack([np.average(centroids[g], axis=0, weights=w) for g, w in pairs]))
        least = int(shares.argmin())
        if shares[least] >= _AROUND:
            break
        # The last and the first are neighbors, too.
        united = groups.pop((least + 1) % len(groups))
        groups[min(least, len(groups) - 1)] += united
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _around(centroids: np.ndarray) -> np.ndarray:
    """Cosine (k,) between each centroid's (k, d) difference to the next and the rotation there."""
    reach = min(2, (len(centroids) - 2) // 2)  # neighbors on each side
    after = np.mean([np.roll(centroids, -1 - step, axis=0) for step in range(1, reach + 1)], axis=0)
    before = np.mean([np.roll(centroids, step, axis=0) for step in range(1, reach + 1)], axis=0)
    ways, around = np.roll(centroids, -1, axis=0) - centroids, after - before
    lengths = np.linalg.norm(ways, axis=1) * np.linalg.norm(around, axis=1)
    return (ways * around).sum(1) / np.maximum(lengths, np.finfo(np.float32).tiny)


def nearest(maps: np.ndarray, model: PoseModel) -> np.ndarray:
    """Pose of each map (n, d), (n,) int64."""
    maps = maps.reshape(len(maps), *model.means.shape)
    return model.nearest(maps, np.ones(maps.shape[:2], bool))[0]
