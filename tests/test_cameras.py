"""Cameras of poses and meshes of photos, as steps."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_visual_hull import CIRCLE, silhouettes
from workflow import ROOT

from mirage_steps import cameras, mesh, novel_views, settings
from mirage_steps.cameras import errors
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import identity
from mirage_steps.files.cameras import CAMERAS, camera_record, read_cameras
from mirage_steps.files.manifest import Entry, write_manifest
from mirage_steps.files.meshes import PhotoMesh
from mirage_steps.method import camera_fit
from mirage_steps.method.cameras import Camera
from mirage_steps.method.texture import TexturedMesh


def test_error_is_that_of_the_best_start_and_sense():
    truth = np.array([10.0, 40, 100, 170, 260])
    found = errors((77 - truth) % 360, truth)
    assert found["median_error_deg"] == 0
    assert found["equal_spacing_error_deg"] > 5


def test_cameras_are_read_as_written(tmp_path):
    rows = [camera_record(pose, camera, 1.0) for pose, camera in enumerate(CIRCLE)]
    (tmp_path / "cameras.json").write_text(json.dumps({"poses": rows}))
    assert read_cameras(tmp_path / "cameras.json", range(12)) == CIRCLE
    with pytest.raises(UserError, match="lacks pose 12"):
        read_cameras(tmp_path / "cameras.json", range(13))
    (tmp_path / "cameras.json").write_text("{}")
    with pytest.raises(UserError, match="not readable"):
        read_cameras(tmp_path / "cameras.json", range(3))
    with pytest.raises(UserError, match="not there"):
        read_cameras(tmp_path / "none.json", range(3))


def test_uneven_gaps_start_by_the_distances_of_maps(monkeypatch):
    true = np.array([0, 20, 50, 120, 150, 180, 240, 300.0])
    curve = np.stack([np.cos(np.radians(true)), np.sin(np.radians(true))], -1)
    maps = np.broadcast_to(curve[:, None, None], (8, 4, 4, 2))
    seen = []

    def first_only(masks, cameras, **_):
        seen.append([camera.azimuth_deg for camera in cameras])
        return camera_fit.Fit(tuple(cameras), float(len(seen)))

    monkeypatch.setattr(camera_fit, "fit", first_only)
    camera_fit.find(np.ones((8, 4, 4)), maps)
    np.testing.assert_allclose(seen[0], true, atol=15)


def test_true_azimuths_stay_where_they_are_while_the_shape_is_fitted():
    azimuths = np.arange(12) * 30.0
    true = [Camera(a, 15.0, 0.8, perspective=0.3) for a in azimuths]
    cabin = trimesh.creation.box((0.4, 0.36, 0.15)).apply_translation((-0.1, 0, 0.14))
    car = trimesh.util.concatenate([trimesh.creation.box((0.95, 0.4, 0.15)), cabin])
    masks = silhouettes(car, true, 16)
    curve = np.stack([np.cos(np.radians(azimuths)), np.sin(np.radians(azimuths))], -1)
    maps = masks[..., None] * (curve[:, None, None] + 0.1)
    free = {"perspective": False, "steps": 40, "size": 10}
    found = camera_fit.fit(masks, camera_fit.start(masks, azimuths), maps=maps, **free)
    moved = [one.azimuth_deg for one in found.cameras] - azimuths
    assert np.median(np.abs(moved)) < 4


def test_a_start_that_looks_best_at_first_may_lose(monkeypatch):
    def fitted(masks, cameras, *, steps, **_):
        turn = cameras[0].azimuth_deg
        return camera_fit.Fit(tuple(cameras), turn if steps == 40 else -turn)

    monkeypatch.setattr(camera_fit, "fit", fitted)
    found, losses = camera_fit.find(
        np.ones((3, 4, 4)), np.random.default_rng(0).random((3, 4, 4, 2))
    )
    assert found.cameras[0].azimuth_deg == 30  # of 0 and 30, in both senses
    assert losses == {1: 0, -1: 0}


def test_a_saved_mesh_is_read_with_its_texture(tmp_path):
    box = trimesh.creation.box((0.9, 0.4, 0.3))
    uv = np.random.default_rng(0).random((8, 2))
    texture = np.full((16, 16, 3), (200, 30, 30), np.uint8)
    mesh = TexturedMesh(box.vertices, box.faces, uv, texture, 1.0)
    blank = np.zeros((1, 8, 8, 3), np.uint8)
    PhotoMesh(mesh, blank, blank[..., 0], (CIRCLE[0],), 1.0).save(tmp_path, "a car")
    glb = trimesh.load(tmp_path / "a car.glb", force="mesh")
    np.testing.assert_allclose(glb.extents, (0.4, 0.3, 0.9), atol=1e-6)
    assert glb.volume > 0
    material = glb.visual.material
    assert np.asarray(material.baseColorTexture.convert("RGB"))[0, 0].tolist() == [200, 30, 30]
    obj = trimesh.load(tmp_path / "a car.obj", force="mesh")
    np.testing.assert_allclose(obj.extents, (0.9, 0.4, 0.3), atol=1e-6)
    assert np.asarray(obj.visual.material.image.convert("RGB"))[0, 0].tolist() == [200, 30, 30]
    assert obj.visual.uv.shape[1] == 2


@pytest.fixture
def photo(tmp_path):
    """The record, views and masks of a photo of a box, and the cameras."""
    (tmp_path / "box.views").mkdir()
    shape = trimesh.creation.box((0.9, 0.4, 0.3))
    for pose, mask in enumerate(silhouettes(shape, CIRCLE, 32)):
        image = Image.fromarray(np.uint8(255 * mask))
        image.save(tmp_path / f"box.views/pose_{pose:02d}.mask.png")
        image.convert("RGB").save(tmp_path / f"box.views/pose_{pose:02d}.png")
    for place in ("run/cameras", "run/training"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "run/training/model.safetensors").write_text("of this run")
    model = identity(tmp_path / "run/training/model.safetensors") | {"path": "moved"}
    record = {"poses": list(range(12)), "settings": {"model": model}}
    (tmp_path / "box.json").write_text(json.dumps(record))
    rows = [camera_record(pose, camera, 1.0) for pose, camera in enumerate(CIRCLE)]
    (tmp_path / "run" / CAMERAS).write_text(json.dumps({"poses": rows}))
    return tmp_path


def test_a_photo_becomes_a_mesh(photo, coarse):
    Image.new("L", (32, 32)).save(photo / "box.views/pose_03.mask.png")
    done = mesh.main((photo / "box.json",), run=photo / "run", out=photo / "out", voxels=24)
    assert done == ["box.mesh"]
    found = {path.name for path in (photo / "out").iterdir()}
    assert found == {"box.glb", "box.obj", "box.mtl", "box.texture.png", "box.mesh.png"}
    box = trimesh.load(photo / "out/box.glb", force="mesh")
    box.merge_vertices(merge_tex=True, merge_norm=True)
    assert box.is_volume


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("record", "not a record of novel_views"),
        ("model", "made by another model than that of .*; give the run that made it by --run"),
        ("cameras", "cameras.json: not there; a run makes it by snakemake --cores 2 "),
        ("foreign", "box.obj: exists already; give another --out"),
        ("mask", "pose_05.mask.png: cannot be read"),
        ("size", "pose_05.png: has another size than pose_00.png; make the views again"),
        ("empty", "box.json: masks of 2 of 12 views"),
        ("two", "box.json: masks of 2 of 2 views"),
    ],
)
def test_what_makes_no_mesh_is_one_line(photo, change, message):
    if change == "record":
        (photo / "box.json").write_text("{}")
    if change == "model":
        (photo / "run/training/model.safetensors").write_text("trained again")
    if change == "cameras":
        (photo / "run" / CAMERAS).unlink()
    if change == "foreign":
        (photo / "out").mkdir()
        (photo / "out/box.obj").write_text("mine")
    if change == "mask":
        (photo / "box.views/pose_05.mask.png").unlink()
    if change == "size":
        Image.new("RGB", (16, 16)).save(photo / "box.views/pose_05.png")
    if change == "empty":
        for pose in range(2, 12):
            Image.new("L", (32, 32)).save(photo / f"box.views/pose_{pose:02d}.mask.png")
    if change == "two":
        record = json.loads((photo / "box.json").read_text()) | {"poses": [0, 1]}
        (photo / "box.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        mesh.main((photo / "box.json",), run=photo / "run", out=photo / "out", voxels=24)
    assert [path.name for path in photo.glob("out/*")] == ["box.obj"] * (change == "foreign")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("numbers", "objects.h5: give the numbers of its objects by --objects"),
        ("many", "--objects 2: .*objects.h5 has 2 objects, 0 to 1"),
        ("model", "objects.h5: made by another model than that of"),
        ("photo", "--objects: are of objects.h5, which is not given"),
        ("ners", "object-1.ners: exists already; give another --out"),
    ],
)
def test_what_makes_no_mesh_of_a_generated_object_is_one_line(generated, change, message):
    words = {"run": generated / "run", "out": generated / "out", "ners": True, "objects": (1,)}
    record = generated / "sheet/objects.h5"
    if change == "numbers":
        words["objects"] = ()
    if change == "many":
        words["objects"] = (2,)
    if change == "model":
        (generated / "run/training/model.safetensors").write_text("trained again")
    if change == "photo":
        record = generated / "box.json"
    if change == "ners":
        (generated / "out/object-1.ners").mkdir(parents=True)
        (generated / "out/object-1.ners/metadata.json").write_text('{"extents": [1, 1, 1]}')
    with pytest.raises(UserError, match=message):
        mesh.main((record,), **words)
    assert not list(generated.glob("out/*.glb"))


@pytest.fixture
def generated(photo):
    """Two objects of a contact sheet: nothing, and the box of the photo."""
    (photo / "sheet").mkdir()
    views = [np.asarray(Image.open(one)) for one in sorted(photo.glob("box.views/pose_??.png"))]
    with h5py.File(photo / "sheet/objects.h5", "w") as file:
        file["images"] = np.stack([np.zeros_like(views), views])
        file["pose"] = np.arange(12)[None].repeat(2, 0)
    model = identity(photo / "run/training/model.safetensors")
    (photo / "sheet/sheet.run.json").write_text(json.dumps({"inputs": {"model": model}}))
    return photo


# NeRS


def read_for_ners(folder: Path) -> list[dict]:
    """Views as NeRS' README and the help of its ``main.py`` describe them.

    Cameras are those of PyTorch3D's ``look_at_view_transform``: at azimuth 0 on the z axis, at 90
    on the x axis, y up; x in the camera's frame points left, in normalized coordinates too.
    """
    about = json.loads((folder / "metadata.json").read_text())
    found = []
    for image in sorted(folder.glob("images/*.jpg")):
        a, e = np.radians([about[key][len(found)] for key in ("azimuths", "elevations")])
        place = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        left = np.cross([0, 1, 0], -place)
        left /= np.linalg.norm(left)
        mask = np.asarray(Image.open(folder / "masks" / f"{image.stem}.png").convert("L")) / 255
        with Image.open(image) as opened:
            assert opened.size == mask.shape[::-1]
        axes = np.stack([left, np.cross(-place, left), -place])
        found.append({"mask": mask > 0.5, "axes": axes, "place": place})
    assert len(found) == len(about["azimuths"]) == len(about["elevations"])
    return found


def test_ners_reads_the_views_with_their_cameras(tmp_path):
    # Neither of its sides is another's mirror image.
    parts = [((0.9, 0.4, 0.15), (0, 0, 0)), ((0.2, 0.1, 0.2), (0.3, 0.1, 0.15))]
    shape = trimesh.util.concatenate(
        [trimesh.creation.box(size).apply_translation(where) for size, where in parts]
    )
    seen = [
        Camera(one.azimuth_deg - 20, 10.0 + view, 0.6 + 0.02 * view, (0.05, -0.1), 0.3)
        for view, one in enumerate(CIRCLE)
    ]
    masks = silhouettes(shape, seen, 64)
    views = np.repeat(np.uint8(200 * masks)[..., None], 3, -1)
    uv = np.zeros((len(shape.vertices), 2))
    mesh = TexturedMesh(shape.vertices, shape.faces, uv, np.zeros((2, 2, 3), np.uint8), 1.0)
    made = PhotoMesh(mesh, views, masks, tuple(seen), 1.0)
    for _ in range(2):  # its own folder is replaced
        made.save_ners(tmp_path / "car.ners")
    extents = json.loads((tmp_path / "car.ners/metadata.json").read_text())["extents"]
    np.testing.assert_allclose(extents, np.array([0.4, 0.325, 0.9]) / 0.9)
    points = shape.sample(20_000, seed=0)[:, [1, 2, 0]]
    for view in read_for_ners(tmp_path / "car.ners"):
        assert view["mask"].any()
        x, y, depth = view["axes"] @ (points - view["place"] / 0.3).T
        # A field of view of 60 degrees across the image.
        x, y = (1 - one / depth / np.tan(np.radians(30)) for one in (x, y))
        side = len(view["mask"])
        column, row = (np.floor(one / 2 * side).astype(int) for one in (x, y))
        hit = np.zeros_like(view["mask"])
        hit[row, column] = True
        assert (hit & view["mask"]).sum() / (hit | view["mask"]).sum() > 0.85


def test_a_generated_object_becomes_a_mesh_and_a_folder_for_ners(generated, coarse, monkeypatch):
    def load(_):
        return SimpleNamespace(masks=lambda views: 255 * np.uint8(views[..., 0] > 127))

    monkeypatch.setattr(mesh, "_loaded", load)
    record = generated / "sheet/objects.h5"
    words = {"run": generated / "run", "out": generated / "out", "voxels": 24, "ners": True}
    assert mesh.main((record,), **words, objects=(1,)) == ["object-1.mesh"]
    assert trimesh.load(generated / "out/object-1.glb", force="mesh").volume > 0
    assert len(read_for_ners(generated / "out/object-1.ners")) == 12
    with pytest.raises(UserError, match="masks of 0 of 12 views"):
        mesh.main((record,), **words, objects=(0,))


# Cameras of a run


@pytest.fixture
def run(tmp_path) -> dict[str, Path]:
    """What the cameras are found from: two images each of a car in eight poses."""
    cabin = trimesh.creation.box((0.4, 0.36, 0.15)).apply_translation((-0.1, 0, 0.14))
    car = trimesh.util.concatenate([trimesh.creation.box((0.95, 0.4, 0.15)), cabin])
    azimuths = np.array([0, 40, 65, 90, 140, 180, 225, 300.0]).repeat(2)
    true = [Camera(a, 15.0, 0.8, perspective=0.3) for a in azimuths]
    masks = silhouettes(car, true, 16)
    curve = np.stack([np.cos(np.radians(azimuths)), np.sin(np.radians(azimuths)), azimuths * 0], -1)
    maps = masks[..., None] * (curve[:, None, None] + 0.1)
    names = [f"{n}.png" for n in range(16)]
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["maps"] = maps.reshape(16, 256, 3).astype(np.float32)
        file["valid"] = np.ones((16, 256), bool)
        file.create_dataset("image", data=names, dtype=h5py.string_dtype())
    rows = [f"{name},{n // 2},0" for n, name in enumerate(names)]
    (tmp_path / "poses.csv").write_text("\n".join(["image,pose,distance", *rows]) + "\n")
    (tmp_path / "poses.json").write_text(json.dumps({"k": 8, "categories": 1}))
    known = zip(names, azimuths, strict=True)
    entries = [Entry(name, tmp_path / name, 64, 64, angle) for name, angle in known]
    write_manifest(tmp_path / "manifest.csv", entries)
    given = {key: tmp_path / f"{key}.h5" for key in ("maps",)}
    given |= {key: tmp_path / f"{key}.csv" for key in ("poses", "manifest")}
    return given | {"out": tmp_path / "cameras"}


def test_cameras_of_a_run_have_azimuths_errors_and_the_front(run, monkeypatch):
    fit = camera_fit.fit
    quick = {"steps": 20, "size": 8}
    monkeypatch.setattr(camera_fit, "fit", lambda *args, **words: fit(*args, **words | quick))
    for front, ahead in ((0, True), (5, False)):
        cameras.main(**run, cameras=settings.Cameras(front=front))
        report = json.loads((run["out"] / "cameras.json").read_text())
        assert [row["pose"] for row in report["poses"]] == list(range(8))
        angle = report["poses"][0]["azimuth_deg"]
        assert (min(angle, 360 - angle) < 90) is ahead
    assert report["front"] == [5]
    (category,) = report["categories"]
    assert 0 <= category["median_error_deg"] < category["equal_spacing_error_deg"] + 5
    assert all(row["azimuth_uncertainty_deg"] >= 0 for row in report["poses"])
    assert len(read_cameras(run["out"] / "cameras.json", range(8))) == 8
    # Poses found anew have other cameras.
    labels = run["out"].parent / "poses/poses.csv"
    labels.parent.mkdir()
    labels.write_bytes(run["poses"].read_bytes())
    assert read_cameras(run["out"] / "cameras.json", range(8))
    labels.write_text(labels.read_text().replace(",0,0", ",1,0"))
    with pytest.raises(UserError, match="the poses were changed since; make it again by snakemake"):
        read_cameras(run["out"] / "cameras.json", range(8))


@pytest.mark.parametrize("left", [2, 6])
def test_a_pose_seen_from_the_left_settles_the_sense_of_turning(run, monkeypatch, caplog, left):
    true = [Camera(a, 15.0, 0.8, perspective=0.3) for a in (0, 40, 65, 90, 140, 180, 225, 300.0)]
    monkeypatch.setattr(cameras, "find", lambda *_: (cameras.Fit(tuple(true), 0.1), {1: 0.1}))
    monkeypatch.setattr(cameras, "refit", lambda *args: cameras.Fit(tuple(args[2]), 0.1))
    cameras.main(**run, cameras=settings.Cameras(front=0, left=left))
    found = read_cameras(run["out"] / "cameras.json", range(8))
    assert found[0].azimuth_deg == 0 and found[left].azimuth_deg < 180
    assert (found[0].elevation_deg > 0) is (left == 2)
    assert ("the opposite direction of rotation fits better" in caplog.text) is (left == 6)
    caplog.clear()
    cameras.main(**run, cameras=settings.Cameras(front=3))
    assert "--front 3: is 90 degrees from the object's plane" in caplog.text


BOX = trimesh.creation.box((0.9, 0.4, 0.3))


def shared_cameras() -> list[Camera]:
    """Those of poses, from which an object's own cameras differ."""
    rng = np.random.default_rng(0)
    return [
        replace(
            one,
            elevation_deg=22.0,
            scale=one.scale * np.exp(0.06 * rng.normal()),
            offset=tuple(0.02 * rng.normal(size=2)),
        )
        for one in CIRCLE
    ]


