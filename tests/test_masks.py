"""Prompts, masks and masked sets; loading of segment-anything."""

import errno
import hashlib
import json
import pickle
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from transformers import Dinov2Config, Dinov2Model
from workflow import ROOT

from mirage_steps import masks, settings
from mirage_steps.errors import UserError
from mirage_steps.files import masked_set
from mirage_steps.files.estimator import ESTIMATOR, save_estimator
from mirage_steps.files.h5 import open_h5
from mirage_steps.method.device import autocast
from mirage_steps.method.foreground import ForegroundModel, Region
from mirage_steps.method.pca import Pca
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.networks import sam as loading
from mirage_steps.networks.fetching import FILES
from mirage_steps.networks.tiny_sam import build_tiny_sam

CPU = torch.device("cpu")
SIDE = 24


def _tiny_sam(seed: int = 0, width: int = 32) -> Sam:
    """A segment-anything of few random weights, 64 pixels a side."""
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=width,
            depth=1,
            num_heads=2,
            out_chans=32,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        PromptEncoder(32, (4, 4), (64, 64), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32),
        ),
    )
    return sam.eval()


class _BoxSam:
    """Answers each prompt with its box: a model whose masks are known."""

    device = CPU
    image_encoder = SimpleNamespace(img_size=48)

    def __call__(self, records, multimask_output):
        assert not multimask_output
        answers = []
        for record in records:
            x0, y0, x1, y1 = (record["boxes"][0] * SIDE / 48).round().int().tolist()
            mask = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
            mask[..., y0:y1, x0:x1] = True
            answers.append({"masks": mask, "iou_predictions": torch.tensor([[0.5]])})
        return answers


def _region(x0: int, y0: int, x1: int, y1: int, grid: int = 8) -> Region:
    """A rectangle of whole patches."""
    mask = np.zeros((grid, grid), bool)
    mask[y0:y1, x0:x1] = True
    return Region((x0 / grid, y0 / grid, x1 / grid, y1 / grid), mask)


def _images(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 200, (n, SIDE, SIDE, 3), dtype=np.uint8)


def _set(path, images: np.ndarray, **datasets: np.ndarray):
    with h5py.File(path, "w") as out:
        for name, values in {"images": images, **datasets}.items():
            out[name] = values
    return path


# --- prompts ----------------------------------------------------------------------------------


def test_first_point_is_the_deepest_and_the_others_are_inside_and_apart():
    rows, columns = np.mgrid[:21, :21]
    disc = (rows - 6) ** 2 + (columns - 13) ** 2 < 30
    points = masks.inside_points(disc)
    np.testing.assert_allclose(points[0], (13.5 / 21, 6.5 / 21))
    assert len(points) == 3
    for x, y in points * 21:
        assert disc[int(y), int(x)]
    gaps = [np.linalg.norm(a - b) * 21 for a, b in zip(points, np.roll(points, 1, 0), strict=True)]
    assert min(gaps) >= 2


def test_points_of_a_bent_region_stay_inside_where_its_centre_is_outside():
    bent = np.zeros((16, 16), bool)
    bent[:, :3] = bent[-3:, :] = True
    points = (masks.inside_points(bent) * 16).astype(int)
    assert all(bent[y, x] for x, y in points)
    # One in each arm: along x and along y the points spread over most of the image.
    assert (np.ptp(points, axis=0) > 8).all()


@pytest.mark.parametrize("patches, count", [([(2, 5)], 1), ([(2, 5), (2, 6)], 2)])
def test_a_small_region_has_as_many_points_as_patches(patches, count):
    mask = np.zeros((8, 8), bool)
    mask[tuple(zip(*patches, strict=True))] = True
    points = masks.inside_points(mask)
    assert {(int(y), int(x)) for x, y in points * 8} == set(patches)
    assert len(points) == count


def test_prompt_is_in_the_frame_of_the_models_input():
    image = _images(1)[0]
    record = masks.prompt(image, _region(2, 1, 6, 4), 64, CPU)
    assert record["image"].shape == (3, 64, 64) and record["original_size"] == (SIDE, SIDE)
    np.testing.assert_allclose(record["boxes"].numpy(), [[16, 8, 48, 32]])
    points = record["point_coords"].numpy()[0]
    assert ((points > (16, 8)) & (points < (48, 32))).all()
    assert record["point_labels"].tolist() == [[1] * len(points)]


