"""Distances against clean-fid, literal versions of the equations, and closed forms."""

import numpy as np
import pytest
from cleanfid import fid

from mirage_steps.method import metrics
from mirage_steps.method.metrics import frechet_from_features, kernel_distance


def _features(n: int, d: int, seed: int, shift: float = 0.0, rank: int | None = None) -> np.ndarray:
    """Correlated float32 features (n, d) of at most the given rank."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank or d, d)) / np.sqrt(rank or d)
    return (rng.normal(size=(n, rank or d)) @ mixing + shift).astype(np.float32)


def _cleanfid(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return fid.frechet_distance(
        x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)
    )


def _with_moments(mean: float, values: np.ndarray, seed: int) -> np.ndarray:
    """Features of this very mean, whose covariance has these eigenvalues and the seed's axes."""
    n, d = 2 * len(values), len(values)
    white = np.linalg.qr(np.random.default_rng(1).normal(size=(n, d + 1)) + np.eye(n, d + 1))[0]
    white = np.linalg.qr(np.column_stack([np.ones(n), white]))[0][:, 1 : d + 1]  # of mean zero
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return mean + np.sqrt(n - 1) * white * np.sqrt(values) @ axes.T


@pytest.mark.parametrize("n, m, d", [(400, 300, 16), (500, 500, 64), (65, 400, 64)])
def test_frechet_is_cleanfids(n, m, d):
    x, y = _features(n, d, 0), _features(m, d, 1, shift=0.3)
    assert frechet_from_features(x, y) == pytest.approx(_cleanfid(x, y), rel=1e-4)


@pytest.mark.parametrize("n, d, rank", [(40, 64, None), (20, 64, None), (300, 48, 10)])
def test_frechet_of_singular_covariances_is_cleanfids(n, d, rank):
    x, y = _features(n, d, 0, rank=rank), _features(n, d, 1, shift=0.5, rank=rank)
    assert frechet_from_features(x, y) == pytest.approx(_cleanfid(x, y), rel=1e-4)


def test_frechet_of_covariances_with_common_axes_has_its_closed_form():
    # For a common basis the distance is that of the square roots of the eigenvalues.
    one, two = np.logspace(-12, 2, 30), np.logspace(1, -14, 30)
    found = frechet_from_features(_with_moments(0, one, 0), _with_moments(0.1, two, 0))
    expected = 30 * 0.1**2 + np.square(np.sqrt(one) - np.sqrt(two)).sum()
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_counts_scale_and_ignores_common_shift():
    x, y = _features(200, 12, 4), _features(200, 12, 5, shift=0.2)
    base = frechet_from_features(x, y)
    assert frechet_from_features(3 * x, 3 * y) == pytest.approx(9 * base, rel=1e-4)
    assert frechet_from_features(x + 5, y + 5) == pytest.approx(base, rel=1e-4)


@pytest.mark.parametrize("n, d", [(30, 64), (200, 16)])
def test_frechet_is_zero_on_identical_and_symmetric(n, d):
    x, y = _features(n, d, 6), _features(n, d, 7)
    scale = np.trace(np.cov(x, rowvar=False))
    assert 0 <= frechet_from_features(x, x) < 1e-9 * scale
    assert frechet_from_features(x, y) == pytest.approx(frechet_from_features(y, x), rel=1e-9)


def test_kernel_is_cleanfids_on_one_subset_of_all():
    x, y = _features(300, 24, 8), _features(300, 24, 9, shift=0.2)
    expected = fid.kernel_distance(
        x.astype(float), y.astype(float), num_subsets=1, max_subset_size=300
    )
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_kernel_is_the_literal_double_loop():
    x, y = (_features(n, 5, n).astype(float) for n in (9, 7))

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 5 + 1) ** 3

    def within(z):
        pairs = [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    expected = within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / 63
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("distance", [frechet_from_features, kernel_distance])
def test_distances_do_not_depend_on_the_block(distance, monkeypatch):
    x, y = _features(50, 8, 10), _features(41, 8, 11, shift=0.1)
    whole = distance(x, y)
    monkeypatch.setattr(metrics, "BLOCK", 16)
    assert distance(x, y) == pytest.approx(whole, rel=1e-9)


def test_kernel_is_symmetric_and_near_zero_for_equal_distributions():
    x, y = _features(800, 16, 12), _features(800, 16, 12)
    near = kernel_distance(x[:400], y[400:])
    far = kernel_distance(x[:400], y[400:] + 0.5)
    assert abs(near) < 0.02 * far
    assert kernel_distance(x, y + 1) == pytest.approx(kernel_distance(y + 1, x), rel=1e-9)


def test_kernel_of_a_set_with_itself_is_the_known_bias_of_the_cross_term():
    # With y = x the cross term alone keeps the diagonal: (within - mean diagonal) * 2 / n.
    x = _features(60, 8, 13).astype(float)
    gram = (x @ x.T / 8 + 1) ** 3
    within = (gram.sum() - np.trace(gram)) / (60 * 59)
    expected = 2 * (within - np.diag(gram).mean()) / 60
    assert kernel_distance(x, x) == pytest.approx(expected, rel=1e-9)


def test_distances_refuse_what_they_cannot_compare():
    x = _features(4, 3, 0)
    for distance in (frechet_from_features, kernel_distance):
        with pytest.raises(ValueError, match="two features a side"):
            distance(x, x[:1])
        with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
            distance(x, x[:, :2])
