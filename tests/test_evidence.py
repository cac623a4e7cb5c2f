"""Measures of views: equal to literal versions, and wrong views score as wrong."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from mirage_steps import ablation, evidence, settings, sheet, turntables, views
from mirage_steps.demo.renderer import cars
from mirage_steps.errors import UserError
from mirage_steps.files.h5 import create_h5, open_h5
from mirage_steps.judge import _GRAY, Judge, Seen, Views, read_turntables
from mirage_steps.method.evidence import (
    Consistency,
    coverage,
    in_pose,
    iou,
    masked_psnr,
    mean_interval,
    nn_distance,
    paired_difference,
    pose_strength,
    rank_correlation,
    reference_scores,
)
from mirage_steps.networks.backbone import Backbone
from mirage_steps.references import References
from mirage_steps.run import Run

RNG = np.random.default_rng(0)


# Intervals


def test_intervals_are_those_of_the_percentile_bootstrap_for_many_objects():
    values = RNG.gamma(2, size=400)
    found = mean_interval(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", random_state=1)
    assert found.value == pytest.approx(values.mean()) and found.n == 400
    expected = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert mean_interval(values) == found


@pytest.mark.parametrize("count", [3, 6, 12])
def test_intervals_of_few_objects_hold_as_often_as_they_say(count):
    rng = np.random.default_rng(11)
    found = [mean_interval(rng.normal(size=count), seed) for seed in range(400)]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.92 <= held <= 0.985
    several = [
        paired_difference(rng.normal(size=count), 0, seed, comparisons=2) for seed in range(400)
    ]
    assert np.mean([one.differs for one in several]) <= 0.05


def test_pairs_tell_a_difference_that_their_means_hide():
    base = RNG.normal(0, 5, 30)
    shifted = base + 0.2 + RNG.normal(0, 0.1, 30)
    assert (
        paired_difference(shifted, base).differs and not paired_difference(base, base[::-1]).differs
    )
    assert mean_interval(shifted).low < mean_interval(base).high


def test_one_object_gives_no_interval():
    with pytest.raises(ValueError, match="two objects, got 1"):
        mean_interval(np.ones(1))


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
    ceiling = scale.similarity(_objects(12, rng), *_asked(12))
    return replace(scale, ceiling=ceiling)


def _asked(count: int, shows: bool = True) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(POSES, (count, 1)), np.full((count, K), shows)


def _literal_similarity(scale, features, poses, shows) -> list[float]:
    found = []
    for row, asked, in_its_pose in zip(features, poses, shows, strict=True):
        apart, floor = 0.0, 0.0
        for i in range(len(asked)):
            for j in range(i):
                a, b = asked[i], asked[j]
                unrelated = scale.floor[a, b]
                floor += unrelated
                if in_its_pose[i] and in_its_pose[j]:
                    residuals = row[i] - scale.means[a], row[j] - scale.means[b]
                    apart += np.sqrt(((residuals[0] - residuals[1]) ** 2).sum())
                else:
                    apart += unrelated
        found.append(1 - apart / floor)
    return found


def test_similarity_equals_the_literal_sum_over_pairs():
    rng = np.random.default_rng(1)
    scale, views = _scale(rng), _objects(4, rng)
    poses = np.stack([rng.permutation(K) for _ in range(4)])
    shows = rng.random((4, K)) < 0.7
    expected = _literal_similarity(scale, views, poses, shows)
    np.testing.assert_allclose(scale.similarity(views, poses, shows), expected)


def test_the_floor_is_the_mean_distance_of_different_images():
    rng = np.random.default_rng(2)
    features, poses = rng.normal(size=(7, 3)), np.array([0, 0, 0, 1, 1, 1, 1])
    scale = Consistency.fit(features, poses, 2)
    residuals = features - scale.means[poses]
    pairs = [
        np.linalg.norm(residuals[i] * 2**0.5 - residuals[j] * (5 / 3) ** 0.5)
        for i in range(3)
        for j in range(3, 7)
    ]
    np.testing.assert_allclose([scale.floor[0, 1], scale.floor[1, 0]], np.mean(pairs))


def test_the_zero_of_the_scale_holds_for_few_real_images():
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        real, views = rng.normal(size=(3 * K, 16)), rng.normal(size=(8, K, 16))
        scale = Consistency.fit(real, POSES.repeat(3), K)
        found.append(scale.similarity(views, *_asked(8)).mean())
    assert abs(np.mean(found)) < 0.03


def test_pairs_with_a_pose_of_one_image_do_not_count():
    rng = np.random.default_rng(8)
    features, poses = rng.normal(size=(13, 4)), np.array([0, 1, 2, 3] * 3 + [4])
    scale = Consistency.fit(features, poses, 5)
    views, asked = rng.normal(size=(3, 5, 4)), np.tile(np.arange(5), (3, 1))
    shows = np.ones((3, 5), bool)
    found = scale.similarity(views, asked, shows)
    fewer = Consistency.fit(features[:12], poses[:12], 4)
    expected = fewer.similarity(views[:, :4], asked[:, :4], shows[:, :4])
    np.testing.assert_allclose(found, expected)


def _mixed(views: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Some of the views swapped for those of other objects in the same poses."""
    swapped = rng.random(views.shape[:2]) < share
    return np.where(swapped[..., None], np.roll(views, 1, axis=0), views)


