"""Step 9a: the features that distances compare, the backbone's and, if configured, Inception's.

FID means one Inception network and one way of scaling images to it; clean-fid (Parmar et al. 2022)
fixes both, and its file and its resizer are used here. Writes ``features.h5``:

- ``backbone`` (n, dim) float32, the CLS token or the mean over the patch tokens;
- ``inception`` (n, 2048) float32, absent where the attribute ``inception_absent`` says why;
- attributes that name the networks, the token, and the images' size and number.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import create_h5, open_h5, slices
from mirage_steps.method.device import choose_device
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.inception import INCEPTION_DIM, Inception

Extractor = Callable[[np.ndarray], np.ndarray]


def main(
    *,
    images: Path,
    out: Path,
    backbone: settings.Backbone = settings.Backbone(),
    embed: settings.Embed = settings.Embed(),
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> None:
    """Write features.h5: one row of each network's features for each image of a set.

    Args:
        images: HDF5 file of the set.
        out: Folder for features.h5.
        backbone: The vision transformer.
        embed: Which features.
        weights: Folder of fetched networks.
        device: auto, cpu or cuda.
    """
    chosen = choose_device(device)
    network = Backbone.load(backbone, chosen, weights)
    extractors: dict[str, tuple[int, Extractor]] = {
        "backbone": (network.dim, lambda pixels: backbone_features(network, pixels, embed.token))
    }
    if embed.inception == "none":
        about = {"inception_absent": "not configured (embed.inception is none)"}
    else:
        inception = Inception(embed.inception, chosen, weights)
        extractors["inception"] = (INCEPTION_DIM, inception.features)
        about = {"inception": inception.name}
    with open_h5(images, "images") as source, create_h5(out / "features.h5") as features:
        features.attrs.update(
            count=len(source["images"]),
            image_size=source["images"].shape[1],
            sam=source.attrs.get("sam", ""),
            backbone=network.name,
            resolution=network.resolution,
            token=embed.token,
            **about,
        )
        extract(source["images"], features, extractors, backbone.batch_size)
    log.info("features of %s: %s", images, ", ".join(extractors))


def extract(
    images: h5py.Dataset,
    features: h5py.File,
    extractors: dict[str, tuple[int, Extractor]],
    batch_size: int,
) -> None:
    """Run every network over a set, batch by batch.

    Args:
        images: (n, S, S, 3) uint8.
        features: gets a dataset (n, d) float32 for each extractor.
        extractors: name -> (d, function from a batch of images to (b, d)).
        batch_size: images at once.
    """
    for name, (dim, _) in extractors.items():
        features.create_dataset(name, (len(images), dim), np.float32)
    with tqdm(total=len(images), desc="features", unit="image", mininterval=1.0) as progress:
        for rows in slices(len(images), batch_size):
            pixels = images[rows]
            for name, (_, function) in extractors.items():
                features[name][rows] = function(pixels)
            progress.update(len(pixels))


def backbone_features(network: Backbone, images: np.ndarray, token: str) -> np.ndarray:
    """The feature of each image by which the backbone's columns compare.

    Args:
        network: the vision transformer.
        images: (n, S, S, 3) uint8 RGB.
        token: ``cls``, or ``mean-patch`` for the mean over the patch tokens.

    Returns:
        (n, dim) float32.
    """
    patches, cls = network.tokens(images)
    return (cls if token == "cls" else patches.mean(dim=1)).cpu().numpy()


if __name__ == "__main__":
    run(main)
