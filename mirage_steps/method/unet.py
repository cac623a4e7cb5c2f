"""The denoising U-Net, conditioned on time and pose (paper, section 3.2 and appendix A).

The paper names the U-Net of simple-diffusion and adds "learnable pose embeddings into the time
embedding": residual blocks, space-to-depth downsampling, nearest-neighbor upsampling, attention in
the middle and at the last level of both ways. The embedding scales and shifts the normalized
features of every residual block, as in AdaIN. ``docs/paper.md`` compares the two networks.

Layers are named by the resolution of their output: ``encoder["16x16_block0"]``,
``encoder["8x8_down"]``, ``decoder["8x8_block1"]``. The network is split at the first attention of
the middle: :meth:`UNet.encode` runs up to it, :meth:`UNet.decode` from it on. Cross-frame attention
(equation 6) acts only in the second half.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirage_steps.settings import Guidance

# Hard attention compares this many queries with all keys at once, fewer where their logits take
# more bytes: those of 24 views of 64 x 64 queries, 4096 keys and 4 heads take 6.4 GB.
_QUERY_CHUNK, _LOGITS_SIZE = 1024, 2**28
_FEW_KEYS = 256


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a network."""

    image_size: int  # side of the images in pixels
    poses: int  # number of poses, of all categories together
    widths: Sequence[int]  # channels of each level
    blocks: int = 2  # residual blocks of a level of the encoder
    attention_below: int = 32  # resolutions up to this have attention (layout `ddpm`)
    # Up to this one, which is higher, the decoder's last block of a level has it too.
    decoder_attention_below: int = 0
    embedding: int = 256  # length of the joint embedding of time and pose
    head_dim: int = 32  # channels of an attention head
    heads: int = 4  # their channels together need not equal the level's
    # Factor of the pixel-unshuffle in front and the pixel-shuffle behind; 1 for none. With a stem,
    # the input also goes straight to the output with a gain that depends on time and pose: most of
    # an unshuffled pixel's values are noise that all layers would otherwise have to carry.
    stem: int = 1
    dropout: float = 0.0  # in residual blocks, while training
    # What the output means: `noise` (paper), or `velocity`, from which the noise follows
    # (:func:`mirage_steps.method.diffusion.noise_from_output`).
    prediction: str = "noise"
    categories: int = 1  # each with equally many consecutive poses
    # `ddpm` (Ho et al. 2020), or `simple-diffusion`, the network that the paper's appendix A names,
    # in which only the middle has the last width, and attention is where a way ends.
    layout: str = "ddpm"

    def siblings(self, pose: int) -> range:
        """The poses of the same category, in circular order, ``pose`` among them."""
        count = self.poses // self.categories
        first = pose // count * count
        return range(first, first + count)


# The small network works on blocks of 4 x 4 pixels and predicts the velocity, from which shapes
# appear in the few hundred steps that two cores can afford (docs/experiments.md compares).
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"widths": (64, 128, 256, 512), "layout": "simple-diffusion"},
    "small": {
        "widths": (96, 192, 192), "blocks": 1, "attention_below": 8,
        "decoder_attention_below": 16, "stem": 4,
        "prediction": "velocity",
    },
}  # fmt: skip


def preset(
    name: str, image_size: int, poses: int, dropout: float, categories: int = 1
) -> UNetConfig:
    """The network of appendix A (``paper``), or one for two cores without a GPU (``small``).

    Raises:
        ValueError: no preset has this name.
    """
    if name not in _PRESETS:
        raise ValueError(f"preset {name}: unknown; valid choices are {', '.join(_PRESETS)}")
    return UNetConfig(image_size, poses, dropout=dropout, categories=categories, **_PRESETS[name])


@dataclass(frozen=True)
class Frames:
    """How a batch divides into objects, each a row of frames: reference, views, hard frames."""

    views: int = 0  # of each object; without any, every image attends to itself
    hard: bool = False  # whether the views follow once more, to attend with arg-max
    hard_reference: bool = False  # whether the reference follows too, before its hard views
    encoder: bool = False  # whether the views read the reference in the encoder too

    @classmethod
    def of(cls, views: int, guidance: Guidance) -> "Frames":
        """The frames that equations 6 and 7 need."""
        if guidance.attention == "none" or not views:
            return _ALONE
        hard = guidance.hard
        everywhere = guidance.attention == "all"
        return cls(views, hard, hard and guidance.reference == "guided", everywhere)

    @property
    def count(self) -> int:
        """Frames of an object."""
        return 1 + self.views * (2 if self.hard else 1) + self.hard_reference

    def spread(self, x: Tensor) -> Tensor:
        """(objects * (1 + views), ...) to (objects * count, ...), views repeated as hard views."""
        if not self.hard:
            return x
        rows = x.unflatten(0, (-1, 1 + self.views))
        repeated = rows if self.hard_reference else rows[:, 1:]
        spread = torch.cat([rows, repeated], dim=1).flatten(0, 1)
        return spread.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else spread