def test_position_orders_real_mixed_and_unrelated_objects():
    rng = np.random.default_rng(3)
    scale, views = _scale(rng), _objects(16, rng)
    own = scale.position(scale.similarity(views, *_asked(16)))
    assert own.value == pytest.approx(1, abs=0.05) and own.high <= 1
    mixed = [
        scale.position(scale.similarity(_mixed(views, share, rng), *_asked(16))).value
        for share in (0.1, 0.25, 0.5)
    ]
    steps = -np.diff([own.value, *mixed])
    assert (steps > 0.03).all()
    unrelated = np.stack([_objects(16, rng)[:, pose] for pose in POSES], axis=1)
    found = scale.position(scale.similarity(unrelated, *_asked(16)))
    assert abs(found.value) < 0.1 and found.low < 0.05 < found.high + 0.05


def test_copies_of_one_image_are_not_views_of_an_object():
    rng = np.random.default_rng(4)
    scale, views = _scale(rng), _objects(8, rng)
    copies = np.repeat(views[:, :1], K, axis=1)
    poses, shows = _asked(8)
    shows = np.broadcast_to(in_pose(poses, np.zeros_like(poses), K, 1), shows.shape)
    assert scale.position(scale.similarity(copies, poses, shows)).high < 0.2


def test_without_a_ceiling_similarity_is_told():
    rng = np.random.default_rng(5)
    scale = replace(_scale(rng), ceiling=None)
    similar = scale.similarity(_objects(6, rng), *_asked(6))
    assert scale.position(similar) == mean_interval(similar)


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
    scale = replace(scale, ceiling=scale.similarity(real, poses, shows))

    def position(made: np.ndarray) -> float:
        return scale.position(scale.similarity(made, poses, shows)).value

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
    assert masked_psnr(image, other, mask) == 99
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


