"""Ray-cast cars and chairs with known azimuth and mask: the embedded data set."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.demo.renderer import cars, chairs
from mirage_steps.demo.renderer.rendering import Rendering
from mirage_steps.files.manifest import Entry
from mirage_steps.settings import Procedural


def render_images(
    source: Procedural, out: Path, progress
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Render the data set into ``out/images`` and its true masks into ``out/true_masks``.

    Every image depends on the seed and its own index alone, so the set does not depend on the
    number of processes, and a larger set begins with the smaller one.

    Args:
        source: what, how many, how large, from which seed.
        out: the data set's folder.
        progress: wraps an iterable of known length, such as ``tqdm``.

    Returns:
        The images, and an empty list: nothing is rejected.
    """
    for folder in ("images", "true_masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    # Threads of the parent may hold locks that a forked child would wait for for ever.
    workers = len(os.sched_getaffinity(0))  # the job's cores, not the machine's
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        azimuths = pool.map(partial(_render_one, source, out), range(source.images), chunksize=16)
        entries = [
            Entry(
                name, out / name, source.size, source.size, azimuth, category=_category(source, i)
            )
            for i, (name, azimuth) in enumerate(progress(azimuths, total=source.images))
        ]
    return entries, []


def _render_one(source: Procedural, out: Path, index: int) -> tuple[str, float]:
    """Render and save one image and its mask; returns its name and azimuth in degrees."""
    made = _render(source, index)
    name = f"{index:06d}.png"
    Image.fromarray(made.image).save(out / "images" / name)
    mask = Image.fromarray(np.round(made.mask * 255).astype(np.uint8))
    mask.save(out / "true_masks" / name)
    return f"images/{name}", made.azimuth_deg


def _render(source: Procedural, index: int) -> Rendering:
    """Car or chair number ``index`` of the source's seed."""
    if source.objects == "chairs" or _category(source, index) == "chair":
        return chairs.render(source.seed, index, source.size, source.placement)
    return cars.render(source.seed, index, cars.DEMO_FAMILIES, source.size, source.placement)


def _category(source: Procedural, index: int) -> str | None:
    """True category of an image of a mixture; None where all are of one."""
    if source.objects != "cars-and-chairs":
        return None
    return ("car", "chair")[index % 2]
