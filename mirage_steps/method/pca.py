"""Exact PCA from streamed moments.

The paper uses incremental PCA "at the batch level" to avoid holding the data set (section 3.1).
Summing the first two moments is exact: the covariance depends on the data only through the count,
the sum and the sum of outer products, which add up over batches, shards and machines. One matrix
product per batch, memory of one (dim, dim) matrix.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Moments:
    """Count, mean (dim,) and scatter (dim, dim) of the vectors seen so far, in float64."""

    count: int = 0
    mean: Any = 0.0
    scatter: Any = 0.0

    def add(self, vectors: np.ndarray) -> None:
        """Take in a batch of vectors (n, dim) of any float type; n may be 0."""
        if len(vectors):
            # The scatter about the batch's own mean: no cancellation where the mean is large.
            mean = vectors.mean(axis=0, dtype=np.float64)
            centered = vectors.astype(np.float64) - mean
            self.merge(Moments(len(vectors), mean, centered.T @ centered))

    def merge(self, other: "Moments") -> None:
        """Take in everything ``other`` has seen (Chan, Golub and LeVeque 1983)."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.scatter += other.scatter + np.outer(delta, delta) * (self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, (dim, dim), of at least two vectors."""
        return self.scatter / (self.count - 1)


@dataclass
class PatchMeans:
    """Sums (T, dim) of the tokens at each patch of a grid, and their counts (T,), in float64."""

    total: Any = 0.0
    count: Any = 0.0

    def add(self, tokens: np.ndarray, kept: np.ndarray) -> None:
        """Take in the tokens (n, T, dim) that are ``kept``, bool (n, T)."""
        self.total = self.total + np.einsum("ntd,nt->td", tokens, kept, dtype=np.float64)
        self.count = self.count + kept.sum(0)

    def mean(self, default: np.ndarray) -> np.ndarray:
        """Mean token at each patch, (T, dim); ``default`` (dim,) where none was kept."""
        means = self.total / np.maximum(self.count, 1)[:, None]
        return np.where(self.count[:, None] > 0, means, default)


@dataclass(frozen=True)
class Pca:
    """A fitted PCA.

    Args:
        mean: (dim,) float64.
        components: (c, dim) float64, orthonormal rows in order of falling variance, each with its
            entry of largest magnitude positive, so that equal data give equal signs.
        variance: (c,) variance along each component.
        variance_ratio: (c,) share of the total variance.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray
    variance_ratio: np.ndarray

    @classmethod
    def fit(cls, moments: Moments, components: int) -> "Pca":
        """The leading ``components`` principal components of what ``moments`` has seen."""
        values, vectors = np.linalg.eigh(moments.covariance)
        values = np.clip(values[::-1][:components], 0.0, None)
        rows = vectors.T[::-1][:components]
        largest = np.abs(rows).argmax(axis=1)
        rows = rows * np.where(rows[np.arange(len(rows)), largest] < 0, -1.0, 1.0)[:, None]
        total = max(np.trace(moments.covariance), np.finfo(float).tiny)
        # In C order, as a file keeps it, so that a stored PCA projects to the same bits.
        return cls(moments.mean.copy(), np.ascontiguousarray(rows), values, values / total)

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Coordinates (..., c) float32 of vectors (..., dim) along the components."""
        rows = self.components.astype(np.float32)
        offset = (self.components @ self.mean).astype(np.float32)
        return vectors.astype(np.float32) @ rows.T - offset
