"""Step 3: separate the object from its surroundings and find its crop (paper, section 3.1).

PCA 1 over the patch tokens of all images; one side of one component is the object. Where the
manifest gives an object's box, that one is taken. Writes
``pca1.npz`` (the stored model), ``foreground.csv`` (of every image the object's box, the window of
the crop to train on, and that one's padded share), ``foreground.json`` (what was chosen and how
clearly) and ``foreground.png``.
"""

from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import plots as pictures
from mirage_steps.files.atomic import atomic, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5, read_names, slices
from mirage_steps.files.manifest import Entry, read_manifest
from mirage_steps.files.windows import write_windows
from mirage_steps.method import foreground as core
from mirage_steps.method.boxes import (
    from_letterbox,
    padded_share,
    square_window,
    valid_patches,
)
from mirage_steps.method.pca import Moments, Pca

_BATCH = 64
_COMPONENTS = 3
_BINS = 1024


def main(
    *,
    manifest: Path,
    tokens: Path,
    out: Path,
    stored: Path | None = None,
    foreground: settings.Foreground = settings.Foreground(),
) -> None:
    """Separate the object from its surroundings and find its crop.

    Args:
        manifest: The data set's manifest.csv.
        tokens: tokens.h5 of the whole images.
        out: Folder for pca1.npz, foreground.csv, foreground.json and foreground.png.
        stored: pca1.npz of another data set, to separate by, where nothing shall be fitted.
        foreground: How the component is chosen and cut.
    """
    entries = read_manifest(manifest)
    with open_h5(tokens, "patch_tokens", "content", "image") as file:
        if read_names(file) != [entry.image for entry in entries]:
            raise UserError(f"{tokens}: holds other images than the manifest; rerun features")
        if stored is None:
            model, about = _fit(file, foreground)
        else:
            model = core.ForegroundModel.load(stored)
            about = {"stored": str(stored), "component": model.component + 1, "sign": model.sign}
        rows, examples = _locate(file, entries, model, foreground.margin)
    with atomic(out / "pca1.npz") as path:
        model.save(path)
    found = sum(row[1] for row in rows)
    whole = sum(_fills_image(entry, row) for entry, row in zip(entries, rows, strict=True))
    if whole > found / 2:
        log.warning(
            "the object's box is the whole image in %d of %d images: if the objects do not fill "
            "them, the component does not separate; look at foreground.png",
            whole, found,
        )  # fmt: skip
    write_json(
        out / "foreground.json",
        {
            **about,
            "threshold": model.threshold,
            "images": len(rows),
            "images_without_object": len(rows) - found,
            "images_filled_by_their_box": whole,
            "images_with_padded_crop": sum(bool(row[1]) and row[-2] > 0 for row in rows),
        },
    )
    pictures.foreground(out / "foreground.png", examples, model.threshold)
    write_windows(out / "foreground.csv", rows)
    log.info("object found in %d of %d images", found, len(rows))


def _fit(
    file: h5py.File, foreground: settings.Foreground
) -> tuple[core.ForegroundModel, dict[str, object]]:
    """PCA 1 with its component, sign and threshold, and how they were found."""
    everything, border, inside = token_moments(file)
    pca = Pca.fit(everything, _COMPONENTS)
    contrasts = core.contrast(pca, border, inside)
    choice = core.choose(contrasts, foreground.rule, foreground.fallback_sign)
    _report(choice, foreground)
    model = core.ForegroundModel(pca, choice.component, choice.sign, 0.0)
    if foreground.threshold == "otsu":
        threshold = _otsu(file, model, everything)
        model = core.ForegroundModel(pca, choice.component, choice.sign, threshold)
    return model, {
        "rule": foreground.rule,
        "component": choice.component + 1,
        "sign": choice.sign,
        "sign_decided_by": "border" if choice.decided else "foreground.fallback_sign",
        "contrast_of_components": [round(float(value), 4) for value in contrasts],
        "variance_ratio": [round(float(value), 4) for value in pca.variance_ratio],
    }


