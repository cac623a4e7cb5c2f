"""Contact sheet of generated objects: objects in rows, all poses in columns (Figure 1).

Writes ``contact_sheet.png``, ``turntable.gif``, the same objects as an animation, and
``objects.h5``, which has more of them for the evidence: ``images`` (n, k, S, S, 3) uint8, their
``pose`` (n, k) and ``reference`` (n,), the column that all others of a row attend to.
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.files import tiles
from mirage_steps.files.command import run
from mirage_steps.files.h5 import by_image, create_h5
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import choose_device
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.references import References
from mirage_steps.run import generated_object, reference_pose


def main(
    *,
    model: Path,
    out: Path,
    estimator: Path | None = None,
    sheet: settings.Sheet = settings.Sheet(),
    evidence: settings.Evidence = settings.Evidence(),
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    device: str = "auto",
) -> None:
    """Generate objects in all poses.

    Args:
        model: The training step's model.safetensors, with config.json in the same folder.
        out: Folder for contact_sheet.png, turntable.gif and objects.h5.
        estimator: The run's pose_estimator.safetensors, to leave bad references out.
        sheet: How many objects are shown.
        evidence: How many are made.
        views: Sampler.
        guidance: Hard-attention guidance.
        device: auto, cpu or cuda.
    """
    network = load_model(model.parent, choose_device(device))
    config, count = network.config, max(sheet.objects, evidence.judged_objects)
    k, side = config.poses // config.categories, config.image_size
    shown, references = [], []
    with create_h5(out / "objects.h5") as file:
        by_image(file, "images", count, (k, side, side, 3), np.uint8)
        file["pose"], poses = np.zeros((count, k), np.int32), []
        # Another seed than that of the sets, so that the sheet shows other objects.
        seed, chooser = views.seed + 1, References.load(network, views, estimator)
        numbers = chooser.chosen(range(count), seed, lambda n: reference_pose(config, n, seed))
        for place, number in enumerate(progress(numbers, unit="object")):
            made = generated_object(network, number, seed, views, guidance)
            file["images"][place] = made[0]
            poses.append(made[1])
            references.append(made[2])
            if place < sheet.objects:
                shown.append(made[0])
        file["pose"][:] = poses
        file["reference"] = np.array(references)
    which = " of their category" if config.categories > 1 else ""
    title = f"generated objects (rows) in all poses{which} (columns), gamma = {guidance.gamma:g}"
    tiles.write_sheet(out, np.stack(shown), references[: sheet.objects], title)


if __name__ == "__main__":
    run(main)
