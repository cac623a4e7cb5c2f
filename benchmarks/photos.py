"""Poses of real photos with known azimuths: the tables of docs/real_cars.md.

    python benchmarks/photos.py PHOTOS LABELS.csv [--boxes image] [--k 12 25] [--seeds 3] [--hog]

Runs the pipeline's steps up to the pose space once for each kind of maps, and clusters each several
times. LABELS.csv has the columns image and azimuth_deg. Prints a table in Markdown: median angle
between a photo and the mean of its pose, and photos within 30 degrees of it, of these the median of
the seeds with the range in parentheses. ``score_poses.py``, which shares no code with the pipeline,
scores them.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from score_poses import score
from skimage.feature import hog

from mirage_steps import dataset, features, foreground, pose_space
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.files.labels import match_labels
from mirage_steps.files.loading import image_batches
from mirage_steps.files.manifest import read_manifest
from mirage_steps.method.boxes import letterbox
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.settings import Backbone, Folder, Poses, PoseSpace

SPACES = {
    "the paper's: not masked, not normalized": PoseSpace(mask_background=False, normalize=False),
    "our default: masked, normalized": PoseSpace(),
    "not masked, centered, normalized, 32 components": PoseSpace(
        mask_background=False, center=True, components=32
    ),
}
METHODS = ("kmeans", "spectral")
_SIDE, _GRAY = 128, (124, 116, 104)

# From number of poses, method and seed to the pose of each image.
Clustering = Callable[[int, str, int], np.ndarray]


def find_crops(words: argparse.Namespace, out: Path) -> None:
    """Run the steps that all kinds of maps share."""
    backbone = Backbone(model=words.backbone, resolution=words.resolution)
    source = Folder(path=words.photos, boxes=words.boxes)
    dataset.main(source=source, out=out)
    shared = {"manifest": out / "manifest.csv", "backbone": backbone}
    features.main(**shared, out=out / "features")
    tokens = out / "features/tokens.h5"
    foreground.main(manifest=shared["manifest"], tokens=tokens, out=out)
    features.main(**shared, windows=out / "foreground.csv", out=out)


def clusterings(out: Path, with_hog: bool) -> Iterator[tuple[str, list[str], Clustering]]:
    """Each kind of maps: its name, the images, and how they are clustered."""
    before = out / ESTIMATOR
    if with_hog:
        entries = [(entry, None) for entry in read_manifest(out / "manifest.csv")]
        batches = image_batches(entries, lambda image, _: letterbox(image, _SIDE, _GRAY), 64)
        found = [_hog(image) for _, batch in batches for image in batch]
        images = [entry.image for entry, _ in entries]
        maps, estimator = np.stack(found), load_estimator(before)
        valid = np.ones(maps.shape[:2], bool)
        yield "HOG of whole photos", images, partial(_clustered, estimator, maps, valid)
    for number, (name, space) in enumerate(SPACES.items()):
        made = {"estimator": before, "out": out / str(number), "pose_space": space}
        pose_space.main(tokens=out / "tokens.h5", **made)
        with open_h5(made["out"] / "maps.h5") as file:
            maps, valid, images = file["maps"][:], file["valid"][:], read_names(file)
        estimator = load_estimator(made["out"] / ESTIMATOR)
        yield name, images, partial(_clustered, estimator, maps, valid)


def _clustered(
    estimator: PoseEstimator, maps: np.ndarray, valid: np.ndarray, k: int, method: str, seed: int
) -> np.ndarray:
    category, chosen = np.zeros(len(maps), int), Poses(k=k, method=method, seed=seed)
    fitted = estimator.fit_poses(maps.copy(), valid, category, chosen)  # changes the maps
    return fitted.assign(maps, valid, category)[0]


def _hog(image: np.ndarray) -> np.ndarray:
    """Histograms of an image (S, S, 3) as a map (blocks, 36) float32."""
    blocks = hog(image, 9, (16, 16), (2, 2), channel_axis=-1, feature_vector=False)
    return blocks.reshape(-1, 36).astype(np.float32)


def cells(scores: list[dict[str, float]]) -> list[str]:
    """Median and range over the seeds: degrees, and percent within 30 degrees."""
    found = []
    for key, factor, digits in (("median_error_deg", 1, 1), ("share_within_30_deg", 100, 0)):
        values = sorted(factor * one[key] for one in scores)
        low, middle, high = (f"{one:.{digits}f}" for one in np.quantile(values, (0, 0.5, 1)))
        found.append(f"{middle} ({low}–{high})")
    return found


def main(words: argparse.Namespace, out: Path) -> None:
    """Print the table."""
    find_crops(words, out)
    heads = [f"K = {k}, {what}" for k in words.k for what in ("degrees", "within 30°, %")]
    for line in (["maps", "clustering", *heads], ["---"] * (2 + len(heads))):
        print(f"| {' | '.join(line)} |")
    listed = [entry.image for entry in read_manifest(out / "manifest.csv")]
    known = {one: str(azimuth) for one, azimuth in match_labels(words.labels, listed).items()}
    for name, images, clustering in clusterings(out, words.hog):
        for method in METHODS:
            row = [name, method]
            for k in words.k:
                labels = [clustering(k, method, seed) for seed in range(words.seeds)]
                row += cells([score(known, dict(zip(images, one, strict=True))) for one in labels])
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--boxes", help="as source.boxes")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--k", type=int, nargs="+", default=[12, 25])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hog", action="store_true", help="with the classical baseline")
    logging.getLogger().setLevel("ERROR")
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args(), Path(folder))