def test_prompt_without_a_region_is_the_whole_image():
    record = masks.prompt(_images(1)[0], None, 64, CPU)
    np.testing.assert_allclose(record["boxes"].numpy(), [[0, 0, 64, 64]])
    assert "point_coords" not in record


# --- segmentation -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 8])
def test_batched_masks_are_those_of_the_predictor_image_by_image(batch_size):
    sam, images = _tiny_sam(), _images(5)
    regions = [_region(1, 1, 5, 6), None, _region(0, 0, 8, 8), _region(3, 3, 4, 4), None]
    found, ious = masks.segment(sam, images, regions, settings.Masks(sam_batch_size=batch_size))
    assert found.shape == (5, SIDE, SIDE) and found.dtype == bool
    assert 0 < found.mean() < 1
    predictor = SamPredictor(sam)
    for image, region, mask, iou in zip(images, regions, found, ious, strict=True):
        predictor.set_image(image)
        points = masks.inside_points(region.mask) * SIDE if region else None
        expected, quality, _ = predictor.predict(
            points,
            np.ones(len(points)) if region else None,
            np.array(region.box if region else (0, 0, 1, 1)) * SIDE,
            multimask_output=False,
        )
        # A pixel whose logit is zero but for rounding may fall on either side.
        assert (mask != expected[0]).mean() < 0.01
        assert iou == pytest.approx(quality[0], abs=1e-4)


def test_bfloat16_moves_hardly_a_pixel_of_a_mask():
    sam = loading.load_sam(str(ROOT / "weights/stand-in-sam-cars"), CPU)
    photos = [Image.open(path) for path in sorted((ROOT / "examples/cars").glob("*.png"))]
    images = np.stack([photo.convert("RGB").resize((64, 64)) for photo in photos])
    regions = [_region(1, 1, 7, 7)] * len(images)
    exact, half = (
        masks.segment(sam, images, regions, settings.Masks(sam_precision=precision))[0]
        for precision in ("float32", "bfloat16")
    )
    assert 0 < (exact != half).mean() < 0.01


def test_masked_set_is_white_outside_and_untouched_inside(tmp_path, backbone, monkeypatch):
    images, poses = _images(7), np.arange(7, dtype=np.int16)
    regions = [_region(i, 0, i + 2, 4) if i != 3 else None for i in range(7)]
    reads = []

    def located(scores: np.ndarray, _: float) -> list[Region | None]:
        start = sum(reads)
        reads.append(len(scores))
        return regions[start : start + len(scores)]

    monkeypatch.setattr(masks, "find_objects", located)
    monkeypatch.setattr(masks, "load_sam", lambda *_: _BoxSam())
    masks.main(
        images=_set(tmp_path / "set.h5", images, pose=poses),
        estimator=_estimator(tmp_path / ESTIMATOR, 0.0),
        out=tmp_path / "out",
        backbone=backbone,
        masks=settings.Masks(sam="vit_b", sam_batch_size=3),
        device="cpu",
    )
    with h5py.File(tmp_path / "out/images.h5") as target:
        white, mask = target["images"][:], target["mask"][:]
        np.testing.assert_array_equal(target["pose"][:], poses)
        assert target["images"].chunks == (1, SIDE, SIDE, 3)
    assert reads == [4, 3]
    for i, region in enumerate(regions):
        expected = (
            np.ones((SIDE, SIDE)) if region is None else np.kron(region.mask, np.ones((3, 3)))
        )
        np.testing.assert_array_equal(mask[i], expected)
    np.testing.assert_array_equal(white[mask == 1], images[mask == 1])
    assert (white[mask == 0] == 255).all() and mask.dtype == np.uint8
    report = json.loads((tmp_path / "out/masks.json").read_text())
    assert (report["images"], report["images_without_foreground"]) == (7, 1)
    assert report["mean_mask_share"] == pytest.approx((6 / 8 + 1) / 7)
    assert report["mean_predicted_iou"] == pytest.approx(0.5)


def test_report_counts_empty_masks(tmp_path, caplog):
    shares, found = np.array([0.0, 0.5, 0.0]), np.array([False, False, True])
    masked_set.report(tmp_path / "masks.json", "sam", found, np.array([0.5, 1.0, 0.0]), shares)
    report = json.loads((tmp_path / "masks.json").read_text())
    assert (report["images_without_foreground"], report["images_with_empty_mask"]) == (2, 2)
    assert (report["mean_predicted_iou"], report["mean_mask_share"]) == (0.5, 0.5 / 3)
    assert "2 of 3 images (67%) have an empty mask" in caplog.text


