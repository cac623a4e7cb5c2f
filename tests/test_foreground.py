"""From components to objects: thresholds, the border's vote, regions."""

import numpy as np
import pytest

from mirage_steps.method.foreground import (
    DECIDABLE,
    UPSAMPLE,
    ForegroundModel,
    border_patches,
    choose,
    contrast,
    find_objects,
    otsu_threshold,
    separation,
)
from mirage_steps.method.pca import Moments, Pca
from mirage_steps.settings import Foreground

# Otsu's threshold


def _exhaustive_otsu(counts: np.ndarray, edges: np.ndarray) -> tuple[float, list[float]]:
    """Least variance within classes over all cuts, sample by sample; its value and its cuts."""
    centers = (edges[:-1] + edges[1:]) / 2
    within = {}
    for cut in range(1, len(counts)):
        spread = 0.0
        for part in (slice(0, cut), slice(cut, None)):
            samples = np.repeat(centers[part], counts[part])
            if not len(samples):
                break
            spread += ((samples - samples.mean()) ** 2).sum()
        else:
            within[cut] = spread
    least = min(within.values())
    return least, [edges[cut] for cut, value in within.items() if value <= least * (1 + 1e-9)]


def test_otsu_is_the_cut_of_an_exhaustive_search():
    rng = np.random.default_rng(0)
    for _ in range(60):
        bins = int(rng.integers(3, 40))
        counts = rng.integers(0, 30, bins) * (rng.random(bins) < 0.7)
        counts[rng.integers(bins)] += 1
        counts[0] += 1
        edges = np.linspace(-2, 5, bins + 1)
        if np.count_nonzero(counts) < 2:
            continue
        _, best = _exhaustive_otsu(counts, edges)
        found = otsu_threshold(counts, edges)
        assert best[0] - 1e-9 <= found <= best[-1] + 1e-9


def test_otsu_parts_two_heaps_in_the_middle_of_the_empty_valley():
    edges = np.linspace(0, 10, 11)
    counts = np.array([4, 6, 4, 0, 0, 0, 0, 3, 5, 3])
    assert otsu_threshold(counts, edges) == pytest.approx(5)


def test_otsu_of_one_value_calls_nothing_foreground():
    edges = np.linspace(-1, 1, 5)
    assert otsu_threshold(np.array([0, 9, 0, 0]), edges) == 1
    assert otsu_threshold(np.zeros(4), edges) == 1


# The border


def _literal_border(valid: np.ndarray) -> np.ndarray:
    border = np.zeros_like(valid)
    grid = len(valid)
    for y, x in np.argwhere(valid):
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            inside = 0 <= y + dy < grid and 0 <= x + dx < grid
            if not inside or not valid[y + dy, x + dx]:
                border[y, x] = True
    return border


def test_the_border_is_that_of_the_content_not_of_the_padding():
    valid = np.zeros((3, 7, 7), bool)
    valid[0] = True
    valid[1, 2:5] = True
    valid[2, :, 3] = True
    border = border_patches(valid)
    for one, found in zip(valid, border, strict=True):
        np.testing.assert_array_equal(found, _literal_border(one))
    assert border[0].sum() == 24 and border[1].sum() == 16
    # Nothing inside is left of a single column of patches.
    np.testing.assert_array_equal(border[2], valid[2])


def test_images_of_a_batch_do_not_erode_each_other():
    valid = np.zeros((3, 5, 5), bool)
    valid[1] = True
    np.testing.assert_array_equal(border_patches(valid)[1], _literal_border(valid[1]))


def _moments(vectors: np.ndarray) -> Moments:
    moments = Moments()
    moments.add(vectors)
    return moments


def test_contrast_is_cohens_d_along_each_component():
    rng = np.random.default_rng(1)
    border = rng.normal(size=(200, 6)) * np.arange(1, 7)
    center = rng.normal(size=(90, 6)) * np.arange(1, 7) + np.array([0, 3, 0, -2, 0, 9])
    pca = Pca.fit(_moments(np.concatenate([border, center])), 3)
    expected = []
    for row in pca.components:
        a, b = border @ row, center @ row
        pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (
            len(a) + len(b) - 2
        )
        expected.append((b.mean() - a.mean()) / np.sqrt(pooled))
    np.testing.assert_allclose(
        contrast(pca, _moments(border), _moments(center)), expected, rtol=1e-9
    )


def test_without_center_or_border_there_is_no_contrast():
    rng = np.random.default_rng(2)
    some = _moments(rng.normal(size=(50, 4)) + 10)
    pca = Pca.fit(some, 3)
    np.testing.assert_array_equal(contrast(pca, some, Moments()), 0)
    np.testing.assert_array_equal(contrast(pca, Moments(), some), 0)


def test_the_rules_choose_their_component_and_the_border_its_sign():
    contrasts = np.array([0.5, -1.5, 0.9])
    assert choose(contrasts, Foreground(rule="first-component", fallback_sign=-1)) == (0, 1)
    assert choose(contrasts, Foreground()) == (1, -1)


