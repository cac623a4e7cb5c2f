"""Images made by Stable Diffusion from the paper's prompts (section 4.1)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError, first_line
from mirage_steps.files.atomic import atomic, require_disk, write_json
from mirage_steps.files.command import log
from mirage_steps.files.manifest import Entry
from mirage_steps.networks.fetching import resolve
from mirage_steps.settings import WEIGHTS, StableDiffusion
from mirage_steps.sources import Listing

# Part of the images' key: raise it with every change of this file that changes images.
VERSION = 1
VIEWPOINTS = ("front", "side", "back")
FLAGGED = "flagged by the model's safety checker"
BLANK = "all of one color: the model's output was not a number"
_PNG_BYTES_PER_PIXEL = 1.6


def list_images(
    source: StableDiffusion,
    out: Path,
    progress,
    *,
    weights: Path = Path(WEIGHTS),
    device: str = "auto",
) -> Listing:
    """Generate the images that are not there yet into ``out/images/KEY``, and list all.

    KEY is a hash of the settings that change an image, so other settings take another folder, and
    the former ones resume theirs. An image depends on these settings and its own index alone, up
    to rounding, which differs between batch sizes and devices. A rejected image leaves its reason
    (``000007.txt``) and is not tried again. A model is known by its name: after a change of a
    folder's weights rename the folder, or delete its images.

    Args:
        source: what to generate, how many, with which model.
        out, progress: as for every source.
        weights: folder of fetched networks.
        device: auto, cpu or cuda; float16 on CUDA, float32 elsewhere.

    Returns:
        The images by index, and (name, reason) of those that the model's safety checker flags or
        that are of one color.

    Raises:
        UserError: the model or the device is not there, or the disk has too little room.
    """
    # All settings that change an image; images are never enlarged.
    names = {"category", "model", "steps", "guidance_scale", "size", "seed"}
    side = min(source.size, source.saved_size)
    settings = {**source.model_dump(include=names), "saved_size": side, "version": VERSION}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / "images" / key
    done = _done(folder, source.images)
    missing = [index for index in range(source.images) if index not in done]
    others = sorted(path.parent.name for path in folder.parent.glob("*/settings.json"))
    if others := ", ".join(name for name in others if name != key):
        log.info("%s holds images of other settings, delete them at will: %s", out, others)
    new = ()
    if missing:
        log.info("%d of %d images are there: %s", len(done), source.images, folder)
        size = int(len(missing) * side**2 * _PNG_BYTES_PER_PIXEL)
        require_disk(out, size, f"generating {len(missing)} images")
        pipeline = load_pipeline(resolve(source.model, "source.model", weights), device)
        # The viewpoint comes last, and the model must read it.
        texts = [prompts(source.category, i)[0] for i in range(len(VIEWPOINTS))]
        count = max(len(pipeline.tokenizer(text).input_ids) for text in texts)
        if count > (limit := pipeline.tokenizer.model_max_length):
            raise UserError(
                f"source.category: its prompt has {count} tokens, the model reads {limit}; "
                "shorten it"
            )
        if not done:
            write_json(folder / "settings.json", settings)
        images = _generate(pipeline, source, missing)
        new = ((i, _save(folder / f"{i:06d}.png", side, *image)) for i, image in images)
    entries, rejected = [], []
    for index, reason in sorted(progress(chain(done.items(), new), total=source.images)):
        name = f"images/{key}/{index:06d}.png"
        if reason is None:
            view = prompts(source.category, index)[2]
            entries.append(Entry(name, out / name, side, side, viewpoint=view))
        else:
            rejected.append((name, reason))
    return entries, rejected


def prompts(category: str, index: int) -> tuple[str, str, str]:
    """Positive prompt, negative prompt and viewpoint of an image, as in the paper.

    The viewpoints alternate, so that any first images are balanced.

    Args:
        category: of the object, such as "single massive armchair".
        index: of the image, from 0.
    """
    view = VIEWPOINTS[index % len(VIEWPOINTS)]
    negative = "Low-quality, close-up, cropped"
    # The model prefers front views, so the other two need a negative prompt against them.
    negative += "" if view == "front" else ", front view"
    return f"A high-quality photo of {category}, {view} view", negative, view


def load_pipeline(folder: Path, device: str):
    """The ``StableDiffusionPipeline`` of a local folder, from safetensors only.

    The folder's own scheduler is kept if all its noise comes from each image's generator, and DDIM
    replaces it otherwise. The safety checker is used if the folder has one.

    Args:
        folder: of a diffusers pipeline.
        device: auto, cpu or cuda; float16 on CUDA, float32 elsewhere.

    Raises:
        UserError: the device is not there, or the folder cannot be used.
    """
    import torch
    from diffusers import DDIMScheduler

    from mirage_steps.method.device import choose_device

    chosen = choose_device(device)
    try:
        pipeline = _read(folder, torch.float16 if chosen.type == "cuda" else torch.float32)
    except Exception as error:  # damaged parts raise nearly anything, tokenizers a bare Exception
        raise UserError(
            f"source.model {folder}: cannot be loaded ({first_line(error)}); set it to the folder "
            "of a Stable Diffusion pipeline of diffusers"
        ) from None
    # The one scheduler whose steps draw noise for the whole batch.
    if type(pipeline.scheduler).__name__ == "DPMSolverSDEScheduler":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    if pipeline.safety_checker is None:
        log.info("%s has no safety checker: its images are not checked", folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(chosen)


def _read(folder: Path, dtype):
    """Read all parts of a pipeline; raises nearly anything."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    name = diffusers.DiffusionPipeline.load_config(folder, local_files_only=True)["_class_name"]
    if name != "StableDiffusionPipeline":
        raise ValueError(f"it holds a {name}, not a StableDiffusionPipeline")
    vocabularies = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    if not any(all((folder / "tokenizer" / f).is_file() for f in v) for v in vocabularies):
        # Transformers would make a tokenizer without words, and the prompts would say nothing.
        raise ValueError("tokenizer/ has no vocabulary")
    networks = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if (folder / "safety_checker").is_dir():
        networks["safety_checker"], parts = StableDiffusionSafetyChecker, {}
    # Loading with low memory needs the package accelerate, which is not a dependency.
    options = dict(local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    for name, network in networks.items():
        parts[name], loading = network.from_pretrained(
            folder / name, output_loading_info=True, dtype=dtype, **options
        )
        # Weights that are not in the file are random.
        if absent := sorted(loading["missing_keys"]):
            raise ValueError(f"{name}: {len(absent)} weights missing, as {absent[0]}")
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, **parts, **options)


