"""Several categories in one set: how they are told apart, and a circle of poses for each."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from sklearn.cluster import KMeans

from mirage_steps import categories, pose_eval, pose_space, poses, settings, views
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv, write_csv, write_json
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import write_names
from mirage_steps.files.manifest import Entry, write_manifest
from mirage_steps.files.tables import read_categories
from mirage_steps.method.categories import CategoryModel
from mirage_steps.method.circle import shortest_cycle
from mirage_steps.method.foreground import ForegroundModel
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.pose_scores import order_errors, score_azimuths
from mirage_steps.method.poses import PoseModel, fill_padding
from mirage_steps.method.unet import UNetConfig, preset

DIM, COUNT = 24, 400


def _lumps(count: int = COUNT, seed: int = 0, share: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, DIM) of two categories, apart where features vary least, and those."""
    rng = np.random.default_rng(seed)
    assigned = (rng.random(count) < share).astype(int)
    features = rng.normal(size=(count, DIM)) * np.array([40.0, 25.0, 15.0] + [0.2] * (DIM - 3))
    features[:, 5] += 4 * assigned
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))[0]
    return (features @ turn + 3).astype(np.float32), assigned


def _accuracy(found: np.ndarray, assigned: np.ndarray) -> float:
    """Share of two categories that was told right, whatever their numbers."""
    agreement = float((found == assigned).mean())
    return max(agreement, 1 - agreement)


# The model


def test_categories_hidden_under_wide_directions_are_separated_where_k_means_fails():
    features, assigned = _lumps()
    plain = KMeans(2, n_init=10, random_state=0).fit_predict(features)
    assert _accuracy(plain, assigned) < 0.8
    found, likely = CategoryModel.fit(features, 2, 0).assign(features)
    assert found.shape == likely.shape == (COUNT,)
    assert _accuracy(found, assigned) > 0.98
    assert (likely >= 0.5).all() and (likely <= 1).all()
    fresh, truth = _lumps(seed=1)
    assert _accuracy(CategoryModel.fit(features, 2, 0).assign(fresh)[0], truth) > 0.95


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_most_frequent_category_comes_first(share):
    features, assigned = _lumps(share=share)
    model = CategoryModel.fit(features, 2, 0)
    found, _ = model.assign(features)
    assert np.bincount(found)[0] > 0.6 * COUNT
    assert (found == (assigned if share < 0.5 else 1 - assigned)).mean() > 0.98
    np.testing.assert_allclose(model.weights, [0.75, 0.25], atol=0.07)


def test_probabilities_are_those_of_the_mixture_s_densities():
    features, _ = _lumps(60)
    # Between the categories, where neither is certain.
    model = CategoryModel.fit(features, 2, 3)
    grid = np.concatenate([(features[:30] + features[30:]) / 2, features])
    found, likely = model.assign(grid)
    points = (grid - model.pca.mean) @ model.pca.components.T / np.sqrt(model.pca.variance)
    densities = np.stack(
        [
            weight * np.linalg.det(root) * np.exp(-0.5 * (((points - mean) @ root) ** 2).sum(1))
            for weight, mean, root in zip(model.weights, model.means, model.precisions, strict=True)
        ],
        axis=1,
    )
    shares = densities / densities.sum(1, keepdims=True)
    np.testing.assert_array_equal(found, shares.argmax(1))
    np.testing.assert_allclose(likely, shares.max(1), rtol=1e-2, atol=1e-3)


def test_the_seed_fixes_the_categories():
    features = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)
    one, same, other = (CategoryModel.fit(features, 3, seed) for seed in (0, 0, 5))
    np.testing.assert_array_equal(one.means, same.means)
    np.testing.assert_array_equal(one.assign(features)[0], same.assign(features)[0])
    assert not np.array_equal(one.means, other.means)


# The step

GRID = 4
THRESHOLD = 0.3
BACKBONE = {"model": "any", "resolution": 32, "weights": "none", "sha256": {"w": "0"}}


