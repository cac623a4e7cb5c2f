"""Cluster a data set into object categories (the paper's future work).

Clusters one feature per crop, the CLS token or the mean token of the object. Writes
``pose_estimator.safetensors`` (with the categories), ``categories.csv`` (image, category,
probability), ``categories.json`` (counts, and agreement with true categories, if known) and
``categories.png``, crops of every category.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from mirage_steps.errors import UserError, rerun
from mirage_steps.files import plots
from mirage_steps.files.atomic import write_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tokens import open_tokens
from mirage_steps.method.categories import CategoryModel
from mirage_steps.method.pose_scores import score_labels

_SHOWN = 12  # crops of each category in the picture
_FEW = 100  # images below which a category gives a warning


def main(
    *,
    manifest: Path,
    tokens: Path,
    crops: Path,
    estimator: Path,
    out: Path,
    categories: int,
    token: Literal["cls", "mean-patch"] = "cls",
    seed: int = 0,
    stored: Path | None = None,
) -> None:
    """Find the object categories of a data set.

    Args:
        manifest: The data set's manifest.csv, whose category serves to score only.
        tokens: tokens.h5 of the crops.
        crops: crops.h5, for the picture.
        estimator: The foreground step's pose_estimator.safetensors.
        out: Folder for pose_estimator.safetensors, categories.csv, categories.json and
            categories.png.
        categories: Number of categories.
        token: cls, or mean-patch for the mean over the object's patches.
        seed: Seed of the starts.
        stored: The estimator that this step fitted on another data set; nothing is fitted here.
    """
    model = load_estimator(stored or estimator, "categories" if stored else "foreground")
    if stored is not None:
        token = model.categories.token
    with open_tokens(tokens) as found:
        images = found.images
        features = np.concatenate([model.features(batch, token) for batch in found])
    if stored is None:
        if len(features) < 8 * categories:
            raise UserError(
                f"categories = {categories}, but an object was found in only {len(features)} "
                "images; lower categories or add images"
            )
        model = replace(model, categories=CategoryModel.fit(features, categories, seed, token))
    assigned, probabilities = model.categories.assign(features)
    counts = np.bincount(assigned, minlength=len(model.categories.weights))
    log.info("images of each category: %s", " ".join(map(str, counts)))
    if stored is None and counts.min() < _FEW:
        log.warning(
            "a category has only %d images: too few to separate categories reliably; look at "
            "categories.png", counts.min(),
        )  # fmt: skip
    about = {"token": token, "images": counts.tolist()}
    truth = {entry.image: entry.category for entry in read_manifest(manifest) if entry.category}
    if known := [index for index, image in enumerate(images) if image in truth]:
        labels = [truth[images[index]] for index in known]
        about["truth"] = score_labels(assigned[known], labels, len(counts))
        log.info("purity against the true categories: %.4f", about["truth"]["purity"])
    plots.categories(out / "categories.png", _examples(crops, images, assigned, counts), counts)
    save_estimator(out / ESTIMATOR, model)
    write_json(out / "categories.json", about)
    rows = zip(images, assigned, probabilities, strict=True)
    write_csv(
        out / "categories.csv",
        ("image", "category", "probability"),
        ((image, category, f"{probability:.4f}") for image, category, probability in rows),
    )


def _examples(
    crops: Path, images: list[str], assigned: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """The first crops of every category in a row, (c, n, S, S, 3) uint8."""
    with open_h5(crops, "images", "image") as file:
        if read_names(file) != images:
            raise UserError(f"{crops}: lists other images than the tokens; {rerun('crops')}")
        side = file["images"].shape[1]
        rows = np.full((len(counts), _SHOWN, side, side, 3), 255, np.uint8)
        for category, row in enumerate(rows):
            for place, index in enumerate(np.flatnonzero(assigned == category)[:_SHOWN]):
                row[place] = file["images"][int(index)]
    return rows


if __name__ == "__main__":
    run(main)
