"""Distances between two sets of feature vectors: Frechet and kernel (FID and KID)."""

from collections.abc import Iterator

import numpy as np

# Rows taken at once: a block of kernel values is BLOCK**2 float64, 32 MB.
BLOCK = 2048


def frechet_from_features(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of features.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982), the FID where the features
    are Inception's (Heusel et al. 2017). With S = F^T F, the eigenvalues of S1 S2 are the squared
    singular values of F1 F2^T, so tr (S1 S2)^(1/2) is their sum: no square root of a product that
    need not be symmetric, and none of a small negative eigenvalue either.

    Args:
        x: (n, d), any float type.
        y: (m, d).

    Returns:
        The distance, >= 0.

    Raises:
        ValueError: fewer than two rows, or different d.
    """
    _check(x, y)
    (mean1, factor1), (mean2, factor2) = _mean_and_factor(x), _mean_and_factor(y)
    root = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    spread = np.square(factor1).sum() + np.square(factor2).sum() - 2 * root
    return max(0.0, float(np.square(mean1 - mean2).sum() + spread))


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


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite if equal."""
    error = np.square(x.astype(np.float64) - y).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _mean_and_factor(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a factor F (min(n, d), d) of the unbiased covariance F^T F of x (n, d)."""
    mean = x.mean(axis=0, dtype=np.float64)
    factor = (x - mean) / np.sqrt(len(x) - 1)
    return mean, np.asarray(np.linalg.qr(factor, mode="r")) if len(x) > x.shape[1] else factor


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
