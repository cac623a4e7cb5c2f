"""Foreground, box and crop window of every image (paper, section 3.1).

PCA 1 over the patch tokens of all images; one side of one component is the object. A box in the
manifest takes precedence. Writes ``pose_estimator.safetensors`` (PCA 1 and its threshold),
``foreground.csv`` (for every image the object's box, the window of the training crop and its padded
share, how clear the object is, or why the image is left out), ``foreground.json`` (component, sign
and their contrast, and ``warnings``, reasons not to trust them) and ``foreground.png``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError, rerun
from mirage_steps.files import plots
from mirage_steps.files.atomic import write_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.manifest import Entry, read_manifest
from mirage_steps.files.tables import CLEARNESS, WINDOWS, read_duplicates
from mirage_steps.files.tokens import Tokens, open_tokens
from mirage_steps.method.boxes import Box, padded_share
from mirage_steps.method.foreground import (
    DECIDABLE,
    ForegroundModel,
    TokenBatch,
    fit_foreground,
    side_of,
)
from mirage_steps.method.pose_estimator import Detection, PoseEstimator
from mirage_steps.method.reliability import WHOLE, Clearness

_EXAMPLES = 16  # images in the picture
_FEW = 0.5  # share of the images with an object below which the component hardly is the object's
_PADDED = 5e-4  # share of padding that is more than the rounding of a window
_MUCH_PADDED = 0.05  # mean share of padding that a diffusion model will show


def main(
    *,
    manifest: Path,
    tokens: Path,
    out: Path,
    stored: Path | None = None,
    duplicates: Path | None = None,
    foreground: settings.Foreground = settings.Foreground(),
) -> None:
    """Separate the object from its surroundings and find its crop.

    Args:
        manifest: The data set's manifest.csv.
        tokens: tokens.h5 of the whole images.
        out: Folder for pose_estimator.safetensors, foreground.csv, foreground.json and
            foreground.png.
        stored: The estimator that this step fitted on another data set; nothing is fitted here.
        duplicates: duplicates.csv, to leave out the near-duplicates.
        foreground: How the component is chosen and cut.
    """
    entries = read_manifest(manifest)
    repeats = read_duplicates(duplicates)
    kept = np.array([entry.image not in repeats for entry in entries])
    if not kept.any():
        raise UserError(f"{duplicates}: leaves out all images; {rerun('duplicates')}")
    shown = np.flatnonzero(kept)[np.linspace(0, kept.sum() - 1, _EXAMPLES).astype(int)]
    components = []
    with open_tokens(tokens) as found:
        if found.images != [entry.image for entry in entries]:
            raise UserError(f"{tokens}: holds other images than the manifest; {rerun('features')}")
        if stored is None:
            model, contrasts = fit_foreground(_Kept(found, kept), foreground)
            signs = [side_of(one, foreground.fallback_sign) for one in contrasts]
            components = _components(found, entries, shown[[0, -1]], model, signs)
            # New photos are assumed to be cropped to the object if all of these are.
            whole = all(entry.box == _whole(entry) for entry in entries)
            estimator = PoseEstimator(found.backbone, model, foreground.margin, whole=whole)
            about: dict[str, Any] = _report(model, contrasts, foreground)
        else:
            estimator = load_estimator(stored)
            about = {"stored": str(stored), "warnings": []}
        if estimator.whole:  # a box that is not searched is not judged
            entries = [replace(one, box=one.box or _whole(one)) for one in entries]
        rows, examples = _locate(found, entries, estimator, repeats, set(shown.tolist()))
    about = _add_counts(about, rows, entries)
    save_estimator(out / ESTIMATOR, estimator)
    model = estimator.foreground
    about |= {"component": model.component + 1, "sign": model.sign, "threshold": model.threshold}
    for warning in about["warnings"]:
        log.warning("%s", warning)
    write_json(out / "foreground.json", about)
    plots.foreground(out / "foreground.png", examples, model.threshold, components)
    table = ([f"{v:.3f}" if isinstance(v, float) else v for v in row] for row in rows)
    write_csv(out / "foreground.csv", WINDOWS, table)


def _whole(entry: Entry) -> Box:
    """The box of a whole image."""
    return 0.0, 0.0, float(entry.width), float(entry.height)


def _report(
    model: ForegroundModel, contrasts: np.ndarray, foreground: settings.Foreground
) -> dict[str, Any]:
    """How PCA 1 was cut, for JSON, with a warning where that is a guess."""
    contrast, sign = contrasts[model.component], model.sign
    decided = bool(abs(contrast) >= DECIDABLE)
    log.info("component %d, sign %+d, contrast %.2f", model.component + 1, sign, contrast)
    guess = (
        f"the border does not decide the sign (contrast {contrast:.2f}, needed {DECIDABLE:.2f}): "
        f"foreground.fallback_sign = {sign:+d} is used; check foreground.png, and name the "
        "component by foreground.component if it is another"
    )
    return {
        "rule": foreground.rule if foreground.component == "auto" else "foreground.component",
        "sign_decided_by": "border" if decided else "foreground.fallback_sign",
        "contrast_of_components": contrasts.round(4).tolist(),
        "variance_ratio": model.pca.variance_ratio.round(4).tolist(),
        "warnings": [] if decided else [guess],
    }


@dataclass(frozen=True)
class _Kept:
    """Batches of the tokens of those images that are kept, bool (n,)."""

    tokens: Tokens
    kept: np.ndarray

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in self.tokens:
            kept = self.kept[batch.rows]
            # Whole images have no masks.
            parts = (one[kept] for one in batch[1:4])
            yield batch if kept.all() else TokenBatch(batch.rows, *parts)


def _components(
    tokens: Tokens, entries: list[Entry], rows: np.ndarray, model: ForegroundModel, signs: list[int]
) -> list[tuple[Entry, dict[str, np.ndarray]]]:
    """Images with their scores (g, g) along each component, by the value that chooses it."""
    found = []
    for row in map(int, rows):
        part = slice(row, row + 1)
        arrays = [tokens.file[key][part] for key in ("patch_tokens", "cls_token", "content")]
        batch = TokenBatch(part, *arrays)
        values = model.pca.project(batch.tokens[0]).T.reshape(-1, *batch.valid.shape[1:])
        scores = {}
        for number, (one, sign) in enumerate(zip(values, signs, strict=True)):
            used = number == model.component
            name = f"{'' if not used or sign == model.sign else '-'}{number + 1}"
            sign = model.sign if used else sign
            scores[f"{name} (used)" if used else name] = np.where(
                batch.valid[0], sign * one, np.nan
            )
        found.append((entries[row], scores))
    return found


def _locate(
    tokens: Tokens,
    entries: list[Entry],
    estimator: PoseEstimator,
    repeats: Mapping[str, str],
    shown: set[int],
) -> tuple[list[tuple], list[tuple[Entry, Detection]]]:
    """Rows of ``foreground.csv``, and the images of the rows ``shown`` for the picture."""
    rows, examples = [], []
    for batch in tokens:
        part = entries[batch.rows]
        found = estimator.locate(batch, [(e.width, e.height) for e in part], [e.box for e in part])
        for index, (entry, one) in enumerate(zip(part, found, strict=True), batch.rows.start):
            reason = f"repeats {repeats[entry.image]}" if entry.image in repeats else ""
            rows.append(_row(entry, one, estimator.foreground.threshold, reason))
            if index in shown:
                examples.append((entry, one))
    return rows, examples


def _row(entry: Entry, found: Detection, threshold: float, left_out: str) -> tuple:
    """A row of ``foreground.csv``."""
    if found.box is None or left_out:
        return (entry.image, 0, *[""] * (len(WINDOWS) - 3), left_out or "no object was found")
    width, height = entry.width, entry.height
    covered = 0.0 if found.region is None else float(found.region.mask.mean())
    share = min(covered * max(width, height) ** 2 / (width * height), 1.0)
    padded = padded_share(found.window, width, height)
    # A given box is not judged.
    given = entry.box is not None
    clear = [""] * len(CLEARNESS) if given else astuple(Clearness.of(found, threshold))
    return (entry.image, 1, *found.box, *found.window, padded, share, *clear, "")


def _add_counts(about: dict, rows: list[tuple], entries: list[Entry]) -> dict[str, Any]:
    """``about`` with the images in which an object was found, and how; warnings where that is off.

    Raises:
        UserError: no object was found at all.
    """
    left_out = sum(row[-1].startswith("repeats") for row in rows)
    found = [(entry, row) for entry, row in zip(entries, rows, strict=True) if row[1]]
    log.info("object found in %d of %d images", len(found), len(rows))
    if left_out:
        log.info("left out: %d near-duplicates", left_out)
    if not found:
        raise UserError(
            f"no object was found in any of {len(rows)} images; try foreground.threshold: zero or "
            "another foreground.component, and see that the images are not all alike"
        )
    warnings, searched = list(about["warnings"]), len(rows) - left_out
    if len(found) < _FEW * searched:
        share = len(found) / searched
        warnings.append(
            f"an object was found in only {len(found)} of {searched} images ({share:.0%}), the "
            "others are left out; look at foreground.png and try foreground.threshold: zero"
        )
    whole = sum(
        (x1 - x0) * (y1 - y0) > WHOLE * entry.width * entry.height
        for entry, (_, _, x0, y0, x1, y1, *_) in found
        if entry.box is None
    )
    if whole > len(found) / 2:
        warnings.append(
            f"the object's box is the whole image in {whole} of {len(found)} images: if the "
            "objects do not fill them, the component does not separate; look at foreground.png"
        )
    padded = np.array([row[WINDOWS.index("padded_share")] for _, row in found])
    if padded.mean() > _MUCH_PADDED:
        warnings.append(
            f"{padded.mean():.0%} of the pixels of the crops are padding (up to {padded.max():.0%} "
            f"in one, some in {(padded > _PADDED).sum()} of {len(found)}): the photos are less "
            "high or wide than the window, and the model learns their blurred edges; look at "
            "foreground.png and leave more room around the objects"
        )
    return about | {
        "images": len(rows),
        "images_without_object": searched - len(found),
        "near_duplicates_left_out": left_out,
        "images_filled_by_their_box": whole,
        "images_with_padded_crop": int((padded > _PADDED).sum()),
        "padded_share": round(float(padded.mean()), 4),
        "warnings": warnings,
    }


if __name__ == "__main__":
    run(main)
