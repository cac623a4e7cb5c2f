"""Cross-frame attention and guidance, in float64, against the paper's equations taken literally."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mirage_steps.method import unet
from mirage_steps.method.diffusion import (
    SOLVERS,
    cumulative_alphas,
    ddim_timesteps,
    frame_noise,
    keyed_noise,
    logsnr_timesteps,
    noise_from_output,
)
from mirage_steps.method.multiview import denoise_views, sample_single, sample_views
from mirage_steps.method.unet import Frames, UNet, UNetConfig, hard_attention, preset
from mirage_steps.settings import Guidance

CONFIG = UNetConfig(16, 6, (32, 64), blocks=1, attention_below=8, head_dim=8, heads=2, stem=2)


CONFIGS = {
    "ddpm": CONFIG,
    "ddpm-velocity": replace(CONFIG, prediction="velocity"),
    "simple-diffusion": replace(
        CONFIG, widths=(32, 32, 64), blocks=2, stem=1, layout="simple-diffusion"
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def network(request) -> UNet:
    """A small network whose zero-initialized layers got values, or nothing would be tested."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    model = UNet(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


class LiteralAttention:
    """Attention one image at a time, storing the reference's keys and values for its views."""

    def __init__(self, layer: unet.SelfAttention):
        self.layer, self.stored = layer, None

    def project(self, x):
        tokens = self.layer.norm(x).flatten(2).transpose(1, 2)[0]
        key, value = self.layer.key_value(tokens).chunk(2, dim=-1)
        return self.layer.query(tokens), key, value

    def __call__(self, x, mode):
        query, key, value = self.project(x)
        if mode in ("self", "hard-self"):
            self.stored = key, value
        elif mode != "encoder":
            key, value = self.stored
        heads, outputs = self.layer.heads, []
        for q, k, v in zip(
            *(part.chunk(heads, dim=1) for part in (query, key, value)), strict=True
        ):
            logits = q @ k.T / q.shape[1] ** 0.5
            weights = logits.softmax(dim=1)  # equations 5 and 6
            if mode.startswith("hard"):
                weights = functional.one_hot(logits.argmax(dim=1), len(k)).to(logits)
            outputs.append(weights @ v)
        out = self.layer.out(torch.cat(outputs, dim=1))
        return x + out.T.reshape(1, -1, *x.shape[2:])


class LiteralUNet:
    """The network run one image and one pass at a time; nothing is shared or batched."""

    def __init__(self, model: UNet):
        self.model = model
        self.attention = {
            layer: LiteralAttention(layer)
            for layer in model.modules()
            if isinstance(layer, unet.SelfAttention)
        }

    def __call__(self, x, t, pose, mode, everywhere=False):
        model = self.model
        embedding = model.embed(torch.tensor([t]), torch.tensor([pose]))
        h = model.conv_in(model.unshuffle(x))
        skips = [h]
        for layer in model.encoder.values():
            h = self.run(layer, h, embedding, mode if everywhere else "encoder")
            if model.config.layout == "ddpm" or isinstance(layer, unet.Block):
                skips.append(h)
        h = model.middle_block0(h, embedding)
        h = self.attention[model.middle_attention](h, mode)
        h = model.middle_block1(h, embedding)
        for layer in model.decoder.values():
            if isinstance(layer, unet.Block):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.run(layer, h, embedding, mode)
        assert not skips
        out = model.conv_out(functional.silu(model.norm_out(h)))
        if model.input_gain is not None:
            out = out + model.input_gain(embedding)[:, :, None, None] * model.unshuffle(x)
        return model.shuffle(out)

    def run(self, layer, h, embedding, mode):
        if not isinstance(layer, unet.Block):
            return layer(h, embedding)
        scale, shift = layer.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        inside = layer.norm2(layer.conv1(functional.silu(layer.norm1(h)))) * (1 + scale) + shift
        h = layer.shortcut(h) + layer.conv2(functional.silu(inside))
        return h if layer.attention is None else self.attention[layer.attention](h, mode)


