"""Images made by Stable Diffusion from the paper's prompts (section 4.1)."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic, require_disk, write_json
from mirage_steps.files.command import log
from mirage_steps.files.manifest import Entry
from mirage_steps.settings import StableDiffusion

if TYPE_CHECKING:  # diffusers takes seconds to import, and most runs do without it
    import torch
    from diffusers import StableDiffusionPipeline

# To be raised by a change of this file that changes images: it is part of their folder's name.
VERSION = 1
VIEWPOINTS = ("front", "side", "back")
FLAGGED = "flagged by the model's safety checker"
BLANK = "all of one colour: what the model computed was no number"
_PNG_BYTES_PER_PIXEL = 1.6
# The one scheduler whose steps draw noise for the whole batch, not from each image's generator.
_UNSEEDED = "DPMSolverSDEScheduler"


def generate_images(
    source: StableDiffusion,
    out: Path,
    progress,
    *,
    device: str = "auto",
    resolve: Callable[[str], Path] = lambda name: Path(name),
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Generate the images that are not there yet into ``out/images/KEY``, and list all.

    KEY stands for all settings that change an image, so a changed setting takes another folder,
    and the former one resumes it. An image depends on these settings and its own index alone, up
    to rounding: the same network gives slightly different numbers in batches of another size and
    on another device. What is rejected is remembered beside the images (``000007.txt``, the
    reason) and not tried again. A model is known by its name: after a change of a folder's
    weights give it another name, or delete its images.

    Args:
        source: what to generate, how much of it, with which model.
        out: the data set's folder.
        progress: wraps an iterable of known length, such as ``tqdm``.
        device: where the networks run; float16 on CUDA, float32 on the CPU.
        resolve: gives the folder of ``source.model``; called only if images are missing.

    Returns:
        The images by index, and (name, reason) of those that the model's safety checker flags or
        that are of one colour.

    Raises:
        UserError: the model or the device is not there, or there is too little room.
    """
    folder = out / "images" / _key(source)
    known = _known(folder, source.images)
    _mention_others(folder)
    missing = [index for index in range(source.images) if index not in known]
    new: Iterator[tuple[int, str | None]] = iter(())
    if missing:
        log.info("%d of %d images are there: %s", len(known), source.images, folder)
        estimate = len(missing) * _side(source) ** 2 * _PNG_BYTES_PER_PIXEL
        require_disk(out, int(estimate), f"generating {len(missing)} images")
        pipeline = load_pipeline(resolve(source.model), device)
        _require_short(pipeline.tokenizer, source.category)
        if not (folder / "settings.json").is_file():
            write_json(folder / "settings.json", _tracked(source))
        new = _generate(pipeline, source, folder, missing)
    results = dict(progress(chain(known.items(), new), total=source.images))
    entries, rejected = [], []
    for index, reason in sorted(results.items()):
        path = folder / _name(index)
        name = path.relative_to(out).as_posix()
        if reason is None:
            view = prompts(source.category, index)[2]
            entries.append(Entry(name, path, _side(source), _side(source), viewpoint=view))
        else:
            rejected.append((name, reason))
    return entries, rejected


def prompts(category: str, index: int) -> tuple[str, str, str]:
    """The paper's prompts of an image; the views take turns, so any first images are balanced.

    Args:
        category: kind of object, such as "single massive armchair".
        index: of the image, from 0.

    Returns:
        Positive prompt, negative prompt and viewpoint, which is one of ``VIEWPOINTS``.
    """
    view = VIEWPOINTS[index % len(VIEWPOINTS)]
    positive = f"A high-quality photo of {category}, {view} view"
    negative = "Low-quality, close-up, cropped"
    # The model prefers fronts, so the other two views have to be told not to be one.
    return positive, negative if view == "front" else f"{negative}, front view", view


