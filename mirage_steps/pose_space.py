"""Step 4b: PCA 2 on foreground tokens, which project to maps of three components (section 3.1).

Every category of objects has a PCA of its own. Writes ``pca2.npz`` and ``maps.h5``: ``maps``
(n, T, 3) float32, by default of length 1 and zero off the object and where none is seen, ``valid``
(n, T) bool (False on padding) and ``image`` (n,) names.
"""

from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic
from mirage_steps.files.categories import read_categories
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import by_image, create_h5, open_h5, read_names, slices, write_names
from mirage_steps.method.boxes import valid_patches
from mirage_steps.method.foreground import ForegroundModel, object_maps
from mirage_steps.method.pca import Moments, Pca

_BATCH = 64
_COMPONENTS = 3  # paper, section 3.1


def main(
    *,
    tokens: Path,
    foreground: Path,
    out: Path,
    categories: Path | None = None,
    stored: Path | None = None,
    pose_space: settings.PoseSpace = settings.PoseSpace(),
) -> None:
    """Project the crops' tokens to pose space.

    Args:
        tokens: tokens.h5 of the crops.
        foreground: pca1.npz of the foreground step, applied to the crops' tokens.
        out: Folder for pca2.npz and maps.h5.
        categories: categories.csv, where there are several kinds of object.
        stored: pca2.npz of another data set, to project with, where nothing shall be fitted.
        pose_space: What the maps hold.
    """
    model = ForegroundModel.load(foreground)
    with open_h5(tokens, "patch_tokens", "content", "image") as file:
        kinds = read_categories(categories, read_names(file))
        pcas = _fit(tokens, file, model, kinds) if stored is None else _load(stored)
        with atomic(out / "pca2.npz") as path:
            np.savez(path, **Pca.stack(pcas))
        _write_maps(out / "maps.h5", file, model, pcas, kinds, pose_space)


def _fit(path: Path, file: h5py.File, model: ForegroundModel, kinds: np.ndarray) -> list[Pca]:
    """PCA 2 of every category."""
    pcas = []
    for kind, moments in enumerate(foreground_moments(file, model, kinds)):
        if moments.count <= _COMPONENTS:
            raise UserError(
                f"{path}: only {moments.count} foreground tokens in all crops of category {kind}; "
                "look at foreground.png and try foreground.threshold: zero"
            )
        pcas.append(Pca.fit(moments, _COMPONENTS))
        log.info(
            "PCA 2 on %d foreground tokens: %s of their variance",
            moments.count, ", ".join(f"{share:.0%}" for share in pcas[-1].variance_ratio),
        )  # fmt: skip
    return pcas


def _load(path: Path) -> list[Pca]:
    with np.load(path) as arrays:
        return Pca.unstack(arrays)


def foreground_moments(file: h5py.File, model: ForegroundModel, kinds: np.ndarray) -> list[Moments]:
    """Moments of the crops' tokens on the foreground side, padding left out, of every category.

    Args:
        file: tokens of n crops.
        model: PCA 1.
        kinds: (n,) category of each crop, counted from 0.
    """
    count, patches, dim = file["patch_tokens"].shape
    moments = [Moments(dim) for _ in range(int(kinds.max()) + 1)]
    for rows in tqdm(list(slices(count, _BATCH)), desc="PCA 2", mininterval=1.0):
        values = file["patch_tokens"][rows].astype(np.float32)
        scores = model.scores(values)
        chosen = (scores > model.threshold) & valid_patches(file["content"][rows], scores.shape[1])
        chosen = chosen.reshape(len(values), -1)
        for kind in np.unique(kinds[rows]):
            own = kinds[rows] == kind
            moments[kind].add(values[own][chosen[own]])
    return moments


def _write_maps(
    path: Path,
    file: h5py.File,
    model: ForegroundModel,
    pcas: list[Pca],
    kinds: np.ndarray,
    pose_space: settings.PoseSpace,
) -> None:
    count, patches, _ = file["patch_tokens"].shape
    grid = round(patches**0.5)
    empty = 0
    with create_h5(path) as out:
        maps = by_image(out, "maps", count, (patches, _COMPONENTS), np.float32)
        valid = by_image(out, "valid", count, (patches,), bool)
        write_names(out, read_names(file))
        for rows in tqdm(list(slices(count, _BATCH)), desc="maps", mininterval=1.0):
            tokens, content = file["patch_tokens"][rows], file["content"][rows]
            inside = valid_patches(content, grid)
            shown = (model.scores(tokens) > model.threshold) & inside
            empty += int((~shown.any((1, 2))).sum())
            projected = np.empty((len(tokens), patches, _COMPONENTS), np.float32)
            for kind in np.unique(kinds[rows]):
                own = kinds[rows] == kind
                projected[own] = pcas[kind].project(tokens[own])
            shown = shown.reshape(len(tokens), -1)
            maps[rows] = object_maps(
                projected, shown, pose_space.mask_background, pose_space.normalize
            )
            valid[rows] = inside.reshape(len(tokens), -1)
    if empty:
        log.warning(
            "%d of %d crops show no foreground patch, so their pose means nothing; look at "
            "foreground.png and try foreground.threshold: zero",
            empty, count,
        )  # fmt: skip


if __name__ == "__main__":
    run(main)