@pytest.mark.parametrize("fallback", [-1, 1])
@pytest.mark.parametrize("value", [0.0, 0.99 * DECIDABLE, -0.99 * DECIDABLE])
def test_an_undecidable_sign_falls_back(value, fallback):
    for rule in ("first-component", "border-contrast"):
        chosen = Foreground(rule=rule, fallback_sign=fallback)
        assert choose(np.array([value, value / 2]), chosen) == (0, fallback)


# Objects


def _scores(*parts: tuple[slice, slice], grid: int = 8) -> np.ndarray:
    scores = np.full((1, grid, grid), -1.0, np.float32)
    for part in parts:
        scores[0][part] = 1.0
    return scores


def test_the_box_surrounds_the_object():
    (region,) = find_objects(_scores((slice(2, 5), slice(3, 7))), 0.0)
    # Where +1 meets -1 the score falls to zero half-way between the patches' centers.
    np.testing.assert_allclose(region.box, (3 / 8, 2 / 8, 7 / 8, 5 / 8), atol=1 / 8 / UPSAMPLE)
    expected = np.zeros((8, 8), bool)
    expected[2:5, 3:7] = True
    np.testing.assert_array_equal(region.mask, expected)


def test_a_higher_threshold_gives_a_smaller_box_finer_than_a_patch():
    scores = _scores((slice(2, 6), slice(2, 6)))
    sides = []
    for threshold in (-0.5, 0.0, 0.5):
        box = find_objects(scores, threshold)[0].box
        sides.append(box[2] - box[0])
    assert sides[0] > sides[1] > sides[2] > 0
    assert sides[0] - sides[2] < 2 / 8


def test_only_the_largest_part_counts():
    (region,) = find_objects(_scores((slice(0, 2), slice(0, 2)), (slice(4, 8), slice(4, 7))), 0.0)
    assert region.box[0] >= 0.4 and region.box[1] >= 0.4
    assert not region.mask[:3, :3].any() and region.mask[4:8, 4:7].all()


def test_an_object_over_the_whole_image_touches_all_sides():
    (region,) = find_objects(np.ones((1, 6, 6), np.float32), 0.0)
    assert region.box == (0, 0, 1, 1) and region.mask.all()


def test_nothing_above_the_threshold_is_none():
    scores = np.concatenate([_scores(), _scores((slice(1, 3), slice(1, 3)))])
    empty, found = find_objects(scores, 0.0)
    assert empty is None and found is not None
    assert find_objects(scores, 1.0) == [None, None]


def test_a_single_patch_still_gives_a_mask():
    scores = _scores((slice(4, 5), slice(4, 5)))
    for threshold in (0.0, 0.25, 0.5):
        region = find_objects(scores, threshold)[0]
        assert region.mask[4, 4] and region.mask.sum() >= 1


def test_padding_is_never_the_object():
    valid = np.zeros((1, 8, 8), bool)
    valid[:, 2:6] = True
    # The bars shout, the object whispers.
    scores = _scores((slice(3, 5), slice(2, 4)))
    scores[~valid] = 100.0
    (region,) = find_objects(scores, 0.0, valid)
    np.testing.assert_allclose(region.box, (2 / 8, 3 / 8, 4 / 8, 5 / 8), atol=1 / 8 / UPSAMPLE)
    assert not (region.mask & ~valid[0]).any()
    scores = _scores()
    scores[~valid] = 100.0
    assert find_objects(scores, 0.0, valid) == [None]
    assert find_objects(scores, 0.0, np.zeros_like(valid)) == [None]


def test_padding_does_not_pull_down_the_edge_of_an_object():
    valid = np.zeros((1, 8, 8), bool)
    valid[:, 2:6] = True
    scores = np.full((1, 8, 8), -100.0, np.float32)
    scores[valid] = 1.0
    (region,) = find_objects(scores, 0.0, valid)
    assert region.box == (0, 2 / 8, 1, 6 / 8)
    np.testing.assert_array_equal(region.mask, valid[0])


# The model


def _model(sign: int = -1) -> ForegroundModel:
    data = np.random.default_rng(3).normal(size=(100, 5)) * (5, 4, 3, 2, 1) + 2
    return ForegroundModel(Pca.fit(_moments(data), 3), component=1, sign=sign, threshold=0.25)


def test_scores_are_the_signed_coordinate_in_the_order_of_the_grid():
    model = _model()
    tokens = np.random.default_rng(4).normal(size=(2, 9, 5)).astype(np.float16)
    scores = model.scores(tokens)
    assert scores.shape == (2, 3, 3) and scores.dtype == np.float32
    expected = -model.pca.project(tokens)[..., 1].reshape(2, 3, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(_model(1).scores(tokens), -scores, atol=1e-6)


def test_separation_is_the_share_of_variance_between_the_classes():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 300), rng.normal(6, 2, 100)])
    low, high = scores[scores <= 2.5], scores[scores > 2.5]
    total = ((scores - scores.mean()) ** 2).sum()
    within = ((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum()
    assert separation(scores, 2.5) == pytest.approx(1 - within / total)
    assert separation(np.array([0.0, 0.0, 1.0]), 0.5) == pytest.approx(1)
    # One class alone decides nothing.
    assert separation(scores, 99) == separation(scores, -99) == 0
    assert separation(np.ones(4), 0.5) == 0