def literal_views(model, noise, poses, timesteps, guidance):
    """Equations 4, 6 and 7 for one object: poses[0] is the reference.

    ``noise`` is (1, 3, S, S), or (len(poses), 3, S, S) for a noise of each frame's own.
    """
    literal, alphas = LiteralUNet(model), cumulative_alphas().tolist()
    gamma, everywhere = guidance.gamma, guidance.attention == "all"
    xs = [noise[number % len(noise)][None].clone() for number in range(len(poses))]
    for t, t_next in itertools.pairwise([*timesteps, None]):

        def passes(*modes, t=t, xs=xs):
            """The reference in the first mode, its views in the second."""
            modes = [modes[0], *modes[1:] * (len(poses) - 1)]
            frames = zip(xs, poses, modes, strict=True)
            return [literal(x, t, pose, mode, everywhere) for x, pose, mode in frames]

        if guidance.attention == "none":
            predictions = passes("self", "self")
        else:
            predictions = passes("self", "soft")
            if guidance.reference == "guided":
                hard = passes("hard-self", "hard")
            else:
                hard = [predictions[0], *passes("self", "hard")[1:]]
            predictions = [
                (1 - gamma) * h + gamma * s for h, s in zip(hard, predictions, strict=True)
            ]
        a, b = alphas[t], 1.0 if t_next is None else alphas[t_next]
        if model.config.prediction == "velocity":
            predictions = [
                a**0.5 * v + (1 - a) ** 0.5 * x for x, v in zip(xs, predictions, strict=True)
            ]
        xs = [
            b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e
            for x, e in zip(xs, predictions, strict=True)
        ]
    return torch.cat(xs)


FOUR, THREE = ddim_timesteps(4), ddim_timesteps(3)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(gamma=0.0),
        Guidance(gamma=1.0),
        Guidance(gamma=1.5),
        Guidance(gamma=1.5, attention="none"),
        Guidance(gamma=1.0, attention="all"),
        Guidance(gamma=2.0, attention="all"),
        Guidance(gamma=1.5, reference="guided"),
        Guidance(gamma=1.5, attention="all", reference="guided"),
    ],
    ids=lambda guidance: "-".join(str(value) for _, value in guidance),
)
def test_views_equal_the_literal_equations(network, guidance):
    noise = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.manual_seed(1))
    poses = torch.tensor([[0, 3, 5, 2], [4, 4, 1, 0]])
    found = sample_views(network, noise, poses, FOUR, guidance)
    for number in range(2):
        expected = literal_views(
            network, noise[number : number + 1], poses[number].tolist(), FOUR, guidance
        )
        torch.testing.assert_close(found[number], expected, rtol=1e-9, atol=1e-9)


def test_views_may_start_from_noises_of_their_own(network):
    noise = frame_noise(0, [4, 7], 3, (3, 16, 16)).double()
    shared = keyed_noise(0, [4, 7], (3, 16, 16)).double()
    torch.testing.assert_close(noise[:, 0], shared)
    assert len({*noise.flatten(0, 1).sum((1, 2, 3)).tolist()}) == 6
    found = sample_views(network, noise, torch.tensor([[0, 3, 5], [4, 1, 2]]), THREE, Guidance())
    expected = literal_views(network, noise[1], [4, 1, 2], THREE, Guidance())
    torch.testing.assert_close(found[1], expected, rtol=1e-9, atol=1e-9)


