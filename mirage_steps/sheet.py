"""Generated objects in all poses (Figure 1), which ``contact_sheet`` draws.

Writes ``objects.h5``: ``images`` (n, k, S, S, 3) uint8, their ``pose`` (n, k) and ``reference``
(n,), the column that all others of a row attend to. It has enough of them for the evidence.

With ``sheet.references`` instead ``reference-NAME.h5`` for each of them, the same objects with that
reference for all (Figures 9 to 13).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.command import run
from mirage_steps.files.h5 import by_image, create_h5
from mirage_steps.files.records import read_json
from mirage_steps.files.terminal import progress
from mirage_steps.method.circle import circular_distance
from mirage_steps.method.device import choose_device
from mirage_steps.method.unet import UNetConfig
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.references import References
from mirage_steps.run import generated_objects


def main(
    *,
    model: Path,
    out: Path,
    estimator: Path | None = None,
    sheet: settings.Sheet = settings.Sheet(),
    judged_objects: int = 24,
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    scores: Path | None = None,
    device: str = "auto",
) -> list[str]:
    """Generate objects in all poses.

    Args:
        model: The training step's model.safetensors, with config.json in the same folder.
        out: Folder for objects.h5.
        estimator: The run's pose_estimator.safetensors, to leave bad references out.
        sheet: How many objects are shown, and with which references.
        judged_objects: How many are made for the evidence.
        views: Sampler.
        guidance: Hard-attention guidance.
        scores: pose_eval.json, for references by their azimuth.
        device: auto, cpu or cuda.

    Returns:
        Names of the records.
    """
    network = load_model(model.parent, choose_device(device))
    config = network.config
    which = " of their category" if config.categories > 1 else ""
    title = f"generated objects (rows) in all poses{which} (columns), gamma = {guidance.gamma:g}"
    # Another seed than that of the sets, so that the sheet shows other objects.
    seed = views.seed + 1
    if not sheet.references:
        count = max(sheet.objects, judged_objects)
        chooser = References.load(network, views, estimator)
        _write(out / "objects.h5", chooser, count, title, seed, guidance)
        return ["sheet"]
    chooser = References(network, views)
    # All are chosen before the first sheet is made.
    chosen = {one: _columns(one, config, scores) for one in sheet.references}
    for reference, columns in chosen.items():
        poses = ", ".join(map(str, dict.fromkeys(columns)))
        about = title if reference.isdigit() else f"{title}, reference {reference}: pose {poses}"
        path = out / f"reference-{reference}.h5"
        _write(path, chooser, sheet.objects, about, seed, guidance, columns)
    return [f"reference-{one}" for one in chosen]


def _write(
    path: Path,
    chooser: References,
    count: int,
    title: str,
    seed: int,
    guidance: settings.Guidance,
    columns: Sequence[int] | None = None,
) -> None:
    """Write objects; ``columns`` of their references in turn, random ones by default."""
    config, poses, references = chooser.model.config, [], []
    side, k = config.image_size, config.poses // config.categories
    with create_h5(path) as file:
        by_image(file, "images", count, (k, side, side, 3), np.uint8)
        made = generated_objects(chooser, count, seed, guidance, columns)
        made = progress(made, total=count, desc=path.stem, unit="object")
        for place, (_, images, pose, reference) in enumerate(made):
            file["images"][place] = images
            poses.append(pose)
            references.append(reference)
        file["pose"], file["reference"] = np.array(poses, np.int32), np.array(references)
        file.attrs.update(title=title, categories=config.categories)


def _columns(reference: str, config: UNetConfig, scores: Path | None) -> list[int]:
    """The column of a reference in each category.

    Args:
        reference: number of a pose, azimuth such as 120deg, or name of a viewpoint.
        config: of the model.
        scores: pose_eval.json with the mean azimuth of each pose.

    Raises:
        UserError: there is no such pose, or a category has no known azimuth.
    """
    k = config.poses // config.categories
    try:
        settings.require_pose("sheet.references", reference, k)
    except ValueError as error:
        raise UserError(str(error)) from None
    if reference.isdigit():
        return [int(reference)] * config.categories
    found = read_json(scores).get("poses", []) if scores else []
    means = np.array([one["mean_azimuth_deg"] for one in found], float)  # NaN for None
    means = means if len(means) == config.poses else np.full(config.poses, np.nan)
    if np.isnan(means := means.reshape(config.categories, k)).all(1).any():
        raise UserError(
            f"sheet.references {reference}: no true azimuths of the poses are known (labels); give "
            f"the number of a pose, 0 to {k - 1}"
        )
    azimuth = settings.VIEWPOINTS.get(reference)
    azimuth = float(reference.removesuffix("deg")) if azimuth is None else azimuth
    return np.nanargmin(circular_distance(means, azimuth), axis=1).tolist()


if __name__ == "__main__":
    run(main)
