"""Where should sampling end? Grain, and distance to real crops, by the last timestep.

    python benchmarks/last_timestep.py --run results/demo [--images 256] [--crops 512]
        [--ends 5:15 60:11 100:10]

Each of ``--ends`` is a last timestep and a number of steps of DPM-Solver++. From the same noise,
prints the kernel distance (KID) of single generated images to real crops in features of
EfficientNet-Lite0, averaged over the patches, and the standard deviation of grain in 0..255: the
median absolute Laplacian, scaled to that of white noise. Most of an image is smooth, so outlines
hardly count.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from mirage_steps import settings
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.tables import read_labels
from mirage_steps.files.text_table import aligned
from mirage_steps.method.diffusion import keyed_noise, sampling_timesteps, to_pixels
from mirage_steps.method.metrics import kernel_distance
from mirage_steps.method.multiview import sample_single
from mirage_steps.networks.backbone import Backbone
from mirage_steps.run import Run

_BATCH, _SEED = 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--crops", type=int, default=512, help="real ones to compare with")
    parser.add_argument("--ends", nargs="+", default=["5:15", "30:15", "60:11", "100:10", "180:10"])
    words = parser.parse_args()
    run = Run.load(words.run)
    judge = Backbone.load(settings.Backbone(model="efficientnet-lite0"), torch.device("cpu"))
    labels = read_labels(words.run / "poses/poses.csv", words.run / "crops/crops.h5")
    chosen = np.random.default_rng(0).permutation(len(labels))[: words.crops + words.images]
    with open_h5(words.run / "crops/crops.h5", "images") as file:
        crops = np.stack([file["images"][int(row)] for row in chosen])
    real = features(judge, crops[: words.crops])
    others = crops[words.crops :]
    rows = [["last timestep", "steps", "1000 KID", "grain"]]
    rows.append(["real crops", "", *measures(judge, real, others)])
    poses = torch.from_numpy(labels[chosen[words.crops :]])
    for last, steps in (map(int, end.split(":")) for end in words.ends):
        views = settings.Views(solver="dpm-solver++", steps=steps, last_timestep=last)
        made = generated(run, poses, views)
        rows.append([str(last), str(steps), *measures(judge, real, made)])
    print("\n".join(aligned(rows, "<>>>")))


def generated(run: Run, poses: torch.Tensor, views: settings.Views) -> np.ndarray:
    """Single images in these poses, (n, S, S, 3) uint8, of the same noise for all samplers."""
    size, device = run.model.config.image_size, next(run.model.parameters()).device
    noise = keyed_noise(_SEED, list(range(len(poses))), (3, size, size)).to(device)
    timesteps = sampling_timesteps(views)
    parts = zip(noise.split(_BATCH), poses.to(device).split(_BATCH), strict=True)
    made = [sample_single(run.model, *part, timesteps, views.solver) for part in parts]
    return to_pixels(torch.cat(made))


def measures(judge: Backbone, real: np.ndarray, images: np.ndarray) -> list[str]:
    """Kernel distance to real features and grain of images, as text."""
    distance = kernel_distance(real, features(judge, images))
    return [f"{1000 * distance:.2f}", f"{np.mean(grain(images)):.2f}"]


def features(judge: Backbone, images: np.ndarray) -> np.ndarray:
    """(n, D) of images (n, S, S, 3) uint8."""
    parts = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return np.concatenate([judge.feature(part, "mean-patch") for part in parts])


def grain(images: np.ndarray) -> np.ndarray:
    """Standard deviation of the noise in each of images (n, S, S, 3), in their units."""
    x = images.astype(np.float64)
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    laplacian = np.abs(4 * x[:, 1:-1, 1:-1] - around)
    # That of white noise of deviation 1 is normal with deviation sqrt(20).
    return np.median(laplacian, axis=(1, 2, 3)) / (0.6745 * 20**0.5)


if __name__ == "__main__":
    main()