def test_an_object_has_cameras_of_its_own_near_those_of_its_poses():
    masks, shared = silhouettes(BOX, CIRCLE, 64), shared_cameras()
    masks[5] = 0
    own = camera_fit.refined(masks, shared)
    assert own[5] == shared[5]
    seen = [view for view in range(12) if view != 5]

    def wrong(cameras):
        scale = np.log([cameras[view].scale / CIRCLE[view].scale for view in seen])
        offset = np.array([cameras[view].offset for view in seen])
        # The whole may be larger, or higher: an object has no size of its own.
        return scale.std(), (offset - offset.mean(0)).std(), abs(cameras[0].elevation_deg - 15)

    assert np.all(np.less(wrong(own), 0.6 * np.array(wrong(shared)))), wrong(own)
    for one, before in zip(own, shared, strict=True):
        assert one.azimuth_deg == pytest.approx(before.azimuth_deg, abs=1e-3)
        assert one.perspective == pytest.approx(before.perspective)
    assert camera_fit.refined(np.zeros_like(masks), shared) == shared


def test_cameras_stay_where_silhouettes_contradict_each_other():
    masks = np.random.default_rng(0).permutation(silhouettes(BOX, CIRCLE, 64))
    near = camera_fit.refined(masks, CIRCLE)
    free = {"azimuth": False, "perspective": False}
    far = camera_fit.fit(masks, CIRCLE, steps=100, **free).cameras

    def moved(cameras):
        return np.mean([abs(np.log(camera.scale / 0.8)) for camera in cameras])

    assert moved(near) < 0.7 * moved(far)


