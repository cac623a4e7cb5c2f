"""Schedule, objective and sampler against literal versions of the paper's equations."""

import itertools

import numpy as np
import pytest
import torch

from mirage_steps.errors import UserError
from mirage_steps.method import diffusion
from mirage_steps.settings import Views


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
def test_antithetic_timesteps_come_in_pairs(count):
    torch.manual_seed(0)
    steps = diffusion.antithetic_timesteps(count)
    half = count // 2 + 1
    assert len(steps) == count and steps.min() >= 0 and steps.max() < 1000
    torch.testing.assert_close(steps[half:], 999 - steps[: count - half])


def test_fifty_timesteps_go_from_980_to_0():
    assert diffusion.ddim_timesteps(50) == list(range(980, -1, -20))


@pytest.mark.parametrize("count", [1, 3, 7, 50, 600, 1000])
def test_timesteps_fall_to_0_for_any_count(count):
    timesteps = diffusion.ddim_timesteps(count)
    assert len(timesteps) == count and timesteps[-1] == 0
    # One spacing below T at most: noise must not be taken for a half-denoised image.
    assert 1000 - timesteps[0] <= -(-1000 // count)
    assert all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False))


def test_the_sampler_ends_at_the_clean_image():
    """At the last timestep alpha of the next is 1: the image is what the noise leaves of x."""
    asked = []

    def denoise(x, t, alpha):
        asked.append((t, alpha))
        return torch.full_like(x, 0.1)

    alphas = diffusion.cumulative_alphas()
    found = diffusion.ddim_sample(denoise, torch.ones(1, 1, dtype=torch.float64), [20, 0])
    assert asked == [(20, alphas[20].item()), (0, alphas[0].item())]
    x = diffusion.ddim_step(1.0, 0.1, alphas[20], alphas[0])
    torch.testing.assert_close(
        found, (x - (1 - alphas[0]) ** 0.5 * 0.1).view(1, 1) / alphas[0] ** 0.5
    )


@pytest.mark.parametrize("count", [1, 2, 12, 50, 103, 300, 995, 1000])
def test_timesteps_even_in_logsnr_fall_from_999_for_any_count(count):
    timesteps = diffusion.logsnr_timesteps(count)
    assert len(timesteps) == count and timesteps[0] == 999
    assert all(a > b >= 0 for a, b in itertools.pairwise(timesteps))
    assert timesteps[-1] == {1: 999, 1000: 0}.get(count, 5)


def test_timesteps_are_even_in_logsnr_but_for_rounding():
    found = diffusion.logsnr_timesteps(12)
    logsnr = diffusion.cumulative_alphas().logit()
    even = torch.linspace(logsnr[999], logsnr[5], 12, dtype=torch.float64)
    for t, wanted in zip(found[1:-1], even[1:-1], strict=True):
        nearest = (logsnr - wanted).abs().argmin().item()
        assert abs(t - nearest) <= 1


@pytest.mark.parametrize("solver", diffusion.SOLVERS)
@pytest.mark.parametrize(("count", "last"), [(1, 0), (2, 100), (10, 100), (50, 0), (300, 900)])
def test_timesteps_fall_to_the_given_last_one(solver, count, last):
    views = Views(solver=solver, steps=count, last_timestep=last)
    timesteps = diffusion.sampling_timesteps(views)
    assert len(timesteps) == count and timesteps[0] <= 999
    assert all(a > b for a, b in itertools.pairwise(timesteps))
    # As many as 300 have no place above 900; a single one of the log SNR is the noisiest.
    lowest = {(300, 900): 700}.get((count, last), last)
    if solver == "dpm-solver++" and last == 0:
        lowest = 999 if count == 1 else 5
    assert timesteps[-1] == lowest


def test_timesteps_end_where_the_solver_does_by_default():
    for solver, last in (("ddim", 0), ("dpm-solver++", 5)):
        timesteps = diffusion.sampling_timesteps(Views(solver=solver, steps=20))
        assert timesteps == diffusion.SOLVERS[solver].timesteps(20) and timesteps[-1] == last
    spaced = diffusion.sampling_timesteps(Views(steps=9, last_timestep=100))
    assert np.diff(spaced).tolist() == [-100] * 8


