"""Too little memory, of a device or of the machine: one line with the setting that helps."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from mirage_steps import dataset, embed, features, masks, settings, sheet, train, views
from mirage_steps.errors import UserError
from mirage_steps.files.command import one_line_errors
from mirage_steps.method.device import memory_advice
from mirage_steps.method.training import Trainer
from mirage_steps.method.unet import UNet, build, preset
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.diffusion_model import save_model

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has")


def _fail(*_, **__):
    raise CUDA


@pytest.mark.parametrize(
    "error",
    [
        CUDA,
        torch.OutOfMemoryError(),
        MemoryError("Unable to allocate 7.11 PiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_names_the_setting(error):
    for value, remedy in ((64, "lower it"), (1, "use a device with more memory")):
        with pytest.raises(UserError, match=rf"^views\.batch_size {value}: .*; {remedy}$") as told:
            with memory_advice("views.batch_size", value):
                raise error
        assert "\n" not in str(told.value)
    with pytest.raises(SystemExit, match="^error: out of memory"), one_line_errors():
        raise error


def test_other_errors_keep_their_traceback():
    for error in (RuntimeError("mat1 and mat2"), ValueError("out of memory")):
        with pytest.raises(type(error)) as found, memory_advice("views.batch_size", 64):
            raise error
        assert found.value is error
    with pytest.raises(RuntimeError, match="mat1"), one_line_errors():
        raise RuntimeError("mat1 and mat2")


BACKBONE = settings.Backbone(model="weights/stand-in-dinov2-cars", resolution=64, batch_size=8)


def test_features_and_embed_name_the_batch_of_the_backbone(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos/a.png")
    dataset.main(source=settings.Folder(path=tmp_path / "photos"), out=tmp_path)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["images"] = np.zeros((2, 64, 64, 3), np.uint8)
    none = settings.Embed(inception="none")
    monkeypatch.setattr(Backbone, "tokens", _fail)
    told = r"^backbone\.batch_size 8: .*CUDA out of memory.*lower it"
    with pytest.raises(UserError, match=told):
        features.main(manifest=tmp_path / "manifest.csv", out=tmp_path / "out", backbone=BACKBONE)
    with pytest.raises(UserError, match=told):
        embed.main(images=tmp_path / "set.h5", out=tmp_path / "out", backbone=BACKBONE, embed=none)
    assert not list(tmp_path.glob("out/*"))


def test_a_backbone_too_large_for_the_device_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr("mirage_steps.networks.backbone._load", _fail)
    with pytest.raises(torch.OutOfMemoryError):
        Backbone.load(BACKBONE, torch.device("cpu"))


def test_sam_names_its_own_batch():
    images = np.zeros((3, 24, 24, 3), np.uint8)
    sam = type("Sam", (), {"__call__": _fail, "device": torch.device("cpu")})()
    sam.image_encoder = type("Encoder", (), {"img_size": 48})
    with pytest.raises(UserError, match=r"^masks\.sam_batch_size 2: .*lower it"):
        masks.segment(sam, images, [None] * 3, settings.Masks(sam_batch_size=2))


def test_training_names_the_accumulation(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", _fail)
    small = settings.Training(preset="small", image_size=32, batch_size=4)
    told = r"^training\.accumulation 1: .*; raise it, which splits the batch"
    with pytest.raises(UserError, match=told):
        train.main(**data, out=tmp_path / "out", checkpoints=tmp_path / "c", training=small)
    assert not (tmp_path / "c/lock.json").exists()


def test_sampling_names_its_batch(data, tmp_path, monkeypatch):
    model = build(preset("small", 32, 4, 0.0), 0)
    save_model(tmp_path, model, {"seed": 0})
    monkeypatch.setattr(UNet, "encode", _fail)
    told = r"^views\.batch_size 64: .*lower it"
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=told):
        out, sampler = tmp_path / "out", "multi-view"
        views.main(model=path, poses=data["poses"], out=out, sampler=sampler, samples=3)
    with pytest.raises(UserError, match=told):
        sheet.main(model=path, out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
