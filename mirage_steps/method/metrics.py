"""Distances between two sets of feature vectors: Frechet and kernel (FID and KID)."""

from collections.abc import Iterator

import numpy as np

from mirage_steps.method.pca import Moments

# Rows taken at once: a block of kernel values is BLOCK**2 float64, 32 MB.
BLOCK = 2048


def frechet_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray
) -> float:
    """Squared Frechet distance of two normal distributions (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the FID where the features are Inception's
    (Heusel et al. 2017).

    Args:
        mean1: (d,).
        covariance1: (d, d), symmetric; may be singular.
        mean2: (d,).
        covariance2: (d, d).

    Returns:
        The distance, >= 0.
    """
    return _distance(mean1, _square_root(covariance1), mean2, _square_root(covariance2))


def frechet_from_features(x: np.ndarray, y: np.ndarray) -> float:
    """:func:`frechet_distance` of the normal distributions fitted to two sets of features.

    Args:
        x: (n, d), any float type.
        y: (m, d).

    Raises:
        ValueError: fewer than two rows, or different d.
    """
    _check(x, y)
    return _distance(*_mean_and_factor(x), *_mean_and_factor(y))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3: KID (Binkowski et al. 2018).

    Over all samples rather than random subsets, hence deterministic; may be slightly negative,
    as an unbiased estimate of zero must. Memory stays at a few blocks whatever n and m are.

    Args:
        x: (n, d), any float type.
        y: (m, d).

    Raises:
        ValueError: fewer than two rows, or different d.
    """
    _check(x, y)
    n, m = len(x), len(y)
    across = sum(_kernel(a, b).sum() for a in _blocks(x) for b in _blocks(y))
    return float(
        _sum_of_pairs(x) / (n * (n - 1)) + _sum_of_pairs(y) / (m * (m - 1)) - 2 * across / (n * m)
    )


def _distance(
    mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, factor2: np.ndarray
) -> float:
    """Frechet distance from means (d,) and factors F (r, d) with covariance F^T F.

    The eigenvalues of S1 S2 are the squared singular values of F1 F2^T, so tr (S1 S2)^(1/2) is
    their sum: no square root of a product that need not be symmetric, and none of a small
    negative eigenvalue either.
    """
    root = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    spread = np.square(factor1).sum() + np.square(factor2).sum() - 2 * root
    return max(0.0, float(np.square(mean1 - mean2).sum() + spread))


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """A factor F (d, d) with F^T F = covariance; eigenvalues below zero are rounding errors."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T


def _mean_and_factor(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a factor (min(n, d), d) of the unbiased covariance of features (n, d)."""
    n, d = x.shape
    if n <= d:
        # The centred features are a factor themselves, exact and smaller than the covariance's.
        mean = x.mean(axis=0, dtype=np.float64)
        return mean, (x - mean) / np.sqrt(n - 1)
    moments = Moments(d)
    for block in _blocks(x):
        moments.add(block)
    return moments.mean, _square_root(moments.covariance)


def _sum_of_pairs(x: np.ndarray) -> float:
    """Sum of the kernel over all ordered pairs of different rows of x (n, d)."""
    total = 0.0
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK].astype(np.float64)
        own = _kernel(rows, rows)
        total += own.sum() - np.trace(own)
        # The kernel is symmetric: what lies right of the diagonal block counts twice.
        total += 2 * sum(_kernel(rows, other).sum() for other in _blocks(x[start + BLOCK :]))
    return total


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kernel values (n, m) of rows a (n, d) and b (m, d)."""
    base = a @ b.T / a.shape[1] + 1
    return base * base * base


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows of x in float64, at most BLOCK at once."""
    for start in range(0, len(x), BLOCK):
        yield x[start : start + BLOCK].astype(np.float64)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be (n, d) and (m, d), got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance needs two features a side, got {len(x)} and {len(y)}")


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite if equal."""
    error = np.square(x.astype(np.float64) - y).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