def _make_set(root, count: int = COUNT, seed: int = 0) -> SimpleNamespace:
    """Tokens of crops of two categories as the features step writes them, and the other inputs.

    The first token coordinate is the score of PCA 1; CLS tokens and object tokens tell the
    categories apart along another one, tokens of the background do not.
    """
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    cls, assigned = _lumps(count, seed)
    tokens = rng.normal(size=(count, GRID**2, DIM))
    # A rectangle around patch 5, which is on the image in every crop.
    place = np.stack(np.divmod(np.arange(GRID**2), GRID))[..., None]
    low, high = rng.integers(0, 2, (2, 1, count)), rng.integers(2, 5, (2, 1, count))
    front = ((place >= low) & (place < high)).all(0).T
    tokens[..., 0] = np.where(front, 1.0, -1.0) + 0.1 * rng.normal(size=front.shape)
    tokens[..., 1] += np.where(front, 9.0 * assigned[:, None], 0)
    tokens[..., 2] += np.where(front, 0, 40 * rng.normal(size=(count, 1)))
    content = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    content[::5] = (0, 0.25, 1, 0.75)
    names = [f"{number:03d}.png" for number in range(count)]
    with h5py.File(root / "tokens.h5", "w") as file:
        file.attrs["backbone"] = json.dumps(BACKBONE)
        file["patch_tokens"] = tokens.astype(np.float16)
        file["cls_token"] = cls.astype(np.float16)
        file["content"] = content
        write_names(file, names)
    with h5py.File(root / "crops.h5", "w") as file:
        file["images"] = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
        write_names(file, names)
    pca = Pca(np.zeros(DIM), np.eye(DIM)[:3], np.ones(3), np.ones(3) / 3)
    model = ForegroundModel(pca, 0, 1, THRESHOLD)
    save_estimator(root / ESTIMATOR, PoseEstimator(BACKBONE, model, 0.06))
    labels = [("armchair", "car")[category] for category in assigned]
    write_manifest(
        root / "manifest.csv",
        [
            Entry(name, root / name, 8, 8, category=label)
            for name, label in zip(names, labels, strict=True)
        ],
    )
    valid = np.ones((count, GRID, GRID), bool)
    valid[::5, [0, 3]] = False
    return SimpleNamespace(
        root=root,
        names=names,
        assigned=assigned,
        cls=cls.astype(np.float16).astype(np.float64),
        tokens=tokens.astype(np.float16).astype(np.float64),
        valid=valid.reshape(count, -1),
        front=tokens.astype(np.float16)[..., 0] > THRESHOLD,
        crops=root / "crops.h5",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    return _make_set(tmp_path_factory.mktemp("assigned"))


def _categories(made, out, **options) -> tuple[list[dict], dict]:
    """Rows of categories.csv, and categories.json."""
    categories.main(
        **{
            "manifest": made.root / "manifest.csv",
            "tokens": made.root / "tokens.h5",
            "crops": made.crops,
            "estimator": made.root / ESTIMATOR,
            "out": out,
            "categories": 2,
            **options,
        }
    )
    return read_csv(out / "categories.csv"), json.loads((out / "categories.json").read_text())


def test_the_step_writes_the_category_of_every_image_and_scores_it(made, tmp_path):
    rows, about = _categories(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "categories.csv",
        "categories.json",
        "categories.png",
        ESTIMATOR,
    ]
    assert [row["image"] for row in rows] == made.names
    found = np.array([int(row["category"]) for row in rows])
    expected, likely = CategoryModel.fit(made.cls.astype(np.float32), 2, 0).assign(made.cls)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], likely, atol=1e-4)
    assert about["token"] == "cls" and about["images"] == np.bincount(found).tolist()
    accuracy = _accuracy(found, made.assigned)
    assert about["truth"]["purity"] == pytest.approx(accuracy) and accuracy > 0.95
    assert about["truth"]["labels"] == ["armchair", "car"]
    counts = [[int(((found == c) & (made.assigned == k)).sum()) for k in (0, 1)] for c in (0, 1)]
    assert about["truth"]["counts"] == counts


