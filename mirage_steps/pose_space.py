"""Step 4b: PCA 2 on foreground tokens, which project to maps of three components (section 3.1).

Writes ``pca2.npz`` and ``maps.h5``: ``maps`` (n, T, 3) float32 of length 1, zero off the object
and where none is seen, ``valid`` (n, T) bool (False on padding) and ``image`` (n,) names.
"""

from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from mirage_steps.core.boxes import valid_patches
from mirage_steps.core.foreground import ForegroundModel, object_maps
from mirage_steps.core.pca import Moments, Pca
from mirage_steps.support.errors import UserError
from mirage_steps.support.files import atomic
from mirage_steps.support.h5 import by_image, create_h5, open_h5, read_names, slices, write_names
from mirage_steps.support.step import log, run

_BATCH = 64
_COMPONENTS = 3  # paper, section 3.1


def main(*, tokens: Path, foreground: Path, out: Path) -> None:
    """Project the crops' tokens to pose space.

    Args:
        tokens: tokens.h5 of the crops.
        foreground: pca1.npz of the foreground step, applied to the crops' tokens.
        out: Folder for pca2.npz and maps.h5.
    """
    model = ForegroundModel.load(foreground)
    with open_h5(tokens, "patch_tokens", "content") as file:
        moments = foreground_moments(file, model)
        if moments.count <= _COMPONENTS:
            raise UserError(
                f"{tokens}: only {moments.count} foreground tokens in all crops; look at "
                "foreground.png and try foreground.threshold: zero"
            )
        pca = Pca.fit(moments, _COMPONENTS)
        log.info(
            "PCA 2 on %d foreground tokens: %s of their variance",
            moments.count, ", ".join(f"{share:.0%}" for share in pca.variance_ratio),
        )  # fmt: skip
        with atomic(out / "pca2.npz") as path:
            np.savez(path, **pca.arrays())
        _write_maps(out / "maps.h5", file, model, pca)


def foreground_moments(file: h5py.File, model: ForegroundModel) -> Moments:
    """Moments of the crops' tokens on the foreground side, padding left out."""
    count, patches, dim = file["patch_tokens"].shape
    moments = Moments(dim)
    for rows in tqdm(list(slices(count, _BATCH)), desc="PCA 2", mininterval=1.0):
        values = file["patch_tokens"][rows].astype(np.float32)
        scores = model.scores(values)
        chosen = (scores > model.threshold) & valid_patches(file["content"][rows], scores.shape[1])
        moments.add(values[chosen.reshape(len(values), -1)])
    return moments


def _write_maps(path: Path, file: h5py.File, model: ForegroundModel, pca: Pca) -> None:
    count, patches, _ = file["patch_tokens"].shape
    grid = round(patches**0.5)
    empty = 0
    with create_h5(path) as out:
        maps = by_image(out, "maps", count, (patches, _COMPONENTS), np.float32)
        valid = by_image(out, "valid", count, (patches,), bool)
        write_names(out, read_names(file))
        for rows in tqdm(list(slices(count, _BATCH)), desc="maps", mininterval=1.0):
            tokens, content = file["patch_tokens"][rows], file["content"][rows]
            scores = model.scores(tokens)
            inside = valid_patches(content, grid)
            shown = (scores > model.threshold) & inside
            empty += int((~shown.any((1, 2))).sum())
            maps[rows] = object_maps(pca.project(tokens), shown.reshape(len(tokens), -1))
            valid[rows] = inside.reshape(len(tokens), -1)
    if empty:
        log.warning(
            "%d of %d crops show no foreground patch, so their pose means nothing; look at "
            "foreground.png and try foreground.threshold: zero",
            empty, count,
        )  # fmt: skip


if __name__ == "__main__":
    run(main)
