"""Patch tokens of images, from a vision transformer of ``transformers`` or EfficientNet-Lite0.

Another network needs a branch in :func:`_load`: a :class:`_Kind` of network, and a function from
normalized images (n, 3, R, R) to the tokens of its patches (n, T, dim), row by row, and a feature
of the whole image (n, summary_dim).
"""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from mirage_steps import settings
from mirage_steps.errors import UserError, first_line, is_of_system
from mirage_steps.files.atomic import sha256_of
from mirage_steps.files.project import PROJECT
from mirage_steps.method.device import autocast, out_of_memory
from mirage_steps.networks.dinov2 import load_dinov2
from mirage_steps.networks.efficientnet import LEVELS, POOLED_DIM, EfficientNet
from mirage_steps.networks.fetching import PACKAGES, REVISIONS, place, resolve
from mirage_steps.networks.names import network_name

# Of DINOv2's preprocessor, for models that have none of their own.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OF_BACKBONE = ("resolution", "levels", "token_precision")  # settings that tokens depend on


# From normalized images to tokens of the patches and a feature of the whole image.
Tokens = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class _Kind:
    """What tells the networks apart."""

    name: str  # the last part of its path
    patch_size: int  # stride of the tokens in pixels
    dim: int  # length of a token
    multiple: int  # resolutions are multiples of it
    summary: str = "cls"  # name of the feature of a whole image
    summary_dim: int | None = None  # its length, by default that of a token


@dataclass(frozen=True)
class Backbone:
    """A frozen network at a fixed resolution."""

    name: str  # the last part of its path
    model: Tokens
    device: torch.device
    resolution: int  # side of its square input in pixels
    patch_size: int  # side of a patch in pixels
    dim: int  # length of a token
    summary: str  # feature of a whole image: ``cls``, or ``pooled`` of a convolutional network
    summary_dim: int
    mean: tuple[float, ...]  # of the color channels in [0, 1]
    std: tuple[float, ...]
    folder: Path
    precision: str = "float32"  # of its arithmetic; auto, float32 or bfloat16

    @classmethod
    def load(
        cls,
        backbone: settings.Backbone,
        device: torch.device,
        weights: Path = Path(settings.WEIGHTS),
        key: str = "backbone.model",
    ) -> "Backbone":
        """Load a model from a local folder, or a published one, fetched on first use.

        Args:
            backbone: model and resolution.
            device: where it runs.
            weights: folder of fetched networks.
            key: config key of the model, for errors.

        Raises:
            UserError: it is not there, is no vision transformer, or does not fit the resolution.
        """
        folder = resolve(backbone.model, key, weights)
        try:
            kind, model = _load(folder, backbone, device)
            mean, std = _normalization(folder)
        except Exception as error:  # transformers raises nearly anything on damaged files
            if out_of_memory(error) or is_of_system(error):
                raise
            absent = isinstance(error, KeyError)
            reason = f"weights missing, as {error.args[0]}" if absent else first_line(error)
            raise UserError(
                f"{key} {folder}: not a transformers model folder ({reason}); it needs "
                "config.json and model.safetensors"
            ) from None
        if not isinstance(kind.patch_size, int) or not isinstance(kind.dim, int):
            raise UserError(f"{key} {folder}: has no patch tokens; use a vision transformer")
        if backbone.resolution % kind.multiple:
            near = round(backbone.resolution / kind.multiple) * kind.multiple
            sized = "backbone.resolution" if key == "backbone.model" else f"{key}_resolution"
            raise UserError(
                f"{sized} {backbone.resolution} is not a multiple of the patch size "
                f"{kind.multiple} of {folder}; use {max(near, kind.multiple)}"
            )
        return cls(
            kind.name,
            model,
            device,
            backbone.resolution,
            kind.patch_size,
            kind.dim,
            kind.summary,
            kind.summary_dim or kind.dim,
            mean,
            std,
            folder,
            backbone.token_precision,
        )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.resolution // self.patch_size

    @property
    def fill(self) -> tuple[int, int, int]:
        """Its mean color, (r, g, b) in 0..255, for padding."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Hash of each weight file, by name: the identity of the model."""
        endings = ("*.safetensors", "*.bin", "*.pth")
        paths = next(filter(None, ([*self.folder.glob(ending)] for ending in endings)), [])
        return {path.name: sha256_of(path) for path in sorted(paths)}

    def half_tokens(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens as poses are estimated from them, rounded to float16.

        Args:
            images: as in :meth:`tokens`.

        Returns:
            (n, grid * grid, dim) and (n, summary_dim) float16.
        """
        patches, summary = self.tokens(images)
        return patches.half().cpu().numpy(), summary.half().cpu().numpy()

    def feature(self, images: np.ndarray, token: str) -> np.ndarray:
        """One feature of each image, float32 (n, dim), or (n, summary_dim) of whole images.

        Args:
            images: as in :meth:`tokens`.
            token: ``cls`` for that of the whole image, ``mean-patch`` for the patches' mean.
        """
        patches, summary = self.tokens(images)
        return (summary if token == "cls" else patches.mean(dim=1)).cpu().numpy()

    @torch.inference_mode()
    def tokens(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the patches of square images, and a feature of each whole image.

        Args:
            images: (n, S, S, 3) uint8 RGB; scaled to the resolution where S differs.

        Returns:
            (n, grid * grid, dim) and (n, summary_dim) float32 on the model's device.
        """
        pixels = torch.from_numpy(np.array(images)).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float().div(255)
        if pixels.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True)
            pixels = pixels.clamp(0, 1)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        with autocast(self.device, self.precision):
            patches, summary = self.model((pixels - mean) / std)
        if patches.ndim != 3 or patches.shape[1] < self.grid**2:
            raise UserError(
                f"backbone.model {self.folder}: outputs {tuple(patches.shape[1:])} for "
                f"{self.grid} x {self.grid} patches; use a vision transformer with a CLS token"
            )
        # Registers come first, if there are any, then the patches row by row.
        return patches[:, -(self.grid**2) :].float(), summary.float()


