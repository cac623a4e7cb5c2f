"""On a CUDA device everything is as on the CPU, within tolerances: make test-gpu, -s for speeds.

``TEST_DEVICE=cpu`` runs the tests themselves where there is no card; then they show nothing.
"""

import copy
import os
import time

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from workflow import ROOT

from mirage_steps import settings
from mirage_steps.masks import segment
from mirage_steps.method.processes import Processes
from mirage_steps.method.training import Batches, Trainer, copy_images
from mirage_steps.method.unet import preset
from mirage_steps.networks.sam import attend, load_sam
from mirage_steps.run import Run

CPU, DEVICE = torch.device("cpu"), torch.device(os.environ.get("TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"
)
TRAINING = settings.Training(
    preset="small", image_size=64, iterations=30, batch_size=32, optimizer="muon",
    learning_rate=1e-3, precision="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    """The embedded model on the CPU and on the device."""
    return Run.load(device="cpu"), Run.load(device=str(DEVICE))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean distance in units of the expected length."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """In dB, of uint8 images."""
    error = np.mean((found.astype(float) - expected.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_tokens(runs):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    expected, found = (run.backbone.tokens(images)[0] for run in runs)
    assert relative(found, expected) < 1e-4


def test_a_photo_from_all_sides(runs):
    """Inversion and views amplify rounding; an eye sees no difference."""
    photo = ROOT / "examples/cars/green.png"
    views = settings.Views(steps=15, solver="dpm-solver++", precision="float32")
    expected, found = (run.novel_views(photo, views=views) for run in runs)
    assert found.pose == expected.pose and found.poses == expected.poses
    assert psnr(found.views, expected.views) > 40


def test_masks():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    images[:, 20:44, 16:48] = (200, 30, 30)
    sam = str(ROOT / "weights/stand-in-sam-cars")
    expected, found = (
        segment(load_sam(sam, where), images, [None] * 3, settings.Masks(sam_batch_size=2))[0] > 0
        for where in (CPU, DEVICE)
    )
    assert (found != expected).mean() < 0.005


def test_the_attention_of_sam():
    """Of published networks, which the stand-in has not, in segment-anything's own words."""
    torch.manual_seed(0)
    layer = Attention(96, 2, use_rel_pos=True, input_size=(14, 14)).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_(std=0.2)
    tokens = torch.randn(3, 14, 14, 96)
    own = copy.deepcopy(layer).to(DEVICE)
    assert relative(attend(own, tokens.to(DEVICE)), layer(tokens)) < 1e-4


@pytest.mark.parametrize("name", ["small", "paper"])
def test_the_gradients_of_a_training_step(name):
    """From the same weights, timesteps and noise; a device draws its own in a real training."""
    config, generator = preset(name, 64, 12, 0.0), torch.Generator().manual_seed(0)
    batch = [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)]
    poses, times = torch.tensor([0, 3, 5, 11]), torch.tensor([1, 300, 600, 990])
    training = TRAINING.model_copy(update={"batch_size": 4})
    expected = Trainer(config, training, Processes(CPU))
    found = Trainer(config, training, Processes(DEVICE))
    found.model.load_state_dict(copy.deepcopy(expected.model.state_dict()))
    losses = []
    for one in (expected, found):
        images, noise, asked, steps = (
            value.to(one.device) for value in (batch[0], batch[1], poses, times)
        )
        losses.append(one._backward(images, asked, steps, noise).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    pairs = zip(found.model.parameters(), expected.model.parameters(), strict=True)
    gradients = [(a.grad.cpu().flatten(), b.grad.flatten()) for a, b in pairs if b.grad is not None]
    assert relative(*map(torch.cat, zip(*gradients, strict=True))) < 1e-3


def test_training_lowers_the_loss_as_on_the_cpu(capsys):
    """With images that were copied to the device; prints the time of a step."""
    images = np.zeros((32, 64, 64, 3), np.uint8)
    images[:, 16:48, 8:56] = np.random.default_rng(0).integers(0, 256, (32, 1, 1, 3))
    labels, losses = np.arange(32) % 12, {}
    for device in (CPU, DEVICE):
        trainer = Trainer(preset("small", 64, 12, 0.0), TRAINING, Processes(device))
        batches = Batches(images, labels, TRAINING, copy_images(images, device))
        start = time.perf_counter()
        found = [trainer.step(*batches.batch(step))[0].item() for step in range(20)]
        seconds = (time.perf_counter() - start) / 20
        losses[device] = np.mean(found[-5:])
        with capsys.disabled():
            print(f"\nsmall, 32 images, {device}: {seconds:.3f} s a step")
    assert losses[DEVICE] == pytest.approx(losses[CPU], rel=0.2)


def test_copied_images_make_the_same_batches():
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    labels, copied = np.arange(40) % 12, copy_images(images, DEVICE)
    assert copied is not None or DEVICE.type == "cpu"
    expected = Batches(images, labels, TRAINING).batch(1)
    found = Batches(images, labels, TRAINING, copied).batch(1)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=1e-6)
    assert torch.equal(found[1], expected[1])


@pytest.mark.skipif(DEVICE.type == "cpu", reason="of the device's memory")
def test_the_papers_network_fits_its_batch_into_memory(capsys):
    """A step of 128 images in bfloat16; prints its time and peak memory."""
    training = settings.Training(precision="auto", iterations=10)
    trainer = Trainer(preset("paper", 64, 25, 0.1), training, Processes(DEVICE))
    images, poses = torch.zeros(128, 3, 64, 64), torch.arange(128) % 25
    for _ in range(3):
        trainer.step(images, poses)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(5):
        trainer.step(images, poses)
    torch.cuda.synchronize()
    seconds, peak = (time.perf_counter() - start) / 5, torch.cuda.max_memory_allocated() / 2**30
    with capsys.disabled():
        print(
            f"\npaper, 128 images, {torch.cuda.get_device_name()}: {seconds:.3f} s, {peak:.1f} GiB"
        )
    assert torch.cuda.max_memory_allocated() < torch.cuda.mem_get_info()[1]
