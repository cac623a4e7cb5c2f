"""What a data set will cost before anything starts: disk, and floating-point operations.

``python -m mirage_steps.tools.plan NAME`` prints both, and ends with exit code 1 where the disk has
too little room. All are upper bounds in the number of images, since unusable images drop out.

Sizes follow from the shapes that the steps write and are within 10 % of those of finished runs;
pictures, tables, logs and novel views of photos are left out. Operations are those of matrix
products, convolutions and attention, a multiplication and an addition counted as two. Formulas give
those of the backbone and the U-Net within 5 % of what torch counts, and training is three forward
passes; those of SAM's image encoder, Inception and Stable Diffusion are constants that torch
counted. The contact sheet is left out. Memory is not predicted.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import tyro
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import human_size
from mirage_steps.files.command import run_tool
from mirage_steps.files.configuration import read_configuration, read_dataset
from mirage_steps.files.records import read_json
from mirage_steps.files.text_table import aligned
from mirage_steps.method.unet import UNet, preset
from mirage_steps.networks.fetching import FILES
from mirage_steps.settings import Configuration, Dataset
from mirage_steps.sources import check_source

# DINOv2 as published: width and layers.
_DINOV2 = {
    "facebook/dinov2-small": (384, 12),
    "facebook/dinov2-base": (768, 12),
    "facebook/dinov2-large": (1024, 24),
    "facebook/dinov2-giant": (1536, 40),
}
# Operations of an image: segment-anything's image encoder, the stand-in's, FID's Inception.
_SAM = {"vit_b": 0.972e12, "vit_l": 2.986e12, "vit_h": 5.961e12}
_STAND_IN_SAM, _INCEPTION = 0.455e9, 11.4e9
# Stable Diffusion 1.5: bytes of all its networks, operations of the U-Net at 512 pixels.
_STABLE_DIFFUSION = (5.5e9, 803e9)
_INCEPTION_DIM = 2048
_VIEWS = 3  # novel views of an object, besides its reference
_KMEANS_ROUNDS = 300  # scikit-learn's limit
_SUSTAINED = 10e12  # operations a second, for the arithmetic at the end


class Backbone(NamedTuple):
    """A vision transformer: patch tokens of an image, their length, operations, bytes."""

    patches: int
    dim: int
    flops: float
    size: float


class Artifact(NamedTuple):
    """Files that are written: their folder, their pattern in it, their bytes in all.

    Once the file ``until`` is there, they are gone or not written any more.
    """

    root: Path
    pattern: str
    size: float
    until: str = ""

    @property
    def missing(self) -> float:
        """Bytes that are still to be written."""
        if self.until and (self.root / self.until).exists():
            return 0
        present = sum(path.stat().st_size for path in self.root.glob(self.pattern))
        return max(0, self.size - present)


def main(
    name: tyro.conf.Positional[str],
    *,
    images: int | None = None,
    configfile: tuple[Path, ...] = (),
) -> None:
    """Print what a data set will cost before anything starts; write nothing.

    Args:
        name: Data set.
        images: Number of images, in place of counting them.
        configfile: Files merged over the project's own, as by snakemake --configfile.
    """
    configuration = read_configuration(configfile)
    dataset = read_dataset(configuration, name)
    count = count_images(dataset.source) if images is None else images
    samples, training = dataset.fid.samples, dataset.training
    if not dataset.use and count < 2 * samples:
        raise UserError(
            f"datasets.{name}.fid.samples {samples}: needs {2 * samples} real images, there are at "
            f"most {count}; set it to at most {count // 2}"
        )
    vit = backbone(dataset.backbone)
    network = UNet(preset(training.preset, training.image_size, dataset.poses.k, training.dropout))
    files = list(artifacts(configuration, name, count, vit, network))
    table = [("disk", "size", "to write", "")]
    for one in files:
        note = f"until {one.until}" if one.until else ""
        table.append((one.pattern, human_size(one.size), human_size(one.missing), note))
    table.append(("at once, at most", "", human_size(needed(files)), ""))
    print("\n".join([f"{name}: at most {count} images", "", *aligned(table, "<>><"), ""]))
    table, total = [("operations", "TFLOP", "")], 0.0
    for step, flops, runs in operations(dataset, count, vit, network):
        total += flops
        table.append((step, f"{flops / 1e12:,.1f}", runs))
    time = timedelta(seconds=round(total / _SUSTAINED))
    note = f"{time} at {_SUSTAINED / 1e12:.0f} sustained TFLOP/s (arithmetic, no measurement)"
    table.append(("all", f"{total / 1e12:,.1f}", note))
    print("\n".join(aligned(table, "<><")), flush=True)
    check_disk(Path(configuration.results), needed(files))


def count_images(source: settings.Source) -> int:
    """Number of images by the names of the files; none is opened.

    Raises:
        UserError: the folder is missing.
    """
    if isinstance(source, settings.Procedural | settings.StableDiffusion):
        return source.images
    try:
        check_source(source)
    except UserError as error:
        raise UserError(f"{error}; or give --images N to plan without it") from None
    pattern = {"compcars": "image/**/*.jpg", "epfl": "**/tripod_seq_*.jpg"}.get(source.kind, "**/*")
    endings = Image.registered_extensions()
    paths = source.path.expanduser().glob(pattern)
    return sum(path.suffix.lower() in endings for path in paths)


def backbone(chosen: settings.Backbone) -> Backbone:
    """Tokens and operations of the vision transformer, by its configuration.

    Raises:
        UserError: its shape is not known, or does not fit the resolution.
    """
    config = read_json(Path(chosen.model, "config.json"))
    dim, layers = _DINOV2.get(chosen.model, (0, 0))
    dim, layers = config.get("hidden_size", dim), config.get("num_hidden_layers", layers)
    patch = config.get("patch_size", 14)
    hidden = config.get("intermediate_size", config.get("mlp_ratio", 4) * dim)
    if not dim or chosen.resolution % patch:
        raise UserError(
            f"backbone.model {chosen.model}: is neither the folder of a vision transformer nor "
            f"one of {', '.join(_DINOV2)}; or backbone.resolution {chosen.resolution} is no "
            f"multiple of its patch size {patch}"
        )
    patches = (chosen.resolution // patch) ** 2
    # Queries, keys, values and output; both layers of the MLP; both products of attention.
    weights = layers * (4 * dim**2 + 2 * dim * hidden)
    products = layers * 4 * (patches + 1) ** 2 * dim
    return Backbone(patches, dim, 2 * (patches + 1) * weights + products, 4 * weights)


def unet_flops(network: UNet) -> tuple[float, float]:
    """Operations of an image in the encoder and in the decoder of the U-Net.

    A weight counts once for every pixel of its layer, whose resolution is in its name.
    """
    encoder, decoder = 0.0, 0.0
    smallest = min(int(name.partition("x")[0]) for name in network.encoder)
    largest = network.config.image_size // network.config.stem
    for name, weight in network.named_parameters():
        if weight.ndim < 2 or "embedding" in name:
            continue
        named = re.search(r"(\d+)x\1_", name)
        side = int(named[1]) if named else smallest if name.startswith("middle") else largest
        pixels = 1 if re.search("modulation|gain", name) else side**2
        flops = 2 * weight.numel() * pixels
        if name.endswith("query.weight"):
            flops += 4 * pixels**2 * len(weight)  # both products of attention
        if name.startswith(("encoder", "conv_in", "middle_block0")):
            encoder += flops
        else:
            decoder += flops
    return encoder, decoder


def artifacts(
    configuration: Configuration, name: str, count: int, vit: Backbone, network: UNet
) -> Iterator[Artifact]:
    """What the steps write into the data set's folder, and the networks that are fetched."""
    dataset, weights = configuration.dataset(name), Path(configuration.weights)
    folder = Path(configuration.results, name)
    source, pixels, maps = dataset.source, dataset.training.image_size**2, "pose_space/maps.h5"
    if not Path(dataset.backbone.model).is_dir():
        yield Artifact(weights, f"{dataset.backbone.model}/*", vit.size)
    tokens = count * (vit.patches + 1) * vit.dim * 2
    # PNG's compression was measured on examples.
    if isinstance(source, settings.StableDiffusion):
        yield Artifact(weights, f"{source.model}/**/*", _STABLE_DIFFUSION[0])
        yield Artifact(folder, "images/**/*.png", count * source.saved_size**2 * 1.6)
    if isinstance(source, settings.Procedural):
        yield Artifact(folder, "images/**/*.png", count * 5840 * (source.size / 96) ** 1.4)
        yield Artifact(folder, "true_masks/**/*.png", count * 430 * source.size / 96)
    yield Artifact(folder, "features/tokens*.h5", tokens)
    yield Artifact(folder, "crops/crops.h5", count * pixels * 3)
    copies = 1 if configuration.shards == 1 else 2  # the shards beside the whole
    yield Artifact(folder, "crop_features/tokens*.h5", copies * tokens, maps)
    yield Artifact(folder, maps, count * vit.patches * 13)  # three float32 and a bool a patch
    if dataset.use:
        return
    model = "training/model.safetensors"
    size = 4 * sum(weight.numel() for weight in network.parameters())
    # Weights, EMA weights, and one moment (Muon) or two (Adam); the last two checkpoints are kept.
    checkpoint = size * (3 if dataset.training.optimizer == "muon" else 4)
    yield Artifact(folder, "training/checkpoints/*.pt", 3 * checkpoint, model)
    yield Artifact(folder, model, size)
    for item in (dataset.masks.sam, dataset.embed.inception.replace("auto", "inception")):
        if item in FILES:
            yield Artifact(weights, FILES[item].path, FILES[item].size)
    masked = sum(one.source == "masked" for one in dataset.sets.values())
    features = 4 * (vit.dim + (_INCEPTION_DIM if dataset.embed.inception != "none" else 0))
    # Images, of some sets with masks, and features.
    size = (3 * len(dataset.sets) + masked) * pixels + len(dataset.sets) * features
    yield Artifact(folder, "sets/*/*.h5", dataset.fid.samples * size)


