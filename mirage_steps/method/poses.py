"""Poses as clusters of maps in pose space (paper, section 3.1)."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from mirage_steps.method.circle import shortest_cycle

log = logging.getLogger(__name__)

# Spectral clustering: neighbors of a map, and most images of the graph, whose time grows with their
# square. Of a pose's clusters: at most so many, and so many images each, or new maps would be
# farther from all clusters than the maps that these were fitted to.
_NEIGHBORS, _GRAPH = 10, 20_000
_PARTS, _OF_PART = 10, 20
_ROWS = 256  # maps compared at once


def object_maps(
    values: np.ndarray,
    kept: np.ndarray,
    normalize: bool = True,
    center: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Maps by which poses are compared (section 3.1).

    Zero is the mean of all objects. Where the background keeps its own far-off values, as in the
    paper, outlines weigh more than what they enclose. Where maps are not normalized, as in the
    paper, those that show little of their object lie together near zero, whatever its pose. Without
    a center, what all maps have in common takes most of the length that they share.

    Args:
        values: (n, T, c) tokens projected by PCA 2.
        kept: bool (n, T), patches on the image, or those that show the object; others are zero.
        normalize: scale each map to Euclidean length 1; one that keeps nothing stays zero.
        center: (T, c) values to subtract.

    Returns:
        (n, T, c) float32.
    """
    maps = np.where(kept[..., None], values - center, 0).astype(np.float32)
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
    """Poses in circular order, each of one or more clusters.

    Args:
        centroids: (m, T * c) float32 mean maps of the clusters.
        means: (T, c) float32, the values of padding.
        pose: (m,) int64, the pose of each cluster; None where cluster i is pose i.
    """

    centroids: np.ndarray
    means: np.ndarray
    pose: np.ndarray | None = None

    @property
    def k(self) -> int:
        """Number of poses."""
        return len(self.centroids) if self.pose is None else int(self.pose.max()) + 1

    @property
    def mean_maps(self) -> np.ndarray:
        """Mean of the centroids of each pose, (k, T * c)."""
        if self.pose is None:
            return self.centroids
        return np.stack([self.centroids[self.pose == one].mean(0) for one in range(self.k)])

    @classmethod
    def fit(
        cls,
        maps: np.ndarray,
        valid: np.ndarray,
        k: int,
        starts: int,
        seed: int,
        method: str = "kmeans",
        normalized: bool = False,
    ) -> "PoseModel":
        """Cluster maps by Euclidean distance and number the poses around the circle.

        Args:
            maps: (n, T, c) float32, of :func:`object_maps`; changed by :func:`fill_padding`.
            valid: bool (n, T), False on padding.
            k: number of poses.
            starts: of K-Means; the run with the least inertia is kept.
            seed: of K-Means.
            method: ``kmeans`` (paper), or ``spectral``, K-Means in :func:`graph_embedding`. Then
                each pose is described by up to ten clusters of its maps, to which new maps are
                compared, since poses of a graph need not be round.
            normalized: whether the maps have length 1. The mean maps of those clusters then get it
                too: shorter ones, of mixed maps, would be nearest to whatever is unlike all.
        """
        from sklearn.metrics import pairwise_distances_argmin

        means = fill_padding(maps, valid)
        flat = maps.reshape(len(maps), -1)
        if method == "kmeans":
            centroids, pose = _kmeans(flat, k, starts, seed), None
            return cls(centroids[_tour(centroids)], means)
        if len(flat) > _GRAPH:
            flat = flat[np.random.default_rng(seed).choice(len(flat), _GRAPH, replace=False)]
        places = graph_embedding(flat, k, seed)
        centers = _kmeans(places, k, starts, seed)
        labels = pairwise_distances_argmin(places, centers)
        parts = [
            _kmeans(mine, min(_PARTS, max(1, len(mine) // _OF_PART)), 1, seed)
            for one in _tour(centers)
            if len(mine := flat[labels == one])
        ]
        pose = np.repeat(np.arange(len(parts)), [len(one) for one in parts])
        centroids = np.concatenate(parts)
        if normalized:
            lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
            centroids /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return cls(centroids, means, pose)

    def edited(self, into: np.ndarray) -> "PoseModel":
        """This without the clusters of poses that are dropped, and with poses merged.

        Args:
            into: (k,) of each pose itself, the pose that it joins, or -1 for none.
        """
        found = into[np.arange(self.k) if self.pose is None else self.pose]
        kept = np.flatnonzero(found >= 0)
        pose = np.unique(found[kept], return_inverse=True)[1]
        return PoseModel(self.centroids[kept], self.means, pose)

    def nearest(self, maps: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pose of the nearest centroid to each map, (n,) int, and the distances to them, (n,).

        Args:
            maps: (n, T, c).
            valid: bool (n, T), False on padding.
        """
        poses, distances = np.empty(len(maps), np.int64), np.empty(len(maps))
        centroids = self.centroids.astype(np.float64)
        lengths = np.square(centroids).sum(1)
        for start in range(0, len(maps), _ROWS):
            rows = slice(start, start + _ROWS)
            filled = np.where(valid[rows, :, None], maps[rows], self.means).astype(np.float64)
            flat = filled.reshape(len(filled), -1)
            squares = np.square(flat).sum(1)[:, None] + lengths - 2 * flat @ centroids.T
            poses[rows] = squares.argmin(1)
            distances[rows] = np.sqrt(np.maximum(squares.min(1), 0))
        return poses if self.pose is None else self.pose[poses], distances


def graph_embedding(flat: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """Laplacian eigenmaps (Belkin and Niyogi 2003) of the graph of nearest neighbors, (n, d).

    The maps of front and rear may be closer to each other than those at both ends of one pose are,
    but from neighbor to neighbor the way between them leads around the object. K-Means on these
    eigenvectors, as many as clusters, is spectral clustering (Shi and Malik 2000; Ng et al. 2001).

    Args:
        flat: (n, T * c) float32 maps.
        dimensions: eigenvectors, the constant one included; at most n - 1.
        seed: of the eigensolver's first vector.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.manifold import spectral_embedding
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(flat, min(_NEIGHBORS, len(flat) - 1))
    graph = (graph + graph.T) / 2
    apart = connected_components(graph, directed=False, return_labels=False)
    if apart > 1:
        log.warning(
            "the nearest-neighbor graph has %d components, which may become poses of their own: "
            "groups of near-duplicates (see screening), or too few images. Or use poses.method: "
            "kmeans",
            apart,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Graph is not fully connected")
        count = min(dimensions, len(flat) - 1)
        return spectral_embedding(graph, n_components=count, random_state=seed, drop_first=False)


def _kmeans(flat: np.ndarray, k: int, starts: int, seed: int) -> np.ndarray:
    """Centroids (k, d) float32 of the best of several starts."""
    from sklearn.cluster import KMeans  # takes a second, for which nearest() need not wait
    from threadpoolctl import threadpool_limits

    # Threads add their sums in any order: a table of edits needs the same clusters again.
    with warnings.catch_warnings(), threadpool_limits(1, "openmp"):
        # Fewer distinct maps than poses: the caller counts the images of each pose.
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        kmeans = KMeans(k, n_init=starts, random_state=seed, copy_x=False).fit(flat)
    return kmeans.cluster_centers_.astype(np.float32)


def _tour(means: np.ndarray) -> np.ndarray:
    """The order of mean maps (k, d) around the object, in which neighbors are alike."""
    return shortest_cycle(np.linalg.norm(means[:, None] - means[None], axis=2))
