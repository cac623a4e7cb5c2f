"""Streamed moments and principal components against numpy and scikit-learn."""

import numpy as np
import pytest
from sklearn import decomposition

from mirage_steps.method.pca import Moments, Pca

DIM = 12


def _data(seed: int = 0, count: int = 300, offset: float = 0.0) -> np.ndarray:
    """Vectors whose principal components are well apart."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] * np.geomspace(8, 0.2, DIM)[:, None]
    return rng.normal(size=(count, DIM)) @ mixing + offset


def _moments(*batches: np.ndarray) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    return moments


def test_moments_are_those_of_numpy():
    data = _data()
    moments = _moments(*np.split(data, [1, 40, 41, 200]))
    assert moments.count == len(data)
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(data.T), rtol=1e-10, atol=1e-12)


def test_order_and_size_of_batches_do_not_matter():
    data = _data(1)
    whole = _moments(data)
    rng = np.random.default_rng(2)
    for _ in range(5):
        cuts = np.sort(rng.integers(0, len(data) + 1, rng.integers(1, 9)))
        parts = np.split(data[rng.permutation(len(data))], cuts)
        streamed = _moments(*parts)
        assert streamed.count == whole.count
        np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(streamed.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_merged_shards_equal_one_stream_and_leave_the_other_unchanged():
    data = _data(3)
    left, right = _moments(data[:17]), _moments(data[17:120], data[120:])
    before = right.scatter.copy(), right.mean.copy(), right.count
    left.merge(right)
    np.testing.assert_allclose(left.covariance, np.cov(data.T), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(right.scatter, before[0])
    np.testing.assert_array_equal(right.mean, before[1])
    assert right.count == before[2]


def test_empty_batches_and_shards_change_nothing():
    moments = _moments(_data(4))
    scatter, count = moments.scatter.copy(), moments.count
    moments.add(np.zeros((0, DIM)))
    moments.merge(Moments())
    assert moments.count == count
    np.testing.assert_array_equal(moments.scatter, scatter)


def test_a_merge_into_nothing_does_not_share_memory():
    source = _moments(_data(4))
    target = Moments()
    target.merge(source)
    target.add(_data(5))
    np.testing.assert_array_equal(source.scatter, _moments(_data(4)).scatter)


def test_a_large_mean_costs_no_precision():
    # The sum of squares minus the square of the sum would lose all digits here.
    data = _data(6, offset=1e7)
    moments = _moments(*np.array_split(data, 11))
    np.testing.assert_allclose(moments.covariance, np.cov(data.T), rtol=1e-6, atol=1e-7)


def test_half_precision_input_is_summed_in_double():
    data = (_data(7) + 20).astype(np.float16)
    moments = _moments(*np.array_split(data, 4))
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    np.testing.assert_allclose(moments.mean, data.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        moments.covariance, np.cov(data.astype(np.float64).T), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("components", [1, 3, DIM])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_components_are_those_of_scikit_learn(components, offset):
    data = _data(8, offset=offset)
    ours = Pca.fit(_moments(*np.array_split(data, 7)), components)
    theirs = decomposition.PCA(components, svd_solver="full").fit(data)
    signs = np.sign((ours.components * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ours.components * signs[:, None], theirs.components_, atol=1e-9)
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(ours.variance_ratio, theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(
        ours.project(data) * signs, theirs.transform(data), atol=2e-4 if offset else 1e-4
    )


def test_each_component_has_its_largest_entry_positive():
    data = _data(9)
    for values in (data, -data, data[::-1]):
        rows = Pca.fit(_moments(values), DIM).components
        assert (rows[np.arange(DIM), np.abs(rows).argmax(1)] > 0).all()
        np.testing.assert_allclose(rows @ rows.T, np.eye(DIM), atol=1e-12)
    # Mirrored data have the same axes; the convention makes them equal, not opposite.
    np.testing.assert_allclose(
        Pca.fit(_moments(data), 3).components, Pca.fit(_moments(-data), 3).components, atol=1e-9
    )


def test_projection_keeps_leading_axes_and_maps_the_mean_to_zero():
    pca = Pca.fit(_moments(_data(10, offset=5.0)), 3)
    vectors = _data(11, count=24).reshape(2, 3, 4, DIM)
    projected = pca.project(vectors)
    assert projected.shape == (2, 3, 4, 3) and projected.dtype == np.float32
    np.testing.assert_allclose(
        projected.reshape(-1, 3), pca.project(vectors.reshape(-1, DIM)), rtol=1e-6, atol=1e-5
    )
    np.testing.assert_allclose(pca.project(pca.mean), 0, atol=1e-4)


def test_constant_data_have_no_variance_and_no_nan():
    pca = Pca.fit(_moments(np.full((20, DIM), 3.0)), 2)
    np.testing.assert_array_equal(pca.variance, 0)
    np.testing.assert_array_equal(pca.variance_ratio, 0)
    assert np.isfinite(pca.components).all()