_ALONE = Frames()


class Encoded(NamedTuple):
    """Output of the first half of the network, input of the second."""

    features: Tensor  # (n, channels, H, W), before the first attention of the middle
    skips: list[Tensor]  # skip connections, first to last
    inputs: Tensor  # (n, 3 * stem^2, S / stem, S / stem), the unshuffled images


class UNet(nn.Module):
    """Predicts the noise in an image, or the velocity, given the timestep and the pose."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, embedding = config.widths, config.embedding
        self.time_embedding = nn.Sequential(
            nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.pose_embedding = nn.Embedding(config.poses, embedding)
        pixels = 3 * config.stem**2
        self.unshuffle = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(pixels, widths[0], 3, padding=1)

        self.encoder, self.decoder = map(nn.ModuleDict, _LAYOUTS[config.layout](config))
        self.middle_block0 = Block(config, widths[-1], widths[-1])
        self.middle_attention = SelfAttention(config, widths[-1])
        self.middle_block1 = Block(config, widths[-1], widths[-1])

        self.norm_out = GroupNorm(32, widths[0])
        self.conv_out = nn.Conv2d(widths[0], pixels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.stem)
        self.input_gain = nn.Linear(embedding, pixels) if config.stem > 1 else None
        # The untrained network outputs zero, as usual for diffusion models.
        for layer in filter(None, (self.conv_out, self.input_gain)):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def embed(self, t: Tensor, pose: Tensor) -> Tensor:
        """Joint embedding (n, embedding) of timesteps (n,) in [0, T) and poses (n,)."""
        waves = sinusoidal(t, self.config.widths[0]).to(self.pose_embedding.weight.dtype)
        return functional.silu(self.time_embedding(waves) + self.pose_embedding(pose))

    def forward(self, x: Tensor, t: Tensor, pose: Tensor) -> Tensor:
        """Output (n, 3, S, S) for images (n, 3, S, S) at timesteps (n,) in poses (n,)."""
        embedding = self.embed(t, pose)
        return self.decode(self.encode(x, embedding), embedding)

    def encode(self, x: Tensor, embedding: Tensor, frames: Frames = _ALONE) -> Encoded:
        """Features of images (n, 3, S, S) up to the first attention of the middle.

        Args:
            x: images.
            embedding: (n, embedding).
            frames: as in :meth:`decode`; hard frames are there if the encoder reads the reference.
        """
        if frames.encoder:
            x, embedding = frames.spread(x), frames.spread(embedding)
        else:
            frames = _ALONE
        inputs = self.unshuffle(x).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(inputs)
        skips = [h]
        for layer in self.encoder.values():
            h = layer(h, embedding, frames)
            if layer.skip:
                skips.append(h)
        return Encoded(self.middle_block0(h, embedding), skips, inputs)

    def decode(self, encoded: Encoded, embedding: Tensor, frames: Frames = _ALONE) -> Tensor:
        """From the first attention of the middle to the network's output.

        Args:
            encoded: what :meth:`encode` returned.
            embedding: (n, embedding).
            frames: how the batch divides into objects, for cross-frame attention (equation 6); by
                default plain self-attention (equation 5).

        Returns:
            (n, 3, S, S); with hard views (objects * frames.count, 3, S, S).
        """
        h, inputs, skips = encoded.features, encoded.inputs, list(encoded.skips)
        embedding = frames.spread(embedding)
        if not frames.encoder:
            h, inputs, *skips = map(frames.spread, (h, inputs, *skips))
        h = self.middle_block1(self.middle_attention(h, frames), embedding)
        for layer in self.decoder.values():
            if layer.skip:
                h = torch.cat([h, skips.pop()], dim=1)
            h = layer(h, embedding, frames)
        h = self.conv_out(functional.silu(self.norm_out(h)))
        if self.input_gain is not None:
            h = torch.addcmul(h, self.input_gain(embedding)[:, :, None, None], inputs)
        return self.shuffle(h)


def build(config: UNetConfig, seed: int) -> UNet:
    """The untrained network, its weights drawn from the seed, on the CPU."""
    torch.manual_seed(seed)
    return UNet(config).to(memory_format=torch.channels_last)


class GroupNorm(nn.GroupNorm):
    """Group normalization computed in at least float32, as autocast does it on CUDA.

    On the CPU autocast leaves it in bfloat16, where torch takes longer for it than in float32 with
    both conversions (``benchmarks/views.py --precision bfloat16``).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape and type of ``x``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return super().forward(wide).to(x.dtype)