def load_pipeline(folder: Path, device: str) -> "StableDiffusionPipeline":
    """Load Stable Diffusion from a local folder, from safetensors only.

    The folder's own scheduler is kept: Stable Diffusion's PNDM draws no noise, and others draw
    theirs from each image's generator. DDIM takes the place of the one that does neither. The
    safety checker is used if the folder has one.

    Args:
        folder: of a diffusers pipeline: ``model_index.json`` and a folder for each part.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The pipeline on the device, float16 on CUDA and float32 elsewhere.

    Raises:
        UserError: the folder or the device is not there, or the folder's content cannot be used.
    """
    _require_stable_diffusion(folder)
    import torch
    from diffusers import DDIMScheduler

    from mirage_steps.method.device import choose_device

    chosen = choose_device(device)
    dtype = torch.float16 if chosen.type == "cuda" else torch.float32
    try:
        pipeline = _read_pipeline(folder, dtype)
    except UserError:
        raise
    except Exception as error:
        # Damaged weights, tokenizers and configurations raise nearly anything, tokenizers even
        # a bare Exception; whatever it was, this folder cannot be used.
        reason = " ".join((str(error).strip() or repr(error)).splitlines()[0].split())
        raise UserError(f"source.model {folder}: cannot be loaded ({reason})") from None
    if type(pipeline.scheduler).__name__ == _UNSEEDED:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    if pipeline.safety_checker is None:
        log.info("%s has no safety checker: its images are taken unchecked", folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(chosen)


def _require_stable_diffusion(folder: Path) -> None:
    """Refuse a folder that is not there or holds something else.

    Raises:
        UserError: with the reason.
    """
    if not folder.is_dir():
        raise UserError(
            f"source.model {folder}: no such folder; set it to that of a diffusers pipeline"
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = index["_class_name"]
    except FileNotFoundError:
        raise UserError(
            f"source.model {folder}: has no model_index.json, so it is no diffusers pipeline"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"source.model {folder}: model_index.json is damaged ({error!r})") from None
    if kind != "StableDiffusionPipeline":
        raise UserError(f"source.model {folder}: holds a {kind}, not a StableDiffusionPipeline")
    vocabularies = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    if not any(all((folder / "tokenizer" / f).is_file() for f in v) for v in vocabularies):
        # Transformers would make a tokenizer without words, and the prompts would say nothing.
        raise UserError(f"source.model {folder}: cannot be loaded (tokenizer/ has no vocabulary)")


def _read_pipeline(folder: Path, dtype: "torch.dtype") -> "StableDiffusionPipeline":
    """Read networks, tokenizer and scheduler of a folder; raises nearly anything.

    The networks are read one by one, since only so it is known which weights were not there.
    """
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    local = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    # The other way of loading needs the package accelerate, which is not a dependency.
    plain = {"low_cpu_mem_usage": False}
    networks: dict[str, tuple[type, dict]] = {
        "unet": (diffusers.UNet2DConditionModel, plain),
        "vae": (diffusers.AutoencoderKL, plain),
        "text_encoder": (transformers.CLIPTextModel, {}),
    }
    parts: dict[str, object] = {"image_encoder": None}
    if (folder / "safety_checker").is_dir():
        networks["safety_checker"] = (StableDiffusionSafetyChecker, {})
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    for name, (kind, options) in networks.items():
        parts[name], loading = kind.from_pretrained(
            folder / name, output_loading_info=True, **local, **options
        )
        # A weight that is not in the file is drawn at random.
        absent = sorted(loading["missing_keys"])
        if absent:
            raise ValueError(f"{name}: {len(absent)} weights missing, as {absent[0]}")
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, **parts, **local, **plain)


def _require_short(tokenizer, category: str) -> None:
    """Refuse a category so long that the model would not read the view, which comes last.

    Raises:
        UserError: more tokens than the model reads.
    """
    for index in range(len(VIEWPOINTS)):
        tokens = len(tokenizer(prompts(category, index)[0]).input_ids)
        if tokens > tokenizer.model_max_length:
            raise UserError(
                f"source.category: its prompt has {tokens} tokens, the model reads "
                f"{tokenizer.model_max_length}; shorten it"
            )


def _generate(
    pipeline: "StableDiffusionPipeline",
    source: StableDiffusion,
    folder: Path,
    indices: Sequence[int],
) -> Iterator[tuple[int, str | None]]:
    """Generate and save images batch by batch.

    Yields:
        Index, and why it was rejected; None for a saved image.

    Raises:
        UserError: a batch does not fit into memory.
    """
    for start in range(0, len(indices), source.batch_size):
        batch = indices[start : start + source.batch_size]
        for index, (image, flagged) in zip(batch, _sample(pipeline, source, batch), strict=True):
            reason = FLAGGED if flagged else BLANK if _is_blank(image) else None
            _save(image, _side(source), folder / _name(index), reason)
            yield index, reason


def _sample(
    pipeline: "StableDiffusionPipeline", source: StableDiffusion, indices: Sequence[int]
) -> list[tuple[Image.Image, bool]]:
    """Images of these indices, and whether the safety checker flags them."""
    import torch

    texts = [prompts(source.category, index) for index in indices]
    try:
        output = pipeline(
            prompt=[positive for positive, _, _ in texts],
            negative_prompt=[negative for _, negative, _ in texts],
            height=source.size,
            width=source.size,
            num_inference_steps=source.steps,
            guidance_scale=source.guidance_scale,
            generator=[_generator(source.seed, index) for index in indices],
        )
    except torch.OutOfMemoryError:
        raise UserError(
            f"source.batch_size {source.batch_size}: the device has too little memory for it; "
            "set a smaller one, the images made so far are kept"
        ) from None
    flagged = output.nsfw_content_detected or [False] * len(indices)
    return list(zip(output.images, flagged, strict=True))


def _generator(seed: int, index: int) -> "torch.Generator":
    """The image's own noise, drawn on the CPU so that it is the same on every device."""
    import torch

    state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]))