def _load(folder: Path, backbone: settings.Backbone, device: torch.device) -> tuple[_Kind, Tokens]:
    """The network of a folder."""
    if backbone.model in PACKAGES:
        network = EfficientNet(folder, backbone.levels).to(device).eval()
        kind = _Kind(
            backbone.model, min(LEVELS), network.dim, max(network.levels), "pooled", POOLED_DIM
        )
        return kind, network
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if dinov2 := load_dinov2(folder, config):
        hidden = dinov2.to(device).eval()
    else:
        config, hidden = _load_transformers(folder, device)
    name = network_name(folder, stand_in=config.get("stand_in", False))
    patch_size = config.get("patch_size")
    kind = _Kind(name, patch_size, config.get("hidden_size"), patch_size)

    def tokens(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = hidden(pixels)  # the CLS token first
        return output[:, 1:], output[:, 0]

    return kind, tokens


def _load_transformers(folder: Path, device: torch.device) -> tuple[dict, Callable]:
    """Configuration of a model, and the function from images to its tokens (n, 1 + T, dim)."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    network, loading = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    # transformers initializes missing weights at random, which the features would not show.
    absent = [key for key in loading["missing_keys"] if "pooler" not in key and "mask" not in key]
    if absent:
        raise KeyError(min(absent))
    known = inspect.signature(network.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
    network = network.to(device).eval()
    return network.config.to_dict(), lambda pixels: network(pixels, **options).last_hidden_state


def _normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the model's own preprocessor, or DINOv2's."""
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    mean, std = content.get("image_mean", _IMAGENET[0]), content.get("image_std", _IMAGENET[1])
    if {np.shape(values) for values in (mean, std)} != {(3,)}:
        raise ValueError("preprocessor_config.json: image_mean and image_std need three numbers")
    return tuple(mean), tuple(std)


def load_backbone(
    folder: Path, recorded: dict, given: Path | str | None, device: torch.device
) -> Backbone:
    """The vision transformer of a run's estimator, or the same one from a given folder."""
    name, weights = str(recorded["model"] if given is None else given), Path(recorded["weights"])
    found = _find(folder, Path(name)) or _find(folder, place(name, weights))
    # Any other owner/name may as well be the path of a folder that is elsewhere.
    if found is None and (given is not None or name not in {*REVISIONS, *PACKAGES}):
        raise UserError(
            f"backbone.model {name}: not here, nor above {folder}; give its folder by --backbone"
        )
    backbone = Backbone.load(
        settings.Backbone(
            model=str(found or name),
            **{key: recorded[key] for key in _OF_BACKBONE if key in recorded},
        ),
        device,
        _find(folder, weights) or weights,
    )
    if backbone.sha256 != recorded["sha256"]:
        raise UserError(
            f"backbone.model {found or name}: not the weights that the run's features were made "
            "with; give those by --backbone"
        )
    return backbone


def _find(folder: Path, path: Path) -> Path | None:
    """A path relative to the folder in which Snakemake ran: here, above the run, of the project."""
    # Of a linked results folder, those above the link and those above what it links to.
    bases = (Path.cwd(), *folder.absolute().parents, *folder.resolve().parents, PROJECT)
    places = (base / os.path.expanduser(path) for base in bases)
    return next(filter(os.path.exists, places), None)
