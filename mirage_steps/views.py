"""Step 7: sets of generated images (paper, section 3.3).

- ``no-mv``: single images, poses in the clusters' frequencies;
- ``untrained``: the same, from the network before training;
- ``mv-bg-no-hag``, ``mv-bg-hag``: for each reference noise a random reference pose and three other
  distinct poses; the views are kept, the reference is not.

Writes ``images.h5``: ``images`` (n, S, S, 3) uint8, ``pose`` (n,), ``object`` (n,) the number of
the noise, and ``images.png``, the first of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.command import run
from mirage_steps.files.h5 import by_image, create_h5, slices
from mirage_steps.files.shards import Shard
from mirage_steps.files.tables import read_pose_counts
from mirage_steps.method.device import autocast, choose_device
from mirage_steps.method.diffusion import ddim_timesteps, keyed_noise, to_pixels
from mirage_steps.method.multiview import sample_single, sample_views
from mirage_steps.method.unet import Frames, UNet
from mirage_steps.networks.diffusion_model import load_model

NOVEL_VIEWS = 3  # of each reference noise, as in the paper's evaluation


def main(
    *,
    model: Path,
    poses: Path,
    out: Path,
    kind: Literal["no-mv", "untrained", "mv-bg-no-hag", "mv-bg-hag"],
    samples: int,
    gamma: float = 1.0,
    views: settings.Views = settings.Views(),
    shard: str = "1-of-1",
    device: str = "auto",
) -> list[str]:
    """Generate a set of images.

    Args:
        model: The training step's model.safetensors; its config.json lies beside it.
        poses: poses.csv, for the poses' frequencies.
        out: Folder for images.h5 and images.png.
        kind: Which set.
        samples: Number of images.
        gamma: Weight of the soft pass in equation 7; 1 is no guidance.
        views: Sampler.
        shard: Which of several jobs this is, such as 2-of-7; ``gather`` puts them together.
        device: auto, cpu or cuda.

    Returns:
        What the record is called.
    """
    part = Shard.parse(shard)
    if gamma != 1 and kind != "mv-bg-hag":
        raise UserError(f"--gamma {gamma}: only --kind mv-bg-hag is guided; leave it at 1")
    where = choose_device(device)
    network = load_model(model.parent, where, untrained=kind == "untrained")
    labels = np.array([int(row["pose"]) for row in read_csv(poses)])
    if read_pose_counts(poses) != (network.config.poses, network.config.categories):
        raise UserError(f"{poses}: has other poses than {model} was trained with; rerun training")
    if kind in ("no-mv", "untrained"):
        rows = part.rows(samples, views.batch_size)
        batches = _single(network, labels, rows, views, where)
    else:
        size = _objects_at_once(views, gamma)
        own = part.rows(-(-samples // NOVEL_VIEWS), size)
        rows = range(*(min(NOVEL_VIEWS * end, samples) for end in (own.start, own.stop)))
        batches = _multi(network, labels, own, views, gamma, where)
    side = network.config.image_size
    path = out / f"{part.name('images')}.h5"
    with create_h5(path) as file, tqdm(total=len(rows), unit="image") as bar:
        file.attrs.update(kind=kind, **part.note(rows, samples))
        images = by_image(file, "images", len(rows), (side, side, 3), np.uint8)
        pose = file.create_dataset("pose", (len(rows),), np.int16)
        objects = file.create_dataset("object", (len(rows),), np.int32)
        start = 0
        for pixels, chosen, numbers in batches:
            count = min(len(pixels), len(rows) - start)
            images[start : start + count] = pixels[:count]
            pose[start : start + count] = chosen[:count]
            objects[start : start + count] = numbers[:count]
            start += count
            bar.update(count)
        if part.of == 1:
            write_picture(out / "images.png", file)
    return [part.name("views")]


def write_picture(path: Path, file: h5py.File) -> None:
    """A grid of the first images of a set."""
    single = file.attrs["kind"] in ("no-mv", "untrained")
    columns = 12 if single else 4 * NOVEL_VIEWS
    tiles.grid(path, file["images"][: 6 * columns], columns)


Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def _single(
    network: UNet, labels: np.ndarray, rows: range, views: settings.Views, device: torch.device
) -> Iterator[Batch]:
    """Batches of single images with their poses and numbers."""
    frequencies = np.bincount(labels, minlength=network.config.poses) / len(labels)
    for part in slices(len(rows), views.batch_size):
        numbers = list(rows[part])
        # Keyed by the image, like its noise, so that batches and shards do not matter.
        chosen = np.array(
            [_rng(views.seed, number).choice(len(frequencies), p=frequencies) for number in numbers]
        )
        noise = _noise(network, views.seed, numbers, device)
        with autocast(device, views.precision):
            poses = torch.from_numpy(chosen).to(device)
            images = sample_single(network, noise, poses, ddim_timesteps(views.steps))
        yield to_pixels(images), chosen, np.array(numbers)


def _multi(
    network: UNet,
    labels: np.ndarray,
    objects: range,
    views: settings.Views,
    gamma: float,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches of novel views with their poses and the numbers of their objects."""
    frames = 1 + NOVEL_VIEWS
    frequencies = np.bincount(labels, minlength=network.config.poses) / len(labels)
    for part in slices(len(objects), _objects_at_once(views, gamma)):
        numbers = list(objects[part])
        chosen = np.stack(
            [
                _poses_of_object(network, frequencies, frames, _rng(views.seed, number))
                for number in numbers
            ]
        )
        noise = _noise(network, views.seed, numbers, device)
        with autocast(device, views.precision):
            poses = torch.from_numpy(chosen).to(device)
            images = sample_views(network, noise, poses, ddim_timesteps(views.steps), gamma)
        novel = to_pixels(images[:, 1:].flatten(0, 1))
        yield novel, chosen[:, 1:].ravel(), np.repeat(numbers, NOVEL_VIEWS)


def _objects_at_once(views: settings.Views, gamma: float) -> int:
    """Objects in a batch: what runs at once is all of their frames, the guided views twice."""
    return max(1, views.batch_size // Frames(NOVEL_VIEWS, hard=gamma != 1).count)


def _poses_of_object(
    network: UNet, frequencies: np.ndarray, frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Distinct poses of one object, the reference's first; kinds as often as in the data."""
    config = network.config
    kind = 0
    if config.categories > 1:
        kind = int(
            rng.choice(config.categories, p=frequencies.reshape(config.categories, -1).sum(1))
        )
    poses = config.siblings(kind * (config.poses // config.categories))
    return poses.start + rng.choice(len(poses), frames, replace=False)


def _rng(seed: int, number: int) -> np.random.Generator:
    """Choice of poses; another stream than the noise of the same image."""
    return np.random.default_rng([seed, number, 1])


def _noise(network: UNet, seed: int, numbers: list[int], device: torch.device) -> torch.Tensor:
    side = network.config.image_size
    return keyed_noise(seed, numbers, (3, side, side)).to(device)


if __name__ == "__main__":
    run(main)
