"""Measures of views: equal to literal versions, and wrong views score as wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from mirage_steps import settings
from mirage_steps.demo.renderer import cars
from mirage_steps.judge import _GRAY
from mirage_steps.method.evidence import (
    Consistency,
    coverage,
    difference,
    figure,
    in_pose,
    iou,
    masked_psnr,
)
from mirage_steps.networks.backbone import Backbone

RNG = np.random.default_rng(0)


# Intervals


def test_intervals_are_those_of_the_percentile_bootstrap():
    values = RNG.gamma(2, size=40)
    found = figure(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", random_state=1)
    assert found.value == pytest.approx(values.mean()) and found.n == 40
    expected = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert figure(values) == found


def test_pairs_tell_a_difference_that_their_means_hide():
    base = RNG.normal(0, 5, 30)
    shifted = base + 0.2 + RNG.normal(0, 0.1, 30)
    assert difference(shifted, base).differs and not difference(base, base[::-1]).differs
    assert figure(shifted).low < figure(base).high


def test_one_object_gives_no_interval():
    with pytest.raises(ValueError, match="two objects, got 1"):
        figure(np.ones(1))


# Pose control


def test_neighbors_are_around_the_circle_and_within_a_category():
    asked = np.array([0, 0, 0, 0, 5, 5])
    shown = np.array([0, 1, 4, 2, 9, 0])
    assert in_pose(asked, shown, 5).tolist() == [True, False, False, False, False, False]
    assert in_pose(asked, shown, 5, 1).tolist() == [True, True, True, False, True, False]


# Consistency

K = 8
POSES = np.arange(K)


def _objects(count: int, rng: np.random.Generator, noise: float = 0.3) -> np.ndarray:
    """(n, K, d) of an identity, what a pose does to all objects, and noise."""
    poses = np.random.default_rng(7).normal(0, 3, (K, 16))
    identity = rng.normal(0, 1, (count, 1, 16))
    return identity + poses + rng.normal(0, noise, (count, K, 16))


def _scale(rng: np.random.Generator) -> Consistency:
    singles = np.concatenate([_objects(30, rng)[:, pose] for pose in POSES])
    scale = Consistency.fit(singles, POSES.repeat(30), K)
    ceiling = scale.alikeness(_objects(12, rng), *_asked(12))
    return replace(scale, ceiling=ceiling)


def _asked(count: int, shows: bool = True) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(POSES, (count, 1)), np.full((count, K), shows)


def _literal_alikeness(scale, features, poses, shows) -> list[float]:
    found = []
    for views, asked, in_its_pose in zip(features, poses, shows, strict=True):
        apart, floor = 0.0, 0.0
        for i in range(len(asked)):
            for j in range(i):
                a, b = asked[i], asked[j]
                unrelated = scale.floor[a, b]
                floor += unrelated
                if in_its_pose[i] and in_its_pose[j]:
                    residuals = views[i] - scale.means[a], views[j] - scale.means[b]
                    apart += np.sqrt(((residuals[0] - residuals[1]) ** 2).sum())
                else:
                    apart += unrelated
        found.append(1 - apart / floor)
    return found


def test_alikeness_equals_the_literal_sum_over_pairs():
    rng = np.random.default_rng(1)
    scale, views = _scale(rng), _objects(4, rng)
    poses = np.stack([rng.permutation(K) for _ in range(4)])
    shows = rng.random((4, K)) < 0.7
    expected = _literal_alikeness(scale, views, poses, shows)
    np.testing.assert_allclose(scale.alikeness(views, poses, shows), expected)


def test_the_floor_is_the_mean_distance_of_different_images():
    rng = np.random.default_rng(2)
    features, poses = rng.normal(size=(7, 3)), np.array([0, 0, 0, 1, 1, 1, 1])
    scale = Consistency.fit(features, poses, 2)
    residuals = features - scale.means[poses]
    for one in range(2):
        for other in range(2):
            pairs = [
                np.linalg.norm(residuals[i] - residuals[j])
                for i in np.flatnonzero(poses == one)
                for j in np.flatnonzero(poses == other)
                if i != j
            ]
            assert scale.floor[one, other] == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="pose 1 has fewer than two"):
        Consistency.fit(features[:4], poses[:4], 2)


def _mixed(views: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Some of the views swapped for those of other objects in the same poses."""
    swapped = rng.random(views.shape[:2]) < share
    return np.where(swapped[..., None], np.roll(views, 1, axis=0), views)


def test_position_orders_real_mixed_and_unrelated_objects():
    rng = np.random.default_rng(3)
    scale, views = _scale(rng), _objects(16, rng)
    own = scale.position(scale.alikeness(views, *_asked(16)))
    assert own.value == pytest.approx(1, abs=0.05) and own.high <= 1
    mixed = [
        scale.position(scale.alikeness(_mixed(views, share, rng), *_asked(16))).value
        for share in (0.1, 0.25, 0.5)
    ]
    steps = -np.diff([own.value, *mixed])
    assert (steps > 0.03).all()
    unrelated = np.stack([_objects(16, rng)[:, pose] for pose in POSES], axis=1)
    found = scale.position(scale.alikeness(unrelated, *_asked(16)))
    assert abs(found.value) < 0.1 and found.low < 0.05 < found.high + 0.05


