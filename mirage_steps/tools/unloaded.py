"""The pipeline's networks without their weights: what they cost is known from their shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.method.cost import forward_flops, peak_bytes
from mirage_steps.method.diffusion import ddim_timesteps, squared_error
from mirage_steps.method.multiview import sample_all_poses, sample_single, sample_views
from mirage_steps.method.training import KernelMuon, make_optimizers
from mirage_steps.method.unet import Frames, UNet, preset

META = torch.device("meta")
# DINOv2 as published: width, layers, heads.
_DINOV2 = {
    "facebook/dinov2-small": (384, 12, 6),
    "facebook/dinov2-base": (768, 12, 12),
    "facebook/dinov2-large": (1024, 24, 16),
    "facebook/dinov2-giant": (1536, 40, 24),
}
# Bytes of segment-anything's checkpoints.
SAM_BYTES = {"vit_b": 375e6, "vit_l": 1.25e9, "vit_h": 2.56e9}
INCEPTION_BYTES = 95e6
SD_1_5 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD_BYTES = 5.5e9  # with text encoder, decoder and safety checker
_INCEPTION_SIDE = 299
_ONE_STEP = ddim_timesteps(1)


@dataclass(frozen=True)
class Cost:
    """What running a network costs.

    Args:
        flops: floating-point operations of the smallest unit of work: an image, an object with its
            views, or a training step.
        memory: bytes of the weights and of what is alive at once at the batch size, float32.
        parameters: number of the network's parameters.
    """

    flops: int
    memory: int
    parameters: int


@dataclass(frozen=True)
class Tokens:
    """The backbone and the shape of its features.

    Args:
        cost: of an image.
        patches: patch tokens of an image.
        dim: length of a token.
    """

    cost: Cost
    patches: int
    dim: int


def inference(network: nn.Module, side: int, batch: int, **options: bool) -> Cost:
    """Cost of a network on images (n, 3, side, side)."""

    def run(count: int) -> None:
        network(torch.empty(count, 3, side, side, device=META), **options)

    return _cost(network, run, batch)


def backbone(chosen: settings.Backbone) -> Tokens:
    """Cost and tokens of the vision transformer.

    Raises:
        UserError: its shape cannot be known here, or it does not fit the resolution.
    """
    import transformers

    if Path(chosen.model).is_dir():
        try:
            config = transformers.AutoConfig.from_pretrained(chosen.model)
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(f"backbone.model {chosen.model}: no model folder ({reason})") from None
    elif chosen.model in _DINOV2:
        width, layers, heads = _DINOV2[chosen.model]
        config = transformers.Dinov2Config(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, mlp_ratio=4,
            image_size=518, patch_size=14, use_swiglu_ffn=chosen.model.endswith("giant"),
        )  # fmt: skip
    else:
        raise UserError(
            f"backbone.model {chosen.model}: neither a local folder nor one of "
            f"{', '.join(_DINOV2)}, so its size cannot be known; download it and give its folder"
        )
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or chosen.resolution % patch:
        raise UserError(
            f"backbone.resolution {chosen.resolution} is not a multiple of the patch size of "
            f"{chosen.model} ({patch or 'it has none'})"
        )
    with META:
        network = transformers.AutoModel.from_config(config).eval()
    options = {"interpolate_pos_encoding": True} if config.model_type == "dinov2" else {}
    cost = inference(network, chosen.resolution, chosen.batch_size, **options)
    return Tokens(cost, (chosen.resolution // patch) ** 2, config.hidden_size)


def stable_diffusion(source: settings.StableDiffusion) -> Cost | None:
    """Cost of an image of Stable Diffusion, its U-Net alone; None where its shape is not known."""
    folder = Path(source.model, "unet")
    if not folder.is_dir() and source.model != SD_1_5:
        return None
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(folder) if folder.is_dir() else {}
    width = config.get("cross_attention_dim", 768)
    with META:
        network = UNet2DConditionModel.from_config({**config, "cross_attention_dim": width}).eval()
    # With classifier-free guidance every image is denoised twice at once.
    passes, side = 2 if source.guidance_scale > 1 else 1, source.size // 8
    time = torch.zeros((), dtype=torch.long, device=META)

    def run(count: int) -> None:
        rows = count * passes
        words = torch.empty(rows, 77, width, device=META)
        network(torch.empty(rows, network.config.in_channels, side, side, device=META), time, words)

    cost = _cost(network, run, source.batch_size)
    return Cost(cost.flops * source.steps, cost.memory, cost.parameters)


def sam(masks: settings.Masks) -> Cost:
    """Cost of segment-anything's image encoder; prompts and masks are little beside it.

    Raises:
        UserError: no such file, and no published model.
    """
    from segment_anything import sam_model_registry

    from mirage_steps.networks.tiny_sam import build_tiny_sam

    path, name = Path(masks.sam), masks.sam
    if path.is_file():  # reading it would take long; its size tells which it is
        name = min(SAM_BYTES, key=lambda known: abs(SAM_BYTES[known] - path.stat().st_size))
    elif name not in SAM_BYTES and not path.is_dir():
        raise UserError(f"masks.sam {name}: no such file, and none of {', '.join(SAM_BYTES)}")
    with META:
        network = sam_model_registry[name]() if name in SAM_BYTES else build_tiny_sam(None)
    encoder = network.eval().image_encoder
    return inference(encoder, encoder.img_size, masks.sam_batch_size)


def inception(batch: int) -> Cost:
    """Cost of FID's Inception, taken to be torchvision's, which has the same layers."""
    from torchvision.models import inception_v3

    with META:
        network = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
    return inference(network, _INCEPTION_SIDE, batch)


class Generator:
    """The diffusion model, as it is trained and as it is sampled from.

    Args:
        training: preset, size, optimiser, batch size.
        k: number of poses of a category.
        categories: kinds of object.
    """

    def __init__(self, training: settings.Training, k: int, categories: int = 1):
        self.training = training
        size, poses = training.image_size, k * categories
        config = preset(training.preset, size, poses, training.dropout, categories)
        with META:
            self.model = UNet(config).to(memory_format=torch.channels_last)
        self.parameters = _parameters(self.model)

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return 4 * self.parameters

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights, averaged weights, state of the optimisers."""
        return 2 * self.weights + self._optimizer_state()

    def step(self) -> Cost:
        """Cost of a training step; in memory everything that is alive while training."""
        images = self._empty(self.training.batch_size)
        times = self._poses(len(images))
        model = self.model.train()

        def step() -> None:
            loss = squared_error(model(images, times, times), images)
            model.zero_grad()  # as in training: the last step's gradients live until here
            loss.backward()

        def two_steps() -> None:
            step()
            step()

        peak = peak_bytes(two_steps)
        flops = forward_flops(step)
        model.zero_grad()
        return Cost(flops, self.checkpoint + peak, self.parameters)

    def single(self, batch: int) -> Cost:
        """Cost of a denoising step of single images."""
        model = self.model.eval()

        def run(count: int) -> None:
            sample_single(model, self._empty(count), self._poses(count), _ONE_STEP)

        return _cost(model, run, batch)

    def multi(self, views: int, batch: int, gamma: float) -> Cost:
        """Cost of a denoising step of objects with their views.

        Args:
            views: of each object, beside the reference.
            batch: frames at once, guided views twice, as in the views step.
            gamma: weight of the soft pass in equation 7; 1 is no guidance.
        """
        model = self.model.eval()

        def run(count: int) -> None:
            sample_views(model, self._empty(count), self._poses(count, 1 + views), _ONE_STEP, gamma)

        return _cost(model, run, max(1, batch // Frames(views, hard=gamma != 1).count))

    def _empty(self, count: int) -> torch.Tensor:
        size = self.training.image_size
        return torch.empty(count, 3, size, size, device=META)

    def _poses(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device=META)

    def contact_sheet(self, sheet: settings.Sheet, views: settings.Views, gamma: float) -> Cost:
        """Cost of a contact sheet, all its denoising steps."""
        model, noise = self.model.eval(), self._empty(1)

        def run(_: int) -> None:
            sample_all_poses(model, noise, 0, _ONE_STEP, gamma, views.batch_size)

        cost = _cost(model, run, 1)
        return Cost(cost.flops * views.steps * sheet.objects, cost.memory, cost.parameters)

    def _optimizer_state(self) -> int:
        """Bytes: Muon keeps one mean of every parameter, Adam two."""
        made = make_optimizers(self.model, self.training.optimizer, self.training.learning_rate)
        return sum(
            4 * parameter.numel() * (1 if isinstance(optimizer, KernelMuon) else 2)
            for optimizer in made
            for group in optimizer.param_groups
            for parameter in group["params"]
        )


def _cost(network: nn.Module, run: Callable[[int], None], batch: int) -> Cost:
    """Operations of one unit of work, memory of a batch, without gradients."""
    with torch.inference_mode():
        flops, peak = forward_flops(lambda: run(1)), peak_bytes(lambda: run(batch))
    return Cost(flops, 4 * _parameters(network) + peak, _parameters(network))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