def test_guidance_and_reference_matter(network):
    """The tests above would prove little if the passes gave the same."""
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    poses = torch.tensor([[0, 3]])
    off, on = (
        sample_views(network, noise, poses, FOUR, Guidance(gamma=gamma)) for gamma in (1.0, 1.5)
    )
    single = sample_single(network, noise, torch.tensor([3]), FOUR)
    assert (off[0, 1] - on[0, 1]).abs().max() > 1e-4
    assert (off[0, 1] - single[0]).abs().max() > 1e-4
    torch.testing.assert_close(off[0, 0], on[0, 0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_reference_is_generated_as_if_alone(network, solver):
    noise = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    poses = torch.tensor([[0, 3, 1], [5, 2, 4]])
    found = sample_views(network, noise, poses, FOUR, Guidance(), solver=solver)[:, 0]
    torch.testing.assert_close(found, sample_single(network, noise, poses[:, 0], FOUR, solver))


@pytest.mark.parametrize("guidance", [Guidance(gamma=1.0), Guidance(gamma=1.5)])
def test_ddim_tends_to_the_views_of_dpm_solver(guidance):
    """With cross-frame attention and with guidance; a smooth network, or 40 steps are too few."""
    torch.manual_seed(0)
    model = UNet(CONFIGS["ddpm-velocity"]).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.manual_seed(1))

    def views(solver: str, steps: int) -> torch.Tensor:
        timesteps = logsnr_timesteps(steps)
        poses = torch.tensor([[0, 3]])
        return sample_views(model, noise, poses, timesteps, guidance, solver=solver)[:, 1:]

    def error(*chosen) -> float:
        return (views(*chosen) - exact).square().mean().sqrt().item()

    exact = views("dpm-solver++", 100)
    assert error("ddim", 40) < 0.6 * error("ddim", 20)
    assert error("dpm-solver++", 20) < error("ddim", 40) / 2


def test_a_view_does_not_depend_on_the_other_poses_asked_for(network):
    """Equation 1: views are independent given the reference."""
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    alone = sample_views(network, noise, torch.tensor([[0, 3]]), THREE, Guidance())[0, 1]
    for others in itertools.permutations([1, 2, 5], 2):
        together = sample_views(network, noise, torch.tensor([[0, *others, 3]]), THREE, Guidance())
        torch.testing.assert_close(together[0, -1], alone)


def test_a_view_in_the_reference_pose_without_guidance_is_the_reference(network):
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    found = sample_views(network, noise, torch.tensor([[2, 2]]), FOUR, Guidance(gamma=1.0))
    torch.testing.assert_close(found[0, 0], found[0, 1])


def test_reference_alone_needs_no_views(network):
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    found = sample_views(network, noise, torch.tensor([[2]]), THREE, Guidance())
    torch.testing.assert_close(found[:, 0], sample_single(network, noise, torch.tensor([2]), THREE))


def test_hard_attention_in_chunks_equals_one_hot(monkeypatch):
    query, key, value = (torch.randn(2, 3, length, 4) for length in (50, 20, 20))
    one_hot = functional.one_hot((query @ key.mT / 2).argmax(dim=-1), 20).float()
    monkeypatch.setattr(unet, "_QUERY_CHUNK", 7)
    torch.testing.assert_close(hard_attention(query, key, value), one_hot @ value)


def test_hard_attention_bounds_the_memory_of_its_logits(monkeypatch):
    """As many queries at once as the bytes allow, by objects, heads and keys; never none."""
    seen = []
    monkeypatch.setattr(torch.Tensor, "argmax", _seen(torch.Tensor.argmax, seen))
    for objects, keys, queries, counts in (
        (1, 4096, 2500, [1024, 1024, 452]),
        (16, 4096, 300, [256, 44]),
        (9, 64, 2000, [1024, 976]),  # the small network: as without the bound
    ):
        seen.clear()
        query, key = (torch.zeros(objects, 4, count, 1) for count in (queries, keys))
        hard_attention(query, key, key)
        assert [shape[2] for shape in seen] == counts
        assert all(4 * shape.numel() <= 2**28 for shape in seen)
    monkeypatch.setattr(unet, "_LOGITS_SIZE", 1)
    query, key, value = (torch.randn(1, 2, length, 4) for length in (5, 20, 20))
    one_hot = functional.one_hot((query @ key.mT / 2).argmax(dim=-1), 20).float()
    torch.testing.assert_close(hard_attention(query, key, value), one_hot @ value)


def _seen(function, shapes):
    """The function, which also appends the shape of its first argument."""

    def recorded(x, *args, **kwargs):
        shapes.append(x.shape)
        return function(x, *args, **kwargs)

    return recorded


def test_views_are_spread_behind_the_soft_ones():
    frames = Frames(2, hard=True)
    x = torch.arange(6)[:, None, None, None]
    assert frames.spread(x).flatten().tolist() == [0, 1, 2, 1, 2, 3, 4, 5, 4, 5]
    assert Frames(2, hard=False).spread(x) is x


def test_one_pass_equals_forward(network):
    """The batched pass over a lone reference is the plain forward pass."""
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    poses, times = torch.tensor([1, 2, 3]), torch.full((3,), 400)
    embedding = network.embed(times, poses)
    alpha = cumulative_alphas()[400].item()
    found = denoise_views(network, x[:, None], embedding[:, None], alpha, Guidance())
    output = network(x, times, poses)
    expected = noise_from_output(output, x, alpha, network.config.prediction)
    torch.testing.assert_close(found[:, 0], expected)


@pytest.mark.parametrize("name", ["paper", "small"])
def test_presets_run_and_use_time_and_pose(name):
    torch.manual_seed(0)
    model = UNet(preset(name, 32, 5, 0.0)).eval().requires_grad_(False)
    x = torch.randn(2, 3, 32, 32)
    t, pose = torch.tensor([10, 900]), torch.tensor([0, 4])
    assert not model(x, t, pose).any(), "the untrained network predicts no noise"
    for parameter in model.parameters():
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    base = model(x, t, pose)
    assert base.shape == x.shape and base.isfinite().all()
    assert (base - model(x, t + 50, pose)).abs().max() > 1e-3
    assert (base - model(x, t, pose.flip(0))).abs().max() > 1e-3


def test_an_unknown_preset_is_refused_with_the_valid_choices():
    with pytest.raises(ValueError, match="preset large: unknown; valid choices are paper, small"):
        preset("large", 64, 4, 0.0)


def cited_parameters(widths: tuple[int, ...]) -> dict[str, int]:
    """Parameters of simple-diffusion's folder ``model`` (April 2023), written down layer by layer.

    Knows nothing of our network. Attention has 4 heads of 32 channels and a norm without a bias.
    """
    first, *_, last = widths
    time, levels = 4 * first, list(itertools.pairwise(widths))

    def conv(channels, width, side=1):
        return width * (channels * side**2 + 1)

    def block(channels, width):
        shortcut = conv(channels, width) if channels != width else 0
        norms, embedding = 2 * 2 * width, conv(time, width)
        return conv(channels, width, 3) + conv(width, width, 3) + norms + embedding + shortcut

    def attention(width):
        return width + 3 * 128 * width + conv(128, width)

    down = sum(conv(4 * narrow, wide) for narrow, wide in levels[:-1])
    return {
        "time": conv(first, time) + conv(time, time),
        "start": conv(3, first, 3),
        "encoder": sum(2 * block(narrow, narrow) for narrow, _ in levels)
        + down + attention(widths[-2]) + conv(widths[-2], last, 3),
        "middle": 2 * block(last, last) + attention(last),
        "decoder": sum(2 * block(wide + narrow, wide) for narrow, wide in levels)
        + sum(conv(wide, narrow, 3) for narrow, wide in levels) + attention(widths[1]),
        "end": block(2 * first, first) + conv(first, 3),
    }  # fmt: skip


def test_paper_preset_is_the_cited_network_but_for_what_is_documented():
    config = preset("paper", 64, 25, 0.1)
    assert config.widths == (64, 128, 256, 512) and config.blocks == 2 and config.stem == 1
    assert (config.heads, config.head_dim) == (4, 32)
    with torch.device("meta"):
        model = UNet(config)
    blocks = [layer for layer in model.modules() if isinstance(layer, unet.Block)]
    # 2 in each of 3 levels down and up, 2 in the middle, 1 at the end.
    assert len(blocks) == 15
    added = 25 * config.embedding  # poses
    for block in blocks:
        width, channels = block.conv2.out_channels, block.conv1.in_channels
        added += width * (config.embedding + 1)  # scale and shift
        added += 2 * (channels - width)  # the first norm stands before its convolution
    added += 2 * 64 + 3 * 64 * (9 - 1)  # norm and 3 x 3 at the end
    cited = sum(cited_parameters(config.widths).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert cited == 33_600_643 and total == cited + added == 34_581_059
    assert sum(cited_parameters((128, 256, 512, 1024)).values()) == 133_417_219


def test_paper_preset_attends_where_the_cited_network_does():
    """Once on either way, at its last level, and in the middle; each pixel normalized alone."""
    torch.manual_seed(0)
    model = UNet(preset("paper", 64, 4, 0.0)).eval()
    modules = model.named_modules()
    layers = {name: layer for name, layer in modules if isinstance(layer, unet.SelfAttention)}
    seen = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape}))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64), torch.tensor([3]), torch.tensor([1]))
    assert {name: tuple(shape[1:]) for name, shape in seen.items()} == {
        "encoder.16x16_block1.attention": (256, 16, 16),
        "middle_attention": (512, 16, 16),
        "decoder.64x64_block1.attention": (128, 64, 64),
    }
    for layer in layers.values():
        assert dict(layer.norm.named_parameters()).keys() == {"weight"}
    x = torch.randn(2, 128, 4, 3)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt()
    found = layers["decoder.64x64_block1.attention"].norm(x)
    torch.testing.assert_close(found, expected)


