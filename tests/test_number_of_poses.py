"""How many poses: what speaks for each number, on maps whose poses are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mirage_steps.errors import UserError
from mirage_steps.files.estimator import ESTIMATOR, save_estimator
from mirage_steps.files.h5 import create_h5, write_names
from mirage_steps.files.manifest import Entry, read_manifest, write_manifest
from mirage_steps.method.foreground import ForegroundModel
from mirage_steps.method.number_of_poses import judge_number, nearest, shared_poses
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.poses import PoseModel
from mirage_steps.tools import number_of_poses

PATCHES, CHANNELS = 25, 3
HOW = {"starts": 3, "halves": 2, "seed": 0}


def _maps(degrees: np.ndarray, noise: float = 0.02, styles: float = 0.0) -> np.ndarray:
    """Maps (n, d) that change smoothly with the angle; half of them in another style."""
    rng = np.random.default_rng(0)
    radians, d = np.radians(degrees)[:, None], PATCHES * CHANNELS
    waves = [rng.normal(size=(2, d)) / turns for turns in (1, 2, 3)]
    maps = sum(
        np.sin(turns * radians) * sine + np.cos(turns * radians) * cosine
        for turns, (sine, cosine) in enumerate(waves, 1)
    )
    style = np.where(np.arange(len(maps)) % 2, 1, -1)[:, None] * rng.normal(size=d) * styles
    return (maps + style + noise * rng.normal(size=maps.shape)).astype(np.float32)


def _bunches(count: int, images: int = 320) -> np.ndarray:
    """Angles near ``count`` evenly spaced ones."""
    rng = np.random.default_rng(1)
    return (rng.integers(count, size=images) * 360 / count + rng.normal(size=images)) % 360


def test_bunches_of_images_are_most_stable_and_separate_at_their_number():
    degrees = _bunches(8)
    found = [judge_number(_maps(degrees), k, **HOW, azimuths=degrees) for k in (5, 8, 13)]
    for key in ("stability", "silhouette"):
        assert np.argmax([one[key] for one in found]) == 1, key
    assert found[1]["stability"] > 0.99 and found[1]["median_error_deg"] < 2
    assert found[1]["smallest"] == np.bincount(np.round(degrees / 45).astype(int) % 8).min()
    assert found[1]["order_errors"] == found[1]["order_errors_of_halves"] == 0
    assert not found[1]["shared"]


def test_on_an_even_circle_the_error_falls_as_that_of_equal_parts():
    degrees = np.random.default_rng(2).uniform(0, 360, 600)
    degrees[::5] = np.nan  # unknown
    angles = np.where(np.isnan(degrees), 10.0, degrees)
    for k in (6, 12, 18):
        found = judge_number(_maps(angles), k, **HOW, azimuths=degrees)
        assert found["median_error_deg"] == pytest.approx(90 / k, rel=0.25)
        assert found["order_errors"] == 0 and not found["shared"]
    assert "median_error_deg" not in judge_number(_maps(angles), 6, **HOW)


def test_poses_are_fitted_as_the_pipeline_fits_them(monkeypatch):
    maps, fit, asked = _maps(np.arange(0, 360, 3.0)), PoseModel.fit, []
    monkeypatch.setattr(PoseModel, "fit", lambda *args: asked.append(args[3:]) or fit(*args))
    judge_number(maps, 6, **HOW, method="spectral", normalized=True)
    assert set(asked) == {(3, 0, "spectral", True)}


def test_noise_is_not_stable():
    noise = np.random.default_rng(3).normal(size=(300, 75)).astype(np.float32)
    assert judge_number(noise, 8, **HOW)["stability"] < 0.1


@pytest.mark.parametrize("styles", [0.0, 0.3])
def test_clusters_of_one_pose_in_two_styles_are_found(styles):
    """Styles are closer to each other than neighboring poses are."""
    degrees = _bunches(12, 600)
    maps = _maps(degrees, styles=styles)
    for k in (12, 24) if styles else (12,):
        model = PoseModel.fit(maps[:, None].copy(), np.ones((600, 1), bool), k, 10, 0)
        labels = nearest(maps, model)
        found = shared_poses(model.centroids, np.bincount(labels, minlength=k))
        true = np.array([np.median(np.round(degrees[labels == p] / 30) % 12) for p in range(k)])
        expected = [np.flatnonzero(true == pose).tolist() for pose in range(12)]
        assert found == sorted(group for group in expected if len(group) > 1)
        assert len(found) == k - 12


def test_three_clusters_of_a_pose_are_one_group_also_across_the_first():
    angles = np.radians(np.arange(8) * 45)
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    for turn in range(3):
        other = [circle[0] + (0, 0, height) for height in (0.1, 0.2)]
        centroids = np.roll(np.concatenate([circle[:1], other, circle[1:]]), -turn, axis=0)
        expected = sorted((place - turn) % 10 for place in range(3))
        assert shared_poses(centroids, np.ones(10, int)) == [expected]
    assert shared_poses(circle, np.ones(8, int)) == []


# The command


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run of 240 images in eight poses, whose first is two clusters, in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = {"datasets": {"mine": {"source": {"kind": "procedural"}, "poses": {"k": 9}}}}
    Path("my.yaml").write_text(yaml.safe_dump(config))
    degrees, folder = _bunches(8, 240), tmp_path / "results/mine"
    maps = _maps(degrees).reshape(-1, PATCHES, CHANNELS)
    valid = np.ones(maps.shape[:2], bool)
    names = [f"{number}.png" for number in range(len(maps))]
    (folder / "pose_space").mkdir(parents=True)
    with create_h5(folder / "pose_space/maps.h5") as file:
        file["maps"], file["valid"] = maps, valid
        write_names(file, names)
    entries = [Entry(name, Path(name), 64, 64, a) for name, a in zip(names, degrees, strict=True)]
    write_manifest(folder / "manifest.csv", entries)
    pca = Pca(np.zeros(3), np.eye(3), np.ones(3), np.ones(3) / 3)
    fitted = PoseModel.fit(maps.copy(), valid, 8, 3, 0)
    other = fitted.centroids[:1] + 0.01 * np.random.default_rng(5).normal(size=(1, 75))
    twice = np.concatenate([fitted.centroids[:1], other, fitted.centroids[1:]]).astype(np.float32)
    poses = (replace(fitted, centroids=twice),)
    model = PoseEstimator({}, ForegroundModel(pca, 0, 1, 0.0), 0.06, pcas=(pca,), poses=poses)
    save_estimator(folder / "poses" / ESTIMATOR, model)
    return folder


def _main(**given) -> None:
    number_of_poses.main("mine", halves=1, configfile=(Path("my.yaml"),), **given)


def test_the_command_prints_a_table_and_writes_it_with_a_picture(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    _main(k=(5, 8, 200))
    text = capsys.readouterr().out
    rows = text.partition("---\n")[2].partition("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == ["5", "8", "9*"]
    assert "Poses of the run that are the same: 0 and 1." in text
    found = json.loads((run / "number_of_poses/number_of_poses.json").read_text())
    (category,) = found["categories"]
    assert category["run"] == {"k": 9, "shared": [[0, 1]]} and category["images"] == 240
    best = max(category["numbers"], key=lambda row: row["stability"])
    assert best["k"] == 8 and best["median_error_deg"] < 2
    assert (run / "number_of_poses/number_of_poses.png").stat().st_size > 1000
    # Nothing else changes, and fewer images may be asked for.
    assert all(path.read_bytes() == content for path, content in before.items())
    _main(k=(4,), images=30)
    assert "numbers of poses, 30 images" in capsys.readouterr().out


def test_what_is_missing_or_too_little_is_one_line(run):
    for given, told in (
        ({"k": (3, 8)}, "--k 3: must be at least 4"),
        ({"k": ()}, "--k 0: must be at least 4"),
        ({"k": (5,), "images": 12}, "--k 5: 12 images are too few"),
    ):
        with pytest.raises(UserError, match=told):
            _main(**given)
    with pytest.raises(UserError, match="NAME yours: no such data set"):
        number_of_poses.main("yours", configfile=(Path("my.yaml"),))
    (run / "pose_space/maps.h5").unlink()
    with pytest.raises(UserError, match=r"maps.h5: no such file"):
        _main()
    assert not (run / "number_of_poses").exists()


def test_without_true_azimuths_the_data_alone_speak(run, capsys):
    entries = [replace(one, azimuth_deg=None) for one in read_manifest(run / "manifest.csv")]
    write_manifest(run / "manifest.csv", entries)
    _main(k=(8,))
    text = capsys.readouterr().out
    assert "stability" in text and "error" not in text
