"""Step 4c: kinds of object in one data set, before their poses (the paper's future work).

One feature of each crop, the CLS token or the mean token of the object, is clustered. Writes
``categories.csv`` (image, category, probability), ``categories.npz`` (the model, by which a new
photo is assigned), ``categories.json`` (counts, and the agreement with the truth where the manifest
knows it) and ``categories.png``, crops of every category.
"""

from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from tqdm import tqdm

from mirage_steps.errors import UserError
from mirage_steps.files import plots as pictures
from mirage_steps.files.atomic import atomic, write_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5, read_names, slices
from mirage_steps.files.manifest import read_manifest
from mirage_steps.method.boxes import valid_patches
from mirage_steps.method.categories import CategoryModel, mean_token
from mirage_steps.method.foreground import ForegroundModel
from mirage_steps.method.poses import score_labels

_BATCH = 64
_SHOWN = 12  # crops of each category in the picture
_FEW = 100  # images below which a category is doubtful


def main(
    *,
    manifest: Path,
    tokens: Path,
    crops: Path,
    foreground: Path,
    out: Path,
    categories: int,
    token: Literal["cls", "mean-patch"] = "cls",
    seed: int = 0,
    stored: Path | None = None,
) -> None:
    """Find the kinds of object in a data set.

    Args:
        manifest: The data set's manifest.csv, whose category serves to score only.
        tokens: tokens.h5 of the crops.
        crops: crops.h5, for the picture.
        foreground: pca1.npz of the foreground step.
        out: Folder for categories.csv, categories.npz, categories.json and categories.png.
        categories: Number of kinds.
        token: cls, or mean-patch for the mean over the object's patches.
        seed: Seed of the starts.
        stored: categories.npz of another data set, to assign by, where nothing shall be fitted.
    """
    with open_h5(tokens, "patch_tokens", "cls_token", "content", "image") as file:
        names = read_names(file)
        features = object_features(file, ForegroundModel.load(foreground), token)
    if stored is None:
        model = _fit(features, categories, seed)
    else:
        model = CategoryModel.load(stored)
    found, likely = model.assign(features)
    counts = np.bincount(found, minlength=len(model.weights))
    about = {"token": token, "images": counts.tolist(), **_scores(manifest, names, found, counts)}
    with atomic(out / "categories.npz") as path:
        model.save(path)
    if stored is None and counts.min() < _FEW:
        log.warning(
            "a category of only %d images: with so few, kinds are not told apart reliably; look "
            "at categories.png", counts.min(),
        )  # fmt: skip
    _draw(out / "categories.png", crops, names, found, len(counts))
    write_json(out / "categories.json", about)
    rows = zip(names, found, likely, strict=True)
    write_csv(
        out / "categories.csv",
        ("image", "category", "probability"),
        ((name, kind, f"{share:.4f}") for name, kind, share in rows),
    )
    log.info("images of each category: %s", " ".join(map(str, counts)))


def _fit(features: np.ndarray, categories: int, seed: int) -> CategoryModel:
    if len(features) < 8 * categories:
        raise UserError(
            f"categories = {categories}, but an object was found in only {len(features)} images; "
            "lower categories or add images"
        )
    return CategoryModel.fit(features, categories, seed)


def _scores(
    manifest: Path, names: list[str], found: np.ndarray, counts: np.ndarray
) -> dict[str, object]:
    """Agreement with the true kinds, empty where none is known."""
    truth = {entry.image: entry.category for entry in read_manifest(manifest) if entry.category}
    known = [index for index, name in enumerate(names) if name in truth]
    if not known:
        return {}
    labels = [truth[names[index]] for index in known]
    agreement = score_labels(found[known], labels, len(counts))
    log.info("categories against the truth: purity %.4f", agreement["purity"])
    return {"truth": agreement}


def object_features(file: h5py.File, model: ForegroundModel, token: str) -> np.ndarray:
    """One feature of each crop, (n, dim) float32."""
    if token == "cls":
        return file["cls_token"][:].astype(np.float32)
    count, _, dim = file["patch_tokens"].shape
    means = np.empty((count, dim), np.float32)
    for rows in tqdm(list(slices(count, _BATCH)), desc="mean tokens", mininterval=1.0):
        values = file["patch_tokens"][rows].astype(np.float32)
        scores = model.scores(values)
        shown = (scores > model.threshold) & valid_patches(file["content"][rows], scores.shape[1])
        means[rows] = mean_token(values, shown.reshape(len(values), -1))
    return means


def _draw(path: Path, crops: Path, names: list[str], found: np.ndarray, count: int) -> None:
    """Crops of every category, a row each."""
    with open_h5(crops, "images", "image") as file:
        if read_names(file) != names:
            raise UserError(f"{crops} lists other images than the tokens; rerun crops")
        side = file["images"].shape[1]
        rows = np.full((count, _SHOWN, side, side, 3), 255, np.uint8)
        for kind in range(count):
            for place, index in enumerate(np.flatnonzero(found == kind)[:_SHOWN]):
                rows[kind, place] = file["images"][int(index)]
    pictures.categories(path, rows, np.bincount(found, minlength=count))


if __name__ == "__main__":
    run(main)
