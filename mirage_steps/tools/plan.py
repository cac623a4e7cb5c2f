"""Cost of a data set before it is run: disk space and floating-point operations.

``python -m mirage_steps.tools.plan NAME`` prints both, and ends with exit code 1 where the disk has
too little room. All are upper bounds in the number of images, since unusable images drop out.

Sizes follow from the shapes that the steps write; procedural images, tables, logs, pictures and
novel views of photos are left out. Operations are those of the networks, a multiplication and an
addition counted as two; training is three forward passes. Memory is not predicted.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import human_size, require_disk
from mirage_steps.files.command import run_tool
from mirage_steps.files.configuration import read_configuration, read_dataset
from mirage_steps.files.images import find_files
from mirage_steps.files.project import project_path
from mirage_steps.files.records import read_json
from mirage_steps.files.text_table import aligned
from mirage_steps.method.unet import UNet, preset
from mirage_steps.networks.efficientnet import LEVELS
from mirage_steps.networks.fetching import FILES, PACKAGES, is_complete, is_local, place
from mirage_steps.settings import Configuration
from mirage_steps.sources.checks import check_dataset, errors_of, require_samples

# DINOv2 as published: width and layers.
_DINOV2 = {
    "facebook/dinov2-small": (384, 12),
    "facebook/dinov2-base": (768, 12),
    "facebook/dinov2-large": (1024, 24),
    "facebook/dinov2-giant": (1536, 40),
}
# Operations of an image, as torch counts them: SAM's image encoder, the stand-in's, Inception.
_SAM = {"vit_b": 0.972e12, "vit_l": 2.986e12, "vit_h": 5.961e12}
_STAND_IN_SAM, _INCEPTION = 0.455e9, 11.4e9
_EFFICIENTNET = 0.79e9  # Lite0 at 224 pixels
# Stable Diffusion 1.5: bytes of all its networks, operations of the U-Net at 512 pixels.
_STABLE_DIFFUSION = (5.5e9, 803e9)


class Backbone(NamedTuple):
    """A backbone: patch tokens of an image, their length, operations, bytes."""

    patches: int
    dim: int
    flops: float
    size: float


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
    with errors_of(name):
        check_dataset(dataset, Path(configuration.results, name), images is None)
    source = read_dataset(configuration, configuration.home(name)).source
    count = count_images(source) if images is None else images
    samples, training = dataset.fid.samples, dataset.training
    weights = Path(configuration.weights)
    if count < 1:
        raise UserError(f"{name}: {count} images; give --images N or a folder that holds some")
    vit = backbone(dataset.backbone)
    with torch.device("meta"):
        network = UNet(preset(training.preset, training.image_size, dataset.poses.k, 0.0))
    files = list(artifacts(configuration, name, count, vit, network))
    files.append(("all", sum(size for _, size, _ in files), ""))
    table = [(pattern, human_size(size), note) for pattern, size, note in files]
    table = aligned([("disk", "size", ""), *table], "<><")
    shared = f", with the model of {dataset.use}" if dataset.is_variant else ""
    print("\n".join([f"{name}: at most {count} images{shared}", "", *table, ""]))
    work = list(operations(configuration, name, count, vit, network))
    work.append(("all", sum(flops for _, flops, _ in work), ""))
    table = [(step, f"{flops / 1e12:,.1f}" if flops else "-", runs) for step, flops, runs in work]
    print("\n".join(aligned([("operations", "TFLOP", ""), *table], "<><")))
    with errors_of(name):
        require_samples(count, samples if dataset.is_evaluated else 0)
    missing: dict[Path, float] = {}
    for pattern, size, note in files[:-1]:
        folder = weights if note == "fetched once" else Path(configuration.results, name)
        written = sum(path.stat().st_size for path in folder.glob(pattern))
        missing[folder] = missing.get(folder, 0) + max(0, size - written)
    for folder, size in missing.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        require_disk(there, int(size), "what is still to be written")


def count_images(source: settings.Source) -> int:
    """Number of images by the names of the files; none is opened."""
    if hasattr(source, "images"):
        return source.images
    endings = Image.registered_extensions()
    folder = source.path / "image" if source.kind == "compcars" else source.path
    start = "tripod_seq_" if source.kind == "epfl" else ""
    names = (path.name.lower() for path in find_files(folder)[0])
    return sum(name.startswith(start) and name.endswith(tuple(endings)) for name in names)


def backbone(chosen: settings.Backbone) -> Backbone:
    """Tokens and operations of the vision transformer, by its configuration.

    Raises:
        UserError: its shape is not known.
    """
    if chosen.model in PACKAGES:
        patches, dim = (chosen.resolution // 16) ** 2, sum(LEVELS[one][1] for one in chosen.levels)
        return Backbone(patches, dim, _EFFICIENTNET * (chosen.resolution / 224) ** 2, 0)
    config = read_json(project_path(chosen.model) / "config.json")
    dim, layers = _DINOV2.get(chosen.model, (0, 0))
    dim, layers = config.get("hidden_size", dim), config.get("num_hidden_layers", layers)
    patch = config.get("patch_size", 14)
    hidden = config.get("intermediate_size", config.get("mlp_ratio", 4) * dim)
    if not dim:
        raise UserError(
            f"backbone.model {chosen.model}: not the folder of a vision transformer and not one of "
            f"{', '.join(_DINOV2)}; give a folder with config.json"
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
        if "_up." in name and weight.shape[-1] == 1:
            side //= 2  # followed by depth to space
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
) -> Iterator[tuple[str, float, str]]:
    """Files, their bytes and a note: networks that are not there, and what the steps write."""
    dataset, weights = configuration.dataset(name), Path(configuration.weights)
    folder = Path(configuration.results, name)
    source, inception = dataset.source, dataset.embed.inception
    pixels = dataset.training.image_size**2
    fetched = {dataset.backbone.model: vit.size}
    if isinstance(source, settings.StableDiffusion):
        fetched[source.model] = _STABLE_DIFFUSION[0]
        yield "images/**/*.png", count * source.saved_size**2 * 3, "without compression"
    if dataset.is_evaluated:
        names = (dataset.masks.sam, settings.published_inception(inception))
        fetched |= {one: FILES[one].size for one in names if one in FILES}
    for one, size in fetched.items():
        there = one in PACKAGES or is_local(one) or is_complete(one, weights)
        if not there:
            yield str(place(one, Path())), size, "fetched once"
    if not dataset.is_variant:
        sizes = count, pixels, dataset.pose_space.components
        yield from _before_training(configuration, folder, vit, *sizes)
    model = "training/model.safetensors"
    if dataset.use is None:
        size = 4 * sum(map(torch.numel, network.parameters()))
        if not (folder / model).exists():
            # Weights, EMA weights, one moment (Muon) or two (Adam); two are kept, one is written.
            checkpoint = size * (3 if dataset.training.optimizer == "muon" else 4)
            yield "training/checkpoints/*.pt", 3 * checkpoint, f"until {model}"
        yield model, size, ""
    if dataset.is_evaluated:
        # Images, of some sets with masks, and features: float32, Inception's of length 2048.
        features = 4 * (vit.dim + (2048 if inception != "none" else 0))
        sets = (dataset.sets[one] for one in configuration.own_sets(name))
        sizes = (pixels * (3 + (one.source == "masked")) + features for one in sets)
        yield "sets/*/*.h5", dataset.fid.samples * sum(sizes), ""


def _before_training(
    configuration: Configuration, folder: Path, vit: Backbone, count: int, pixels: int, values: int
) -> Iterator[tuple[str, float, str]]:
    """As :func:`artifacts`, of features, crops and maps with so many values a patch."""
    tokens = count * (vit.patches + 1) * vit.dim * 2
    yield "features/tokens*.h5", tokens, ""
    yield "crops/crops.h5", count * pixels * 3, ""
    maps = "pose_space/maps.h5"
    if not (folder / maps).exists():
        copies = 1 if configuration.shards == 1 else 2  # the shards and the whole
        yield "crop_features/tokens*.h5", copies * tokens, f"until {maps}"
    yield maps, count * vit.patches * (4 * values + 1), ""  # float32 and a bool a patch


def operations(
    configuration: Configuration, name: str, count: int, vit: Backbone, network: UNet
) -> Iterator[tuple[str, float, str]]:
    """Step, operations and what is run, in the order of the pipeline."""
    dataset = configuration.dataset(name)
    source, training, samples = dataset.source, dataset.training, dataset.fid.samples
    if isinstance(source, settings.StableDiffusion):
        passes = source.steps * (2 if source.guidance_scale > 1 else 1)
        flops = _STABLE_DIFFUSION[1] * (source.size / 512) ** 2
        yield "dataset", count * passes * flops, f"{count} images, {source.steps} steps"
    if not dataset.is_variant:
        yield "features", 2 * count * vit.flops, f"{count} images and their crops"
    if not dataset.is_evaluated:
        return
    encoder, decoder = unet_flops(network)
    if dataset.use is None:
        flops = 3 * training.iterations * training.batch_size * (encoder + decoder)
        runs = f"{training.iterations} steps"
        if training.hours != "none":
            flops, runs = 0, f"{training.hours:g} hours (training.hours)"
        yield "train", flops, f"{runs} of {training.batch_size} images, {training.preset} U-Net"
    sets, steps = [dataset.sets[one] for one in configuration.own_sets(name)], dataset.views.steps
    objects = -(-samples // 3)  # with a reference and three views
    made = {"single": samples, "multi-view": 4 * objects}
    images = sum(made.get(one.source, 0) for one in sets)
    twice = sum(3 * objects for one in sets if one.guided)  # through the decoder
    flops = images * (encoder + decoder) + twice * decoder
    yield "views", steps * flops, f"{images} images, {steps} steps"
    masked = sum(one.source == "masked" for one in sets)
    sam = dataset.masks.sam  # a checkpoint counts as vit_h
    flops = vit.flops + (
        _STAND_IN_SAM if project_path(sam).is_dir() else _SAM.get(sam, _SAM["vit_h"])
    )
    if masked:
        yield "masks", masked * samples * flops, f"{masked} x {samples} images"
    flops = vit.flops + (_INCEPTION if dataset.embed.inception != "none" else 0)
    yield "embed", len(sets) * samples * flops, f"{len(sets)} x {samples} images"
    yield from _judged(dataset, vit, encoder, decoder)


def _judged(
    dataset: settings.Dataset, vit: Backbone, encoder: float, decoder: float
) -> Iterator[tuple[str, float, str]]:
    """As :func:`operations`, of what is judged, by those of an image in the U-Net's two parts."""
    k, steps, guided = dataset.poses.k, dataset.views.steps, dataset.guidance.hard
    alone, hard = encoder + decoder, encoder + 2 * decoder
    photos, ablation = dataset.evidence.judged_objects, dataset.ablation
    objects = max(dataset.sheet.objects, photos) + photos
    # Photos are inverted, and reconstructed.
    flops = steps * (objects * k * (hard if guided else alone) + 2 * photos * alone)
    flops += (objects + dataset.evidence.real_images) * k * vit.flops
    yield "sheet, evidence", flops, f"{objects} objects in {k} poses"
    gammas = {1.0, *ablation.gammas, *(() if guided else (settings.Guidance().gamma,))}
    rows = 5 + guided + len(gammas - {dataset.guidance.gamma})
    count = ablation.ablated_objects * k
    flops = rows * count * (steps * hard + vit.flops)
    yield "ablation", flops, f"at most {rows} x {count} images, {steps} steps"


if __name__ == "__main__":
    run_tool(main)
