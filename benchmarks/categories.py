"""Purity of categories on mixtures of procedural cars and chairs.

    python benchmarks/categories.py --out /tmp/categories

Runs the pipeline's steps up to `categories` on mixtures with known labels and prints the purity,
the share of images that have the most frequent label of their category, and for comparison that of
K-Means on the raw features, without whitening and without a Gaussian mixture.
"""

from pathlib import Path

import numpy as np
import tyro
from sklearn.cluster import KMeans

from mirage_steps import categories, crops, dataset, features, foreground, settings
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tokens import open_tokens
from mirage_steps.method.pose_scores import score_labels

BACKBONE = settings.Backbone(model="weights/stand-in-dinov2-cars", resolution=64, batch_size=64)


def main(
    out: Path, images: tuple[int, ...] = (300, 1000), seeds: tuple[int, ...] = (22, 23)
) -> None:
    """Print a table of purities.

    Args:
        out: Folder for the images and the steps' files.
        images: Sizes of the mixtures, half cars and half chairs.
        seeds: Seeds of the images.
    """
    print("| images | seed | purity | K-Means on the features as they come |")
    print("|---|---|---|---|")
    for count in images:
        for seed in seeds:
            found, plain = purities(out / f"{count}-{seed}", count, seed)
            print(f"| {count} | {seed} | {found:.4f} | {plain:.4f} |", flush=True)


def purities(folder: Path, count: int, seed: int) -> tuple[float, float]:
    """Purity of the step `categories`, and of plain K-Means, on one mixture."""
    source = settings.Procedural(objects="cars-and-chairs", images=count, size=96, seed=seed)
    manifest, windows = folder / "manifest.csv", folder / "foreground/foreground.csv"
    dataset.main(source=source, out=folder)
    features.main(manifest=manifest, out=folder / "features", backbone=BACKBONE)
    foreground.main(
        manifest=manifest, tokens=folder / "features/tokens.h5", out=folder / "foreground"
    )
    crops.main(manifest=manifest, windows=windows, out=folder / "crops")
    features.main(manifest=manifest, windows=windows, out=folder / "tokens", backbone=BACKBONE)
    estimator = folder / "foreground" / ESTIMATOR
    categories.main(
        manifest=manifest,
        tokens=folder / "tokens/tokens.h5",
        crops=folder / "crops/crops.h5",
        estimator=estimator,
        out=folder / "categories",
        categories=2,
        token="mean-patch",
    )
    truth = {entry.image: entry.category for entry in read_manifest(manifest)}
    with open_tokens(folder / "tokens/tokens.h5") as tokens:
        model = load_estimator(estimator)
        values = np.concatenate([model.features(batch, "mean-patch") for batch in tokens])
        labels = [truth[image] for image in tokens.images]
    rows = read_csv(folder / "categories/categories.csv")
    found = np.array([int(row["category"]) for row in rows])
    plain = KMeans(2, n_init=10, random_state=0).fit_predict(values)
    return tuple(score_labels(one, labels, 2)["purity"] for one in (found, plain))


if __name__ == "__main__":
    tyro.cli(main)
