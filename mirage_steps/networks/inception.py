"""The Inception network and preprocessing of clean-fid (Parmar et al. 2022), for FID."""

import warnings
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import sha256_of
from mirage_steps.files.loading import ahead
from mirage_steps.method.device import out_of_memory
from mirage_steps.networks.fetching import FILES, resolve
from mirage_steps.networks.names import INCEPTION
from mirage_steps.settings import WEIGHTS, published_inception

INCEPTION_DIM = 2048


class Inception:
    """The Inception network of FID with clean-fid's resizer, from a file of any name.

    Args:
        inception: ``auto`` for the published file, fetched on first use, or a TorchScript file
            with a submodule ``layers``.
        device: where it runs.
        weights: folder of fetched networks.

    Raises:
        UserError: the file is missing, cannot be fetched or is something else.
    """

    def __init__(self, inception: str, device: torch.device, weights: Path = Path(WEIGHTS)):
        published = FILES["inception"]
        name = published_inception(inception)
        path = resolve(name, "embed.inception", weights)
        open(path, "rb").close()  # the system's error, which torch does not tell from damage
        try:
            with warnings.catch_warnings():
                # The network is published as TorchScript only, which torch calls deprecated.
                warnings.simplefilter("ignore")
                self.layers = torch.jit.load(str(path), map_location=device).eval().layers
        except (RuntimeError, ValueError, AttributeError) as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"embed.inception {path}: not clean-fid's Inception in TorchScript; get it from "
                f"{published.url}"
            ) from None
        self.name = INCEPTION if sha256_of(path) == published.sha256 else path.name
        self.device = device
        self._resize = build_resizer("clean")

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of the last pooling layer.

        Args:
            images: (n, S, S, 3) uint8 RGB.

        Returns:
            (n, 2048) float32.
        """
        resized = np.stack(list(ahead(self._resize, images)))
        pixels = torch.from_numpy(resized).to(self.device).permute(0, 3, 1, 2)
        # From [0, 255] to about [-1, 1].
        return self.layers((pixels - 128) / 128).reshape(len(images), INCEPTION_DIM).cpu().numpy()
