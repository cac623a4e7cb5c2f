"""Run in Python: generated objects, chosen poses, photos of all types, and a run in one file."""

import contextlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from workflow import ENVIRONMENT, ROOT

from mirage_steps import Run, mesh, novel_views, settings, sheet
from mirage_steps.errors import UserError
from mirage_steps.files.generated_objects import GeneratedObjects
from mirage_steps.files.pack import MEMBERS, _unfit, require_pack, run_folder, write_pack
from mirage_steps.files.photos import open_photo
from mirage_steps.method.unet import build, preset
from mirage_steps.run import SHOWCASE, stored_sampling

GREEN = ROOT / "examples/cars/green.png"
FAST = settings.Views(steps=2, batch_size=8, precision="float32", seed=3)


@pytest.fixture(scope="module")
def run() -> Run:
    """The embedded model, with few steps."""
    loaded = Run.load(device="cpu")
    stored = loaded.sampling.model_copy(update={"views": FAST})
    return replace(loaded, sampling=stored)


@pytest.fixture(scope="module")
def two(run) -> GeneratedObjects:
    return run.sample(np.int64(2), seed=np.int64(4))


def test_the_import_takes_less_than_a_tenth_of_a_second():
    code = "import time; start = time.perf_counter(); import mirage_steps; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - start)"]
    times = [float(subprocess.check_output(command, env=ENVIRONMENT)) for _ in range(5)]
    assert min(times) < 0.1


def test_the_embedded_model_samples_as_its_data_set_is_configured():
    config = settings.load(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    showcase = config.dataset("showcase")
    found = {key: getattr(showcase, key) for key in settings.Sampling.model_fields}
    assert stored_sampling(SHOWCASE) == settings.Sampling(**found)


# Generated objects


def test_generated_objects_are_those_of_the_contact_sheet(run, two, tmp_path):
    model = SHOWCASE / "training/model.safetensors"
    chosen = settings.Sheet(objects=2)
    sampling = {"views": run.sampling.views, "guidance": run.sampling.guidance}
    sheet.main(model=model, out=tmp_path, sheet=chosen, judged_objects=2, device="cpu", **sampling)
    with h5py.File(tmp_path / "objects.h5") as file:
        np.testing.assert_array_equal(two.images, file["images"])
        np.testing.assert_array_equal(two.poses, file["pose"])
        assert list(two.references) == file["reference"][:].tolist()
    assert two.images.shape == (2, 12, 64, 64, 3) and two.images.dtype == np.uint8
    assert two.settings["steps"] == 2 and two.settings["seed"] == 4


def test_bad_references_are_left_out_as_on_sheets(run):
    views = run.sampling.views.model_copy(update={"reject": 0.5, "steps": 1})
    made = run.sample(2, poses=[0], views=views)
    assert made.numbers != (0, 1) and max(made.numbers) < 32


def test_chosen_poses_are_those_of_all_in_their_order(run, two):
    own = two.references[0]
    poses = [(own + 5) % 12, own, (own + 1) % 12]
    some = run.sample(1, poses=poses, seed=4)
    assert some.poses.tolist() == [poses] and some.references == (own,)
    # Another size of the batch rounds otherwise.
    np.testing.assert_allclose(some.images[0], two.images[0, poses].astype(int), atol=2)
    (alone,) = run.sample(1, poses=[own], seed=4).images
    np.testing.assert_allclose(alone[0], two.images[0, own].astype(int), atol=2)
    assert run.sample(1, poses=[(own + 1) % 12], seed=4).sheet().width < some.sheet().width


def test_a_chosen_reference_is_that_of_all_objects(run, two):
    other = (two.references[0] + 3) % 12
    made = run.sample(2, poses=[0, 1], reference=other, seed=4)
    assert made.references == (other, other) and made.numbers == (0, 1)
    assert (made.images[0] != two.images[0, :2]).any()
    seeds = run.sample(1, poses=[0], seed=5).images, two.images[:1, :1]
    assert (seeds[0] != seeds[1]).any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"poses": [12]}, r"poses \[12\]: give numbers of poses, 0 to 11, each once"),
        ({"poses": [1, 1]}, "each once"),
        ({"poses": []}, "each once"),
        ({"poses": 3}, "poses 3: give"),
        ({"poses": [0.5]}, "0 to 11"),
        ({"reference": -1}, "reference -1: give an integer from 0 to 11"),
        ({"objects": 0}, "objects 0: give an integer from 1 to 4294967295"),
        ({"objects": 1.5}, "objects 1.5"),
        ({"objects": "2"}, "objects '2'"),
        ({"views": {"seed": 7}}, "views.seed is not used here; give seed=7"),
        ({"seed": -1}, "seed -1: give an integer from 0 to 4294967295"),
    ],
)
def test_numbers_that_are_not_there_are_one_line(run, change, told):
    with pytest.raises(UserError, match=told):
        run.sample(**{"objects": 1, **change})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"guidance": 1.5}, "guidance 1.5: give a dict with some of the keys gamma, attention"),
        ({"views": {"step": 5}}, r"^views.step is not a key; did you mean 'steps'\?$"),
        ({"views": {"steps": 0}}, r"^views.steps: .* \(got 0\)$"),
        ({"views": {1: 2}}, "views.1: keys should be strings"),
        ({"views": settings.Guidance()}, "give a dict with some of the keys solver"),
        ({"novel_views": {"phase_cutoff": -1}}, "novel_views.phase_cutoff"),
    ],
)
def test_wrong_settings_are_one_line(run, change, told):
    with pytest.raises(UserError, match=told):
        run.novel_views(GREEN, **change)