class ChannelNorm(nn.LayerNorm):
    """Normalization of the channels of every pixel by itself, with a gain and without a bias."""

    def __init__(self, channels: int):
        super().__init__(channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``, (n, channels, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two convolutions, around which the input is added, and attention where asked for.

    The embedding scales and shifts the features normalized between the convolutions.

    Args:
        config: shape of the network.
        channels: of the input, with those of a skip connection.
        width: channels of the output.
        attention: whether attention follows.
    """

    skip = True  # in the encoder the output is a skip connection, in the decoder one is an input

    def __init__(self, config: UNetConfig, channels: int, width: int, attention: bool = False):
        super().__init__()
        self.norm1 = GroupNorm(32, channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.modulation = nn.Linear(config.embedding, 2 * width)
        self.norm2 = GroupNorm(32, width)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)
        self.attention = SelfAttention(config, width) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, frames: Frames = _ALONE) -> Tensor:
        """(n, channels, H, W) and (n, embedding) to (n, width, H, W)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = self.shortcut(x) + self.conv2(self.dropout(h))
        return self.attention(h, frames) if self.attention else h


class SelfAttention(nn.Module):
    """Self-attention (equation 5), or cross-frame attention to a reference (equation 6)."""

    def __init__(self, config: UNetConfig, channels: int):
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        cited = config.layout == "simple-diffusion"
        self.norm = ChannelNorm(channels) if cited else GroupNorm(32, channels)
        self.query = nn.Linear(channels, inner, bias=False)
        self.key_value = nn.Linear(channels, 2 * inner, bias=False)
        self.out = nn.Linear(inner, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, frames: Frames = _ALONE) -> Tensor:
        """(n, channels, H, W) to the same shape, added to the input.

        Keys and values are projected for the references only, and all queries of an object are
        folded into one row of tokens, so that one product serves all its views.
        """
        _, _, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (n, HW, channels)
        key, value = self._key_value(tokens, frames, 0)
        query = self.query(tokens).unflatten(0, (-1, frames.count)).flatten(1, 2)
        query = self._split(query)  # (objects, heads, frames * HW, head_dim)
        soft = height * width * (1 + frames.views)
        attended = soft_attention(query[:, :, :soft], key, value)
        if frames.hard:
            if frames.hard_reference:
                key, value = self._key_value(tokens, frames, 1 + frames.views)
            hard = hard_attention(query[:, :, soft:], key, value)
            attended = torch.cat([attended, hard], dim=2)
        attended = self.out(attended.transpose(1, 2).flatten(2))
        attended = attended.reshape(-1, height, width, attended.shape[-1]).permute(0, 3, 1, 2)
        return x + attended

    def _key_value(self, tokens: Tensor, frames: Frames, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values (objects, heads, HW, head_dim) of frame ``number`` of every object."""
        references = tokens.unflatten(0, (-1, frames.count))[:, number]
        key, value = map(self._split, self.key_value(references).chunk(2, dim=-1))
        return key, value

    def _split(self, tokens: Tensor) -> Tensor:
        """(n, L, heads * d) to (n, heads, L, d)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


def soft_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Equation 5 or 6: each query's mean of the values by the soft-max of its logits.

    On the CPU plain products are faster for few keys, in bfloat16 twice as fast
    (``benchmarks/views.py``); elsewhere torch's fused attention, which keeps no logits.

    Args:
        query: (n, heads, queries, d), the shape of the result.
        key: (n, heads, keys, d), like the values.
    """
    if query.device.type != "cpu" or key.shape[2] > _FEW_KEYS:
        return functional.scaled_dot_product_attention(query, key, value)
    return (query * query.shape[3] ** -0.5 @ key.mT).softmax(dim=3) @ value


def hard_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Equation 6 with arg-max in place of soft-max: each query takes its best key's value.

    The scale of the logits does not change their arg-max, and a product with a one-hot matrix is a
    gather, so neither soft-max nor the product with the values is computed.

    Args:
        query: (n, heads, queries, d), the shape of the result.
        key: (n, heads, keys, d), like the values.
    """
    # Logits that differ little are equal in bfloat16, and the first would always win.
    keys = key.transpose(2, 3).to(torch.promote_types(key.dtype, torch.float32))
    count = max(1, min(_QUERY_CHUNK, _LOGITS_SIZE // (keys[..., 0, :].numel() * keys.itemsize)))
    with torch.autocast("cpu" if query.is_meta else query.device.type, enabled=False):
        best = [(q.to(keys.dtype) @ keys).argmax(dim=3) for q in query.split(count, dim=2)]
    indices = torch.cat(best, dim=2)[..., None]  # (n, heads, queries, 1)
    return value.gather(2, indices.expand(-1, -1, -1, value.shape[3]))


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of timesteps (n,) at geometric frequencies (Vaswani et al. 2017).

    (n, dim) in [-1, 1], at least float32; ``dim`` is even.
    """
    dtype = torch.promote_types(t.dtype, torch.float32)
    steps = torch.arange(dim // 2, device=t.device, dtype=dtype)
    angles = t.to(dtype)[:, None] * torch.exp(-math.log(10_000) * steps / (dim // 2 - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Resample(nn.Module):
    """Resolution ``down`` by space-to-depth, ``up`` by depth-to-space, or unchanged (``conv``).

    ``nearest`` is up by nearest neighbor, as in simple-diffusion: its convolution sees the higher
    resolution and costs nine times as much. A convolution leads from ``channels`` to ``width``.
    ``skip`` as in :class:`Block`.
    """

    def __init__(self, channels: int, width: int, direction: str, skip: bool = False):
        super().__init__()
        self.skip = skip
        before = after = nn.Identity()
        if direction == "down":
            before, self.conv = nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, width, 1)
        elif direction == "up":
            self.conv, after = nn.Conv2d(channels, 4 * width, 1), nn.PixelShuffle(2)
        else:
            before = nn.Upsample(scale_factor=2) if direction == "nearest" else before
            self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.before, self.after = before, after

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """(n, channels, H, W) to (n, width, H', W')."""
        return self.after(self.conv(self.before(x)))


def _ddpm(config: UNetConfig) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Encoder and decoder of DDPM: a level's first block has its width, a halving ends it.

    All outputs of the encoder are skip connections, so a level of the decoder has a block more.
    """
    size, channels = config.image_size // config.stem, config.widths[0]
    encoder: dict[str, nn.Module] = {}
    decoder: dict[str, nn.Module] = {}
    skips = [channels]
    for level, width in enumerate(config.widths):
        if level > 0:
            size //= 2
            encoder[f"{size}x{size}_down"] = Resample(channels, channels, "down", skip=True)
            skips.append(channels)
        for number in range(config.blocks):
            block = Block(config, channels, width, size <= config.attention_below)
            encoder[f"{size}x{size}_block{number}"] = block
            skips.append(channels := width)
    for level, width in reversed(list(enumerate(config.widths))):
        for number in range(config.blocks + 1):
            attention = size <= config.attention_below
            attention |= size <= config.decoder_attention_below and number == config.blocks
            block = Block(config, channels + skips.pop(), width, attention)
            decoder[f"{size}x{size}_block{number}"] = block
            channels = width
        if level > 0:
            size *= 2
            decoder[f"{size}x{size}_up"] = Resample(channels, channels, "up")
    return encoder, decoder


def _simple_diffusion(config: UNetConfig) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Encoder and decoder as in github.com/filipbasara0/simple-diffusion, folder ``model``.

    A level's blocks keep its width, the layer behind them leads to the next width. The last level
    of each way keeps its resolution, and attention follows its last block: the encoder's lowest
    resolution, the decoder's full one. Skip connections come from the blocks, and from the first
    convolution to one more block at the end.
    """
    encoder: dict[str, nn.Module] = {}
    decoder: dict[str, nn.Module] = {}
    levels, last = list(pairwise(config.widths)), config.blocks - 1
    sizes = [config.image_size // config.stem >> level for level in range(len(levels))]
    for (width, wider), size, after in zip(levels, sizes, [*sizes[1:], sizes[-1]], strict=True):
        for number in range(config.blocks):
            attention = after == size and number == last
            encoder[f"{size}x{size}_block{number}"] = Block(config, width, width, attention)
        direction = "down" if after < size else "conv"
        encoder[f"{after}x{after}_{direction}"] = Resample(width, wider, direction)
    upwards = zip(levels, sizes, [sizes[0], *sizes[:-1]], strict=True)
    for (width, wider), size, after in reversed(list(upwards)):
        for number in range(config.blocks):
            attention = after == size and number == last
            decoder[f"{size}x{size}_block{number}"] = Block(config, wider + width, wider, attention)
        direction = "nearest" if after > size else "conv"
        name = "up" if after > size else "conv"
        decoder[f"{after}x{after}_{name}"] = Resample(wider, width, direction)
    decoder[f"{after}x{after}_block{config.blocks}"] = Block(config, 2 * width, width)
    return encoder, decoder


_LAYOUTS = {"ddpm": _ddpm, "simple-diffusion": _simple_diffusion}