def test_the_truth_is_not_read_but_to_score(made, tmp_path):
    rows, _ = _categories(made, tmp_path / "known")
    entries = [Entry(name, tmp_path / name, 8, 8) for name in made.names]
    write_manifest(tmp_path / "manifest.csv", entries)
    others, about = _categories(made, tmp_path / "out", manifest=tmp_path / "manifest.csv")
    assert others == rows and "truth" not in about


def test_mean_tokens_are_those_of_the_object_on_the_image(made, tmp_path):
    rows, about = _categories(made, tmp_path, token="mean-patch")
    shown = made.front & made.valid
    means = np.stack([one[own].mean(0) for one, own in zip(made.tokens, shown, strict=True)])
    expected = CategoryModel.fit(means.astype(np.float32), 2, 0).assign(means)[0]
    found = np.array([int(row["category"]) for row in rows])
    np.testing.assert_array_equal(found, expected)
    assert about["token"] == "mean-patch" and about["truth"]["purity"] > 0.95
    # Another feature than the CLS token, else this proves nothing.
    model = load_estimator(tmp_path / ESTIMATOR).categories
    np.testing.assert_allclose(model.pca.mean, means.mean(0), atol=1e-4)
    assert model.token == "mean-patch"


def test_a_crop_without_object_has_a_category_too(made, tmp_path):
    with h5py.File(made.root / "tokens.h5") as one, h5py.File(tmp_path / "tokens.h5", "w") as two:
        two.attrs.update(one.attrs)
        for key in one:
            two[key] = one[key][:]
        tokens = one["patch_tokens"][:]
        tokens[7, :, 0] = -1
        two["patch_tokens"][...] = tokens
    rows, _ = _categories(made, tmp_path / "out", tokens=tmp_path / "tokens.h5", token="mean-patch")
    assert rows[7]["category"] in ("0", "1")


def _complete(path) -> Path:
    """The estimator of a step with all other parts, made up."""
    estimator = load_estimator(path)
    count = 2 if estimator.categories is None else len(estimator.categories.weights)
    parts = {
        "pcas": (estimator.foreground.pca,) * count,
        "poses": (PoseModel(np.zeros((4, 48)), np.zeros((16, 3))),) * count,
    }
    parts = {name: part for name, part in parts.items() if getattr(estimator, name) is None}
    save_estimator(path.parent / "complete" / ESTIMATOR, replace(estimator, **parts, far=1.0))
    return path.parent / "complete" / ESTIMATOR


def test_a_stored_model_is_not_refitted(made, tmp_path):
    _categories(made, tmp_path / "first", token="mean-patch")
    stored = _complete(tmp_path / "first" / ESTIMATOR)
    other = _make_set(tmp_path / "other", count=40, seed=5)
    # The stored model knows which feature it looks at.
    found, about = _categories(other, tmp_path / "second", stored=stored)
    estimator = load_estimator(stored)
    shown = other.front & other.valid
    means = np.stack([one[own].mean(0) for one, own in zip(other.tokens, shown, strict=True)])
    expected, _ = estimator.categories.assign(means.astype(np.float32))
    assert [int(row["category"]) for row in found] == expected.tolist()
    assert about["token"] == "mean-patch"
    assert (tmp_path / "second" / ESTIMATOR).read_bytes() == stored.read_bytes()


def test_one_photo_is_enough_for_a_stored_model(made, tmp_path):
    _categories(made, tmp_path / "first")
    other = _make_set(tmp_path / "other", count=1)
    stored = _complete(tmp_path / "first" / ESTIMATOR)
    assert len(_categories(other, tmp_path / "second", stored=stored)[0]) == 1


def test_a_stored_estimator_without_categories_is_refused(made, tmp_path):
    with pytest.raises(UserError, match="has no categories yet"):
        _categories(made, tmp_path / "out", stored=made.root / ESTIMATOR)


