"""The benchmark of references: what varies is the noise of the views alone."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_sheet import K, model  # noqa: F401

from mirage_steps.judge import Seen
from mirage_steps.settings import Guidance, Views

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "references.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("references", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _judge(network) -> SimpleNamespace:
    """A judge whose only features are the pixels."""

    def see_views(views: np.ndarray) -> Seen:
        assert views.shape[0] == K - 1  # all poses but the reference's
        flat = views.reshape(*views.shape[:2], -1).astype(np.float32)
        nothing = np.zeros(0)
        return Seen(np.zeros(views.shape[:2], int), nothing, nothing, nothing, {"pixels": flat})

    views = Views(steps=2)
    sampling = SimpleNamespace(views=views, guidance=Guidance())
    backbone = SimpleNamespace(device=torch.device("cpu"))
    run = SimpleNamespace(model=network, backbone=backbone, sampling=sampling)
    return SimpleNamespace(run=run, see_views=see_views)


def test_views_vary_with_their_noise_and_not_without(benchmark, model, monkeypatch):  # noqa: F811
    judge, scale = _judge(model), {"pixels": np.full(K, 1000.0)}
    varied = benchmark.variation(judge, scale, 2, objects=2, seeds=2)
    assert varied.shape == (2,) and (varied > 0).all()
    keyed = benchmark.keyed_noise
    same = lambda seed, numbers, shape: keyed(0, numbers, shape)  # noqa: E731
    monkeypatch.setattr(benchmark, "keyed_noise", same)
    similar = benchmark.variation(judge, scale, 2, objects=2, seeds=2)
    np.testing.assert_allclose(similar, 0, atol=1e-9)
