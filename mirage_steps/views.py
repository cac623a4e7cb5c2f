"""A set of generated images (paper, sections 3.3 and 4).

- ``single``: single images with self-attention, poses sampled by their frequency in the data;
- ``multi-view``: for each initial noise three poses by their frequency, and a reference in another
  pose, which is not kept.

Writes ``images.h5``: ``images`` (n, S, S, 3) uint8, ``pose`` (n,), ``object`` (n,) the number of
the noise; and ``images.png``, the first of them.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.command import run
from mirage_steps.files.h5 import slices
from mirage_steps.files.image_set import create_image_set, write_preview
from mirage_steps.files.shards import Shard
from mirage_steps.files.tables import read_poses, require_pose_counts
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import autocast, choose_device, memory_advice
from mirage_steps.method.diffusion import frame_noise, keyed_noise, sampling_timesteps, to_pixels
from mirage_steps.method.multiview import distinct_choice, sample_single, sample_views
from mirage_steps.method.unet import Frames, UNet
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.references import BLOCK, References

NOVEL_VIEWS = 3  # of each reference noise, as in the paper's evaluation

# Images (n, S, S, 3) uint8, their poses (n,) and the numbers of their objects (n,).
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def main(
    *,
    model: Path,
    poses: Path,
    out: Path,
    sampler: Literal["single", "multi-view"],
    samples: int,
    estimator: Path | None = None,
    guidance: settings.Guidance = settings.Guidance(),
    untrained: bool = False,
    views: settings.Views = settings.Views(),
    shard: str = "1-of-1",
    device: str = "auto",
) -> list[str]:
    """Generate a set of images.

    Args:
        model: The training step's model.safetensors, with config.json in the same folder.
        poses: poses.csv, for the frequencies of the poses.
        out: Folder for images.h5 and images.png.
        sampler: Single images, or three views of every object by cross-frame attention.
        samples: Number of images.
        estimator: The run's pose_estimator.safetensors, to leave bad references out.
        guidance: Cross-frame attention and guidance of the multi-view sets.
        untrained: Use the weights that training starts from.
        views: Sampler.
        shard: Which of several jobs this is, such as 2-of-7; ``gather`` joins them.
        device: auto, cpu or cuda.

    Returns:
        Name of the record.
    """
    own = Shard.parse(shard)
    where = choose_device(device)
    network = load_model(model.parent, where, untrained)
    _, labels = read_poses(poses)
    require_pose_counts(poses, network.config.poses, network.config.categories)
    frequencies = np.bincount(labels, minlength=network.config.poses) / len(labels)
    if sampler == "single":
        rows = own.rows(samples, views.batch_size)
        batches, columns = _single(network, frequencies, rows, views, where), 12
    else:
        at_once = _objects_at_once(views, guidance)
        # With blocks of a shard's own, the same references are left out by all shards.
        size = math.lcm(at_once, BLOCK) if views.reject else at_once
        objects = own.rows(-(-samples // NOVEL_VIEWS), size)
        rows = range(*(min(NOVEL_VIEWS * end, samples) for end in (objects.start, objects.stop)))
        chooser = References.load(network, views, estimator)
        numbers = chooser.chosen(
            objects, views.seed, partial(_reference, network, frequencies, views)
        )
        batches = _multi_view(network, frequencies, numbers, at_once, views, guidance, where)
        columns = 4 * NOVEL_VIEWS
    path, side = out / f"{own.name('images')}.h5", network.config.image_size
    note = own.note(rows, samples)
    advice = memory_advice("views.batch_size", views.batch_size)
    with create_image_set(path, len(rows), side, columns, sampler=sampler, **note) as file, advice:
        _write(file, len(rows), batches)
        if own.of == 1:
            write_preview(out / "images.png", file)
    return [own.name("views")]


def _write(file: h5py.File, count: int, batches: Iterator[Batch]) -> None:
    """Write the first ``count`` images of all batches, with their poses and objects."""
    file.create_dataset("pose", (count,), np.int16)
    file.create_dataset("object", (count,), np.int32)
    start = 0
    with progress(total=count, unit="image") as bar:
        for batch in batches:
            end = min(start + len(batch[0]), count)
            for name, values in zip(("images", "pose", "object"), batch, strict=True):
                file[name][start:end] = values[: end - start]
            bar.update(end - start)
            start = end


def _objects_at_once(views: settings.Views, guidance: settings.Guidance) -> int:
    """Objects of a batch, all of whose frames are denoised at once, the guided views twice."""
    frames = max(Frames.of(NOVEL_VIEWS, guidance).count, 1 + NOVEL_VIEWS)
    return max(1, views.batch_size // frames)


def _single(
    network: UNet, frequencies: np.ndarray, rows: range, views: settings.Views, device: torch.device
) -> Iterator[Batch]:
    """Batches of single images."""
    for part in slices(len(rows), views.batch_size):
        numbers = list(rows[part])
        # Keyed by the image, like its noise, so that batches and shards do not matter.
        poses = np.array(
            [_rng(views.seed, number).choice(len(frequencies), p=frequencies) for number in numbers]
        )
        with autocast(device, views.precision):
            images = sample_single(
                network,
                _noise(network, views.seed, numbers, device),
                torch.from_numpy(poses).to(device),
                sampling_timesteps(views),
                views.solver,
            )
        yield to_pixels(images), poses, np.array(numbers)


def _multi_view(
    network: UNet,
    frequencies: np.ndarray,
    objects: list[int],
    at_once: int,
    views: settings.Views,
    guidance: settings.Guidance,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches of the novel views of ``at_once`` objects."""
    for part in slices(len(objects), at_once):
        numbers = objects[part]
        poses = np.stack(
            [_poses_of_object(network, frequencies, _rng(views.seed, n)) for n in numbers]
        )
        noise = _noise(network, views.seed, numbers, device)
        if not views.shared_noise:
            side = network.config.image_size
            noise = frame_noise(views.seed, numbers, 1 + NOVEL_VIEWS, (3, side, side))
        with autocast(device, views.precision):
            images = sample_views(
                network,
                noise.to(device),
                torch.from_numpy(poses).to(device),
                sampling_timesteps(views),
                guidance,
                solver=views.solver,
            )
        novel = to_pixels(images[:, 1:].flatten(0, 1))
        yield novel, poses[:, 1:].ravel(), np.repeat(numbers, NOVEL_VIEWS)


