"""Schedule, objective and sampler against literal versions of the paper's equations."""

import numpy as np
import pytest
import torch

from mirage_steps.method import diffusion


def test_alphas_are_the_cumulative_product():
    expected, product = [], 1.0
    for beta in np.linspace(1e-4, 0.02, 1000):
        product *= 1 - beta
        expected.append(product)
    np.testing.assert_allclose(diffusion.cumulative_alphas().numpy(), expected, rtol=1e-12)


def test_noise_is_added_as_in_equation_3():
    x0, noise = torch.randn(4, 3, 5, 5).double(), torch.randn(4, 3, 5, 5).double()
    alphas = diffusion.cumulative_alphas()[[0, 10, 500, 999]]
    noisy = diffusion.add_noise(x0, noise, alphas)
    for i, alpha in enumerate(alphas.tolist()):
        literal = np.sqrt(alpha) * x0[i] + np.sqrt(1 - alpha) * noise[i]
        torch.testing.assert_close(noisy[i], literal)


def test_loss_sums_over_an_image_and_averages_over_the_batch():
    predicted, noise = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    literal = np.mean([float(((predicted[i] - noise[i]) ** 2).sum()) for i in range(3)])
    assert diffusion.squared_error(predicted, noise).item() == pytest.approx(literal, rel=1e-5)


@pytest.mark.parametrize("count", [1, 7, 8])
def test_antithetic_steps_come_in_pairs(count):
    torch.manual_seed(0)
    steps = diffusion.antithetic_steps(count)
    half = count // 2 + 1
    assert len(steps) == count and steps.min() >= 0 and steps.max() < 1000
    torch.testing.assert_close(steps[half:], 999 - steps[: count - half])


def test_fifty_steps_start_at_980_and_end_at_the_clean_image():
    steps = diffusion.ddim_steps(50)
    assert steps[0] == (980, 960) and steps[-1] == (0, -1) and len(steps) == 50
    assert all(a[1] == b[0] for a, b in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize("count", [1, 3, 7, 50, 600, 1000])
def test_steps_chain_for_any_count(count):
    steps = diffusion.ddim_steps(count)
    assert len(steps) == count and steps[-1][1] == -1
    assert [t for t, _ in steps[1:]] == [t for _, t in steps[:-1]]
    # One stride below T at most: noise must not be taken for a half-denoised image.
    assert 1000 - steps[0][0] <= -(-1000 // count) and min(a - b for a, b in steps) >= 1


def test_step_is_equation_4():
    x, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    a, b = 0.3, 0.6
    literal = np.sqrt(b) * (x - np.sqrt(1 - a) * noise) / np.sqrt(a) + np.sqrt(1 - b) * noise
    torch.testing.assert_close(diffusion.ddim_step(x, noise, a, b), literal)


def test_sampler_recovers_an_image_from_the_true_noise():
    """With the noise that was really added as the prediction, DDIM returns the clean image."""
    x0, noise = torch.rand(1, 3, 8, 8).double() * 2 - 1, torch.randn(1, 3, 8, 8).double()
    start = diffusion.cumulative_alphas()[980]
    noisy = diffusion.add_noise(x0, noise, start[None])
    found = diffusion.ddim_sample(lambda x, number, alpha: noise, noisy, 50)
    torch.testing.assert_close(found, x0)


def test_noise_follows_from_the_velocity():
    x0, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    for step in (0, 500, 999):
        alpha = diffusion.cumulative_alphas()[step]
        literal = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * x0
        target = diffusion.velocity(x0, noise, alpha.repeat(2))
        torch.testing.assert_close(target, literal)
        noisy = diffusion.add_noise(x0, noise, alpha.repeat(2))
        found = diffusion.noise_from_output(target, noisy, alpha.item(), "velocity")
        torch.testing.assert_close(found, noise)
        assert diffusion.noise_from_output(target, noisy, alpha.item(), "noise") is target


def test_noise_is_keyed_by_object():
    alone = diffusion.keyed_noise(3, [7], (3, 4, 4))
    together = diffusion.keyed_noise(3, [5, 7, 9], (3, 4, 4))
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(alone, diffusion.keyed_noise(4, [7], (3, 4, 4)))


def test_pixels_round_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    np.testing.assert_array_equal(diffusion.to_pixels(diffusion.from_pixels(pixels)), pixels)
    assert diffusion.to_pixels(torch.full((1, 3, 1, 1), 9.0)).max() == 255
