"""Work divided among jobs gives what a single job gives, to the byte."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from workflow import Project

from mirage_steps import features, gather, masks, settings, views
from mirage_steps.errors import UserError
from mirage_steps.evaluation_sets import evaluation_sets
from mirage_steps.files.shards import Shard

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("count", "batch", "of"),
    [(40, 8, 1), (40, 8, 2), (41, 8, 3), (5, 8, 7), (100, 1, 7), (0, 4, 2)],
)
def test_shards_cover_all_rows_once_with_borders_between_batches(count, batch, of):
    shards = [Shard(number, of).rows(count, batch) for number in range(1, of + 1)]
    assert [row for rows in shards for row in rows] == list(range(count))
    assert all(rows.start % batch == 0 for rows in shards if rows)
    batches = [-(-len(rows) // batch) for rows in shards]
    assert max(batches) - min(batches) <= 1


@pytest.mark.parametrize("text", ["0-of-2", "3-of-2", "2", "a-of-b", "1-of-0", "1-of-2 "])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--shard .*: give one such as 2-of-7"):
        Shard.parse(text)


def _content(path: Path) -> dict:
    with h5py.File(path) as file:
        datasets = {name: (data.dtype, data.chunks, data[:]) for name, data in file.items()}
        return {"attributes": dict(file.attrs), **datasets}


def _require_equal(path: Path, other: Path) -> None:
    one, two = _content(path), _content(other)
    assert one.pop("attributes") == two.pop("attributes") and one.keys() == two.keys()
    for name, (dtype, chunks, values) in one.items():
        assert (dtype, chunks) == two[name][:2], name
        np.testing.assert_array_equal(values, two[name][2])


@pytest.mark.parametrize("of", [2, 7])
@pytest.mark.parametrize("cropped", [False, True])
def test_features_are_the_same(finished, tmp_path, of, cropped):
    backbone = settings.Backbone(
        model=str(ROOT / "weights/stand-in-dinov2-cars"), resolution=64, batch_size=8
    )
    arguments = {"manifest": finished["manifest.csv"], "backbone": backbone, "device": "cpu"}
    if cropped:
        arguments["windows"] = finished["foreground/foreground.csv"]
    assert features.main(**arguments, out=tmp_path / "one") == ["features"]
    shards = []
    for number in range(1, of + 1):
        shard = f"{number}-of-{of}"
        assert features.main(**arguments, out=tmp_path, shard=shard) == [f"features.{shard}"]
        shards.append(tmp_path / f"tokens.{shard}.h5")
    gather.join(tuple(shards), tmp_path / "tokens.h5")
    _require_equal(tmp_path / "tokens.h5", tmp_path / "one/tokens.h5")
    if not cropped:
        one, two = _content(tmp_path / "tokens.h5"), _content(finished["features/tokens.h5"])
        np.testing.assert_array_equal(one["patch_tokens"][2], two["patch_tokens"][2])


@pytest.mark.parametrize("of", [2, 7])
@pytest.mark.parametrize("name", ["no-mv", "untrained", "mv-bg-no-hag", "mv-bg-hag"])
def test_generated_images_are_the_same(finished, tmp_path, name, of):
    chosen = evaluation_sets({})[name]
    shards = []
    for number in range(1, of + 1):
        views.main(
            model=finished["training/model.safetensors"],
            poses=finished["poses/poses.csv"],
            out=tmp_path,
            sampler=chosen.source,
            untrained=not chosen.trained,
            samples=12,
            guidance=settings.Guidance(gamma=1.5 if chosen.guided else 1.0),
            views=settings.Views(steps=3, batch_size=8),
            shard=f"{number}-of-{of}",
            device="cpu",
        )
        shards.append(tmp_path / f"images.{number}-of-{of}.h5")
        record = {"step": "views", "settings": {"seed": 3}, "seconds": 2.0}
        record["peak_memory_mb"] = 100 + number
        shards[-1].with_name(f"views.{number}-of-{of}.run.json").write_text(json.dumps(record))
    assert not (tmp_path / "images.png").exists()
    gather.main(shards=tuple(shards), out=tmp_path)
    made = finished[f"sets/{name}"]
    _require_equal(tmp_path / "images.h5", made / "images.h5")
    assert (tmp_path / "images.png").read_bytes() == (made / "images.png").read_bytes()
    record = json.loads((tmp_path / "views.run.json").read_text())
    assert (record["seconds"], record["peak_memory_mb"]) == (2.0 * of, 100 + of)
    assert record["settings"] == {"seed": 3, "shard": f"all of {of}"}


@pytest.mark.parametrize("of", [2, 7])
def test_masks_are_the_same(finished, tmp_path, of):
    chosen = settings.load(yaml.safe_load((finished.folder / "mini.yaml").read_text()))
    chosen, images = chosen.dataset("mini"), finished["sets/mv-bg-hag/images.h5"]
    shards = []
    for number in range(1, of + 1):
        shard = f"{number}-of-{of}"
        named = masks.main(
            images=images,
            estimator=finished["foreground/pose_estimator.safetensors"],
            out=tmp_path,
            backbone=chosen.backbone.model_copy(update={"batch_size": 4}),
            masks=chosen.masks,
            shard=shard,
            device="cpu",
        )
        assert named == [f"masks.{shard}"]
        shards.append(tmp_path / f"images.{shard}.h5")
    assert not (tmp_path / "masks.json").exists()
    gather.main(shards=tuple(shards), out=tmp_path, images=images)
    made = finished["sets/mv-nobg-hag"]
    for file in ("masks.json", "masks.png"):
        assert (tmp_path / file).read_bytes() == (made / file).read_bytes(), file
    one, two = _content(tmp_path / "images.h5"), _content(made / "images.h5")
    assert one.keys() == two.keys() and one["attributes"] == two["attributes"]
    for name in one.keys() - {"attributes"}:
        np.testing.assert_array_equal(one[name][2], two[name][2])


@pytest.fixture
def pieces(tmp_path) -> tuple[Path, ...]:
    paths = tuple(tmp_path / f"tokens.{number}-of-2.h5" for number in (1, 2))
    for path, start in zip(paths, (0, 3), strict=True):
        with h5py.File(path, "w") as file:
            file["values"] = np.zeros((3, 2), np.float32)
            file.attrs["rows"] = [start, start + 3, 6]
    return paths


def test_shards_that_do_not_fit_are_refused(pieces, tmp_path):
    with h5py.File(pieces[1], "a") as file:
        file.attrs["model"] = "another"
    with pytest.raises(UserError, match=r"tokens.2-of-2.h5: attributes or shapes differ"):
        gather.main(shards=pieces, out=tmp_path)
    assert not (tmp_path / "tokens.h5").exists()


@pytest.mark.parametrize("rows", [(2, 6, 6), (4, 6, 6), (3, 5, 6)])
def test_shards_of_two_batch_sizes_are_refused(pieces, tmp_path, rows):
    with h5py.File(pieces[1], "a") as file:
        file.attrs["rows"] = rows
    with pytest.raises(UserError, match=f"2-of-2.h5: has rows {rows[0]} to .*batch_size changed"):
        gather.main(shards=pieces, out=tmp_path)
    assert not (tmp_path / "tokens.h5").exists()


def test_missing_or_mixed_up_shards_are_refused(pieces, tmp_path):
    with pytest.raises(UserError, match="1 of 2 is .*, not tokens.1-of-2.h5"):
        gather.main(shards=pieces[::-1], out=tmp_path)
    with pytest.raises(UserError, match="1 of 1"):
        gather.main(shards=pieces[:1], out=tmp_path)
    pieces[1].unlink()
    with pytest.raises(UserError, match="tokens.2-of-2.h5: no such file"):
        gather.main(shards=pieces, out=tmp_path)
    with pytest.raises(UserError, match="--shards: give the files"):
        gather.main(shards=(), out=tmp_path)


@pytest.mark.slow
def test_the_whole_graph_gives_the_same_poses_and_table(finished, tmp_path):
    project = Project(tmp_path / "seven")
    path = project.folder / "mini.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "shards": 7}))
    planned = project.planned("results/mini/fid.txt")
    assert planned["features"] == planned["crop_features"] == 7 and planned["views"] == 28
    assert planned["masks"] == 28 and planned["gather_masks"] == 4
    project.run("--", "results/mini/fid.txt")
    for file in ("poses/poses.csv", "poses/poses.json", "fid.txt"):
        assert project[file].read_bytes() == finished[file].read_bytes(), file
    assert not list(project["features"].glob("tokens.*-of-*.h5")), "shards go with the whole"
    assert project.planned("results/mini/fid.txt") == {}