def _poses_of_object(
    network: UNet, frequencies: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Distinct poses of one object, the reference's first.

    The others, which are kept, are drawn by their frequency in the data, as single images are, so
    that no row of the table has the data's poses more than another (where no pose has more than a
    third of the images). Poses without images, which the model never saw, are left out.
    """
    config, category = network.config, 0
    if config.categories > 1:
        shares = frequencies.reshape(config.categories, -1).sum(1)
        category = int(rng.choice(config.categories, p=shares))
    poses = np.array(config.siblings(category * (config.poses // config.categories)))
    poses = poses[frequencies[poses] > 0]
    if len(poses) <= NOVEL_VIEWS:
        raise UserError(
            f"only {len(poses)} poses of category {category} have images, an object needs "
            f"{1 + NOVEL_VIEWS}; lower poses.k and train again"
        )
    novel = distinct_choice(rng, frequencies[poses], NOVEL_VIEWS)
    reference = rng.choice(np.delete(np.arange(len(poses)), novel))
    return poses[[reference, *novel]]


def _reference(network: UNet, frequencies: np.ndarray, views: settings.Views, number: int) -> int:
    """Pose of an object's reference."""
    return int(_poses_of_object(network, frequencies, _rng(views.seed, number))[0])


def _rng(seed: int, number: int) -> np.random.Generator:
    """Choice of poses; another stream than the noise of the same image."""
    return np.random.default_rng([seed, number, 1])


def _noise(network: UNet, seed: int, numbers: list[int], device: torch.device) -> torch.Tensor:
    side = network.config.image_size
    return keyed_noise(seed, numbers, (3, side, side)).to(device)


if __name__ == "__main__":
    run(main)
