"""The pose estimator: one mask, boxes to 1/1000 pixel, poses of photos, and its file."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.tensors import read_tensors, write_tensors
from mirage_steps.method.boxes import from_letterbox, padded_share, square_window
from mirage_steps.method.categories import CategoryModel
from mirage_steps.method.foreground import TokenBatch, fit_foreground
from mirage_steps.method.pose_estimator import FAR, PoseEstimator

GRID, DIM, COUNT = 8, 12, 96
BACKBONE = {"model": "any", "resolution": 32, "weights": "none", "sha256": {"w": "0"}}


def _batches(count: int = COUNT, seed: int = 0) -> list[TokenBatch]:
    """Squares with an object of one of two categories in the middle, some of them padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(count, GRID, GRID, DIM))
    # More padding would push the border into the object.
    content = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    content[::3] = (0, 0.125, 1, 0.875)
    tokens[..., 0] -= 10
    tokens[:, 2:6, 2:7, 0] += 20
    tokens[:, 2:6, 2:7, 1] += 8 * (np.arange(count) % 2)[:, None, None]
    tokens = tokens.reshape(count, -1, DIM).astype(np.float16)
    cls_tokens = tokens[:, 27]
    return [
        TokenBatch(slice(start, start + 40), *(a[start : start + 40] for a in arrays))
        for arrays in [(tokens, cls_tokens, content)]
        for start in range(0, count, 40)
    ]