def test_report_warns_of_masks_that_remove_nothing(tmp_path):
    found = np.ones(4, bool)
    masked_set.report(
        tmp_path / "m.json", "sam", found, np.ones(4), np.array([1.0, 0.99, 0.5, 0.9])
    )
    report = json.loads((tmp_path / "m.json").read_text())
    assert report["images_filled_by_their_mask"] == 2
    assert [warning[:21] for warning in report["warnings"]] == ["2 of 4 images (50%) a"]


class _NoSam(_BoxSam):
    """Sees no object, or nothing that is a number."""

    def __init__(self, iou: float):
        self.iou = iou

    def __call__(self, records, multimask_output):
        answer = {"masks": torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)}
        return [answer | {"iou_predictions": torch.tensor([[self.iou]])} for _ in records]


@pytest.mark.parametrize(
    ("iou", "told"),
    [(0.5, "all 6 masks are empty"), (np.nan, "image 0: its scores and those of 3 others are not")],
)
def test_a_set_without_any_mask_is_an_error(tmp_path, backbone, monkeypatch, iou, told):
    monkeypatch.setattr(masks, "load_sam", lambda *_: _NoSam(iou))
    with pytest.raises(UserError, match=told):
        masks.main(
            images=_set(tmp_path / "set.h5", _images(6)),
            estimator=_estimator(tmp_path / ESTIMATOR, -1e9),
            out=tmp_path / "out",
            backbone=backbone,
            device="cpu",
        )
    assert not list((tmp_path / "out").iterdir())


# --- the step ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Settings of a tiny random DINOv2 in a local folder."""
    torch.manual_seed(1)
    config = Dinov2Config(
        image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    Dinov2Model(config).save_pretrained(folder)
    return settings.Backbone(model=str(folder), resolution=32, batch_size=4)


def _estimator(path, threshold: float, dim: int = 32):
    """A stored PCA 1 with this threshold on a random component."""
    component = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, 1)))[0].T
    pca = Pca(np.zeros(dim), component, np.ones(1), np.ones(1))
    save_estimator(path, PoseEstimator({}, ForegroundModel(pca, 0, 1, threshold), 0.06))
    return path


@pytest.mark.parametrize("threshold, lost", [(-1e9, 0), (1e9, 6)])
def test_step_writes_set_report_and_picture(tmp_path, backbone, monkeypatch, threshold, lost):
    monkeypatch.setattr(masks, "load_sam", lambda *_: _tiny_sam())
    masks.main(
        images=_set(tmp_path / "set.h5", _images(6)),
        estimator=_estimator(tmp_path / ESTIMATOR, threshold),
        out=tmp_path / "out",
        backbone=backbone,
        masks=settings.Masks(sam="somewhere/stand-in-sam"),
        device="cpu",
    )
    report = json.loads((tmp_path / "out/masks.json").read_text())
    with open_h5(tmp_path / "out/images.h5") as file:
        assert file.attrs["sam"] == report["sam"] == "stand-in-sam"
        assert report["mean_mask_share"] == pytest.approx(file["mask"][:].mean())
        assert "pose" not in file
    assert (report["images"], report["images_without_foreground"]) == (6, lost)
    with Image.open(tmp_path / "out/masks.png") as picture:
        # Two rows of four triples of 96 pixels, a gap of 2 around each.
        assert picture.size == (4 * (3 * 96 + 2) + 2, 2 * (96 + 2) + 2)


def test_a_foreground_model_of_another_backbone_is_refused(tmp_path, backbone):
    with pytest.raises(UserError, match="length 16, those of tiny-dino have 32"):
        masks.main(
            images=_set(tmp_path / "set.h5", _images(2)),
            estimator=_estimator(tmp_path / ESTIMATOR, 0.0, dim=16),
            out=tmp_path / "out",
            backbone=backbone,
            device="cpu",
        )


def test_picture_outlines_the_mask_in_red_between_the_image_and_its_masked_version():
    images = np.full((1, 96, 96, 3), 100, np.uint8)
    mask = np.zeros((1, 96, 96), np.uint8)
    mask[:, 20:60, 30:80] = 1
    white = np.where(mask[..., None] == 1, images, np.uint8(255))
    sheet = masked_set.draw(images, white, mask)[2:, 2:]
    np.testing.assert_array_equal(sheet[:96, :96], images[0])
    np.testing.assert_array_equal(sheet[:96, 192:288], white[0])
    red = (sheet[:96, 96:192] == (255, 0, 0)).all(-1)
    inner = np.zeros((96, 96), bool)
    inner[22:58, 32:78] = True
    np.testing.assert_array_equal(red, (mask[0] == 1) & ~inner)