def test_too_few_images_for_the_categories_are_one_line(tmp_path):
    few = _make_set(tmp_path / "few", count=15)
    with pytest.raises(UserError) as error:
        _categories(few, tmp_path / "out")
    assert str(error.value) == (
        "categories = 2, but an object was found in only 15 images; lower categories or add images"
    )
    assert not (tmp_path / "out").exists()


def test_crops_of_other_images_are_refused(made, tmp_path):
    other = _make_set(tmp_path / "other", count=20)
    with pytest.raises(UserError, match="lists other images than the tokens; .*--forcerun crops"):
        _categories(made, tmp_path / "out", crops=other.crops)


# Reading the table


def _categories_table(path, names, assigned, header=("image", "category", "probability")):
    write_csv(
        path, header, ((name, category, 1) for name, category in zip(names, assigned, strict=True))
    )
    return path


def test_categories_are_read_by_name(tmp_path):
    path = _categories_table(tmp_path / "c.csv", ["a", "b", "c"], [2, 0, 1])
    found = read_categories(path, ["c", "a"])
    assert found.tolist() == [1, 2] and found.dtype == np.int64
    assert read_categories(None, ["c", "a"]).tolist() == [0, 0]


@pytest.mark.parametrize(
    "header, assigned",
    [
        (("image", "category", "probability"), ["1", "0"]),
        (("image", "category", "probability"), ["1", "0", "car"]),
        (("image", "category", "probability"), ["1", "0", ""]),
        (("image", "kind", "probability"), ["1", "0", "1"]),
        (("name", "category", "probability"), ["1", "0", "1"]),
    ],
    ids=["an image is missing", "no number", "empty", "no category", "no image"],
)
def test_a_table_without_every_category_is_one_line(tmp_path, header, assigned):
    path = _categories_table(tmp_path / "c.csv", ["a", "b", "c"][: len(assigned)], assigned, header)
    with pytest.raises(UserError, match="does not say the category of every image") as error:
        read_categories(path, ["a", "b", "c"])
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    with pytest.raises(UserError, match="no such file"):
        read_categories(tmp_path / "gone.csv", ["a"])


# Pose space


def _maps(made, out, assigned, **options) -> np.ndarray:
    if assigned is not None:
        options["categories"] = _categories_table(out.with_suffix(".csv"), made.names, assigned)
    pose_space.main(
        tokens=made.root / "tokens.h5", estimator=made.root / ESTIMATOR, out=out, **options
    )
    with h5py.File(out / "maps.h5") as file:
        np.testing.assert_array_equal(file["valid"][:], made.valid)
        return file["maps"][:]


def _literal_maps(made, assigned, shown) -> tuple[np.ndarray, np.ndarray]:
    """Maps of length one by a PCA of each category's own object tokens, and the PCAs' means."""
    maps, means = np.zeros((*shown.shape, 3)), []
    for category in range(max(assigned) + 1):
        own = np.flatnonzero(np.asarray(assigned) == category)
        chosen = np.concatenate([made.tokens[index][shown[index]] for index in own])
        axes = np.linalg.eigh(np.cov(chosen.T))[1][:, ::-1][:, :3].T
        # The sign of each axis is free; its largest entry is positive.
        axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
        means.append(chosen.mean(0))
        for index in own:
            projected = (made.tokens[index] - means[-1]) @ axes.T * shown[index][:, None]
            maps[index] = projected / np.linalg.norm(projected)
    return maps, np.stack(means)


def test_each_category_is_projected_by_its_own_pca(made, tmp_path):
    assigned = made.assigned.tolist()
    shown = made.front & made.valid
    found = _maps(made, tmp_path / "two", assigned)
    expected, means = _literal_maps(made, assigned, shown)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    pcas = load_estimator(tmp_path / "two" / ESTIMATOR).pcas
    assert [pca.components.shape for pca in pcas] == [(3, DIM)] * 2
    np.testing.assert_allclose([pca.mean for pca in pcas], means, atol=1e-4)
    together = _maps(made, tmp_path / "one", None)
    np.testing.assert_allclose(
        together, _literal_maps(made, [0] * len(assigned), shown)[0], atol=2e-3
    )
    assert np.abs(together - found).max() > 0.05


