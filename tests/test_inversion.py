"""Inversion and novel views of given images, against the equations."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mirage_steps.method.diffusion import (
    SOLVERS,
    cumulative_alphas,
    ddim_invert,
    ddim_sample,
    ddim_timesteps,
    dpm_solver_invert,
    dpm_solver_sample,
    from_pixels,
    logsnr_timesteps,
    to_pixels,
)
from mirage_steps.method.inversion import invert, novel_views, randomize_phases, reconstruct
from mirage_steps.method.metrics import psnr
from mirage_steps.method.multiview import denoise_views, sample_single, sample_views
from mirage_steps.method.poses import object_maps
from mirage_steps.method.unet import UNet, UNetConfig, build
from mirage_steps.settings import Guidance

CONFIG = UNetConfig(16, 6, (32, 64), blocks=1, attention_below=8, head_dim=8, heads=2, stem=2)
THREE, FOUR, FIVE = (ddim_timesteps(count) for count in (3, 4, 5))


def _moves(timesteps: list[int]) -> list[tuple[int, int]]:
    """Pairs of timesteps from noise to image; -1 stands for the clean image."""
    return list(pairwise([*timesteps, -1]))


def _fill_zeros(model: UNet) -> UNet:
    """Values for the zero-initialized layers, or the network would predict nothing."""
    torch.manual_seed(1)
    for parameter in model.requires_grad_(False).parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module", params=["noise", "velocity"])
def network(request) -> UNet:
    return _fill_zeros(build(replace(CONFIG, prediction=request.param), 0)).double()


def _images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=torch.manual_seed(2)) * 2 - 1


def _alpha(step: int) -> float:
    return cumulative_alphas()[step].item() if step >= 0 else 1.0


def _literal_noise(model: UNet, x: torch.Tensor, t: int, pose: int) -> torch.Tensor:
    """Predicted noise of one image by the plain forward pass."""
    output = model(x[None], torch.tensor([t]), torch.tensor([pose]))[0]
    if model.config.prediction == "noise":
        return output
    return _alpha(t) ** 0.5 * output + (1 - _alpha(t)) ** 0.5 * x


def _literal_move(x, noise, here: float, there: float):
    """Equation 4 between any two alphas."""
    clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
    return there**0.5 * clean + (1 - there) ** 0.5 * noise


# Inversion


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_noise_that_does_not_depend_on_the_image_is_inverted_exactly(steps):
    images, timesteps = _images(2), ddim_timesteps(steps)
    noise = torch.randn(steps, *images.shape, dtype=torch.float64)

    def denoise(x, t, alpha):
        return noise[timesteps.index(t)]

    trajectory = ddim_invert(denoise, images, timesteps)
    assert trajectory.shape == noise.shape and trajectory.dtype == torch.float64
    restored = ddim_sample(denoise, trajectory[0], timesteps)
    torch.testing.assert_close(restored, images, rtol=0, atol=1e-5)


def test_with_constant_noise_the_trajectory_is_that_of_equation_3():
    images, noise = _images(2), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    timesteps = ddim_timesteps(50)
    trajectory = ddim_invert(lambda x, t, alpha: noise, images, timesteps)
    for t, x in zip(timesteps, trajectory, strict=True):
        expected = _alpha(t) ** 0.5 * images + (1 - _alpha(t)) ** 0.5 * noise
        torch.testing.assert_close(x, expected)
    # At t = 0 hardly any noise is added, at t = 980 hardly anything else is left.
    assert (trajectory[-1] - images).abs().max() < 0.05
    assert (trajectory[0] - noise).abs().max() < 0.05


def test_every_timestep_and_its_alpha_are_asked_for_once_from_the_last():
    asked = []

    def denoise(x, t, alpha):
        asked.append((t, alpha, x.clone()))
        return torch.zeros_like(x)

    images = _images(1)
    trajectory = ddim_invert(denoise, images, ddim_timesteps(4))
    assert [t for t, _, _ in asked] == [0, 250, 500, 750]
    assert [alpha for _, alpha, _ in asked] == [_alpha(t) for t in (0, 250, 500, 750)]
    # The noise of a step is predicted at the x before it, the image first.
    for x, expected in zip((x for *_, x in asked), (images, *trajectory.flip(0)), strict=False):
        torch.testing.assert_close(x, expected)


def _noise_of_two_points(x: torch.Tensor, t: int, alpha: float) -> torch.Tensor:
    """The best prediction where images are -0.5 or 0.5, with a deviation of 0.1."""
    variance = alpha * 0.01 + 1 - alpha
    mean = torch.tanh(alpha**0.5 * 0.5 * x / variance) / 2
    clean = mean + alpha**0.5 * 0.01 / variance * (x - alpha**0.5 * mean)
    return (x - alpha**0.5 * clean) / (1 - alpha) ** 0.5


@pytest.mark.parametrize("steps", [10, 50, 200])
def test_the_timestep_after_a_step_inverts_better_than_the_one_before(steps):
    images = torch.linspace(-0.8, 0.8, 1001, dtype=torch.float64)[:, None]
    timesteps, other = ddim_timesteps(steps), images
    for t, t_next in reversed(_moves(timesteps)):
        own = max(t_next, 0)  # the image has no timestep
        noise = _noise_of_two_points(other, own, _alpha(own))
        other = _literal_move(other, noise, _alpha(t_next), _alpha(t))
    ours = ddim_invert(_noise_of_two_points, images, timesteps)[0]
    errors = [
        (ddim_sample(_noise_of_two_points, noise, timesteps) - images).abs().mean()
        for noise in (ours, other)
    ]
    assert errors[0] < 0.97 * errors[1]


def test_half_precision_predictions_do_not_lower_the_precision_of_the_trajectory():
    images = _images(1).float()
    trajectory = ddim_invert(lambda x, t, alpha: x.bfloat16(), images, ddim_timesteps(3))
    assert trajectory.dtype == torch.float32


def test_inversion_is_the_literal_loop_of_the_plain_network(network):
    images, poses = _images(3), [4, 0, 4]
    found = invert(network, images, torch.tensor(poses), FIVE)
    assert found.shape == (5, 3, 3, 16, 16)
    for index, pose in enumerate(poses):
        x = images[index]
        for number, (t, t_next) in reversed(list(enumerate(_moves(FIVE)))):
            x = _literal_move(x, _literal_noise(network, x, t, pose), _alpha(t_next), _alpha(t))
            torch.testing.assert_close(found[number, index], x, rtol=1e-9, atol=1e-9)


def test_the_pose_matters_to_inversion(network):
    images = _images(1)
    one, other = (invert(network, images, torch.tensor([pose]), FIVE) for pose in (0, 3))
    assert (one[0] - other[0]).abs().max() > 1e-4


def test_more_steps_restore_better():
    """With the exact denoiser of normally distributed images of half the noise's deviation."""
    images, errors = _images(2), []

    def denoise(x, t, alpha):
        return (1 - alpha) ** 0.5 / (0.25 * alpha + 1 - alpha) * x

    for steps in (10, 40, 160):
        timesteps = ddim_timesteps(steps)
        restored = ddim_sample(denoise, ddim_invert(denoise, images, timesteps)[0], timesteps)
        errors.append((restored - images).abs().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0 and errors[2] < 0.05


def test_the_fixed_point_is_iterated_at_every_step(network):
    images, pose = _images(1), 4
    found = invert(network, images, torch.tensor([pose]), FIVE, iterations=3)
    x = images[0]
    for number, (t, t_next) in reversed(list(enumerate(_moves(FIVE)))):
        noisier = x
        for _ in range(3):
            noise = _literal_noise(network, noisier, t, pose)
            noisier = _literal_move(x, noise, _alpha(t_next), _alpha(t))
        x = noisier
        torch.testing.assert_close(found[number, 0], x, rtol=1e-9, atol=1e-9)


def test_iterations_come_to_the_exact_inverse_and_are_counted():
    """With the denoiser of normally distributed images, whose step back is known exactly."""
    images, calls, timesteps = _images(2), 0, ddim_timesteps(20)

    def denoise(x, t, alpha):
        nonlocal calls
        calls += 1
        return (1 - alpha) ** 0.5 / (0.25 * alpha + 1 - alpha) * x

    errors = []
    for iterations in (1, 2, 4, 8):
        calls = 0
        trajectory = ddim_invert(denoise, images, timesteps, iterations)
        assert calls == 20 * iterations
        errors.append((ddim_sample(denoise, trajectory[0], timesteps) - images).abs().max().item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[3] < 1e-3 * errors[0]
    x = images
    for t, t_next in reversed(_moves(timesteps)):
        share = (1 - _alpha(t)) ** 0.5 / (0.25 * _alpha(t) + 1 - _alpha(t))
        x = x / _literal_move(torch.ones(()).double(), share, _alpha(t), _alpha(t_next))
    torch.testing.assert_close(
        ddim_invert(denoise, images, timesteps, 30)[0], x, rtol=1e-6, atol=1e-6
    )


# Inversion by DPM-Solver++


def _literal_dpm_inverse(denoise, image, timesteps: list[int]) -> list[torch.Tensor]:
    """2M of "DPM-Solver++" (Lu et al. 2022) in its own letters, from the image to noise.

    Its sampler's equation holds for any order of the timesteps. The latent at the first of them,
    nearly the image, is the noised image with the noise predicted in it.
    """
    alphas = cumulative_alphas().numpy()[timesteps]
    alpha, sigma = np.sqrt(alphas), np.sqrt(1 - alphas)
    lam = np.log(alpha / sigma)
    x = alpha[0] * image + sigma[0] * denoise(image, timesteps[0], alphas[0])
    found, buffer = [x], []
    for i in range(1, len(timesteps)):
        noise = denoise(x, timesteps[i - 1], alphas[i - 1])
        buffer.append((x - sigma[i - 1] * noise) / alpha[i - 1])
        h, d = lam[i] - lam[i - 1], buffer[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * d
        found.append(x)
    return found


@pytest.mark.parametrize("timesteps", [[20], [900, 5], [900, 500, 100, 0], logsnr_timesteps(12)])
def test_dpm_inversion_is_the_published_solver_towards_the_noise(timesteps):
    images = _images(2)
    found = dpm_solver_invert(_noise_of_two_points, images, timesteps)
    expected = _literal_dpm_inverse(_noise_of_two_points, images, timesteps[::-1])
    torch.testing.assert_close(found, torch.stack(expected[::-1]), rtol=1e-9, atol=1e-9)


def test_dpm_inversion_evaluates_as_often_as_there_are_timesteps():
    asked = []

    def denoise(x, t, alpha):
        asked.append((t, alpha))
        return x.bfloat16()

    trajectory = dpm_solver_invert(denoise, _images(1).float(), [750, 500, 250])
    assert asked == [(t, _alpha(t)) for t in (250, 250, 500)]
    assert trajectory.dtype == torch.float32, "half precision predictions do not lower it"


def test_half_the_step_quarters_the_error_of_dpm_inversion():
    """On normally distributed images of deviation 0.5, whose path to noise is known exactly."""
    alphas = cumulative_alphas()

    def denoise(x, t, alpha):
        return (1 - alpha) ** 0.5 / (0.25 * alpha + 1 - alpha) * x

    def errors(steps: int) -> list[float]:
        timesteps = logsnr_timesteps(steps)
        found = dpm_solver_invert(denoise, torch.ones(1, 1, dtype=torch.float64), timesteps)
        deviation = (0.25 * alphas + 1 - alphas).sqrt()[timesteps]
        exact = deviation / deviation[-1] * found[-1, 0]  # from the last timestep on
        return (found[:, 0, 0] - exact[0]).abs().tolist()

    first = [errors(1 + steps)[0] for steps in (20, 40, 80)]
    assert all(abs(np.log2(a / b) - 2) < 0.2 for a, b in pairwise(first)), first


def test_dpm_inversion_restores_better_than_three_times_as_many_steps_of_ddim():
    """With images of the distribution whose exact denoiser is evaluated."""
    generator = torch.manual_seed(0)
    images = torch.randn(1000, 1, dtype=torch.float64, generator=generator) * 0.1
    images += torch.randint(2, images.shape, generator=generator) - 0.5
    errors = []
    for steps, solver in ((15, SOLVERS["dpm-solver++"]), (50, SOLVERS["ddim"])):
        timesteps = solver.timesteps(steps)
        noise = solver.invert(_noise_of_two_points, images, timesteps)[0]
        errors.append((solver.sample(_noise_of_two_points, noise, timesteps) - images).abs().mean())
    assert errors[0] < 0.6 * errors[1], errors


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_inverts_the_plain_network_of_every_image_by_itself(network, solver):
    images, poses = _images(3), [4, 0, 4]
    found = invert(network, images, torch.tensor(poses), FIVE, solver=solver)
    for index, pose in enumerate(poses):

        def denoise(x, t, alpha, pose=pose):
            return _literal_noise(network, x[0], t, pose)[None]

        expected = SOLVERS[solver].invert(denoise, images[index : index + 1], FIVE)[:, 0]
        torch.testing.assert_close(found[:, index], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("last", [5, 100])
def test_only_the_end_of_dpm_inversion_changes_the_image_if_steps_are_many(last):
    """With normally distributed images of deviation 0.5: what the end leaves of them is known."""

    def denoise(x, t, alpha):
        return (1 - alpha) ** 0.5 / (0.25 * alpha + 1 - alpha) * x

    images, alpha, timesteps = _images(2), _alpha(last), logsnr_timesteps(300, last)
    assert timesteps[-1] == last
    noise = dpm_solver_invert(denoise, images, timesteps)[0]
    restored = dpm_solver_sample(denoise, noise, timesteps)
    noised = alpha**0.5 * images + (1 - alpha) ** 0.5 * denoise(images, last, alpha)
    expected = _literal_move(noised, denoise(noised, last, alpha), alpha, 1.0)
    torch.testing.assert_close(restored, expected, rtol=1e-3, atol=1e-4)


def test_only_ddim_is_refined(network):
    with pytest.raises(ValueError, match="only the inversion by ddim"):
        invert(network, _images(1), torch.tensor([0]), FIVE, 2, "dpm-solver++")


# Noise without the image's outlines


def _spectrum(noise: torch.Tensor) -> np.ndarray:
    return np.fft.fft2(noise.numpy().astype(np.float64))


def test_random_phases_leave_amplitudes_low_frequencies_and_colors():
    noise = torch.randn(2, 3, 16, 16, dtype=torch.float64) + 0.3
    moved = randomize_phases(noise, 3, seed=5)
    before, after = _spectrum(noise), _spectrum(moved)
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-6, atol=1e-8)
    shifts = np.angle(after / before)
    for row in range(16):
        for column in range(16):
            cycles = np.hypot(min(row, 16 - row), min(column, 16 - column))
            if cycles <= 3:
                np.testing.assert_allclose(after[..., row, column], before[..., row, column])
            # All channels and images shift alike, so what was gray stays gray.
            differences = np.exp(1j * shifts[..., row, column]) - np.exp(
                1j * shifts[0, 0, row, column]
            )
            assert np.abs(differences).max() < 1e-6
    assert np.abs(shifts[0, 0][4:13, 4:13]).mean() > 0.5


def test_random_phases_follow_the_seed_and_may_all_stay():
    noise = torch.randn(1, 3, 16, 16)
    one, again, other = (randomize_phases(noise, 2, seed) for seed in (0, 0, 1))
    assert one.dtype == noise.dtype and torch.equal(one, again) and not torch.equal(one, other)
    torch.testing.assert_close(randomize_phases(noise, 12, 0), noise)


def test_outlines_are_gone():
    """A bright square keeps its light but not its place."""
    square = torch.zeros(1, 3, 32, 32)
    square[..., 8:24, 8:24] = 1
    sharp = square.diff(dim=-1).abs().amax()
    moved = randomize_phases(square, 2, 0)
    assert moved.diff(dim=-1).abs().amax() < 0.7 * sharp
    torch.testing.assert_close(moved.mean(), square.mean())
    torch.testing.assert_close(moved.square().mean(), square.square().mean())


def test_only_the_other_poses_start_from_the_changed_noise():
    model, image = _fill_zeros(build(CONFIG, 0)).double(), _images(1)
    whole, changed = (_novel_views(model, image, 4, cutoff=cutoff) for cutoff in (None, 1))
    assert torch.equal(changed[4], image[0])
    assert all((whole[p] != changed[p]).any() for p in range(6) if p != 4)
    trajectory = invert(model, image, torch.tensor([4]), THREE)
    start = randomize_phases(trajectory[0], 1, 0)
    for pose in (0, 3):
        expected = sample_views(
            model, start, torch.tensor([[4, pose]]), THREE, Guidance(), trajectory
        )[0, 1]  # fmt: skip
        torch.testing.assert_close(changed[pose], expected, rtol=1e-7, atol=1e-7)


# Views of a given image


def _literal_given(model, trajectory, poses, guidance, timesteps) -> torch.Tensor:
    """Views of one object whose reference follows a given trajectory, step by step."""
    reference = dict(zip(timesteps, trajectory, strict=True))
    views = [trajectory[0]] * (len(poses) - 1)
    for now, then in _moves(timesteps):
        t = torch.tensor([now] * 2)
        for place, pose in enumerate(poses[1:]):
            # One view at a time, with the reference of this timestep.
            pair = torch.stack([reference[now], views[place]])[None]
            embedding = model.embed(t, torch.tensor([poses[0], pose]))[None]
            noise = denoise_views(model, pair, embedding, _alpha(now), guidance)[0, 1]
            views[place] = _literal_move(views[place], noise, _alpha(now), _alpha(then))
    return torch.stack(views)


@pytest.mark.parametrize("guidance", [Guidance(gamma=1.0), Guidance(), Guidance(attention="all")])
def test_views_read_the_given_trajectory_at_each_step(network, guidance):
    poses = torch.tensor([[0, 3, 5], [4, 1, 2]])
    # Any trajectory, also one that no sampler would follow.
    trajectory = torch.randn(4, 2, 3, 16, 16, dtype=torch.float64)
    found = sample_views(network, trajectory[0], poses, FOUR, guidance, trajectory)
    assert found.shape == (2, 3, 3, 16, 16)
    for index in range(2):
        chosen = poses[index].tolist()
        expected = _literal_given(network, trajectory[:, index], chosen, guidance, FOUR)
        torch.testing.assert_close(found[index, 1:], expected, rtol=1e-9, atol=1e-9)


def test_views_are_sampled_by_the_solver_of_the_inversion():
    model, image, poses = _fill_zeros(build(CONFIG, 0)).double(), _images(1), torch.tensor([[4, 3]])
    solver = "dpm-solver++"
    trajectory = invert(model, image, poses[0, :1], FOUR, solver=solver)
    found = _novel_views(model, image, 4, FOUR, solver=solver)
    expected = sample_views(model, trajectory[0], poses, FOUR, Guidance(), trajectory, solver)[0, 1]
    torch.testing.assert_close(found[3], expected, rtol=1e-7, atol=1e-7)
    assert (found[3] != _novel_views(model, image, 4, FOUR)[3]).any()


def test_every_entry_of_the_trajectory_matters(network):
    poses = torch.tensor([[0, 3]])
    trajectory = torch.randn(4, 1, 3, 16, 16, dtype=torch.float64)
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)

    def view(given) -> torch.Tensor:
        return sample_views(network, noise, poses, FOUR, Guidance(), given)[0, 1]

    base = view(trajectory)
    for number in range(4):
        changed = trajectory.clone()
        changed[number] *= -1
        assert (view(changed) - base).abs().max() > 1e-4


def test_a_sampled_reference_given_as_trajectory_changes_nothing(network):
    """The trajectory of the sampler itself is one among others."""
    poses = torch.tensor([[0, 3, 5]])
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    trajectory, x = [], noise[0]
    for t, t_next in _moves(FOUR):
        trajectory.append(x)
        x = _literal_move(x, _literal_noise(network, x, t, 0), _alpha(t), _alpha(t_next))
    expected = sample_views(network, noise, poses, FOUR, Guidance())
    found = sample_views(network, noise, poses, FOUR, Guidance(), torch.stack(trajectory)[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_dpm_solver_reads_the_given_trajectory_at_each_step(network):
    """A reference that it sampled itself, given as trajectory, changes nothing."""
    poses, noise = torch.tensor([[0, 3, 5]]), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    trajectory = []

    def denoise(x, t, alpha):
        trajectory.append(x)
        return _literal_noise(network, x[0], t, 0)[None]

    dpm_solver_sample(denoise, noise, FOUR)
    expected = sample_views(network, noise, poses, FOUR, Guidance(), solver="dpm-solver++")
    found = sample_views(
        network, noise, poses, FOUR, Guidance(), torch.stack(trajectory), "dpm-solver++"
    )
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-8, atol=1e-8)


# Novel views of photos


def _photos(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def _novel_views(model, image, pose, timesteps=THREE, cutoff=None, solver="ddim") -> torch.Tensor:
    trajectory = invert(model, image, torch.tensor([pose]), timesteps, solver=solver)
    return novel_views(
        model, image, pose, trajectory, timesteps, cutoff=cutoff, guidance=Guidance(), batch_size=4,
        solver=solver,
    )  # fmt: skip


@pytest.mark.parametrize("categories", [1, 2])
def test_an_image_stands_in_its_own_pose_and_the_views_around_it(categories):
    model = _fill_zeros(build(replace(CONFIG, categories=categories), 0)).double()
    image = _images(1)
    for pose in (0, 4):
        found, siblings = _novel_views(model, image, pose), model.config.siblings(pose)
        assert found.shape == (6 // categories, 3, 16, 16)
        trajectory = invert(model, image, torch.tensor([pose]), THREE)[:, 0]
        for other, view in zip(siblings, found, strict=True):
            expected = _literal_given(model, trajectory, [pose, other], Guidance(), THREE)[0]
            expected = image[0] if other == pose else expected
            torch.testing.assert_close(view, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_reconstruction_is_sampled_from_the_end_of_the_trajectory(solver):
    model, images = _fill_zeros(build(CONFIG, 0)), from_pixels(_photos(2))
    own = torch.tensor([4, 0])
    trajectory = invert(model, images, own, THREE, solver=solver)
    found = reconstruct(model, trajectory, own, THREE, solver)
    assert torch.equal(found, sample_single(model, trajectory[0], own, THREE, solver))
    assert (to_pixels(found) != _photos(2)).any()


# How alike two images are


def test_psnr_has_its_value_by_hand():
    one = np.zeros((2, 2, 3), np.uint8)
    other = one.copy()
    other[0, 0, 0] = 6
    # The mean square is 36 / 12 = 3: 20 log10 255 - 10 log10 3.
    assert psnr(one, other) == pytest.approx(48.1308 - 4.7712, abs=1e-4)
    assert psnr(other, one) == psnr(one, other)
    assert psnr(one, one + 255) == 0.0
    assert psnr(one, one) == float("inf")


# Maps as the paper has them


@pytest.mark.parametrize("mask_background", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_maps_keep_their_background_and_length_where_told_to(mask_background, normalize):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 9, 3)) * rng.uniform(0.1, 50, (5, 1, 1))
    shown = rng.random((5, 9)) < 0.5
    shown[2] = False
    before = values.copy()
    kept = shown if mask_background else np.ones_like(shown)
    found = object_maps(values, kept, normalize)
    assert found.dtype == np.float32 and found.shape == values.shape
    for index in range(5):
        expected = values[index].copy()
        if mask_background:
            expected[~shown[index]] = 0
        if normalize and expected.any():
            expected /= np.sqrt((expected**2).sum())
        np.testing.assert_allclose(found[index], expected, rtol=1e-5)
    np.testing.assert_array_equal(values, before)
    assert found[2].any() == (not mask_background)