# --- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width, name", [(768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")])
def test_architecture_follows_from_the_width(width, name):
    with torch.device("meta"):
        published = loading.sam_model_registry[name](checkpoint=None)
    assert published.image_encoder.pos_embed.shape[-1] == width
    assert loading._ARCHITECTURES[width] == name


def _relative_sam() -> Sam:
    """A segment-anything with relative positions, like those that are published."""
    torch.manual_seed(2)
    model = _tiny_sam()
    model.image_encoder = ImageEncoderViT(
        img_size=80, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, out_chans=8,
        use_rel_pos=True, window_size=4, global_attn_indexes=(1,),
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("precision, most", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_loaded_networks_attend_as_segment_anything(tmp_path, monkeypatch, precision, most):
    model = _relative_sam()
    images = torch.randn(2, 3, 80, 80)  # 10 x 10 patches: the windows of 4 x 4 are padded
    with torch.inference_mode():
        expected = model.image_encoder(images)
    monkeypatch.setitem(loading._ARCHITECTURES, 32, "tiny")
    monkeypatch.setitem(loading.sam_model_registry, "tiny", lambda checkpoint: _relative_sam())
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    loaded = loading.load_sam(str(tmp_path / "sam.pth"), CPU)
    # What adds the positions to the matrix of all pairs is not called any more.
    monkeypatch.delattr("segment_anything.modeling.image_encoder.add_decomposed_rel_pos")
    with torch.inference_mode(), autocast(CPU, precision):
        found = loaded.image_encoder(images)
    assert (found - expected).norm() < most * expected.norm()


def test_a_checkpoint_gives_its_own_weights(tmp_path, monkeypatch):
    saved, fresh = _tiny_sam(3), _tiny_sam(4)
    monkeypatch.setitem(loading._ARCHITECTURES, 32, "tiny")
    monkeypatch.setitem(loading.sam_model_registry, "tiny", lambda checkpoint: fresh)
    torch.save(saved.state_dict(), tmp_path / "sam.pth")
    loaded = loading.load_sam(str(tmp_path / "sam.pth"), CPU)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for key, value in _tiny_sam(3).state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value)


def _other_width(path):
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 20)}, path)


def _other_model(path):
    torch.save({"weight": torch.zeros(2)}, path)


def _not_a_checkpoint(path):
    path.write_bytes(b"<html>not found</html>")


def _code_in_a_pickle(path):
    path.write_bytes(pickle.dumps(print))


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "write", [_other_width, _other_model, _not_a_checkpoint, _code_in_a_pickle, _empty]
)
def test_a_file_that_is_no_checkpoint_is_one_line_with_key_and_path(tmp_path, write):
    path = tmp_path / "sam.pth"
    write(path)
    with pytest.raises(UserError, match=r"masks.sam .*sam.pth: not a checkpoint") as error:
        loading.load_sam(str(path), CPU)
    assert "\n" not in str(error.value)


def _tensors(seed: int = 3) -> dict:
    return _tiny_sam(seed).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"a": {f"sam.{name}": value for name, value in state.items()}},
        lambda state: {**state, "extra": torch.zeros(1), "pixel_mean": torch.zeros(3)},
        lambda state: {name: value.bfloat16().float() for name, value in state.items()},
        None,  # a safetensors file, whatever its name
    ],
    ids=["model", "state_dict and module", "sam.", "extra keys", "rounded", "safetensors"],
)
def test_weights_in_another_wrapping_are_taken(tmp_path, monkeypatch, wrap):
    monkeypatch.setitem(loading._ARCHITECTURES, 32, "tiny")
    monkeypatch.setitem(loading.sam_model_registry, "tiny", lambda checkpoint: _tiny_sam(4))
    state = _tensors()
    if wrap is None:
        save_file(state, tmp_path / "sam.pth")
    else:
        torch.save(wrap(state), tmp_path / "sam.pth")
    loaded = loading.load_sam(str(tmp_path / "sam.pth"), CPU)
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-2, atol=1e-2)


