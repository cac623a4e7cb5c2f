"""Ray-cast cars, chairs and mugs with known azimuth and mask: the embedded data set."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from mirage_steps.demo.renderer import chairs
from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.demo.renderer.rendering import Rendering
from mirage_steps.files.manifest import Entry
from mirage_steps.files.process import pool_of
from mirage_steps.files.tiles import save_image
from mirage_steps.settings import Procedural
from mirage_steps.sources import Listing


def list_images(source: Procedural, out: Path, progress) -> Listing:
    """Render the data set into ``out/images`` and its true masks into ``out/true_masks``.

    Every image depends on the seed and its own index alone, so the set does not depend on the
    number of processes, and a larger set begins with the smaller one. Nothing is rejected.
    """
    workers = len(os.sched_getaffinity(0))  # the job's cores, not the machine's
    with pool_of(workers) as pool:
        entries = pool.map(partial(_make, source, out), range(source.images), chunksize=16)
        return list(progress(entries, total=source.images)), []


def _make(source: Procedural, out: Path, index: int) -> Entry:
    """Render and save one image and its mask."""
    made = _render(source, index)
    name = f"images/{index:06d}.png"
    save_image(out / name, made.image)
    save_image(out / f"true_masks/{index:06d}.png", np.round(made.mask * 255).astype(np.uint8))
    category = ("car", "chair")[index % 2] if source.objects == "cars-and-chairs" else None
    return Entry(name, out / name, source.size, source.size, made.azimuth_deg, category=category)


def _render(source: Procedural, index: int) -> Rendering:
    """Object number ``index`` of the source's seed; in a mixture they alternate."""
    if source.objects == "chairs" or (source.objects == "cars-and-chairs" and index % 2):
        return chairs.render(source.seed, index, source.size, source.placement)
    kind = KINDS["cars" if source.objects == "cars-and-chairs" else source.objects]
    return kind.render(source.seed, index, kind.demo_families, source.size, source.placement)