def _generate(
    pipeline, source: StableDiffusion, indices: Sequence[int]
) -> Iterator[tuple[int, tuple[Image.Image, bool]]]:
    """Each index with its image and whether the safety checker flags it, batch by batch."""
    import torch

    for start in range(0, len(indices), source.batch_size):
        batch = indices[start : start + source.batch_size]
        asked = [prompts(source.category, index) for index in batch]
        # Each image's own noise, drawn on the CPU so that it is the same on every device.
        keys = [np.random.SeedSequence(source.seed, spawn_key=(index,)) for index in batch]
        seeds = [int(key.generate_state(1, np.uint64)[0]) for key in keys]
        try:
            output = pipeline(
                prompt=[positive for positive, _, _ in asked],
                negative_prompt=[negative for _, negative, _ in asked],
                height=source.size,
                width=source.size,
                num_inference_steps=source.steps,
                guidance_scale=source.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"source.batch_size {source.batch_size}: the device has too little memory for it; "
                "set a smaller one, the images made so far are kept"
            ) from None
        flags = output.nsfw_content_detected or [False] * len(batch)
        yield from zip(batch, zip(output.images, flags, strict=True), strict=True)


def _save(path: Path, side: int, image: Image.Image, flagged: bool) -> str | None:
    """Save an image, scaled down to ``side``, or in its place the reason to reject it."""
    blank = all(low == high for low, high in image.getextrema())  # diffusers makes NaNs black
    reason = FLAGGED if flagged else BLANK if blank else None
    with atomic(path.with_suffix(".txt") if reason else path) as temporary:
        if reason:
            temporary.write_text(f"{reason}\n", encoding="utf-8")
        else:
            image.resize((side, side), Image.Resampling.LANCZOS).save(temporary)
    return reason


def _done(folder: Path, images: int) -> dict[int, str | None]:
    """Index of each image that former runs made, and why it was rejected; None for an image."""
    # Listed, since asking for each of 100k files takes long on a network's disk.
    notes = {path: path.read_text(encoding="utf-8").strip() for path in folder.glob("*.txt")}
    found = notes | dict.fromkeys(folder.glob("*.png"))
    paths = (path for path in sorted(found) if path.stem.isdecimal() and int(path.stem) < images)
    return {int(path.stem): found[path] for path in paths}