def test_a_mesh_refines_the_cameras_of_poses_only_and_without_gradients_too(coarse):
    masks, shared = silhouettes(BOX, CIRCLE, 64), shared_cameras()
    images = np.repeat(np.uint8(255 * masks)[..., None], 3, -1)
    kept = PhotoMesh.of(images, masks, shared, refine=False, size=32)
    assert kept.cameras == tuple(shared)
    with torch.inference_mode():
        own = PhotoMesh.of(images, masks, shared, size=32)
    assert abs(own.cameras[0].elevation_deg - 15) < 4
    assert own.silhouette_iou > kept.silhouette_iou + 0.03


def test_cameras_that_look_up_are_fitted_as_such():
    true = [Camera(40.0 * view, -15.0, 0.8, perspective=0.3) for view in range(9)]
    masks = silhouettes(trimesh.creation.box((0.9, 0.4, 0.3)), true, 16)
    found = camera_fit.fit(masks, true, azimuth=False, perspective=False, steps=15, size=10)
    assert found.cameras[0].elevation_deg < -5


def test_runs_without_cameras_are_told_why(run):
    for given, message in (
        ({"front": 8}, "--front 8: there are 8 poses, 0 to 7"),
        ({"front": (1, 2)}, r"--front \(1, 2\): several poses of one category; give one"),
        ({"left": 3}, "--left 3: needs a --front of its category"),
    ):
        with pytest.raises(UserError, match=message):
            cameras.main(**run, cameras=settings.Cameras(**given))
    (run["poses"].with_suffix(".json")).write_text(json.dumps({"k": 2, "categories": 4}))
    with pytest.raises(UserError, match="poses.k 2: cameras need at least 3 poses"):
        cameras.main(**run)
    (run["poses"].with_suffix(".json")).write_text(json.dumps({"k": 8, "categories": 1}))
    with h5py.File(run["maps"], "r+") as file:
        # The background kept, but for the padding of one crop.
        file["maps"][...] = 1
        file["maps"][3, :32], file["valid"][3, :32] = 0, False
    with pytest.raises(UserError, match="maps that are zero off the object and not centered; set"):
        cameras.main(**run)
    with pytest.raises(UserError, match="^pose_space.center true: cameras need maps"):
        cameras.main(**run, pose_space=settings.PoseSpace(center=True))
    assert not run["out"].exists()


# Of the embedded model


def test_the_photo_command_makes_a_mesh(tmp_path, coarse):
    done = novel_views.main(
        (ROOT / "examples/cars/green.png",),
        out=tmp_path,
        mesh=True,
        views=settings.Views(steps=3, batch_size=16),
        device="cpu",
    )
    assert done == ["green"]
    assert trimesh.load(tmp_path / "green.glb", force="mesh").visual.uv.shape[1] == 2
    assert Image.open(tmp_path / "green.mesh.png").width > 12 * 64


def test_a_mesh_without_cameras_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="cameras.json: not there"):
        novel_views.main((ROOT / "examples/cars/green.png",), run=tmp_path, out=tmp_path, mesh=True)
    assert not list(tmp_path.iterdir())
