"""Patch tokens of DINOv2-base against transformers and timm, on the same random weights."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from mirage_steps import settings
from mirage_steps.networks.backbone import Backbone

CPU = torch.device("cpu")
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder in the format and the sizes of facebook/dinov2-base, with random weights."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(image_size=518, patch_size=14))
    assert sum(p.numel() for p in model.parameters()) == 86_580_480
    folder = tmp_path_factory.mktemp("hub") / "dinov2-base"
    with torch.no_grad():
        for name, value in model.named_parameters():
            # As random as all others, or their place in the network would not be tested.
            if "layer_scale" in name or "norm" in name:
                value += 0.2 * torch.randn_like(value)
            elif "bias" in name or "embeddings" in name:
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def _pixels(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def _input(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def _ours(folder, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    size = settings.Backbone(model=str(folder), resolution=pixels.shape[1])
    return Backbone.load(size, CPU).tokens(pixels)


@pytest.mark.parametrize("size", [224, 518])
def test_tokens_are_those_of_transformers(published, size):
    pixels = _pixels(size)[: 1 if size > 224 else 2]
    patches, cls = _ours(published, pixels)
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(published).eval()(_input(pixels)).last_hidden_state
    assert patches.shape == (len(pixels), (size // 14) ** 2, 768)
    torch.testing.assert_close(patches, expected[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(cls, expected[:, 0], rtol=0, atol=1e-4)


def _as_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names of timm's vision transformer."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    found = {new: state[old] for old, new in names.items()}
    parts = {
        "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    for layer in range(12):
        old, new = f"encoder.layer.{layer}", f"blocks.{layer}"
        for end in ("weight", "bias"):
            for ours, theirs in parts.items():
                found[f"{new}.{ours}.{end}"] = state[f"{old}.{theirs}.{end}"]
            qkv = [state[f"{old}.attention.attention.{p}.{end}"] for p in ("query", "key", "value")]
            found[f"{new}.attn.qkv.{end}"] = torch.cat(qkv)
        for number in (1, 2):
            found[f"{new}.ls{number}.gamma"] = state[f"{old}.layer_scale{number}.lambda1"]
    return found


def test_tokens_are_those_of_timm(published):
    # At the resolution of the position embeddings: timm scales them in another way.
    pixels = _pixels(518)[:1]
    other = timm.create_model("vit_base_patch14_dinov2", pretrained=False, num_classes=0).eval()
    other.load_state_dict(_as_timm(load_file(published / "model.safetensors")))
    patches, cls = _ours(published, pixels)
    with torch.inference_mode():
        expected = other.forward_features(_input(pixels))
    assert expected.std() > 0.1
    torch.testing.assert_close(patches, expected[:, 1:], rtol=0, atol=1e-3)
    torch.testing.assert_close(cls, expected[:, 0], rtol=0, atol=1e-3)


def test_a_classifier_s_backbone_is_used(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Dinov2ForImageClassification(Dinov2Config(image_size=32, patch_size=4, **shape)).eval()
    model.save_pretrained(tmp_path)
    pixels = _pixels(32)
    patches, cls = _ours(tmp_path, pixels)
    with torch.inference_mode():
        expected = model.dinov2(_input(pixels)).last_hidden_state
    torch.testing.assert_close(patches, expected[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(cls, expected[:, 0], rtol=0, atol=1e-5)