def test_a_stored_projection_is_used_as_it_is(made, tmp_path):
    _maps(made, tmp_path / "first", made.assigned.tolist())
    stored = _complete(tmp_path / "first" / ESTIMATOR)
    other = _make_set(tmp_path / "other", count=10, seed=7)
    # All of the second category: a PCA of their own they would not have.
    found = _maps(other, tmp_path / "second", [1] * 10, stored=stored)
    assert (tmp_path / "second" / ESTIMATOR).read_bytes() == stored.read_bytes()
    pca = load_estimator(stored).pcas[1]
    projected = (other.tokens - pca.mean) @ pca.components.T
    projected *= (other.front & other.valid)[..., None]
    projected /= np.linalg.norm(projected, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, projected, atol=2e-3)


def test_a_category_without_object_tokens_is_told(made, tmp_path):
    assigned = [0] * (len(made.names) - 1) + [2]
    with pytest.raises(UserError, match=r"only 0 foreground tokens in all crops of category 1;"):
        _maps(made, tmp_path / "out", assigned)


# Poses

K = 4


def _circles(count: int = 60, seed: int = 0) -> SimpleNamespace:
    """Maps of two categories, each a circle in a plane of its own, with their angles."""
    rng = np.random.default_rng(seed)
    planes = np.random.default_rng(50).normal(size=(2, 2, GRID**2 * 3))
    assigned = rng.integers(0, 2, count)
    angles = rng.uniform(0, 360, count)
    circle = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], 1)
    flat = np.einsum("na,nad->nd", circle, planes[assigned]) + 0.05 * rng.normal(size=(count, 48))
    valid = rng.random((count, GRID**2)) < 0.9
    return SimpleNamespace(
        maps=flat.reshape(count, GRID**2, 3).astype(np.float32),
        valid=valid,
        assigned=assigned,
        angles=angles,
        names=[f"{number}.png" for number in range(count)],
    )


def _poses(circles, root, **options) -> tuple[np.ndarray, np.ndarray]:
    """Poses and distances of poses.csv, whose other columns must be right."""
    root.mkdir(parents=True)
    with h5py.File(root / "maps.h5", "w") as file:
        file["maps"], file["valid"] = circles.maps, circles.valid
        write_names(file, circles.names)
    assigned = _categories_table(root / "categories.csv", circles.names, circles.assigned)
    pca = Pca(np.zeros(DIM), np.eye(DIM)[:3], np.ones(3), np.ones(3) / 3)
    fitted = PoseEstimator(BACKBONE, ForegroundModel(pca, 0, 1, 0.0), 0.06, pcas=(pca, pca))
    save_estimator(root / ESTIMATOR, fitted)
    poses.main(
        maps=root / "maps.h5",
        estimator=root / ESTIMATOR,
        out=root / "poses",
        categories=assigned,
        poses=settings.Poses(k=K, starts=2),
        **options,
    )
    rows = read_csv(root / "poses/poses.csv")
    assert [row["image"] for row in rows] == circles.names
    assert [int(row["category"]) for row in rows] == circles.assigned.tolist()
    found = np.array([int(row["pose"]) for row in rows])
    about = json.loads((root / "poses/poses.json").read_text())
    assert about == {
        "k": K, "categories": 2, "images": np.bincount(found, minlength=2 * K).tolist(),
    }  # fmt: skip
    return found, np.array([float(row["distance"]) for row in rows])