def test_settings_of_a_dict_change_those_of_the_run(run):
    changed = run.novel_views(GREEN, poses=[0], views={"steps": 2}, guidance={"gamma": 2})
    whole = run.sampling.views.model_copy(update={"steps": 2})
    same = run.novel_views(GREEN, poses=[0], views=whole, guidance=settings.Guidance(gamma=2))
    assert changed.settings == same.settings and changed.inversion_evaluations == 2
    np.testing.assert_array_equal(changed.views, same.views)
    made = run.sample(1, poses=[0], views={"steps": 2}, seed=4)
    assert made.settings["steps"] == 2 and made.settings["seed"] == 4


def test_what_cannot_be_a_mesh_or_masked_is_one_line(run, two):
    with pytest.raises(UserError, match="mesh of str: give what run.novel_views or run.sample"):
        run.mesh(str(GREEN))
    for images in (two.images, two.images[0, 0], two.images[0] / 255):
        with pytest.raises(UserError, match=r"^images: one is .* give \(n, height, width, 3\)"):
            run.masks(images)
    for images in ([], [two.images[0, 0], two.images[0, 0, :32]]):
        with pytest.raises(UserError, match="there are none, or they have different sizes"):
            run.masks(images)


def test_a_run_that_centers_its_maps_has_no_cameras(run, two, tmp_path):
    center = (np.zeros((1, 1), np.float32),)
    for changes in ({"centers": center}, {"mask_background": False}):
        other = replace(run, folder=tmp_path, estimator=replace(run.estimator, **changes))
        with pytest.raises(UserError, match="cameras.json: not there, and cannot be made: a mesh"):
            other.mesh(two)


def test_a_library_prints_nothing_unless_asked(run, capfd):
    run.sample(1, poses=[0])
    assert capfd.readouterr() == ("", "")
    run.sample(1, poses=[0], progress=True)
    assert "1/1" in capfd.readouterr().err


def test_objects_are_saved_and_only_they_are_overwritten(two, tmp_path):
    assert two.save(tmp_path) == two.save(tmp_path) == tmp_path / "generated.png"
    with Image.open(tmp_path / "generated.gif") as animation:
        assert animation.n_frames == 12
    view = np.asarray(Image.open(tmp_path / "generated.objects/object_01/pose_03.png"))
    np.testing.assert_array_equal(view, two.images[1, 3])
    record = json.loads((tmp_path / "generated.json").read_text())
    assert record["references"] == list(two.references) and record["poses"] == two.poses.tolist()
    assert two._repr_jpeg_().startswith(b"\xff\xd8") and "2 objects in 12 poses" in repr(two)
    (tmp_path / "mine.png").touch()
    with pytest.raises(UserError, match="mine.png: exists already"):
        two.save(tmp_path, "mine")
    with pytest.raises(UserError, match="not a name"):
        two.save(tmp_path, "../other")


def test_a_generated_object_becomes_a_mesh(run, coarse):
    made = run.sample(1, views=run.sampling.views.model_copy(update={"steps": 10}))
    assert len(run.mesh(made).mesh.faces) > 100
    with pytest.raises(UserError, match="number 1: give an integer from 0 to 0"):
        run.mesh(made, 1)