def test_copies_of_one_image_are_not_views_of_an_object():
    rng = np.random.default_rng(4)
    scale, views = _scale(rng), _objects(8, rng)
    copies = np.repeat(views[:, :1], K, axis=1)
    poses, shows = _asked(8)
    shows = np.broadcast_to(in_pose(poses, np.zeros_like(poses), K, 1), shows.shape)
    assert scale.position(scale.alikeness(copies, poses, shows)).high < 0.2


def test_without_a_ceiling_alikeness_is_told():
    rng = np.random.default_rng(5)
    scale = replace(_scale(rng), ceiling=None)
    alike = scale.alikeness(_objects(6, rng), *_asked(6))
    assert scale.position(alike) == figure(alike)


# Real features of rendered cars, whose masks and poses are known


@pytest.fixture(scope="module")
def rendered():
    """Color and the other network's features of 10 cars from 6 sides, (10, 6, d) each."""
    chosen = settings.Backbone(model="efficientnet-lite0", resolution=64)
    network = Backbone.load(chosen, torch.device("cpu"))
    sides = np.arange(6) * 60.0
    made = [
        [cars.render(5, n, cars.DEMO_FAMILIES, 64, 0.0, azimuth=azimuth) for azimuth in sides]
        for n in range(20)
    ]
    images = np.array([[one.image for one in row] for row in made])
    masks = np.array([[one.mask > 0.5 for one in row] for row in made])
    bare = np.where(masks[..., None], images, _GRAY).astype(np.uint8)
    colors = (images * masks[..., None]).sum((2, 3)) / masks.sum((2, 3))[..., None]
    pooled = network.feature(bare.reshape(-1, 64, 64, 3), "cls").reshape(20, 6, -1)
    return {"color": colors, "pooled": pooled}


@pytest.mark.parametrize("kind", ["color", "pooled"])
def test_true_turns_are_told_from_look_alikes_and_corruptions(rendered, kind):
    features, poses = rendered[kind], np.tile(np.arange(6), (10, 1))
    shows = np.ones((10, 6), bool)
    real, views = features[:10], features[10:]
    scale = Consistency.fit(real.reshape(60, -1), poses.ravel(), 6)
    scale = replace(scale, ceiling=scale.alikeness(real, poses, shows))

    def position(made: np.ndarray) -> float:
        return scale.position(scale.alikeness(made, poses, shows)).value

    colors = rendered["color"][10:].mean(1)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e9 * np.eye(10)
    look_alikes = views.copy()
    look_alikes[:, ::2] = views[apart.argmin(1)][:, ::2]  # of the nearest paint
    strangers = views.copy()
    strangers[:, ::2] = np.roll(views, 1, axis=0)[:, ::2]
    own, near, other = map(position, (views, look_alikes, strangers))
    assert own > near + 0.05 and near > other + 0.05


# Truth


def test_psnr_looks_inside_the_mask_only():
    image = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    other = image.copy()
    other[4:] = 0
    assert masked_psnr(image, other, mask) == float("inf")
    other[0, 0, 0] ^= 16
    expected = 10 * np.log10(255**2 / (16**2 / (32 * 3)))
    assert masked_psnr(image, other, mask) == pytest.approx(expected)


def test_iou_of_masks():
    one = np.array([[1, 1, 0, 0]], bool)
    assert iou(one, np.array([[0, 1, 1, 0]], bool)) == pytest.approx(1 / 3)
    assert iou(one, one) == iou(~one & one, ~one & one) == 1


# Coverage


def _literal_coverage(real, generated, k=5):
    def apart(a, b):
        return np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b] for x in a])

    def radius(x):
        return np.sort(apart(x, x), axis=1)[:, k]

    across = apart(real, generated)
    near = across <= radius(real)[:, None]
    return {
        "precision": near.any(0).mean(),
        "recall": (across <= radius(generated)[None]).any(1).mean(),
        "density": near.sum() / k / len(generated),
        "coverage": near.any(1).mean(),
    }


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_precision_recall_density_and_coverage_equal_their_definitions(shift, monkeypatch):
    monkeypatch.setattr("mirage_steps.method.evidence._ROWS", 7)
    real, generated = RNG.normal(size=(40, 3)), RNG.normal(shift, 1.2, (30, 3))
    found = coverage(real, generated)
    expected = _literal_coverage(real, generated)
    assert {key: values.mean() for key, values in found.items()} == pytest.approx(expected)


def test_few_modes_have_precision_but_no_coverage():
    real = RNG.normal(size=(200, 4))
    same = np.repeat(real[:3], 20, axis=0) + RNG.normal(0, 1e-3, (60, 4))
    found = {key: values.mean() for key, values in coverage(real, same).items()}
    assert found["precision"] > 0.95 and found["recall"] < 0.05 and found["coverage"] < 0.3
    with pytest.raises(ValueError, match="more than 5"):
        coverage(real[:5], same)