def _nearest(circles, root) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of each map among those of its category, literally."""
    models = load_estimator(root, "poses").poses
    found = []
    for one, valid, category in zip(circles.maps, circles.valid, circles.assigned, strict=True):
        model = models[category]
        filled = np.where(valid[:, None], one, model.means).ravel()
        gaps = [float(np.sqrt(((filled - center) ** 2).sum())) for center in model.centroids]
        found.append((category * len(gaps) + int(np.argmin(gaps)), min(gaps)))
    labels, distances = zip(*found, strict=True)
    return np.array(labels), np.array(distances)


def test_poses_of_each_category_are_a_circle_of_their_own(tmp_path):
    circles = _circles()
    found, distances = _poses(circles, tmp_path / "fit")
    labels, gaps = _nearest(circles, tmp_path / "fit/poses" / ESTIMATOR)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(distances, gaps, rtol=1e-4)
    for category in (0, 1):
        own = found[circles.assigned == category]
        assert set(own) == set(range(category * K, (category + 1) * K))
    for category, model in enumerate(load_estimator(tmp_path / "fit/poses" / ESTIMATOR).poses):
        assert model.centroids.shape == (K, GRID**2 * 3)
        own = circles.assigned == category
        expected = fill_padding(circles.maps[own], circles.valid[own])
        np.testing.assert_allclose(model.means, expected, rtol=1e-5)
        gaps = np.linalg.norm(model.centroids[:, None] - model.centroids[None], axis=2)
        np.testing.assert_array_equal(shortest_cycle(gaps), range(K))
    scores = score_azimuths(found, circles.angles, 2 * K, 2)
    assert scores["order_errors"] == 0 and scores["median_error_deg"] < 35


def test_stored_poses_are_assigned_not_refitted(tmp_path):
    _poses(_circles(), tmp_path / "fit")
    stored = tmp_path / "fit/poses" / ESTIMATOR
    # Fewer than K of each category: nothing could be fitted.
    fresh = _circles(5, seed=3)
    assert sorted(set(fresh.assigned)) == [0, 1]
    found, distances = _poses(fresh, tmp_path / "new", stored=stored)
    labels, gaps = _nearest(fresh, stored)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(distances, gaps, rtol=1e-4)
    assert (tmp_path / "new/poses" / ESTIMATOR).read_bytes() == stored.read_bytes()


@pytest.mark.parametrize("category", [0, 1])
def test_stored_poses_of_two_categories_serve_photos_that_are_all_of_one(tmp_path, category):
    _poses(_circles(), tmp_path / "fit")
    stored = tmp_path / "fit/poses" / ESTIMATOR
    fresh = _circles(12, seed=3)
    fresh.assigned[:] = category
    found, _ = _poses(fresh, tmp_path / "new", stored=stored)
    np.testing.assert_array_equal(found, _nearest(fresh, stored)[0])


def test_a_category_with_fewer_images_than_poses_is_told(tmp_path):
    circles = _circles(20)
    circles.assigned[:] = 0
    circles.assigned[:3] = 1
    expected = r"poses\.k = 4, but an object of category 1 was found in only 3 images"
    with pytest.raises(UserError, match=expected):
        _poses(circles, tmp_path / "few")


def test_order_errors_are_counted_in_each_circle():
    right = np.arange(8) * 45.0
    swapped = right[[0, 1, 3, 2, 4, 5, 6, 7]]
    for first, second, errors in (
        (right, swapped, 1),
        (swapped, swapped[::-1], 2),
        (right[::-1], right, 0),
    ):
        assert order_errors(first) + order_errors(second) == errors
        scores = score_azimuths(np.arange(16), np.concatenate([first, second]), 16, 2)
        assert scores["order_errors"] == errors
    # As one circle, two in the same order turn twice.
    assert score_azimuths(np.arange(16), np.concatenate([right, right]), 16)["order_errors"] == 1
    assert score_azimuths(np.arange(16), np.concatenate([right] * 2), 16, 2)["order_errors"] == 0


def test_poses_without_images_do_not_shift_the_circles():
    azimuths = np.array([0.0, 90, 180, 0, 180, 90])
    found = np.array([0, 1, 3, 4, 5, 6])
    assert score_azimuths(found, azimuths, 8, 2)["order_errors"] == order_errors(
        np.array([0, 180, 90])
    )


def test_the_evaluation_knows_the_circles_where_the_last_poses_have_no_image(tmp_path):
    azimuths = [0, 60, 120, 180, 240, 300, 90, 30, 330, 270]
    names = [f"{number}.png" for number in range(10)]
    entries = [
        Entry(name, tmp_path / name, 8, 8, float(azimuth))
        for name, azimuth in zip(names, azimuths, strict=True)
    ]
    write_manifest(tmp_path / "manifest.csv", entries)
    rows = [(name, pose, 0, pose // 6) for pose, name in enumerate(names)]
    write_csv(tmp_path / "poses.csv", ("image", "pose", "distance", "category"), rows)
    write_json(tmp_path / "poses.json", {"k": 6, "categories": 2, "images": [1] * 10 + [0] * 2})
    pose_eval.main(
        manifest=tmp_path / "manifest.csv", poses=tmp_path / "poses.csv", out=tmp_path / "out"
    )
    scores = json.loads((tmp_path / "out/pose_eval.json").read_text())
    assert scores["order_errors"] == 0


# Poses of one object


def test_siblings_are_the_poses_of_one_category():
    config = UNetConfig(16, 12, (32,), categories=3)
    assert [config.siblings(pose) for pose in range(12)] == (
        [range(0, 4)] * 4 + [range(4, 8)] * 4 + [range(8, 12)] * 4
    )
    assert UNetConfig(16, 5, (32,)).siblings(3) == range(5)
    assert preset("small", 16, 12, 0.0, 3).siblings(5) == range(4, 8)


def _drawn(categories: int, frequencies: np.ndarray, count: int) -> np.ndarray:
    config = UNetConfig(16, len(frequencies), (32,), categories=categories)
    network = SimpleNamespace(config=config)
    return np.stack(
        [
            views._poses_of_object(network, frequencies, np.random.default_rng([0, number]))
            for number in range(count)
        ]
    )


def test_an_object_has_distinct_poses_of_one_category_as_frequent_as_in_the_data():
    shares, within = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    drawn = _drawn(3, (shares[:, None] * within).ravel(), 2000)
    assert drawn.shape == (2000, 4) and all(len(set(row)) == 4 for row in drawn.tolist())
    assigned = drawn // 5
    assert (assigned == assigned[:, :1]).all()
    # Four standard deviations of a share of 2000 draws.
    np.testing.assert_allclose(np.bincount(assigned[:, 0]) / 2000, shares, atol=4 * 0.0112)
    # Within a category the poses that are kept are as frequent as in the data.
    counts = np.bincount(drawn[assigned[:, 0] == 0][:, 1:].ravel(), minlength=5)
    np.testing.assert_allclose(counts[:5] / counts.sum(), within, atol=0.03)


def test_a_pose_with_most_of_the_images_is_in_every_object():
    drawn = _drawn(1, np.array([0.7, 0.15, 0.1, 0.05]), 2000)[:, 1:]
    assert (drawn == 0).any(1).all() and all(len(set(row)) == 3 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=4) / 2000
    np.testing.assert_allclose(counts, [1, 1, 2 / 3, 1 / 3], atol=0.05)


def test_a_pose_without_images_is_never_asked_for():
    frequencies = np.array([0.2, 0.0, 0.2, 0.2, 0.2, 0.2, 0.0])
    network = SimpleNamespace(config=UNetConfig(16, 7, (32,)))
    drawn = [
        views._poses_of_object(network, frequencies, np.random.default_rng(seed))
        for seed in range(40)
    ]
    assert set(np.ravel(drawn)) == {0, 2, 3, 4, 5}
    frequencies[4:] = 0
    with pytest.raises(UserError, match="only 3 poses of category 0 have images"):
        views._poses_of_object(network, frequencies, np.random.default_rng(0))