def test_objects_of_several_categories_alternate():
    config = replace(preset("small", 32, 6, 0.0), categories=2)
    model = build(config, 0).eval().requires_grad_(False)
    run = Run(Path(), model, None, None, {}, settings.Sampling(views=FAST))
    made = run.sample(3, poses=[2, 0], reference=1)
    assert made.poses.tolist() == [[2, 0], [5, 3], [2, 0]]
    assert made.references == (1, 4, 1) and made.names == ()
    assert made.sheet().width > 100
    with pytest.raises(UserError, match="0 to 2"):
        run.sample(1, poses=[3])


# Chosen poses of a photo


def test_a_photo_is_shown_in_chosen_poses(run, tmp_path):
    whole = run.novel_views(GREEN)
    other = (whole.pose + 4) % 12
    some = run.novel_views(GREEN, poses=[other, whole.pose])
    assert some.poses == (other, whole.pose) and some.view_poses[1] == whole.view_poses[whole.pose]
    np.testing.assert_array_equal(some.views[1], some.crop)
    np.testing.assert_allclose(some.views[0], whole.views[other].astype(int), atol=2)
    assert some.masks.shape == (2, 64, 64) and len(some.names) == 2
    away = run.novel_views(GREEN, poses=[other])
    assert away.views.shape == (1, 64, 64, 3) and away.save(tmp_path).is_file()
    with pytest.raises(UserError, match="poses"):
        run.novel_views(GREEN, poses=["front"])


def test_poses_of_some_views_are_unknown_where_maps_are_centered(run):
    """They are centered on the mean over all poses."""
    pca = run.estimator.pcas[0]
    center = np.zeros((run.backbone.grid**2, len(pca.components)), np.float32)
    centering = replace(run, estimator=replace(run.estimator, centers=(center,)))
    assert len(centering.novel_views(GREEN).view_poses) == 12
    assert centering.novel_views(GREEN, poses=[1, 2]).view_poses is None


# Photos of all types


PIXELS = np.asarray(Image.open(GREEN).convert("RGB"))
CLEAR = np.dstack([PIXELS, np.full((160, 160), 255, np.uint8)])
FORMS = {
    "path": GREEN,
    "text": str(GREEN),
    "image": Image.open(GREEN),
    "uint8": PIXELS,
    "reversed strides": PIXELS[:, ::-1].copy()[:, ::-1],
    "float64": PIXELS / 255,
    "float16": (PIXELS / 255).astype(np.float16),
    "RGBA": CLEAR,
    "floats with alpha": CLEAR / 255,
    "channels first": PIXELS.transpose(2, 0, 1),
    "tensor": torch.from_numpy(PIXELS.copy()).permute(2, 0, 1),
    "tensor, channels last": torch.from_numpy(PIXELS / 255),
    "tensor with a gradient": (
        torch.from_numpy(PIXELS.copy()).permute(2, 0, 1) / 255
    ).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_photo_is_the_same_in_all_forms(form):
    np.testing.assert_array_equal(np.asarray(open_photo(FORMS[form]).image), PIXELS)


def test_half_a_tensor_s_precision_is_near_the_photo():
    given = torch.from_numpy(PIXELS / 255).to(torch.bfloat16)
    opened = np.asarray(open_photo(given).image).astype(int)
    assert abs(opened - PIXELS).max() <= 1


def test_gray_and_transparent_photos_become_rgb():
    gray = np.asarray(Image.open(GREEN).convert("L"))
    expected = np.asarray(Image.fromarray(gray).convert("RGB"))
    for given in (gray, gray[..., None], gray[None], gray / 255, torch.from_numpy(gray / 255)):
        np.testing.assert_array_equal(np.asarray(open_photo(given).image), expected)
    half = CLEAR.copy()
    half[:, :80, 3] = 0
    opened = np.asarray(open_photo(half).image)
    assert (opened[:, :80] == 255).all() and (opened[:, 80:] == PIXELS[:, 80:]).all()


BAD = np.full((40, 40, 3), 0.5)


@pytest.mark.parametrize(
    ("photo", "told"),
    [
        (BAD * 3, r"floats from 1.5 to 1.5; give them in \[0, 1\]"),
        (BAD - 1, "floats from -0.5"),
        (np.where(BAD < 0.6, np.nan, BAD), "floats from nan"),
        (BAD.astype(np.int64), "is int64 of shape \\(40, 40, 3\\); give"),
        (BAD > 0.4, "is bool"),
        (BAD[None], r"is float64 of shape \(1, 40, 40, 3\)"),
        (BAD[..., :2], r"of shape \(40, 40, 2\); give \(H, W\)"),
        (BAD[0, 0], r"of shape \(3,\)"),
        (BAD[:8], "40x8 pixels are too few"),
        (np.zeros((0, 0, 3), np.uint8), "0x0 pixels are too few"),
        (torch.zeros(40, 40, dtype=torch.int32), "is int32"),
        ([[0]], "is a list; give a file"),
        (None, "is a NoneType; give a file"),
    ],
)
def test_what_is_no_photo_is_one_line(photo, told):
    with pytest.raises(UserError, match=f"^the photo: .*{told}"):
        open_photo(photo)


# A run in one file


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "cars.zip"
    write_pack(SHOWCASE, path)
    return path


def test_a_packed_run_does_what_its_folder_does(run, pack, tmp_path):
    loaded = replace(Run.load(pack, device="cpu"), sampling=run.sampling)
    one, other = run.novel_views(GREEN), loaded.novel_views(GREEN)
    np.testing.assert_array_equal(one.views, other.views)
    assert stored_sampling(pack) == stored_sampling(SHOWCASE) and str(pack) in repr(loaded)
    assert other.settings["model"]["path"] == str(pack / "training/model.safetensors")
    assert other.settings["model"]["sha256"] == one.settings["model"]["sha256"]
    with zipfile.ZipFile(pack) as archive:
        assert set(archive.namelist()) == MEMBERS - {"poses/names.json"}  # it has none
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_commands_take_a_packed_run(pack, tmp_path, coarse):
    out = tmp_path / "out"
    once = settings.Views(steps=5, solver="dpm-solver++")
    novel_views.main((GREEN,), run=pack, out=out, mesh=True, views=once, device="cpu")
    assert (out / "green.glb").is_file()
    mesh.main((out / "green.json",), run=pack, out=tmp_path / "meshes")
    assert mesh.main((out / "green.json",), out=tmp_path / "other") == ["green.mesh"]


def test_what_was_unpacked_goes_with_the_process(pack, tmp_path):
    code = "import sys; from mirage_steps.files.pack import *; print(run_folder(Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(pack)]
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path)) and not any(tmp_path.iterdir())