def _literal_dpm_solver(denoise, x, timesteps):
    """Algorithm 2 of "DPM-Solver++" (Lu et al. 2022) in its own letters, then the clean image."""
    alphas = diffusion.cumulative_alphas().numpy()[timesteps]
    alpha, sigma = np.sqrt(alphas), np.sqrt(1 - alphas)
    lam = np.log(alpha / sigma)

    def image(i, x):
        return (x - sigma[i] * denoise(x, timesteps[i], alphas[i])) / alpha[i]

    buffer = [image(0, x)]
    for i in range(1, len(timesteps)):
        h = lam[i] - lam[i - 1]
        d = buffer[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * d
        buffer.append(image(i, x))
    return buffer[-1]


def _noise_of_two_points(x, t, alpha):
    """The best prediction where images are -0.5 or 0.5, with a deviation of 0.1."""
    variance = alpha * 0.01 + 1 - alpha
    mean = torch.tanh(alpha**0.5 * 0.5 * x / variance) / 2
    clean = mean + alpha**0.5 * 0.01 / variance * (x - alpha**0.5 * mean)
    return (x - alpha**0.5 * clean) / (1 - alpha) ** 0.5


@pytest.mark.parametrize(
    "timesteps", [[999], [700, 0], [900, 500, 100], diffusion.logsnr_timesteps(12)]
)
def test_dpm_solver_is_the_published_algorithm(timesteps):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    found = diffusion.dpm_solver_sample(_noise_of_two_points, x, timesteps)
    expected = _literal_dpm_solver(_noise_of_two_points, x, timesteps)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_with_two_timesteps_dpm_solver_is_ddim():
    """It knows no earlier image at the first step, and uses none at the last."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = [
        sample(_noise_of_two_points, x, [800, 30])
        for sample in (diffusion.dpm_solver_sample, diffusion.ddim_sample)
    ]
    torch.testing.assert_close(*found)


def test_half_the_step_quarters_the_error_of_dpm_solver_and_halves_that_of_ddim():
    """On normally distributed images of deviation 0.5, whose path from noise is known exactly."""
    alphas = diffusion.cumulative_alphas()

    def denoise(x, t, alpha):
        return (1 - alpha) ** 0.5 / (0.25 * alpha + 1 - alpha) * x

    deviation = (0.25 * alphas + 1 - alphas).sqrt()
    start, end, x = 999, 5, torch.ones(1, 1, dtype=torch.float64)
    # The exact x at the last timestep, and the image that is predicted there.
    exact = alphas[end].sqrt() * 0.25 / deviation[end] ** 2 * deviation[end] / deviation[start]
    for sample, order in ((diffusion.dpm_solver_sample, 2), (diffusion.ddim_sample, 1)):
        errors = [
            abs(sample(denoise, x, diffusion.logsnr_timesteps(1 + steps)).item() - exact.item())
            for steps in (20, 40, 80)
        ]
        rates = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert all(abs(rate - order) < 0.2 for rate in rates), rates


def test_twelve_steps_of_dpm_solver_come_closer_than_fifty_of_ddim():
    x = torch.randn(1000, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    exact = diffusion.ddim_sample(_noise_of_two_points, x, diffusion.ddim_timesteps(1000))
    errors = [
        (solver.sample(_noise_of_two_points, x, solver.timesteps(steps)) - exact).square().mean()
        for solver, steps in (
            (diffusion.SOLVERS["dpm-solver++"], 12), (diffusion.SOLVERS["ddim"], 50)
        )
    ]  # fmt: skip
    assert errors[0] < errors[1]


def test_half_precision_predictions_do_not_lower_the_precision_of_dpm_solver():
    x = torch.randn(1, 3, 4, 4)
    found = diffusion.dpm_solver_sample(lambda x, t, alpha: x.bfloat16(), x, [700, 300, 20])
    assert found.dtype == torch.float32


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
    found = diffusion.ddim_sample(lambda x, t, alpha: noise, noisy, diffusion.ddim_timesteps(50))
    torch.testing.assert_close(found, x0)


def test_noise_follows_from_the_velocity():
    x0, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    for step in (0, 500, 999):
        alpha = diffusion.cumulative_alphas()[step]
        literal = alpha.sqrt() * noise - (1 - alpha).sqrt() * x0
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_an_error_not_black(value):
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, 0, 0] = value
    with pytest.raises(UserError, match="makes images that are not finite"):
        diffusion.to_pixels(images)