class _Other:
    """What a training script may have stored besides."""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda s: {**s, "mask_decoder.hf_token.weight": s["mask_decoder.iou_token.weight"]},
         r"its weights \[SAM-HQ\?\]: 1 unknown, as mask_decoder\.hf_token"),
        (lambda s: {k: v for k, v in s.items() if "image_encoder" not in k}
         | {"image_encoder.layers.0.x": torch.zeros(1)}, r"unknown image encoder \[MobileSAM\?\]"),
        (lambda s: s | {"image_encoder.pos_embed": torch.zeros(1, 4, 4, 20)}, "of width 20"),
        (lambda s: {"model": {"image_encoder.pos_embed": s["image_encoder.pos_embed"]}},
         r"in model\.: \d+ missing, as image_encoder"),
        (lambda s: s | {"mask_decoder.iou_token.weight": torch.zeros(1, 9)}, "1 of another shape"),
        (lambda s: s | {"image_encoder.pos_embed": s["image_encoder.pos_embed"] * torch.nan},
         r"1 not finite, as image_encoder\.pos_embed"),
        (lambda s: {"model": s, "ema": s}, r"holds weights 2 times: model\., ema\."),
        (lambda s: {"generator": s["mask_decoder.iou_token.weight"]}, "holds generator"),
        (lambda s: list(s.values()), "holds a list"),
        (lambda s: {"model": s, "args": _Other()}, r"it holds \S*_Other, not only tensors"),
    ],
)  # fmt: skip
def test_another_checkpoint_is_told_by_what_it_holds(tmp_path, monkeypatch, content, told):
    monkeypatch.setitem(loading._ARCHITECTURES, 32, "tiny")
    monkeypatch.setitem(loading.sam_model_registry, "tiny", lambda checkpoint: _tiny_sam(4))
    torch.save(content(_tensors()), tmp_path / "sam.pth")
    with pytest.raises(UserError, match=told) as error:
        loading.load_sam(str(tmp_path / "sam.pth"), CPU)
    for advice in ("weights_only", "delete", "damaged", "trust", "\n"):
        assert advice not in str(error.value)


def test_errors_of_the_system_stay_what_they_are(tmp_path, monkeypatch):
    torch.save(_tensors(), tmp_path / "sam.pth")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "sam.pth")

    monkeypatch.setattr(loading, "open", refuse, raising=False)
    with pytest.raises(PermissionError):
        loading.load_sam(str(tmp_path / "sam.pth"), CPU)


def test_a_folder_is_the_stand_in_with_its_weights(tmp_path):
    torch.manual_seed(7)
    saved = build_tiny_sam()
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    loaded = loading.load_sam(str(tmp_path), CPU)
    regions = [_region(1, 1, 5, 6), None]
    for one, other in zip(
        masks.segment(saved, _images(2), regions, settings.Masks()),
        masks.segment(loaded, _images(2), regions, settings.Masks()),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="masks.sam .*: not a stand-in with its model.safetensors"):
        loading.load_sam(str(tmp_path), CPU)


def test_a_path_that_is_not_there_names_key_and_choices(tmp_path):
    with pytest.raises(UserError, match="masks.sam .*: no such file or folder.*vit_h"):
        loading.load_sam(str(tmp_path / "absent.pth"), CPU)
    with pytest.raises(UserError, match="masks.sam .*: not a stand-in with its model.safetensors"):
        loading.load_sam(str(tmp_path), CPU)


def test_a_published_name_is_its_file_in_the_shared_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(loading._ARCHITECTURES, 32, "tiny")
    monkeypatch.setitem(loading.sam_model_registry, "tiny", lambda checkpoint: _tiny_sam(6))
    file = FILES["vit_b"]
    (tmp_path / "sam").mkdir()
    torch.save(_tiny_sam(5).state_dict(), tmp_path / file.path)
    digest = hashlib.sha256((tmp_path / file.path).read_bytes()).hexdigest()
    monkeypatch.setitem(FILES, "vit_b", replace(file, sha256=digest))
    loaded = loading.load_sam("vit_b", CPU, tmp_path)
    expected = _tiny_sam(5).state_dict()["image_encoder.pos_embed"]
    torch.testing.assert_close(loaded.image_encoder.pos_embed.data, expected)


def test_a_checkpoint_in_the_published_size_is_read_whole(tmp_path):
    torch.manual_seed(0)
    published = loading.sam_model_registry["vit_b"](checkpoint=None)
    assert sum(parameter.numel() for parameter in published.parameters()) == 93_735_472
    torch.save(published.state_dict(), tmp_path / "sam_vit_b.pth")
    loaded = loading.load_sam(str(tmp_path / "sam_vit_b.pth"), CPU)
    assert loaded.image_encoder.img_size == 1024 and not loaded.training
    for (name, one), other in zip(
        loaded.state_dict().items(), published.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