def test_nn_distance_is_one_for_real_images_and_grows_away_from_them():
    real = RNG.normal(size=(60, 3))
    apart = np.linalg.norm(real[:, None] - real[None], axis=2)
    own = np.sort(apart, axis=1)[:, 1:6].mean()
    other = RNG.normal(2, 1, (9, 3))
    expected = np.sort(np.linalg.norm(other[:, None] - real[None], axis=2), axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(nn_distance(real, other), expected / own)
    assert nn_distance(real, RNG.normal(size=(200, 3))).mean() == pytest.approx(1, abs=0.15)


def test_few_modes_have_precision_but_no_coverage():
    real = RNG.normal(size=(200, 4))
    same = np.repeat(real[:3], 20, axis=0) + RNG.normal(0, 1e-3, (60, 4))
    found = {key: values.mean() for key, values in coverage(real, same).items()}
    assert found["precision"] > 0.95 and found["recall"] < 0.05 and found["coverage"] < 0.3
    with pytest.raises(ValueError, match="more than 5"):
        coverage(real[:5], same)


def _views_of(means, weights, noise=0.0):
    """Maps of views with so much of the poses' means, poses in another order for each object."""
    poses = np.stack([RNG.permutation(len(means)) for _ in weights])
    own = RNG.normal(size=(len(weights), 1, means.shape[1]))  # what all views of an object share
    maps = np.asarray(weights)[:, None, None] * means[poses] + own
    return maps + noise * RNG.normal(size=maps.shape), poses


def test_strength_of_the_pose_is_the_slope_of_a_regression():
    means = RNG.normal(size=(5, 7))
    real, labels = np.repeat(means, 3, axis=0), np.repeat(np.arange(5), 3)
    maps, poses = _views_of(means, [1.0, 0.3, 0.01, 0.0, -1.0], noise=0.1)
    every = np.ones(poses.shape, bool)
    found = pose_strength(maps, poses, every, every, real, labels)
    for own, asked, value in zip(maps, poses, found, strict=True):
        x, y = (values - values.mean(0) for values in (means[asked], own))
        assert value == pytest.approx(np.polyfit(x.ravel(), y.ravel(), 1)[0])
    np.testing.assert_allclose(found, [1.0, 0.3, 0.01, 0.0, -1.0], atol=0.1)


def test_views_in_the_wrong_pose_and_without_an_object_are_weak():
    means = RNG.normal(size=(6, 50))
    real, labels = np.repeat(means, 2, axis=0), np.repeat(np.arange(6), 2)
    maps, poses = _views_of(means, np.ones(40))
    every = np.ones(poses.shape, bool)
    mixed = maps[np.arange(40)[:, None], RNG.permuted(np.tile(np.arange(6), (40, 1)), axis=1)]
    assert abs(pose_strength(mixed, poses, every, every, real, labels).mean()) < 0.1
    nothing = pose_strength(maps, poses, every, ~every, real, labels)
    np.testing.assert_array_equal(nothing, 0)
    # A view that does not count changes nothing, whatever it shows.
    counted = every.copy()
    counted[:, 2] = False
    without = pose_strength(maps, poses, counted, every, real, labels)
    maps[:, 2] = 100
    np.testing.assert_allclose(pose_strength(maps, poses, counted, every, real, labels), without)
    # Neither does a pose of one real image.
    one = real[:-1], labels[:-1]
    assert np.isfinite(pose_strength(maps, poses, counted, every, *one)).all()


def test_real_images_have_strength_one_however_few_and_noisy_they_are():
    means = RNG.normal(size=(8, 30))
    found = []
    for _ in range(200):
        labels = np.repeat(np.arange(8), 3)
        real = means[labels] + RNG.normal(size=(24, 30))
        maps, poses = _views_of(means, np.ones(3), noise=1.0)
        every = np.ones(poses.shape, bool)
        found.append(pose_strength(maps, poses, every, every, real, labels).mean())
    assert np.mean(found) == pytest.approx(1, abs=0.02)  # 0.75 if the noise of means were ignored


def test_the_strength_is_unknown_where_real_images_do_not_differ_by_pose():
    known = 0
    for _ in range(50):
        labels = np.repeat(np.arange(8), 3)
        real, (maps, poses) = RNG.normal(size=(24, 30)), _views_of(RNG.normal(size=(8, 30)), [1.0])
        every = np.ones(poses.shape, bool)
        known += pose_strength(maps, poses, every, every, real, labels) is not None
    assert known == 0


def test_the_strength_leaves_out_given_views_and_those_without_an_object():
    k = 5
    means, poses = RNG.normal(size=(k, 40)), np.tile(np.arange(k), (2, 1))
    labels = np.repeat(np.arange(k), 4)

    def seen(maps: np.ndarray, found: np.ndarray) -> Seen:
        nothing = np.zeros(found.shape)
        return Seen(found, nothing, nothing, maps, {})

    run = SimpleNamespace(estimator=SimpleNamespace(k=k))
    judge = Judge(run, None, {}, real=seen(means[labels], labels), labels=labels)
    maps = np.tile(means, (2, 1, 1))
    views = Views(np.zeros((2, k, 1, 1, 3), np.uint8), poses, np.array([1, 1]))
    np.testing.assert_allclose(judge.strength(seen(maps, poses), views), 1)
    maps[:, 1] = 100.0  # the given views
    np.testing.assert_allclose(judge.strength(seen(maps, poses), views), 1)
    absent = poses.copy()
    absent[0] = -1
    assert judge.strength(seen(maps, absent), views).tolist() == [0, pytest.approx(1)]


def test_copies_of_training_crops_are_told_and_shown(finished, tmp_path):
    with open_h5(finished["crops/crops.h5"], "images") as file:
        crops = file["images"][:6]
    other = RNG.integers(0, 256, (2, 3, *crops.shape[1:]), dtype=np.uint8)
    poses, given = np.tile(np.arange(3), (2, 1)), np.zeros(2, int)
    for images, share in ((crops.reshape(2, 3, *crops.shape[1:]), 1.0), (other, 0.0)):
        made = Views(images, poses, given)
        found = evidence._copies(tmp_path / "copies.png", made, finished["crops/crops.h5"])
        assert found["share"]["generated"].value == share
        assert (found["distance"]["generated"].value < 0.1) == bool(share)
        assert found["distance"]["real"].value > 1  # not to themselves
        assert (tmp_path / "copies.png").is_file()


# References


def test_scores_of_references_count_distance_and_the_wrong_pose():
    asked, shown = np.array([0, 0, 3]), np.array([0, 2, 4])
    found = reference_scores(asked, shown, np.array([1.0, 1.0, 3.0]), 2.0, 5)
    assert found.tolist() == [0.5, 1.5, 1.5]


def test_rank_correlation_is_spearmans():
    x = RNG.normal(size=25)
    y = x + RNG.normal(size=25)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high and found.differs
    assert rank_correlation(x, np.ones(25)).value == 0


def test_the_worst_references_are_left_out_in_blocks(monkeypatch):
    chooser = References(None, settings.Views(reject=0.5))
    asked = []

    def scores(self, seed, numbers, poses):
        asked.append((seed, numbers, poses))
        return np.array([number % 2 for number in numbers])  # the odd ones are bad

    monkeypatch.setattr(References, "_scores", scores)
    found = chooser.chosen(range(20), 3, lambda number: number % 5)
    assert found == list(range(0, 40, 2))
    assert asked[1] == (3, list(range(32, 64)), [number % 5 for number in range(32, 64)])
    assert chooser.chosen(range(16, 20), 3, lambda number: 0) == found[16:]
    assert References(None, settings.Views()).chosen(range(2, 5), 3, None) == [2, 3, 4]
    with pytest.raises(UserError, match="views.reject 0.5: give --estimator"):
        References.load(None, settings.Views(reject=0.5), None)


def test_references_are_scored_by_maps_centered_on_references(finished):
    """A center that is far from all of them changes nothing."""
    run = Run.load(finished[""], device="cpu")
    shape = (run.backbone.grid**2, len(run.estimator.pcas[0].components))
    found = []
    for center in (np.zeros(shape), np.full(shape, 50.0)):
        estimator = replace(run.estimator, centers=(center.astype(np.float32),))
        chooser = References(
            run.model, settings.Views(steps=2, reject=0.4), estimator, run.backbone
        )
        found.append(chooser.chosen(range(16), 0, lambda number: number % 5))
        recentered = chooser._recentered().estimator.centers[0]
        assert 0 < np.abs(recentered).max() < 50
    assert found[0] == found[1] and max(found[0]) > 15


def test_sets_and_sheets_leave_references_out(finished, tmp_path):
    given = {"model": finished["training/model.safetensors"], "device": "cpu"}
    given["estimator"] = finished["poses/pose_estimator.safetensors"]
    half = settings.Views(steps=2, reject=0.5)
    sheet.main(
        **given, out=tmp_path, views=half, sheet=settings.Sheet(objects=2),
        judged_objects=2,
    )  # fmt: skip
    with open_h5(tmp_path / "objects.h5", "images") as file:
        assert len(file["images"]) == 2
    given |= {"poses": finished["poses/poses.csv"], "sampler": "multi-view", "samples": 6}
    views.main(**given, out=tmp_path / "half", views=half)
    with open_h5(tmp_path / "half/images.h5", "images") as file:
        kept = np.unique(file["object"][:])
    assert len(kept) == 2 and kept.max() < 32


# Steps


def test_objects_of_another_number_of_poses_are_one_line(finished, tmp_path):
    with create_h5(tmp_path / "objects.h5") as file:
        file["images"] = np.zeros((2, 4, 32, 32, 3), np.uint8)
        file["pose"], file["reference"] = np.zeros((2, 4), int), np.zeros(2, int)
    given = {
        "crops": finished["crops/crops.h5"], "poses": finished["poses/poses.csv"],
        "objects": tmp_path / "objects.h5", "out": tmp_path / "out", "device": "cpu",
    }  # fmt: skip
    with pytest.raises(UserError, match="objects.h5: 4 poses of 32 pixels, the model .* has 5"):
        evidence.main(run=finished[""], **given)


def test_a_judge_that_found_the_poses_is_told(finished, tmp_path, caplog):
    model = finished.folder / "weights/stand-in-dinov2-cars"
    same = settings.Evidence(judge=str(model), judge_resolution=64)
    assert Judge.load(Run.load(finished[""], device="cpu"), same, tmp_path).found_poses
    assert "found the poses itself" in caplog.text
    with pytest.raises(UserError, match="^evidence.judge_resolution 66 is not a multiple"):
        Judge.load(
            Run.load(finished[""], device="cpu"),
            settings.Evidence(judge=str(model), judge_resolution=66),
            tmp_path,
        )


def test_images_without_an_object_are_in_no_pose(finished, tmp_path, caplog):
    run = Run.load(finished[""], device="cpu")
    judge = Judge.load(run, settings.Evidence(judge_resolution=64), tmp_path)
    with open_h5(finished["crops/crops.h5"], "images") as file:
        crops = file["images"][:3]
    nothing = np.full_like(crops, 127)
    far = replace(run.estimator.foreground, threshold=1e9)
    blind = replace(judge, run=replace(run, estimator=replace(run.estimator, foreground=far)))
    seen = blind.see(np.concatenate([crops, nothing]))
    assert (seen.poses == -1).all() and seen.masks.all()
    poses = np.arange(6).reshape(2, 3)
    assert not blind.shows(seen[poses], poses % 5).any()
    paths = finished["crops/crops.h5"], finished["poses/poses.csv"]
    blind.calibrated(*paths, settings.Evidence(real_images=3))
    assert "no object is found in 15 of 15 images" in caplog.text


def test_a_wrong_center_of_the_maps_changes_nothing_that_is_judged(finished, tmp_path):
    """Where maps are centered, those of judged images are on their own mean."""
    run = Run.load(finished[""], device="cpu")
    shape = (run.backbone.grid**2, len(run.estimator.pcas[0].components))
    found = []
    for center in (np.zeros(shape), np.full(shape, 50.0)):
        estimator = replace(run.estimator, centers=(center.astype(np.float32),))
        judge = Judge.load(replace(run, estimator=estimator), settings.Evidence(), tmp_path)
        with open_h5(finished["crops/crops.h5"], "images") as file:
            images = file["images"][:20]
        seen = list(judge.run._seen(images, all_poses=True))
        found.append([judge.see(images).poses, np.array([pose for _, pose, *_ in seen])])
    np.testing.assert_array_equal(found[0], found[1])
    assert len(set(found[0][0])) > 1 and len(set(found[0][1])) > 1


def test_a_pose_with_one_image_is_left_out_with_a_warning(finished, tmp_path, caplog):
    lines = finished["poses/poses.csv"].read_text().splitlines()
    head, rows = lines[0], [line.split(",") for line in lines[1:]]
    for row in rows:
        row[1] = "0" if row[1] == "3" else row[1]
    rows[0][1] = "3"
    (tmp_path / "poses.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")
    shutil.copy(finished["poses/poses.json"], tmp_path)
    judge = Judge.load(
        Run.load(finished[""], device="cpu"), settings.Evidence(judge_resolution=64), tmp_path
    )
    judge = judge.calibrated(
        finished["crops/crops.h5"], tmp_path / "poses.csv", settings.Evidence(real_images=3)
    )
    assert "fewer than two images do not count for consistency: [3]" in caplog.text
    assert np.isnan(judge.scales["color"].floor[3]).all()


def test_a_scale_whose_ceiling_is_its_floor_has_none(finished, tmp_path, caplog):
    chosen = settings.Evidence(real_images=3, judge_resolution=64)
    judge = Judge.load(Run.load(finished[""], device="cpu"), chosen, tmp_path)
    with open_h5(finished["crops/crops.h5"], "images") as file:
        strangers = judge.see_views(file["images"][:20].reshape(4, 5, 32, 32, 3))
    paths = finished["crops/crops.h5"], finished["poses/poses.csv"]
    judge = judge.calibrated(*paths, chosen, (strangers, np.full((4, 5), 4) - np.arange(5)))
    assert all(scale.ceiling is None for scale in judge.scales.values())
    assert "as far apart as unrelated ones" in caplog.text


def test_without_turns_photos_are_training_images_and_no_ceiling_is_told(finished, tmp_path):
    chosen = settings.Evidence(judged_objects=2, real_images=2, judge_resolution=64)
    evidence.main(
        run=finished[""],
        objects=finished["sheet/objects.h5"],
        crops=finished["crops/crops.h5"],
        poses=finished["poses/poses.csv"],
        out=tmp_path,
        evidence=chosen,
        views=settings.Views(steps=2),
        device="cpu",
    )
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert found["photos_are"] == "training images" and "truth" not in found
    assert found["consistency"]["color"]["ceiling_similarity"] is None
    assert "no ceiling known" in (tmp_path / "evidence.txt").read_text()


def test_truth_is_told_from_other_objects_and_from_one_image(finished, tmp_path):
    run = Run.load(finished[""], device="cpu")
    truth = read_turntables(finished["turntables/turntables.h5"], run, 2)
    chosen = settings.Evidence(real_images=3, judge_resolution=64)
    judge = Judge.load(run, chosen, tmp_path)
    judge = judge.calibrated(finished["crops/crops.h5"], finished["poses/poses.csv"], chosen)
    poses, given = np.tile(np.arange(5), (2, 1)), np.zeros(2, int)

    def against(made: np.ndarray) -> dict[str, float]:
        views = Views(made, poses, given)
        found = evidence._truth(judge, views, judge.see_views(made), truth)
        return {measure: row["model"].value for measure, row in found.items()}

    same, swapped = against(truth.views), against(truth.views[::-1])
    gray = against(np.full_like(truth.views, 127))
    assert same["psnr_db"] == 99 and same["distance"] == pytest.approx(0, abs=1e-5)
    for wrong in (swapped, gray):
        assert wrong["psnr_db"] < 40 and wrong["distance"] > 0.1 and wrong["iou"] < same["iou"]


def test_turns_of_another_number_of_poses_are_one_line(finished, tmp_path):
    with create_h5(tmp_path / "turntables.h5") as file:
        file["images"] = np.zeros((2, 4, 64, 64, 3), np.uint8)
        file["masks"] = np.zeros((2, 4, 64, 64), np.uint8)
    with pytest.raises(UserError, match="turntables.h5: objects from 3 sides, the run has 5 poses"):
        read_turntables(tmp_path / "turntables.h5", Run.load(finished[""], device="cpu"), 2)


@pytest.mark.parametrize(
    ("views", "guidance"),
    [
        ({"shared_noise": False}, {}),
        ({}, {"attention": "all"}),
        ({}, {"attention": "none"}),
        ({}, {"gamma": 1.0}),
        ({}, {"gamma": 9.0, "reference": "guided"}),
    ],
)
@pytest.mark.parametrize("gammas", [settings.Ablation().gammas, (1.0, 3.0)])
def test_claims_follow_from_any_first_row(views, guidance, gammas):
    chosen = settings.Views(**views), settings.Guidance(**guidance)
    variants = ablation._variants(*chosen, settings.Ablation(gammas=gammas))
    claims = ablation._claims({name: _row(0.5, 0.5) for name in variants}, chosen[1].gamma)
    rows = {one["claim"]: one["rows"] for one in claims}
    noises = {
        variants[one][0].shared_noise
        for one in rows["cross-frame attention makes views more similar"]
    }
    assert len(noises) == 1  # attention is compared at the same noise
    assert len(claims) >= 4
    assert "guidance makes views more similar" in [one["claim"] for one in claims]
    assert all(set(one["rows"]) <= variants.keys() for one in claims)


def test_rendered_turns_are_the_same_object_from_all_sides(finished):
    with open_h5(finished["turntables/turntables.h5"], "images") as file:
        assert file["images"].shape == (2, 6, 64, 64, 3)
        masks, azimuths = file["masks"][:] > 127, file["azimuth_deg"][:]
    means = [
        pose["mean_azimuth_deg"]
        for pose in json.loads(finished["poses/pose_eval.json"].read_text())["poses"]
    ]
    np.testing.assert_allclose(azimuths[:, 1:], [means, means], atol=1e-3)
    assert (masks.mean((2, 3)) > 0.03).all()
    with open_h5(finished["turntables/turntables.h5"], "images") as file:
        images = file["images"][:]
    # The photo is the same car as from the sides, and none of the training images.
    held_out = 7 + turntables._HELD_OUT
    again = [
        cars.render(held_out, 1, cars.DEMO_FAMILIES, 64, 1.0, azimuth=azimuth).image
        for azimuth in (None, means[2])
    ]
    np.testing.assert_array_equal(images[1, [0, 3]], again)


# Claims


def _row(color: float, other: float, nn_distance: float = 1.2) -> ablation.Row:
    noise = np.random.default_rng(3).normal(0, 0.01, 6)
    values = {"near": noise, "nn_distance": nn_distance + noise, "color": color + noise[::-1]}
    return ablation.Row({}, values | {"net": other + noise}, 0.0, 0.0)


def test_claims_hold_fail_or_stay_open_by_their_intervals():
    rows = {
        "as configured": _row(0.5, 0.5),
        "no attention": _row(0.3, 0.3),
        "no attention, own noise": _row(0.3, 0.1),
        "own noise": _row(0.3, 0.1),
        "encoder too": _row(0.5, 0.5),
        "gamma 1": _row(0.6, 0.4),
        "gamma 3": _row(0.5, 0.5, nn_distance=2.0),
    }
    found = {one["claim"]: one["verdict"] for one in ablation._claims(rows, 1.5)}
    assert found == {
        "shared noise alone makes views more similar": "holds",
        "cross-frame attention makes views more similar": "holds",
        "attention and guidance alone do so": "not decided",
        "attention in the encoder has no effect": "no effect seen",
        "guidance makes views more similar": "mixed",
        "too large a gamma is unrealistic": "holds",
    }
    rows["encoder too"], rows["gamma 1"] = _row(0.5, 0.6), _row(0.6, 0.6)
    rows["gamma 3"] = _row(0.5, 0.5, nn_distance=1.0)
    found = [one["verdict"] for one in ablation._claims(rows, 1.5)]
    assert found[3:] == ["does not hold", "the opposite holds", "the opposite holds"]
    # An unguided first row takes the place of "gamma 1"; guidance is judged by the default gamma.
    del rows["gamma 1"]
    claims = [one["claim"] for one in ablation._claims(rows, 1.0)]
    assert len(claims) == 5 and "guidance makes views more similar" not in claims
    assert "attention alone does so" in claims
    rows["gamma 1.5"] = _row(0.4, 0.4)
    found = {one["claim"]: one for one in ablation._claims(rows, 1.0)}
    guidance = found["guidance makes views more similar"]
    assert guidance["rows"] == ["gamma 1.5", "as configured"]
    assert guidance["verdict"] == "the opposite holds"


def test_variants_have_an_unguided_row_and_change_one_factor():
    found = ablation._variants(
        settings.Views(shared_noise=False), settings.Guidance(), settings.Ablation(gammas=(2.0,))
    )
    assert {"gamma 1", "gamma 2"} <= found.keys() and "own noise" not in found
    shared = [found[name][0].shared_noise for name in ("no attention", "no attention, own noise")]
    assert shared == [True, False]
    unguided = ablation._variants(
        settings.Views(), settings.Guidance(gamma=1.0), settings.Ablation()
    )
    assert "gamma 1.5" in unguided and not {"gamma 1", "guided reference"} & unguided.keys()
