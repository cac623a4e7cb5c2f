"""Maps of the crops in pose space: PCA 2 on foreground tokens (section 3.1).

Every category has its own PCA. Writes ``pose_estimator.safetensors`` (with the pose space) and
``maps.h5``: ``maps`` (n, T, c) float32, by default of length 1 and zero on the background and on
padding, ``valid`` (n, T) bool (False on padding) and ``image`` (n,) names.
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import ESTIMATOR, load_estimator, save_estimator
from mirage_steps.files.h5 import by_image, create_h5, write_names
from mirage_steps.files.tables import read_categories
from mirage_steps.files.tokens import open_tokens


def main(
    *,
    tokens: Path,
    estimator: Path,
    out: Path,
    categories: Path | None = None,
    stored: Path | None = None,
    pose_space: settings.PoseSpace = settings.PoseSpace(),
) -> None:
    """Project the crops' tokens to pose space.

    Args:
        tokens: tokens.h5 of the crops.
        estimator: pose_estimator.safetensors of the step before.
        out: Folder for pose_estimator.safetensors and maps.h5.
        categories: categories.csv, where there are several categories.
        stored: The estimator that this step fitted on another data set; nothing is fitted here.
        pose_space: What the maps hold.
    """
    model = load_estimator(stored or estimator, "pcas" if stored else "foreground")
    with open_tokens(tokens) as found:
        assigned = read_categories(categories, found.images)
        if stored is None:
            model = model.fit_pose_space(found, assigned, pose_space)
            for pca in model.pcas:
                share, count = pca.variance_ratio.sum(), len(pca.components)
                log.info("PCA 2: %d components, %.0f%% of the variance", count, 100 * share)
        save_estimator(out / ESTIMATOR, model)
        count, patches = found.file["patch_tokens"].shape[:2]
        empty = 0
        with create_h5(out / "maps.h5") as file:
            by_image(file, "maps", count, (patches, len(model.pcas[0].components)), np.float32)
            by_image(file, "valid", count, (patches,), bool)
            write_names(file, found.images)
            for batch in found:
                rows = batch.rows
                file["maps"][rows], file["valid"][rows], shown = model.maps(batch, assigned[rows])
                empty += int((~shown.any(1)).sum())
        if empty == count:
            raise UserError(
                f"no crop of {count} shows foreground, so no pose has a meaning; look at "
                "foreground.png and try foreground.threshold: zero"
            )
    if empty:
        log.warning(
            "%d of %d crops show no foreground patch, so their pose is meaningless; look at "
            "foreground.png and try foreground.threshold: zero", empty, count,
        )  # fmt: skip


if __name__ == "__main__":
    run(main)
