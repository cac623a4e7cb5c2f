"""Render the training images of the stand-in networks into one HDF5 file."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.files.atomic import require_disk
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import create_h5, open_h5
from mirage_steps.files.process import pool_of
from mirage_steps.files.terminal import progress

# Of scene i by i modulo 4: the networks must work on whole images with small objects and on tight
# crops that the object touches or leaves.
_SPANS = ((0.40, 0.90), (0.55, 0.95), (0.80, 1.02), (0.95, 1.30))
_BATCH = 32


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        image: (n, S, S, 3) uint8 RGB.
        foreground: (n, S, S) uint8, the object's coverage of the pixel in 255ths.
        part: (n, S, S) uint8, index into the kind's parts.
        position: (n, S, S, 3) float16, surface position in the object's box, [-1, 1].
        kind: of KINDS.
    """

    image: np.ndarray
    foreground: np.ndarray
    part: np.ndarray
    position: np.ndarray
    kind: str


ARRAYS = ("image", "foreground", "part", "position")


def render_scenes(
    indices: range,
    seed: int,
    size: int,
    kind: str = "cars",
    spans: tuple[tuple[float, float], ...] = _SPANS,
) -> Scenes:
    """Render the scenes ``indices`` of the set ``seed``; spans[i % n] frames scene i's object."""
    render = partial(KINDS[kind].render, families=KINDS[kind].stand_in_families, size=size)
    found = [render(seed, i, span=spans[i % len(spans)]) for i in indices]
    return Scenes(
        np.stack([scene.image for scene in found]),
        np.stack([np.round(255 * scene.mask).astype(np.uint8) for scene in found]),
        np.stack([scene.part for scene in found]),
        np.stack([scene.position.astype(np.float16) for scene in found]),
        kind,
    )


def load_scenes(path: Path) -> Scenes:
    """Read a whole file of scenes into memory, about 100 kB a scene of 96 pixels."""
    with open_h5(path, *ARRAYS) as file:
        return Scenes(**{name: file[name][:] for name in ARRAYS}, kind=file.attrs["kind"])


def _batches(scenes: int, seed: int, size: int, kind: str, workers: int) -> Iterator[Scenes]:
    """Rendered batches in order."""
    ranges = [range(i, min(i + _BATCH, scenes)) for i in range(0, scenes, _BATCH)]
    work = partial(render_scenes, seed=seed, size=size, kind=kind)
    if workers == 1:
        yield from map(work, ranges)
        return
    with pool_of(workers) as pool:
        yield from pool.map(work, ranges)


def main(
    *,
    out: Path,
    kind: Literal["cars", "mugs"] = "cars",
    scenes: int = 20_000,
    size: int = 96,
    seed: int = 1000,
    workers: int = 2,
) -> None:
    """Render objects of the stand-in families with foreground, parts and surface positions.

    Args:
        out: Folder for scenes.h5.
        kind: What to render.
        scenes: How many images to render.
        size: Side of an image in pixels.
        seed: Seed of the whole set.
        workers: Processes that render.
    """
    require_disk(out, scenes * size * size * 11, "the scenes")
    with create_h5(out / "scenes.h5") as file:
        done = 0
        with progress(total=scenes, unit="scene") as bar:
            for batch in _batches(scenes, seed, size, kind, workers):
                for name in ARRAYS:
                    _append(file, name, getattr(batch, name), scenes, done)
                done += len(batch.image)
                bar.update(len(batch.image))
        file.attrs["seed"] = seed
        file.attrs["kind"] = kind
        file.attrs["parts"] = list(KINDS[kind].parts)
        file.attrs["families"] = list(KINDS[kind].stand_in_families)
    log.info("%d scenes of %d pixels in %s", scenes, size, out / "scenes.h5")


def _append(file: h5py.File, name: str, values: np.ndarray, total: int, start: int) -> None:
    """Write ``values`` from row ``start`` of a data set, made at the first call."""
    if name not in file:
        shape = (total, *values.shape[1:])
        chunks = (min(_BATCH, total), *values.shape[1:])
        file.create_dataset(name, shape, values.dtype, chunks=chunks, compression="lzf")
    file[name][start : start + len(values)] = values


if __name__ == "__main__":
    run(main)