def operations(
    dataset: Dataset, count: int, vit: Backbone, network: UNet
) -> Iterator[tuple[str, float, str]]:
    """Step, operations and what is run, in the order of the pipeline."""
    source, samples, steps = dataset.source, dataset.fid.samples, dataset.views.steps
    if isinstance(source, settings.StableDiffusion):
        passes = source.steps * (2 if source.guidance_scale > 1 else 1)
        flops = _STABLE_DIFFUSION[1] * (source.size / 512) ** 2
        yield "dataset", count * passes * flops, f"{count} images, {source.steps} steps"
    yield "features", 2 * count * vit.flops, f"{count} images and their crops"
    if dataset.use:
        return
    yield "PCA", 4 * count * vit.patches * vit.dim**2, "moments of the tokens of images and crops"
    rounds = dataset.poses.starts * _KMEANS_ROUNDS
    flops = 2 * count * vit.patches * 3 * dataset.poses.k
    yield "poses", rounds * flops, f"K-Means, at most {rounds} rounds"
    encoder, decoder = unet_flops(network)
    training = dataset.training
    seen = training.iterations * training.batch_size
    runs = f"{training.iterations} steps of {training.batch_size} images"
    yield "train", 3 * seen * (encoder + decoder), f"{runs}, {training.preset} U-Net"
    images, twice = 0, 0  # guided views run twice through the decoder
    for one in dataset.sets.values():
        objects = -(-samples // _VIEWS)
        images += {"single": samples, "multi-view": objects * (1 + _VIEWS)}.get(one.source, 0)
        twice += objects * _VIEWS * one.guided
    flops = images * (encoder + decoder) + twice * decoder
    yield "views", steps * flops, f"{images} images, {steps} DDIM steps"
    masked = sum(one.source == "masked" for one in dataset.sets.values())
    sam = dataset.masks.sam
    if (path := Path(sam)).is_file():  # its size tells which it is
        sam = min(_SAM, key=lambda name: abs(FILES[name].size - path.stat().st_size))
    flops = _SAM.get(sam, _STAND_IN_SAM) + vit.flops
    yield "masks", masked * samples * flops, f"{masked} x {samples} images"
    flops = vit.flops + (_INCEPTION if dataset.embed.inception != "none" else 0)
    number = len(dataset.sets)
    yield "embed", number * samples * flops, f"{number} x {samples} images"


def needed(files: Sequence[Artifact]) -> float:
    """Bytes still to be written that are there at once."""
    # Of those with an end only the largest: the crops' tokens are gone before the training.
    until = max((one.missing for one in files if one.until), default=0)
    return until + sum(one.missing for one in files if not one.until)


def check_disk(results: Path, size: float) -> None:
    """Refuse where the disk of the results, taken for that of the networks too, lacks room.

    Raises:
        UserError: too little is free.
    """
    there = next(path for path in (results, *results.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < size:
        raise UserError(
            f"results {results}: {human_size(size)} are still to be written, only "
            f"{human_size(free)} are free; make room or set results to another disk"
        )


if __name__ == "__main__":
    run_tool(main)
