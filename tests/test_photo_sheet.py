"""The step that shows some photos of a data set in all poses."""

import json

import h5py
import numpy as np
import pytest
import torch

from mirage_steps import photo_sheet, settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_csv
from mirage_steps.files.h5 import write_names
from mirage_steps.method.diffusion import ddim_timesteps, from_pixels, to_pixels
from mirage_steps.method.inversion import invert, reconstruct
from mirage_steps.method.metrics import psnr
from mirage_steps.method.unet import UNet, UNetConfig, build
from mirage_steps.networks.diffusion_model import save_model
from mirage_steps.run import crop_views

CONFIG = UNetConfig(16, 6, (32, 64), blocks=1, attention_below=8, head_dim=8, heads=2, stem=2)
VIEWS = settings.Views(steps=3, batch_size=4, precision="float32")
PAPER = settings.NovelViews(inversion_iterations=1, phase_cutoff="none")
POSES = [3, 0, 5, 3, 1, 2]
PHOTOS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> UNet:
    """A network whose zero-initialized layers predict something."""
    torch.manual_seed(1)
    network = build(CONFIG, 0)
    for parameter in network.requires_grad_(False).parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return network.eval()


@pytest.fixture
def arguments(model, tmp_path) -> dict:
    """Those of the step: a model's folder, and crops and poses of six photos."""
    save_model(tmp_path / "training", model, {"seed": 0})
    names = [f"{number}.jpg" for number in range(6)]
    with h5py.File(tmp_path / "crops.h5", "w") as file:
        file["images"] = PHOTOS
        write_names(file, names)
    rows = [(name, POSES[index], 0.25 * index, 0) for index, name in enumerate(names)]
    write_csv(tmp_path / "poses.csv", ("image", "pose", "distance", "category"), rows)
    (tmp_path / "poses.json").write_text(json.dumps({"k": CONFIG.poses, "categories": 1}))
    return {
        "model": tmp_path / "training/model.safetensors",
        "crops": tmp_path / "crops.h5",
        "poses": tmp_path / "poses.csv",
        "out": tmp_path / "photo_sheet",
        "views": VIEWS,
        "device": "cpu",
    }


def test_evenly_spaced_photos_are_shown_and_reconstructed(arguments, model):
    photo_sheet.main(**arguments, sheet=settings.Sheet(objects=3), novel_views=PAPER)
    out = arguments["out"]
    assert {path.name for path in out.iterdir()} == {
        "photos.h5", "photos.json",
    }  # fmt: skip
    record = json.loads((out / "photos.json").read_text())
    timesteps = ddim_timesteps(VIEWS.steps)
    for photo, index in zip(record["photos"], (0, 2, 5), strict=True):
        pose = torch.tensor([POSES[index]])
        trajectory = invert(model, from_pixels(PHOTOS[index][None]), pose, timesteps)
        back = to_pixels(reconstruct(model, trajectory, pose, timesteps))[0]
        assert photo == {
            "image": f"{index}.jpg",
            "pose": POSES[index],
            "distance": 0.25 * index,
            "reconstruction_psnr_db": pytest.approx(psnr(PHOTOS[index], back), abs=1e-3),
            "inversion_evaluations": VIEWS.steps,
        }
    with h5py.File(out / "photos.h5") as file:
        assert file["reference"][:].tolist() == [POSES[index] for index in (0, 2, 5)]
        for views, index in zip(file["images"][:], (0, 2, 5), strict=True):
            np.testing.assert_array_equal(views[POSES[index]], PHOTOS[index])
            assert len(views) == CONFIG.poses


def test_no_more_photos_are_shown_than_there_are(arguments):
    photo_sheet.main(**arguments, sheet=settings.Sheet(objects=9))
    record = json.loads((arguments["out"] / "photos.json").read_text())
    assert [photo["image"] for photo in record["photos"]] == [f"{i}.jpg" for i in range(6)]


def test_photos_of_another_list_or_size_are_refused(arguments):
    poses = arguments["poses"]
    rows = poses.read_text().splitlines(keepends=True)
    poses.write_text("".join(rows[:-1]))
    with pytest.raises(UserError, match="list different images; .*--forcerun poses"):
        photo_sheet.main(**arguments)
    poses.write_text("".join(rows))
    with h5py.File(arguments["crops"], "a") as file:
        del file["images"]
        file["images"] = np.zeros((6, 24, 24, 3), np.uint8)
    with pytest.raises(UserError, match="crops of 24 pixels, the model makes 16"):
        photo_sheet.main(**arguments)
    poses.with_suffix(".json").write_text('{"k": 3, "categories": 2}')
    with pytest.raises(UserError, match="6 poses in 2 categories, the model was trained with"):
        photo_sheet.main(**arguments)
    poses.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="poses.json: not readable"):
        photo_sheet.main(**arguments)
    assert not arguments["out"].exists()


def test_views_of_a_crop_stand_around_it_and_follow_the_settings(model):
    def views(**changed) -> np.ndarray:
        return crop_views(
            model, PHOTOS[0], 4, VIEWS, settings.Guidance(), settings.NovelViews(**changed)
        ).views

    base, other = views(phase_cutoff=1), views(phase_cutoff="none")
    assert base.shape == (6, 16, 16, 3) and base.dtype == np.uint8
    np.testing.assert_array_equal(base[4], PHOTOS[0])
    np.testing.assert_array_equal(other[4], PHOTOS[0])
    assert all((base[pose] != other[pose]).any() for pose in range(6) if pose != 4)


def test_a_crop_is_inverted_and_shown_by_the_solver_of_the_views(model):
    def made(solver, steps=3, iterations=1):
        views = VIEWS.model_copy(update={"solver": solver, "steps": steps})
        novel = settings.NovelViews(phase_cutoff=1, inversion_iterations=iterations)
        return crop_views(model, PHOTOS[0], 4, views, settings.Guidance(), novel)

    base, other, longer = made("ddim"), made("dpm-solver++"), made("dpm-solver++", 4)
    for one in (other, longer):
        np.testing.assert_array_equal(one.views[4], PHOTOS[0])
        assert (one.reconstruction != base.reconstruction).any()
        assert all((base.views[pose] != one.views[pose]).any() for pose in range(6) if pose != 4)
    counts = [one.inversion_evaluations for one in (base, other, longer, made("ddim", 3, 2))]
    assert counts == [3, 3, 4, 6]
    early = crop_views(
        model, PHOTOS[0], 4, VIEWS.model_copy(update={"steps": 3, "last_timestep": 300}),
        settings.Guidance(), settings.NovelViews(phase_cutoff=1),
    )  # fmt: skip
    assert (early.reconstruction != base.reconstruction).any()
    assert all((early.views[pose] != base.views[pose]).any() for pose in range(6) if pose != 4)
    with pytest.raises(
        UserError, match="inversion_iterations 2: only DDIM .* views.solver to ddim"
    ):
        made("dpm-solver++", 3, 2)
    with pytest.raises(UserError, match="views.steps 1: too few .* at least 2"):
        made("dpm-solver++", 1)
