"""The denoising U-Net, conditioned on time and pose (paper, section 3.2 and appendix A).

The paper names the U-Net of simple-diffusion and adds "learnable pose embeddings into the time
embedding": residual blocks, space-to-depth on the way down, nearest-neighbour on the way up,
attention at low resolution and in the middle. The embedding scales and shifts the normalised
features of every residual block, as in AdaIN. ``docs/paper.md`` compares the two networks.

The network is split at the first attention of the bottleneck: :meth:`UNet.encode` runs up to it,
:meth:`UNet.decode` from it on. Cross-frame attention (equation 6) acts only in the second half.
"""

import contextlib
import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Queries that hard attention compares with all keys at once; bounds the memory of its logits.
_QUERY_CHUNK = 1024


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a network.

    Args:
        image_size: side of the images in pixels.
        poses: number of poses, of all categories together.
        widths: channels of each level; all but the last end in a halving of the resolution.
        blocks: residual blocks a level (one more on the way up).
        attention_below: attention after each residual block at resolutions up to this.
        head_dim: channels of an attention head.
        heads: attention heads; their channels together need not equal the level's.
        stem: factor of the pixel-unshuffle in front and the pixel-shuffle behind; 1 for none. With
            a stem, the input also goes straight to the output with a gain that depends on time and
            pose: most of a block's values are noise that the network would else have to carry
            through all its layers only to give it back.
        dropout: in residual blocks, while training.
        prediction: what the network's output means: ``noise`` (paper), or ``velocity``, from which
            the noise follows (:func:`mirage_steps.method.diffusion.noise_from_output`).
        categories: kinds of object, each with equally many poses in a row.
        layout: ``ddpm`` (Ho et al. 2020), or ``simple-diffusion``, the network that the paper's
            appendix A names, in which the last width is the middle's alone.
    """

    image_size: int
    poses: int
    widths: tuple[int, ...]
    blocks: int = 2
    attention_below: int = 32
    head_dim: int = 32
    heads: int = 4
    stem: int = 1
    dropout: float = 0.0
    prediction: str = "noise"
    categories: int = 1
    layout: str = "ddpm"

    def siblings(self, pose: int) -> range:
        """The poses of the same category, in circular order, ``pose`` among them."""
        count = self.poses // self.categories
        first = pose // count * count
        return range(first, first + count)

    @property
    def embedding(self) -> int:
        """Length of the joint embedding of time and pose."""
        return 4 * self.widths[0]

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "UNetConfig":
        """From what :meth:`as_dict` gave."""
        return cls(**{**values, "widths": tuple(values["widths"])})


def preset(
    name: str, image_size: int, poses: int, dropout: float, categories: int = 1
) -> UNetConfig:
    """The two networks on offer.

    ``paper``: the layout that appendix A names, levels 64 to 512, attention up to 32 x 32.
    ``small``: for two cores without an accelerator; works on blocks of 4 x 4 pixels and predicts
    the velocity, from which shapes appear in the few hundred steps that such a machine can afford
    (``docs/training.md`` has what was compared).
    """
    if name == "paper":
        return UNetConfig(
            image_size,
            poses,
            (64, 128, 256, 512),
            dropout=dropout,
            categories=categories,
            layout="simple-diffusion",
        )
    return UNetConfig(
        image_size,
        poses,
        (96, 192, 192),
        blocks=1,
        attention_below=8,
        stem=4,
        dropout=dropout,
        prediction="velocity",
        categories=categories,
    )


@dataclass(frozen=True)
class Frames:
    """How a batch divides into objects, each a row of frames: reference, views, hard views.

    Args:
        views: views of each object beside the reference.
        hard: whether the views follow once more, to be attended to with arg-max.
    """

    views: int
    hard: bool

    @property
    def count(self) -> int:
        """Frames of an object."""
        return 1 + self.views * (2 if self.hard else 1)

    def spread(self, x: Tensor) -> Tensor:
        """Repeat the views of (objects * (1 + views), ...) as hard views, if there are any."""
        if not self.hard:
            return x
        rows = x.unflatten(0, (-1, 1 + self.views))
        spread = torch.cat([rows, rows[:, 1:]], dim=1).flatten(0, 1)
        return spread.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else spread


class UNet(nn.Module):
    """Predicts the noise in an image, or the velocity, given the time step and the pose."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, embedding = config.widths, config.embedding
        self.time = nn.Sequential(
            nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.pose = nn.Embedding(config.poses, embedding)
        pixels = 3 * config.stem**2
        self.stem_in = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(pixels, widths[0], 3, padding=1)

        path = _simple_diffusion_path if config.layout == "simple-diffusion" else _ddpm_path
        self.down, self.up = map(nn.ModuleList, path(config))
        self.middle_in = ResidualBlock(config, widths[-1], widths[-1])
        self.middle_attention = SelfAttention(config, widths[-1])
        self.middle_out = ResidualBlock(config, widths[-1], widths[-1])

        self.norm_out = GroupNorm(32, widths[0])
        self.conv_out = nn.Conv2d(widths[0], pixels, 3, padding=1)
        self.stem_out = nn.PixelShuffle(config.stem)
        self.gain = nn.Linear(embedding, pixels) if config.stem > 1 else None
        # The untrained network puts out zero, the usual start of such networks.
        for layer in filter(None, (self.conv_out, self.gain)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed(self, t: Tensor, pose: Tensor) -> Tensor:
        """Joint embedding of time and pose.

        Args:
            t: (n,) time steps in [0, T).
            pose: (n,) poses in [0, poses).

        Returns:
            (n, embedding).
        """
        waves = sinusoidal(t, self.config.widths[0]).to(self.pose.weight.dtype)
        return functional.silu(self.time(waves) + self.pose(pose))

    def forward(self, x: Tensor, t: Tensor, pose: Tensor) -> Tensor:
        """Output (n, 3, S, S) for images (n, 3, S, S) at time steps (n,) in poses (n,)."""
        embedding = self.embed(t, pose)
        return self.decode(*self.encode(x, embedding), embedding)

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Everything up to the first attention of the bottleneck.

        Args:
            x: (n, 3, S, S).
            embedding: (n, embedding).

        Returns:
            The bottleneck's features and the skip connections, first to last, before them all the
            input's blocks.
        """
        blocks = self.stem_in(x).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(blocks)
        skips = [blocks, h]
        for layer in self.down:
            h = layer(h, embedding)
            if self.config.layout == "ddpm" or isinstance(layer, _Stage):
                skips.append(h)
        return self.middle_in(h, embedding), skips

    def decode(
        self, h: Tensor, skips: list[Tensor], embedding: Tensor, frames: Frames | None = None
    ) -> Tensor:
        """From the first attention of the bottleneck to the network's output.

        Args:
            h: features of the bottleneck.
            skips: the input's blocks and the skip connections, first to last.
            embedding: (n, embedding).
            frames: how the batch divides into objects, for cross-frame attention (equation 6);
                None for plain self-attention (equation 5).

        Returns:
            (n, 3, S, S).
        """
        h = self.middle_out(self.middle_attention(h, frames), embedding)
        blocks, *skips = skips
        for layer in self.up:
            if isinstance(layer, _Stage):
                h = torch.cat([h, skips.pop()], dim=1)
            h = layer(h, embedding, frames)
        h = self.conv_out(functional.silu(self.norm_out(h)))
        if self.gain is not None:
            h = torch.addcmul(h, self.gain(embedding)[:, :, None, None], blocks)
        return self.stem_out(h)


def build(config: UNetConfig, seed: int) -> UNet:
    """A network with its weights drawn from the seed, on the CPU: what training starts from."""
    torch.manual_seed(seed)
    return UNet(config).to(memory_format=torch.channels_last)


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in at least float32, as autocast does it on CUDA.

    On the CPU autocast leaves it in bfloat16, where torch takes longer for it than in float32 with
    both conversions (``benchmarks/views.py --precision bfloat16``).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape and type of ``x``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return super().forward(wide).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions; the embedding scales and shifts the features normalised in between."""

    def __init__(self, config: UNetConfig, channels: int, width: int):
        super().__init__()
        self.norm1 = GroupNorm(32, channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.modulation = nn.Linear(config.embedding, 2 * width)
        self.norm2 = GroupNorm(32, width)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, channels, H, W) and (n, embedding) to (n, width, H, W)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(h))


class SelfAttention(nn.Module):
    """Self-attention (equation 5), or cross-frame attention to a reference (equation 6)."""

    def __init__(self, config: UNetConfig, channels: int):
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.norm = GroupNorm(32, channels)
        self.query = nn.Linear(channels, inner, bias=False)
        self.key_value = nn.Linear(channels, 2 * inner, bias=False)
        self.out = nn.Linear(inner, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, frames: Frames | None = None) -> Tensor:
        """(n, channels, H, W) to the same shape, added to the input.

        With ``frames`` keys and values are projected for the references only, and all queries of
        an object are folded into one row of tokens, so that one product serves all its views.
        """
        _, _, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (n, HW, channels)
        query = self.query(tokens)
        if frames is not None:
            tokens = tokens.unflatten(0, (-1, frames.count))[:, 0]  # references
            query = query.unflatten(0, (-1, frames.count)).flatten(1, 2)  # (objects, frames HW, .)
        key, value = (self._split(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        query = self._split(query)  # (., heads, queries, head_dim)
        if frames is not None and frames.hard:
            soft = (1 + frames.views) * height * width
            attended = torch.cat(
                [
                    functional.scaled_dot_product_attention(query[:, :, :soft], key, value),
                    hard_attention(query[:, :, soft:], key, value),
                ],
                dim=2,
            )
        else:
            attended = functional.scaled_dot_product_attention(query, key, value)
        attended = self.out(attended.transpose(1, 2).flatten(2))  # (., queries, channels)
        attended = attended.reshape(-1, height, width, attended.shape[-1]).permute(0, 3, 1, 2)
        return x + attended

    def _split(self, tokens: Tensor) -> Tensor:
        """(n, L, heads * d) to (n, heads, L, d)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


def hard_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Equation 6 with arg-max in place of soft-max: each query takes its best key's value.

    The scale of the logits does not change their arg-max, and a product with a one-hot matrix is a
    gather, so neither soft-max nor the product with the values is computed.

    Args:
        query: (n, heads, queries, d).
        key: (n, heads, keys, d).
        value: (n, heads, keys, d).

    Returns:
        (n, heads, queries, d).
    """
    chunks = []
    # Logits that differ little are equal in bfloat16, and the first would always win.
    keys = key.transpose(2, 3).to(torch.promote_types(key.dtype, torch.float32))
    with _without_autocast(query.device):
        for part in query.split(_QUERY_CHUNK, dim=2):
            best = (part.to(keys.dtype) @ keys).argmax(dim=3, keepdim=True)
            chunks.append(value.gather(2, best.expand(-1, -1, -1, value.shape[3])))
    return torch.cat(chunks, dim=2)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Arithmetic as the tensors have it; not every device knows another."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of time steps at geometric frequencies (Vaswani et al. 2017).

    Args:
        t: (n,).
        dim: even length of the result.

    Returns:
        (n, dim) in [-1, 1], float32 (float64 for float64 time steps).
    """
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    steps = torch.arange(dim // 2, device=t.device, dtype=dtype)
    angles = t.to(dtype)[:, None] * torch.exp(-math.log(10_000) * steps / (dim // 2 - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Stage(nn.Module):
    """A residual block, followed by attention at low resolution."""

    def __init__(self, config: UNetConfig, channels: int, width: int, attention: bool):
        super().__init__()
        self.block = ResidualBlock(config, channels, width)
        self.attention = SelfAttention(config, width) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, frames: Frames | None = None) -> Tensor:
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h, frames)


class _Resample(nn.Module):
    """Change resolution and channels: down by space to depth and 1 x 1, up by nearest neighbour.

    Args:
        channels: of the input.
        width: channels of the output.
        factor: 0.5, 2, or 1 for a mere 3 x 3 convolution.
    """

    def __init__(self, channels: int, width: int, factor: float):
        super().__init__()
        self.factor = factor
        if factor < 1:
            self.conv = nn.Conv2d(4 * channels, width, 1)
        else:
            self.conv = nn.Conv2d(channels, width, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor, frames: Frames | None = None) -> Tensor:
        if self.factor < 1:
            x = functional.pixel_unshuffle(x, 2)
        elif self.factor > 1:
            x = functional.interpolate(x, scale_factor=self.factor, mode="nearest")
        return self.conv(x)


_Layers = tuple[list[nn.Module], list[nn.Module]]


def _ddpm_path(config: UNetConfig) -> _Layers:
    """Layers down and up: a level is entered by its first block and left by a halving.

    The outputs of all layers down are skip connections, so there is a block more on the way up.
    """
    resolution, channels = config.image_size // config.stem, config.widths[0]
    down, up, skips = [], [], [channels]
    for level, width in enumerate(config.widths):
        attention = resolution <= config.attention_below
        for _ in range(config.blocks):
            down.append(_Stage(config, channels, width, attention))
            channels = width
            skips.append(channels)
        if level < len(config.widths) - 1:
            down.append(_Resample(channels, channels, 0.5))
            skips.append(channels)
            resolution //= 2
    for level, width in reversed(list(enumerate(config.widths))):
        attention = resolution <= config.attention_below
        for _ in range(config.blocks + 1):
            up.append(_Stage(config, channels + skips.pop(), width, attention))
            channels = width
        if level > 0:
            up.append(_Resample(channels, channels, 2))
            resolution *= 2
    return down, up


def _simple_diffusion_path(config: UNetConfig) -> _Layers:
    """Layers down and up as in github.com/filipbasara0/simple-diffusion, model/unet.py.

    A level's blocks keep its width, the layer behind them leads to the next; the last does not
    halve the resolution. Attention follows the last block of a level. Skip connections come from
    the blocks, and from the first convolution to a block at the end.
    """
    resolution, last = config.image_size // config.stem, len(config.widths) - 2
    down, up = [], []
    # The way up is laid from its end.
    up.append(_Stage(config, 2 * config.widths[0], config.widths[0], attention=False))
    for level, (width, wider) in enumerate(pairwise(config.widths)):
        attention = resolution <= config.attention_below
        up.insert(0, _Resample(wider, width, 1 if level == 0 else 2))
        for block in reversed(range(config.blocks)):
            final = attention and block == config.blocks - 1
            up.insert(0, _Stage(config, wider + width, wider, final))
        down += [
            _Stage(config, width, width, attention and block == config.blocks - 1)
            for block in range(config.blocks)
        ]
        down.append(_Resample(width, wider, 1 if level == last else 0.5))
        resolution //= 1 if level == last else 2
    return down, up