def _is_blank(image: Image.Image) -> bool:
    """Whether all pixels are equal: diffusers turns what is no number into black."""
    return all(low == high for low, high in image.getextrema())


def _save(image: Image.Image, side: int, path: Path, reason: str | None) -> None:
    """Save an image, scaled down to ``side``, or in its place the reason for not keeping it."""
    if reason is not None:
        with atomic(path.with_suffix(".txt")) as temporary:
            temporary.write_text(f"{reason}\n", encoding="utf-8")
        return
    with atomic(path) as temporary:
        image.resize((side, side), Image.Resampling.LANCZOS).save(temporary)


def _known(folder: Path, images: int) -> dict[int, str | None]:
    """What former runs made: index, and why it was rejected; None for an image."""
    # One listing: asking for each of 100k files takes long on a network's disk.
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    known: dict[int, str | None] = {}
    for index in range(images):
        name = Path(_name(index))
        if name.name in names:
            known[index] = None
        elif (note := name.with_suffix(".txt").name) in names:
            known[index] = (folder / note).read_text(encoding="utf-8").strip()
    return known


def _mention_others(folder: Path) -> None:
    """Log which images of other settings are still there."""
    others = sorted(
        file.parent.name
        for file in folder.parent.glob("*/settings.json")
        if file.parent.name != folder.name
    )
    if others:
        log.info(
            "%s: images of other settings are still there, delete what you do not need: %s",
            folder.parent,
            ", ".join(others),
        )


def _tracked(source: StableDiffusion) -> dict[str, object]:
    """All that changes an image."""
    tracked = source.model_dump(
        include={"category", "model", "steps", "guidance_scale", "size", "seed"}
    )
    return {**tracked, "saved_size": _side(source), "version": VERSION}


def _key(source: StableDiffusion) -> str:
    """Eight hexadecimal digits that stand for the settings."""
    text = json.dumps(_tracked(source), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _side(source: StableDiffusion) -> int:
    """Side at which images are kept: they are never enlarged."""
    return min(source.size, source.saved_size)


def _name(index: int) -> str:
    return f"{index:06d}.png"