def _packed(path: Path, extra: dict[str, bytes], **options) -> Path:
    """A pack of empty files, and others."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in sorted(MEMBERS - extra.keys()):
            archive.writestr(name, b"")
        for name, content in extra.items():
            archive.writestr(name, content)
    return path


def test_no_file_of_a_pack_gets_out_of_its_folder(tmp_path):
    evil = {"../../evil": b"x", "/tmp/evil": b"x", "training/../../evil": b"x", "x.pkl": b"x"}
    folder = run_folder(_packed(tmp_path / "evil.zip", evil))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == MEMBERS and set(folder.parent.iterdir()) == {folder}


@pytest.mark.parametrize(
    ("extra", "options", "told"),
    [
        ({"README.md": bytes(2**24 + 1)}, {}, "its files are too large"),
        ({"README.md": bytes(9999)}, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
    ],
)
def test_packs_that_nobody_here_wrote_are_one_line(tmp_path, extra, options, told):
    path = _packed(tmp_path / "a.zip", extra, **options)
    with pytest.raises(UserError, match=f"^run {path}: {told}.*; make one by export --pack$"):
        run_folder(path)


def test_sizes_that_lie_and_files_that_are_missing_or_twice_are_one_line(pack, tmp_path):
    with zipfile.ZipFile(pack) as archive:
        members = archive.infolist()
    size = pack.stat().st_size
    assert _unfit(members, size) == ""
    assert _unfit(members[:2], size).startswith("not a pack, it has no ")
    assert _unfit([*members, members[0]], size) == "has a file twice"
    members[0].file_size = size
    assert _unfit(members, size) == "its files are too large"


def test_a_damaged_pack_is_one_line(pack, tmp_path):
    whole, rng = pack.read_bytes(), np.random.default_rng(0)
    (tmp_path / "no.zip").write_text("hello")
    with pytest.raises(UserError, match="not a pack, or damaged"):
        Run.load(tmp_path / "no.zip")
    for number in range(30):
        damaged = bytearray(whole[: len(whole) - int(rng.integers(0, 3)) * 100])
        for place in rng.integers(len(damaged) - 1200, len(damaged), 20):
            damaged[place] = rng.integers(256)
        (tmp_path / f"{number}.zip").write_bytes(damaged)
        with contextlib.suppress(UserError):
            run_folder(tmp_path / f"{number}.zip")


def test_packing_overwrites_packs_only(pack, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="mine.txt: exists and is no pack"):
        require_pack(tmp_path / "mine.txt")
    require_pack(pack)