def token_moments(file: h5py.File) -> tuple[Moments, Moments, Moments]:
    """Moments of all valid patch tokens, of those at the border, and of the others."""
    count, patches, dim = file["patch_tokens"].shape
    grid = round(patches**0.5)
    border, inside = Moments(dim), Moments(dim)
    for rows in tqdm(list(slices(count, _BATCH)), desc="moments", mininterval=1.0):
        values = file["patch_tokens"][rows].astype(np.float32)
        valid = valid_patches(file["content"][rows], grid)
        edge = core.border_patches(valid)
        border.add(values[edge.reshape(len(values), -1)])
        inside.add(values[(valid & ~edge).reshape(len(values), -1)])
    everything = Moments(dim)
    everything.merge(border)
    everything.merge(inside)
    return everything, border, inside


def _report(choice: core.Choice, foreground: settings.Foreground) -> None:
    log.info(
        "component %d, sign %+d, contrast with the border %.2f",
        choice.component + 1, choice.sign, choice.contrast,
    )  # fmt: skip
    if not choice.decided:
        log.warning(
            "the border does not decide the sign (contrast %.2f, needed %.2f): "
            "foreground.fallback_sign = %+d is used; check foreground.png",
            choice.contrast, core.DECIDABLE, foreground.fallback_sign,
        )  # fmt: skip


def _otsu(file: h5py.File, model: core.ForegroundModel, everything: Moments) -> float:
    """Otsu's threshold over the scores of all valid patches, from a streamed histogram."""
    row = model.pca.components[model.component]
    reach = 6 * float(np.sqrt(row @ everything.covariance @ row))
    edges = np.linspace(-reach, reach, _BINS + 1)
    counts = np.zeros(_BINS)
    for rows in slices(len(file["patch_tokens"]), _BATCH):
        scores = model.scores(file["patch_tokens"][rows])
        valid = valid_patches(file["content"][rows], scores.shape[1])
        counts += np.histogram(np.clip(scores[valid], -reach, reach), edges)[0]
    return core.otsu_threshold(counts, edges)


def _locate(
    file: h5py.File, entries: list[Entry], model: core.ForegroundModel, margin: float
) -> tuple[list[tuple], list[pictures.ForegroundExample]]:
    """Rows of ``foreground.csv``, and evenly spaced examples for the picture."""
    rows: list[tuple] = []
    examples: list[pictures.ForegroundExample] = []
    shown = set(np.linspace(0, len(entries) - 1, 16).astype(int).tolist())
    for part in tqdm(list(slices(len(entries), _BATCH)), desc="objects", mininterval=1.0):
        scores = model.scores(file["patch_tokens"][part])
        valid = valid_patches(file["content"][part], scores.shape[1])
        regions = core.find_objects(scores, model.threshold, valid)
        for index, region in zip(range(part.start, part.stop), regions, strict=True):
            row = _row(entries[index], region, margin)
            rows.append(row)
            if index in shown:
                masked = np.where(valid[index - part.start], scores[index - part.start], np.nan)
                examples.append(pictures.ForegroundExample(entries[index], masked, row))
    return rows, examples


def _fills_image(entry: Entry, row: tuple) -> bool:
    """Whether the object's box covers nearly all of the image."""
    if not row[1]:
        return False
    x0, y0, x1, y1 = row[2:6]
    return (x1 - x0) * (y1 - y0) > 0.95 * entry.width * entry.height


def _row(entry: Entry, region: core.Region | None, margin: float) -> tuple:
    if region is None and entry.box is None:
        return (entry.image, 0, *[""] * 8, "", "")
    width, height = entry.width, entry.height
    box = entry.box or from_letterbox(region.box, width, height)
    window = square_window(box, width, height, margin)
    covered = 0.0 if region is None else float(region.mask.mean())
    share = min(covered * max(width, height) ** 2 / (width * height), 1.0)
    return (entry.image, 1, *box, *window, padded_share(window, width, height), share)


if __name__ == "__main__":
    run(main)
