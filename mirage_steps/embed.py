"""Features of an image set: the backbone's and, if configured, Inception's (section 4).

FID depends on the Inception weights and on how images are resized; both are those of clean-fid
(Parmar et al. 2022). Writes ``features.h5``:

- ``backbone`` (n, dim) float32, its feature of the whole image or the mean over its patches;
- ``inception`` (n, 2048) float32; if absent, the attribute ``inception_absent`` says why;
- attributes: names of the networks, the token, size and number of the images.
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import create_h5, open_h5, slices
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import choose_device, memory_advice
from mirage_steps.method.finite import require_finite
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.inception import INCEPTION_DIM, Inception


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
    where = choose_device(device)
    network = Backbone.load(backbone, where, weights)
    # Length of a feature, and a function from (b, S, S, 3) uint8 to (b, length).
    whole = embed.token == "cls"
    length = network.summary_dim if whole else network.dim
    extractors = {"backbone": (length, lambda pixels: network.feature(pixels, embed.token))}
    if embed.inception == "none":
        about = {"inception_absent": "not configured (embed.inception is none)"}
    else:
        inception = Inception(embed.inception, where, weights)
        extractors["inception"] = (INCEPTION_DIM, inception.features)
        about = {"inception": inception.name}
    advice = memory_advice("backbone.batch_size", backbone.batch_size)
    with open_h5(images, "images") as source, create_h5(out / "features.h5") as features, advice:
        pixels = source["images"]
        features.attrs.update(
            count=len(pixels),
            image_size=pixels.shape[1],
            sam=source.attrs.get("sam", ""),
            backbone=network.name,
            resolution=network.resolution,
            token=network.summary if whole else embed.token,
            **about,
        )
        for name, (length, _) in extractors.items():
            features.create_dataset(name, (len(pixels), length), np.float32)
        with progress(total=len(pixels), desc="features", unit="image") as bar:
            for rows in slices(len(pixels), backbone.batch_size):
                batch = pixels[rows]
                for name, (_, extract) in extractors.items():
                    values = extract(batch)
                    numbers = [f"{images}, image {n}" for n in range(rows.start, rows.stop)]
                    require_finite(numbers, f"{name} features", "check that network", values)
                    features[name][rows] = values
                bar.update(len(batch))
        if (features["backbone"][:] == features["backbone"][0]).all():
            log.warning(
                "all %d images have the same features, so their FID is meaningless; look at %s",
                len(pixels), images.parent,
            )  # fmt: skip
    log.info("features of %s: %s", images, ", ".join(extractors))


if __name__ == "__main__":
    run(main)
