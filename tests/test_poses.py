"""Angles, the order of poses around the object, and their clusters."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.cluster import KMeans

from mirage_steps.method.circle import circular_distance, circular_mean, shortest_cycle
from mirage_steps.method.pose_scores import order_errors, score_azimuths
from mirage_steps.method.poses import PoseModel, fill_padding, graph_embedding, object_maps


def _gaps(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def _length(tour, distances: np.ndarray) -> float:
    return sum(distances[a, b] for a, b in zip(tour, np.roll(tour, -1), strict=True))


# The order of poses


@pytest.mark.parametrize("k", [*range(4, 15), 18, 25])
def test_the_order_of_points_on_a_noisy_circle_is_recovered(k):
    rng = np.random.default_rng(k)
    angles = (np.arange(k) + rng.uniform(-0.3, 0.3, k)) * 2 * np.pi / k
    # A circle in a space of many dimensions, as the maps are.
    plane = np.linalg.qr(rng.normal(size=(20, 2)))[0].T
    points = np.stack([np.cos(angles), np.sin(angles)], 1) @ plane
    points += rng.normal(size=points.shape) * 0.02
    place = rng.permutation(k)
    tour = shortest_cycle(_gaps(points[place]))
    assert sorted(tour) == list(range(k)) and tour[0] == 0 and tour[1] < tour[-1]
    steps = np.diff([*place[tour], place[tour][0]]) % k
    assert set(steps) in ({1}, {k - 1})


@pytest.mark.parametrize("k", [4, 5, 6, 7, 8])
def test_no_tour_is_shorter_than_the_one_found(k):
    rng = np.random.default_rng(100 + k)
    for _ in range(3 if k == 8 else 6):
        distances = _gaps(rng.normal(size=(k, 3)))
        shortest = min(_length((0, *rest), distances) for rest in permutations(range(1, k)))
        assert _length(shortest_cycle(distances), distances) <= shortest + 1e-9


def test_the_order_depends_on_distances_alone():
    distances = _gaps(np.random.default_rng(0).normal(size=(9, 2)))
    tour = shortest_cycle(distances)
    np.testing.assert_array_equal(shortest_cycle(distances.copy()), tour)
    np.testing.assert_array_equal(shortest_cycle(3 * distances), tour)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_up_to_three_points_have_but_one_order(k):
    distances = _gaps(np.random.default_rng(1).normal(size=(k, 2)))
    np.testing.assert_array_equal(shortest_cycle(distances), np.arange(k))


def test_equal_points_do_not_trap_the_search():
    assert sorted(shortest_cycle(np.zeros((6, 6)))) == list(range(6))


# Angles


def test_circular_means_are_those_of_scipy():
    rng = np.random.default_rng(2)
    for _ in range(50):
        angles = rng.uniform(-720, 720, rng.integers(1, 20))
        expected = np.degrees(stats.circmean(np.radians(angles)))
        assert circular_distance(circular_mean(angles), expected) < 1e-6
        assert 0 <= circular_mean(angles) < 360
    assert circular_distance(circular_mean(np.array([350.0, 10.0])), 0) < 1e-9


def test_circular_distances_are_the_smaller_way_round():
    assert circular_distance(350, 10) == 20
    assert circular_distance(10, 350) == 20
    assert circular_distance(0, 180) == 180
    assert circular_distance(-90, 630) == 0
    rng = np.random.default_rng(3)
    a, b = rng.uniform(-720, 720, (2, 200))
    literal = np.min([np.abs(a - b + 360 * turn) for turn in range(-5, 6)], axis=0)
    np.testing.assert_allclose(circular_distance(a, b), literal, atol=1e-9)


# Errors of order


def test_a_right_order_in_either_direction_has_no_errors():
    means = np.arange(12) * 30.0
    for order in (means, means[::-1], np.roll(means, 5), (means + 77) % 360):
        assert order_errors(order) == 0


def test_each_swap_of_far_neighbors_is_an_error_and_near_ones_are_not():
    means = (np.arange(8) * 45.0)[[0, 1, 3, 2, 4, 5, 6, 7]]
    assert order_errors(means) == 1
    assert order_errors(means[::-1]) == 1
    assert order_errors(np.array([0.0, 90, 180, 170, 270])) == 0
    for back in (165, 160):
        assert order_errors(np.array([0.0, 90, 180, back, 270])) == 1


def test_an_order_that_turns_more_than_once_is_wrong():
    means = np.arange(8) * 45.0
    thrice = means[3 * np.arange(8) % 8]
    assert order_errors(thrice) == 2
    assert order_errors(thrice[::-1]) == 2


def test_photos_from_one_side_have_an_order_too():
    assert order_errors(np.array([0.0, 30, 60, 90])) == 0
    assert order_errors(np.array([90.0, 60, 30, 0])) == 0
    assert order_errors(np.array([0.0, 60, 30, 90])) == 1


@pytest.mark.parametrize("means", [[], [10.0], [10.0, 200.0], [5.0] * 4])
def test_few_or_equal_means_have_no_order_to_break(means):
    assert order_errors(np.array(means)) == 0


# Scores


def test_perfect_bins_of_30_degrees_have_a_median_error_of_7_5():
    azimuths = np.arange(0, 360, 0.25)
    scores = score_azimuths((azimuths // 30).astype(int), azimuths, 12)
    assert scores["median_error_deg"] == pytest.approx(7.5, abs=0.2)
    assert scores["share_within_30_deg"] == 1
    assert scores["order_errors"] == 0 and scores["images"] == len(azimuths)
    assert [pose["images"] for pose in scores["poses"]] == [120] * 12
    assert scores["poses"][4]["mean_azimuth_deg"] == pytest.approx(134.875)


def test_chance_scores_as_chance():
    rng = np.random.default_rng(4)
    azimuths = rng.uniform(0, 360, 20_000)
    scores = score_azimuths(rng.integers(0, 8, 20_000), azimuths, 8)
    assert scores["median_error_deg"] == pytest.approx(90, abs=5)
    assert scores["share_within_30_deg"] == pytest.approx(1 / 6, abs=0.03)
    assert scores["share_opposite"] == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45, 0.5])
def test_front_for_rear_is_the_opposite_however_many(share):
    rng = np.random.default_rng(0)
    rear = np.arange(1000) < share * 1000
    azimuths = (355 + rng.uniform(-12, 12, 1000) + 180 * rear) % 360
    scores = score_azimuths(np.zeros(1000, int), azimuths, 1)
    assert scores["share_opposite"] == pytest.approx(share, abs=0.01)


def test_a_pose_without_images_has_no_mean():
    scores = score_azimuths(np.array([0, 0, 2]), np.array([10.0, 20.0, 200.0]), 3)
    assert scores["poses"][1] == {"pose": 1, "images": 0, "mean_azimuth_deg": None}
    assert scores["median_error_deg"] == pytest.approx(5)


# Maps with padding


def test_maps_show_the_object_alone_and_have_the_same_length():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 9, 3)) * rng.uniform(0.1, 50, (6, 1, 1))
    shown = rng.random((6, 9)) < 0.5
    shown[2] = False
    maps = object_maps(values, shown)
    assert maps.dtype == np.float32 and not maps[~shown].any()
    np.testing.assert_allclose((maps**2).sum((1, 2)), [1, 1, 0, 1, 1, 1], atol=1e-5)
    # Lengths and background do not matter; the pattern on the object stays.
    np.testing.assert_allclose(maps, object_maps(7 * values + ~shown[..., None], shown), atol=1e-6)
    ratio = maps[0][shown[0]] / values[0][shown[0]]
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)


def test_padding_takes_the_mean_of_its_position_and_nothing_else_changes():
    rng = np.random.default_rng(5)
    maps = rng.normal(size=(20, 6, 3)).astype(np.float32)
    valid = rng.random((20, 6)) < 0.6
    valid[:, 4] = False
    maps[~valid] = 1e6
    filled = maps.copy()
    means = fill_padding(filled, valid)
    assert means.dtype == np.float32
    for position in range(6):
        seen = maps[valid[:, position], position] if position != 4 else maps[valid]
        np.testing.assert_allclose(means[position], seen.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(filled, np.where(valid[..., None], maps, means))


# Clusters


def _turning_maps(count: int = 90, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Maps (count, 4, 3) that turn with an angle, and the angles in degrees."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, count)
    plane = rng.normal(size=(2, 12))
    flat = np.stack([np.cos(angles), np.sin(angles)], 1) @ plane
    flat += 0.05 * rng.normal(size=flat.shape)
    return flat.reshape(count, 4, 3).astype(np.float32), np.degrees(angles)


def _fit(maps: np.ndarray, seed: int = 0, k: int = 6) -> PoseModel:
    return PoseModel.fit(maps.copy(), np.ones(maps.shape[:2], bool), k, 3, seed)


def _nearest(model: PoseModel, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen = np.ones(maps.shape[1], bool)
    return model.nearest(maps, np.tile(seen, (len(maps), 1)))


def test_poses_are_the_clusters_of_scikit_learn_in_circular_order():
    maps, angles = _turning_maps()
    poses, distances = _nearest(_fit(maps), maps)
    reference = KMeans(6, n_init=3, random_state=0).fit(maps.reshape(90, -1))
    labels = reference.predict(maps.reshape(90, -1))
    # The same partition under other numbers.
    assert len(set(zip(poses, labels, strict=True))) == 6
    nearest = reference.transform(maps.reshape(90, -1)).min(1)
    np.testing.assert_allclose(distances, nearest, rtol=1e-3, atol=1e-4)
    scores = score_azimuths(poses, angles, 6)
    assert scores["order_errors"] == 0 and scores["median_error_deg"] < 25


def test_new_maps_go_to_the_nearest_centroid():
    model = _fit(_turning_maps()[0])
    fresh = _turning_maps(seed=8)[0]
    for pose, distance, one in zip(*_nearest(model, fresh), fresh, strict=True):
        gaps = [np.sqrt(((one.ravel() - centroid) ** 2).sum()) for centroid in model.centroids]
        assert pose == int(np.argmin(gaps))
        assert distance == pytest.approx(min(gaps), rel=1e-5)


def test_what_lies_on_padding_says_nothing_about_the_pose():
    maps, _ = _turning_maps()
    valid = np.random.default_rng(3).random((90, 4)) < 0.7
    model = PoseModel.fit(maps.copy(), valid, 6, 3, 0)
    np.testing.assert_array_equal(model.means, fill_padding(maps.copy(), valid))
    other = np.where(valid[..., None], maps, 1e3).astype(np.float32)
    again = PoseModel.fit(other.copy(), valid, 6, 3, 0)
    np.testing.assert_array_equal(again.centroids, model.centroids)
    for one, two in zip(model.nearest(maps, valid), model.nearest(other, valid), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_the_nearest_centroid_is_that_of_all_differences(method):
    maps = _doubled_circle(300, 7)[0]
    valid = np.random.default_rng(3).random(maps.shape[:2]) < 0.9
    model = PoseModel.fit(maps.copy(), valid, 6, 3, 0, method)
    poses, distances = model.nearest(maps, valid)
    filled = np.where(valid[..., None], maps, model.means).reshape(300, -1)
    gaps = np.linalg.norm(filled[:, None] - model.centroids, axis=2)
    expected = gaps.argmin(1)
    np.testing.assert_array_equal(poses, expected if method == "kmeans" else model.pose[expected])
    np.testing.assert_allclose(distances, gaps.min(1), atol=1e-6)


def test_the_seed_fixes_the_poses():
    rng = np.random.default_rng(9)
    maps = rng.normal(size=(80, 4, 3)).astype(np.float32)
    one, same, other = _fit(maps), _fit(maps), _fit(maps, seed=1)
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert one.centroids.shape == (6, 12) and one.centroids.dtype == np.float32
    assert not np.array_equal(one.centroids, other.centroids)


# Spectral clustering


def _doubled_circle(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps whose front is far more like the rear than like the side, and their azimuths."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, count)
    circles = [np.cos(2 * angles), np.sin(2 * angles), 0.3 * np.cos(angles), 0.3 * np.sin(angles)]
    flat = np.stack([*circles, *0.02 * rng.normal(size=(8, count))], axis=1)
    return flat.reshape(count, 4, 3).astype(np.float32), np.degrees(angles)


def _spectral(maps: np.ndarray, k: int, seed: int = 0) -> PoseModel:
    return PoseModel.fit(maps.copy(), np.ones(maps.shape[:2], bool), k, 10, seed, "spectral")


def test_spectral_clustering_tells_front_from_rear_where_k_means_does_not():
    maps, angles = _doubled_circle(600, 0)
    models = {"kmeans": _fit(maps), "spectral": _spectral(maps, 6)}
    found = {
        name: score_azimuths(_nearest(one, maps)[0], angles, 6) for name, one in models.items()
    }
    assert found["kmeans"]["share_within_30_deg"] < 0.7
    assert found["spectral"]["share_within_30_deg"] > 0.9
    assert found["spectral"]["order_errors"] == 0
    assert models["spectral"].k == 6 and len(models["spectral"].mean_maps) == 6
    # New maps, too.
    fresh, turned = _doubled_circle(200, 1)
    scores = score_azimuths(_nearest(models["spectral"], fresh)[0], turned, 6)
    assert scores["share_within_30_deg"] > 0.9


def test_a_map_unlike_all_is_assigned_by_its_direction():
    """Of mean maps with the lengths of means the shortest would be nearest, whatever the map."""
    rng = np.random.default_rng(0)
    maps, angles = _doubled_circle(600, 0)
    spread = 0.3 * (angles < 180)[:, None, None]  # the mean maps of these sides are shorter
    maps += (spread * rng.normal(size=maps.shape)).astype(np.float32)
    maps /= np.linalg.norm(maps, axis=(1, 2), keepdims=True)
    maps = np.pad(maps, ((0, 0), (0, 4), (0, 0)))  # patches in which the maps show nothing
    seen = np.ones(maps.shape[:2], bool)
    means = PoseModel.fit(maps.copy(), seen, 6, 10, 0, "spectral")
    model = PoseModel.fit(maps.copy(), seen, 6, 10, 0, "spectral", normalized=True)
    lengths = np.linalg.norm(means.centroids, axis=1)
    assert lengths.max() > 1.2 * lengths.min()
    np.testing.assert_allclose(np.linalg.norm(model.centroids, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.centroids * lengths[:, None], means.centroids, atol=1e-6)
    # A little of a map, the rest of its length in the other patches.
    unlike = 0.05 * maps
    unlike[:, 4:] = rng.normal(size=unlike[:, 4:].shape)
    unlike[:, 4:] *= 0.9975**0.5 / np.linalg.norm(unlike[:, 4:], axis=(1, 2), keepdims=True)
    expected, found = _nearest(model, maps)[0], _nearest(model, unlike)[0]
    np.testing.assert_array_equal(found, expected)
    assert (_nearest(means, unlike)[0] == expected).mean() < 0.7


def test_few_new_maps_are_farther_than_those_that_poses_were_fitted_to():
    maps = _doubled_circle(240, 4)[0]
    for model in (_fit(maps, k=12), _spectral(maps, 12)):
        far = np.quantile(_nearest(model, maps)[1], 0.99)
        fresh = _nearest(model, _doubled_circle(500, 5)[0])[1]
        assert (fresh > far).mean() < 0.1


def test_the_embedding_has_the_eigenvectors_of_the_normalized_laplacian():
    flat = _doubled_circle(80, 2)[0].reshape(80, -1)
    gaps = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    graph = np.zeros((80, 80))
    for row in range(80):
        for column in np.argsort(gaps[row])[1:11]:  # itself is the nearest
            graph[row, column] += 0.5
            graph[column, row] += 0.5
    degrees = graph.sum(1)
    walk = graph / degrees[:, None]
    values = np.sort(np.linalg.eigvals(walk).real)[::-1]
    found = graph_embedding(flat, 12, 0)
    assert found.shape == (80, 12)
    for number, one in enumerate(found.T):
        np.testing.assert_allclose(walk @ one, values[number] * one, atol=1e-6)


def test_parts_of_the_graph_are_told_and_become_poses(caplog):
    apart = np.repeat(np.eye(3, 12), 40, axis=0) * 9 + 0.1 * np.random.default_rng(0).normal(
        size=(120, 12)
    )
    maps = apart.reshape(120, 4, 3).astype(np.float32)
    poses, _ = _nearest(_spectral(maps, 3), maps)
    assert "3 components" in caplog.text
    assert [len(set(poses[start : start + 40])) for start in (0, 40, 80)] == [1, 1, 1]
    assert set(poses) == {0, 1, 2}


def test_the_seed_fixes_the_poses_of_the_graph():
    maps, _ = _doubled_circle(150, 3)
    one, same = _spectral(maps, 6, 1), _spectral(maps, 6, 1)
    np.testing.assert_array_equal(one.centroids, same.centroids)
    np.testing.assert_array_equal(one.pose, same.pose)