@pytest.fixture(scope="module")
def fitted() -> PoseEstimator:
    batches = _batches()
    model, _ = fit_foreground(batches, settings.Foreground())
    estimator = PoseEstimator(BACKBONE, model, 0.06)
    features = [estimator.features(batch, "mean-patch") for batch in batches]
    categories = CategoryModel.fit(np.concatenate(features), 2, 0, "mean-patch")
    assigned, _ = categories.assign(np.concatenate(features))
    assert np.bincount(assigned).tolist() == [COUNT // 2] * 2
    estimator = replace(estimator, categories=categories)
    estimator = estimator.fit_pose_space(batches, assigned, settings.PoseSpace())
    maps, valid = _maps(estimator, batches, assigned)
    return estimator.fit_poses(maps, valid, assigned, settings.Poses(k=4, starts=2))


def _maps(estimator, batches, assigned) -> tuple[np.ndarray, np.ndarray]:
    made = [estimator.maps(b, assigned[b.rows]) for b in batches]
    maps, valid, _ = (np.concatenate(part) for part in zip(*made, strict=True))
    return maps, valid


def test_the_mask_is_the_foreground_on_the_image_where_that_is_one_part(fitted):
    for batch in _batches():
        signed = (
            fitted.foreground.sign * fitted.foreground.pca.components[fitted.foreground.component]
        )
        scores = (batch.tokens.astype(float) - fitted.foreground.pca.mean) @ signed
        above = scores > fitted.foreground.threshold
        inside = batch.valid.reshape(above.shape)
        np.testing.assert_array_equal(fitted.shown(batch), above & inside)


def test_boxes_and_windows_are_exact_in_a_table(fitted):
    batch = _batches()[0]
    sizes = [(97, 73)] * len(batch.tokens)
    for one in fitted.locate(batch, sizes):
        assert one.box == tuple(float(f"{edge:.3f}") for edge in one.box)
        assert one.window == tuple(float(f"{edge:.3f}") for edge in one.window)
        exact = from_letterbox(one.region.box, 97, 73)
        np.testing.assert_allclose(one.box, exact, atol=5.1e-4)
        np.testing.assert_allclose(one.window, square_window(exact, 97, 73, 0.06), atol=5.1e-4)
        middle = np.add(one.centered[:2], one.centered[2:])
        np.testing.assert_allclose(middle, np.add(one.box[:2], one.box[2:]), atol=1e-9)
        assert np.isnan(one.scores).sum() == GRID * 2 * (padded := bool(np.isnan(one.scores[0, 0])))
        assert padded in (True, False)


def test_given_boxes_are_taken_and_nothing_found_is_none(fitted):
    batch = _batches(4)[0]
    batch.tokens[1, :, 0] = batch.tokens[2, :, 0] = -10
    given = [(1.00049, 2.0, 30.0, 41.0), None, (0, 0, 50, 50), None]
    found = fitted.locate(batch, [(50, 50)] * 4, given)
    assert found[0].box == (1.0, 2.0, 30.0, 41.0) and found[0].region is not None
    assert found[1].box is found[1].window is found[1].region is None
    assert found[2].box == (0, 0, 50, 50) and found[2].region is None
    assert padded_share(found[2].window, 50, 50) > 0
    assert found[3].box is not None


def test_photos_get_what_the_steps_gave_the_training_images(fitted):
    batches = _batches()
    parts = [fitted.estimate(batch) for batch in batches]
    categories, poses, distances, shown = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    assert (categories != categories[0]).sum() == COUNT // 2
    maps, valid = _maps(fitted, batches, categories)
    expected = fitted.assign(maps, valid, categories)
    np.testing.assert_array_equal(poses, expected[0])
    np.testing.assert_array_equal(distances, expected[1])
    np.testing.assert_array_equal(poses // fitted.k, categories)
    assert fitted.number_of_poses == 8 and set(poses) == set(range(8))
    # K-Means changes the maps of its own by rounding.
    assert fitted.far == pytest.approx(np.quantile(distances, FAR), rel=1e-5)
    assert shown.shape == (COUNT, GRID**2)
    # One by one as in batches, but for the order of sums.
    one = fitted.estimate(TokenBatch(slice(0, 1), *(part[:1] for part in batches[1][1:4])))
    assert (one.categories[0], one.poses[0]) == (categories[40], poses[40])
    assert one.distances[0] == pytest.approx(distances[40], rel=1e-5)


def test_a_stored_estimator_is_the_same_to_the_bit(fitted, tmp_path):
    stages = [
        replace(fitted, categories=None, pcas=None, poses=None, far=None),
        replace(fitted, pcas=None, poses=None, far=None),
        replace(fitted, poses=None, far=None, mask_background=False, normalize=False),
        replace(fitted, poses=None, far=None, centers=tuple(pca.components for pca in fitted.pcas)),
        fitted,
    ]
    for stage in stages:
        save_estimator(tmp_path / ESTIMATOR, stage)
        again = load_estimator(tmp_path / ESTIMATOR)
        first = (tmp_path / ESTIMATOR).read_bytes()
        save_estimator(tmp_path / "again" / ESTIMATOR, again)
        assert (tmp_path / "again" / ESTIMATOR).read_bytes() == first
        for key in ("backbone", "margin", "mask_background", "normalize", "far"):
            assert getattr(again, key) == getattr(stage, key)
        for key in ("categories", "pcas", "poses", "centers"):
            assert type(getattr(again, key)) is type(getattr(stage, key))
    batch = _batches(seed=1)[0]
    for one, two in zip(again.estimate(batch), fitted.estimate(batch), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_estimator_that_is_not_finite_is_refused(fitted, tmp_path):
    (first, *others), path = fitted.poses, tmp_path / ESTIMATOR
    broken = replace(first, centroids=first.centroids * np.nan)
    save_estimator(path, replace(fitted, poses=(broken, *others)))
    with pytest.raises(UserError, match=r"poses\.0\.centroids is not finite"):
        load_estimator(path)


def test_files_that_are_missing_damaged_or_unfinished_are_one_line(fitted, tmp_path):
    path = tmp_path / "poses" / ESTIMATOR
    with pytest.raises(UserError, match="no such file; run snakemake again, its step poses makes"):
        load_estimator(path)
    save_estimator(path, replace(fitted, poses=None))
    with pytest.raises(UserError, match="has no poses yet"):
        load_estimator(path, "poses")
    whole = path.read_bytes()
    for damaged in (b"", whole[:200], whole[:-9], whole.replace(b"threshold", b"threshole")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be used .*--forcerun poses$") as error:
            load_estimator(path)
        assert "\n" not in str(error.value)


def test_poses_of_a_graph_survive_their_file(fitted, tmp_path):
    batches = _batches()
    assigned = np.concatenate([fitted.estimate(batch).categories for batch in batches])
    maps, valid = _maps(fitted, batches, assigned)
    chosen = settings.Poses(k=3, starts=2, method="spectral")
    estimator = fitted.fit_poses(maps, valid, assigned, chosen)
    assert estimator.k == 3 and estimator.number_of_poses == 6
    save_estimator(tmp_path / ESTIMATOR, estimator)
    again = load_estimator(tmp_path / ESTIMATOR, "poses")
    for one, other in zip(estimator.poses, again.poses, strict=True):
        assert len(one.centroids) == len(one.pose) >= 3
        np.testing.assert_array_equal(other.pose, one.pose)
    for batch in batches:
        for one, other in zip(estimator.estimate(batch), again.estimate(batch), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_shift_of_all_maps_is_undone_by_centering_on_the_images_themselves(fitted):
    """As in less sharp images; without it nearly all have the pose that the shift looks like."""
    assert fitted.recentered(iter(())) is fitted  # it centers nothing
    batches = [one._replace(content=np.tile([0, 0, 1, 1], (len(one[1]), 1))) for one in _batches()]
    none = np.zeros(COUNT, np.int64)
    space = settings.PoseSpace(mask_background=False, center=True, components=4)
    estimator = replace(fitted, categories=None).fit_pose_space(batches, none, space)
    maps, valid = _maps(estimator, batches, none)
    estimator = estimator.fit_poses(maps, valid, none, settings.Poses(k=6, method="spectral"))
    expected = np.concatenate([estimator.estimate(batch).poses for batch in batches])
    assert len(set(expected)) == 6
    # Along the components, alike for all images and another for each patch.
    way = np.random.default_rng(1).normal(size=(GRID**2, 4)) @ estimator.pcas[0].components
    moved = [b._replace(tokens=(b.tokens + 20 * way).astype(np.float32)) for b in batches]
    estimator = replace(estimator, foreground=replace(fitted.foreground, threshold=-1e9))
    shifted = np.concatenate([estimator.estimate(batch).poses for batch in moved])
    assert (shifted == expected).mean() < 0.5
    recentered = estimator.recentered(moved)
    found = np.concatenate([recentered.estimate(batch).poses for batch in moved])
    assert (found == expected).mean() > 0.95


def test_a_file_without_later_fields_has_one_cluster_for_each_pose(fitted, tmp_path):
    save_estimator(tmp_path / ESTIMATOR, fitted)
    arrays, configuration = read_tensors(tmp_path / ESTIMATOR)
    content = json.loads(configuration)
    assert not content.pop("whole")
    for model in content["poses"]:
        assert model.pop("pose") is None
    write_tensors(tmp_path / ESTIMATOR, arrays, json.dumps(content))
    again = load_estimator(tmp_path / ESTIMATOR, "poses")
    assert again.k == 4 and not again.whole and again.poses[0].mean_maps.shape[0] == 4
    for batch in _batches():
        np.testing.assert_array_equal(again.estimate(batch).poses, fitted.estimate(batch).poses)


def test_where_objects_fill_their_photos_the_box_is_the_photo(fitted):
    batch, sizes = _batches()[0], [(40, 30)] * 40
    boxes = [None] * 39 + [(1.0, 2.0, 30.0, 20.0)]
    found = replace(fitted, whole=True).locate(batch, sizes, boxes)
    assert {one.box for one in found[:-1]} == {(0, 0, 40, 30)}
    assert found[-1].box == (1, 2, 30, 20)