def test_paper_preset_has_the_published_resolutions():
    model = UNet(preset("paper", 64, 4, 0.0)).eval()
    seen = []
    for layer in [*model.encoder.values(), model.middle_attention, *model.decoder.values()]:
        layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:3])))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64), torch.tensor([3]), torch.tensor([1]))
    down = [(64, 64), (64, 64), (128, 32), (128, 32), (128, 32), (256, 16)]
    assert seen[:9] == [*down, (256, 16), (256, 16), (512, 16)]
    assert seen[9] == (512, 16)
    up = [(512, 16), (512, 16), (256, 32), (256, 32), (256, 32), (128, 64)]
    assert seen[10:] == [*up, (128, 64), (128, 64), (64, 64), (64, 64)]


@pytest.mark.parametrize("name", ["paper", "small"])
def test_layers_are_named_by_the_resolution_of_their_output(name):
    model = UNet(preset(name, 64, 4, 0.0)).eval()
    seen = {}
    for key, layer in [*model.encoder.items(), *model.decoder.items()]:
        layer.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out.shape}))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64), torch.tensor([3]), torch.tensor([1]))
    assert seen.keys() == {*model.encoder, *model.decoder}
    for key, shape in seen.items():
        assert key.startswith(f"{shape[2]}x{shape[3]}_")
