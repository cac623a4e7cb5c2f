"""Poses that the user merges, drops and names."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from mirage_steps import contact_sheet, pose_names, poses, settings
from mirage_steps.errors import UserError
from mirage_steps.files import plots, tiles
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import create_h5, write_names
from mirage_steps.files.labels import read_edits
from mirage_steps.method.foreground import ForegroundModel
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.poses import PoseModel
from mirage_steps.settings import Dataset
from mirage_steps.sources.checks import check_dataset

K, COUNT = 6, 60
HEADER = "pose,action,value\n"
PCA = Pca(np.zeros(4), np.eye(4)[:3], np.ones(3), np.ones(3))


def _table(folder: Path, rows: str) -> Path:
    path = folder / "edits.csv"
    path.write_text(HEADER + rows)
    return path


def _maps(per_pose: int = COUNT // K) -> np.ndarray:
    """Maps (n, 4, 3) of poses around a circle, ``per_pose`` of each."""
    turn = np.repeat(np.arange(K), per_pose) * 2 * np.pi / K
    maps = np.random.default_rng(0).normal(scale=0.01, size=(len(turn), 4, 3))
    maps[:, 0, :2] += np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return maps.astype(np.float32)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """What the steps read."""
    names = [f"{number:02d}.png" for number in range(COUNT)]
    with create_h5(tmp_path / "maps.h5") as file:
        file["maps"], file["valid"] = _maps(), np.ones((COUNT, 4), bool)
        write_names(file, names)
    with create_h5(tmp_path / "crops.h5") as file:
        file["images"] = np.zeros((COUNT, 8, 8, 3), np.uint8)
        write_names(file, names)
    foreground = ForegroundModel(PCA, 0, 1, 0.0)
    save_estimator(tmp_path / ESTIMATOR, PoseEstimator({}, foreground, 0.06, pcas=(PCA,)))
    return {
        "maps": tmp_path / "maps.h5",
        "crops": tmp_path / "crops.h5",
        "estimator": tmp_path / ESTIMATOR,
    }


def _labels(folder: Path) -> np.ndarray:
    return np.array([int(row["pose"]) for row in read_csv(folder / "poses.csv")])


def _found(files: dict, out: Path, edits: Path | None = None, **others: object) -> np.ndarray:
    """Poses of the images, by both steps."""
    chosen = settings.Poses(k=K, starts=2, edits=str(edits or "none"), **others)
    poses.main(maps=files["maps"], estimator=files["estimator"], out=out, poses=chosen)
    _name(files, out, edits=edits, k=K)
    return _labels(out)


def _name(files: dict, out: Path, **given: object) -> None:
    found = {"poses": out / "poses.csv", "estimator": out / ESTIMATOR, "crops": files["crops"]}
    pose_names.main(**found, out=out, **given)


def _names(out: Path) -> list[str]:
    return json.loads((out / "names.json").read_text())["names"]


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_the_step_merges_drops_and_names_and_photos_get_the_same(files, tmp_path, method):
    before = _found(files, tmp_path / "before", method=method)
    drawn, titles = plots.poses, []
    plots.poses = lambda *given: titles.append(given[2])
    try:
        edits = _table(tmp_path, "4,merge,1\n2,drop,\n1,name,front\n")
        after = _found(files, tmp_path / "after", edits, method=method)
    finally:
        plots.poses = drawn
    about = json.loads((tmp_path / "after/poses.json").read_text())
    assert (about["k"], about["found"]) == (4, [[0], [1, 4], [3], [5]])
    assert titles == [["pose 0 (was [0])", "front (was [1, 4])", "pose 2 (was [3])",
                       "pose 3 (was [5])"]]  # fmt: skip
    new = {0: 0, 1: 1, 4: 1, 3: 2, 5: 3}
    for old, number in new.items():
        assert set(after[before == old]) == {number}
    # What was dropped is at the nearest pose that is left, and far from it.
    assert set(after[before == 2]) <= set(new.values())
    estimator = load_estimator(tmp_path / "after" / ESTIMATOR, "poses")
    rows = read_csv(tmp_path / "after/poses.csv")
    far = np.array([float(row["distance"]) > estimator.far for row in rows])
    assert far[before == 2].all() and far[before != 2].sum() <= 1
    assert estimator.far == load_estimator(tmp_path / "before" / ESTIMATOR).far
    assert estimator.number_of_poses == 4
    assert _names(tmp_path / "after") == ["pose 0", "front", "pose 2", "pose 3"]
    again = estimator.assign(_maps(), np.ones((COUNT, 4), bool), np.zeros(COUNT, int))
    np.testing.assert_array_equal(again[0], after)


def test_names_alone_change_nothing_but_names_and_picture(files, tmp_path):
    before = _found(files, tmp_path / "before")
    np.testing.assert_array_equal(
        _found(files, tmp_path / "after", _table(tmp_path, "3,name,rear\n")), before
    )
    for name in ("poses.csv", "poses.json", ESTIMATOR):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    names = ["pose 0", "pose 1", "pose 2", "rear", "pose 4", "pose 5"]
    assert _names(tmp_path / "after") == names


def test_a_data_set_that_uses_another_s_poses_edits_nothing_again(files, tmp_path):
    edits = _table(tmp_path, "4,merge,1\n2,drop,\n1,name,front\n")
    _found(files, tmp_path / "first", edits)
    chosen = settings.Poses(k=K, edits=str(edits))
    stored = tmp_path / "first" / ESTIMATOR
    given = {"maps": files["maps"], "estimator": files["estimator"], "stored": stored}
    poses.main(**given, out=tmp_path / "second", poses=chosen)
    assert (tmp_path / "second" / ESTIMATOR).read_bytes() == stored.read_bytes()
    _name(files, tmp_path / "second", stored=tmp_path / "first/names.json", k=K)
    assert _names(tmp_path / "second") == ["pose 0", "front", "pose 2", "pose 3"]


def test_names_of_other_poses_than_there_are_are_one_line(files, tmp_path):
    _found(files, tmp_path / "out")
    with pytest.raises(UserError, match="has 6 poses, not the 5 that .*--forcerun poses"):
        _name(files, tmp_path / "out", edits=_table(tmp_path, "4,merge,1\n"), k=K)


def test_poses_of_each_category_are_edited_and_keep_their_circle():
    centroids = np.arange(24, dtype=np.float32).reshape(12, 2)
    models = [PoseModel(part, np.zeros((1, 2), np.float32)) for part in np.split(centroids, 2)]
    estimator = PoseEstimator({}, ForegroundModel(PCA, 0, 1, 0.0), 0.0, poses=tuple(models))
    into = np.array([0, 1, 1, 3, 4, 5, 6, 7, -1, 9, 10, 11])
    edited = estimator.edited(into)
    assert (edited.k, edited.number_of_poses) == (5, 10)
    flat = centroids[:, None]  # a map of one patch each
    categories = np.repeat([0, 1], 6)
    found, gaps = edited.assign(flat, np.ones((12, 1), bool), categories)
    assert found.tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    assert np.flatnonzero(gaps).tolist() == [8]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("99,drop,\n", "line 2: '99' is no pose; give a number, 0 to 11"),
        ("-1,drop,\n", "line 2: '-1' is no pose"),
        ("3,merge,x\n", "line 2: 'x' is no pose"),
        ("3,merge,²\n", "line 2: '²' is no pose"),
        (f"{'9' * 5000},drop,\n", "is no pose; give a number, 0 to 11"),
        ("3,merge,3\n", "line 2: merge 3: give merge and another pose"),
        ("3,merge,5\n5,drop,\n", "line 2: merge 5: is merged or dropped itself"),
        ("3,merge,5\n5,merge,6\n", "line 2: merge 5: is merged or dropped itself"),
        ("3,drop,\n3,drop,\n", "line 3: pose 3 is edited in line 2; give one row"),
        ("3,drop,\n3,name,rear\n", "line 3: pose 3 is edited in line 2"),
        ("".join(f"{pose},drop,\n" for pose in range(12)), "leaves 0 poses; leave at least 4"),
        ("".join(f"{pose},merge,0\n" for pose in range(1, 10)), "leaves 3 poses"),
        ("3,frop,\n", "line 2: frop : give merge and another pose, drop and nothing, or name"),
        ("3,drop,5\n", "line 2: drop 5: give merge"),
        ("3,name,\n", "line 2: name : give merge"),
        ("3,name,front, left\n", "line 2: needs the cells pose, action, value"),
        (f"3,name,{'x' * 17}\n", "a text of at most 16 letters"),
        ("", "has no rows"),
    ],
)
def test_a_bad_table_is_one_line_before_anything_starts(tmp_path, rows, message):
    edits = _table(tmp_path, rows)
    with pytest.raises(UserError) as error:
        read_edits(edits, 12)
    told = str(error.value)
    assert told.startswith(f"poses.edits {edits}") and message in told and "\n" not in told
    chosen = Dataset(
        source={"kind": "procedural"},
        backbone={"model": "efficientnet-lite0"},
        fid={"samples": 200},
        poses={"k": 12, "edits": str(edits)},
    )
    with pytest.raises(UserError, match="^poses.edits"):
        check_dataset(chosen, tmp_path)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"sheet": {"references": ["front", 10]}}, "sheet.references 10: there are 10 poses, 0 to"),
        ({"cameras": {"front": 3, "left": [10]}}, "cameras.left 10: there are 10 poses, 0 to 9"),
        ({"sheet": {"references": [9]}, "cameras": {"front": 9}}, ""),
    ],
)
def test_keys_that_name_poses_are_checked_by_the_numbers_after_edits(tmp_path, sections, told):
    edits = _table(tmp_path, "3,merge,5\n4,drop,\n0,name,front\n")
    chosen = Dataset(
        source={"kind": "procedural"},
        backbone={"model": "efficientnet-lite0"},
        fid={"samples": 200},
        poses={"k": 12, "edits": str(edits)},
        **sections,
    )
    with (
        pytest.raises(UserError, match=f"^{told}.*, after poses.edits$") if told else nullcontext()
    ):
        check_dataset(chosen, tmp_path)


def test_tables_that_are_missing_or_of_other_columns_or_categories_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^poses\.edits .*gone\.csv: no such file"):
        read_edits(tmp_path / "gone.csv", 12)
    (tmp_path / "other.csv").write_text("pose;action;value\n3;drop;\n")
    with pytest.raises(
        UserError, match="line 2: needs the cells pose, action, value, and no more, with commas"
    ):
        read_edits(tmp_path / "other.csv", 12)
    with pytest.raises(UserError, match="merge 8: give another pose of its category"):
        read_edits(_table(tmp_path, "3,merge,8\n"), 6, 2)
    with pytest.raises(UserError, match="leaves 5 and 6 poses; .*equally many"):
        read_edits(_table(tmp_path, "3,drop,\n"), 6, 2)


def test_a_name_with_dollars_is_drawn_as_it_is(files, tmp_path):
    _found(files, tmp_path / "out", _table(tmp_path, "3,name,$_{$\n"))
    assert (tmp_path / "out/poses.png").stat().st_size > 1000


def test_a_damaged_table_leaves_nothing_written(files, tmp_path):
    with pytest.raises(UserError, match="'6' is no pose"):
        _found(files, tmp_path / "out", _table(tmp_path, "6,drop,\n"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stem", ["objects", "reference-front", "photos"])
def test_names_are_drawn_on_every_sheet(tmp_path, monkeypatch, stem):
    told, out = [], tmp_path / "out"
    monkeypatch.setattr(tiles.ImageDraw.ImageDraw, "text", lambda *given, **_: told.append(given))
    (tmp_path / "names.json").write_text('{"names": ["front", "pose 1"]}')
    path, given = tmp_path / f"{stem}.h5", {"names": tmp_path / "names.json", "out": out}
    for categories, names in ((1, ["front", "pose 1"]), (2, ["pose 0", "pose 1"])):
        with create_h5(path) as file:
            file["images"], file["reference"] = np.zeros((3, 2, 8, 8, 3), np.uint8), np.zeros(3)
            file.attrs.update(title="title", categories=categories)
        reference = stem == "reference-front"
        record = "contact_sheet-front" if reference else "contact_sheet"
        assert contact_sheet.main(objects=path, **given, shown=2) == [record]
        assert [one[2] for one in told[-2:]] == names and told[0][2].startswith("title; red")
        names = ["reference-front"] * 2 if reference else ["contact_sheet", "turntable"]
        assert sorted(one.name for one in out.iterdir()) == sorted(
            f"{name}{end}" for name, end in zip(names, (".png", ".gif"), strict=True)
        )


def test_names_or_numbers_are_drawn_above_the_columns_of_a_sheet(monkeypatch):
    told = []
    monkeypatch.setattr(tiles.ImageDraw.ImageDraw, "text", lambda *given, **_: told.append(given))
    tiles.contact_sheet(np.zeros((1, 2, 8, 8, 3), np.uint8), [0], ["front", "pose 1"], "title")
    assert [given[2] for given in told] == ["title", "front", "pose 1"]
    tiles.contact_sheet(np.zeros((1, 2, 8, 8, 3), np.uint8), [0], (4, 5), "title")
    assert [given[2] for given in told[3:]] == ["title", "pose 4", "pose 5"]
