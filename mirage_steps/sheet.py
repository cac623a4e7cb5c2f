"""Contact sheet of generated objects: objects in rows, all poses in columns (Figure 1).

Writes ``contact_sheet.png`` and ``turntable.gif``, the same objects as an animation.
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.files import tiles
from mirage_steps.files.command import run
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import autocast, choose_device, memory_advice
from mirage_steps.method.diffusion import ddim_timesteps, keyed_noise, to_pixels
from mirage_steps.method.multiview import sample_all_poses
from mirage_steps.networks.diffusion_model import load_model


def main(
    *,
    model: Path,
    out: Path,
    sheet: settings.Sheet = settings.Sheet(),
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    device: str = "auto",
) -> None:
    """Generate objects in all poses.

    Args:
        model: The training step's model.safetensors, with config.json in the same folder.
        out: Folder for contact_sheet.png and turntable.gif.
        sheet: How many objects.
        views: Sampler.
        guidance: Hard-attention guidance.
        device: auto, cpu or cuda.
    """
    where = choose_device(device)
    network = load_model(model.parent, where)
    config = network.config
    rows, references = [], []
    for number in progress(range(sheet.objects), unit="object"):
        # Another seed than that of the sets, so that the sheet shows other objects.
        noise = keyed_noise(views.seed + 1, [number], (3, config.image_size, config.image_size))
        poses = config.siblings(number % config.categories * (config.poses // config.categories))
        chosen = int(np.random.default_rng([views.seed + 1, number, 1]).integers(len(poses)))
        advice = memory_advice("views.batch_size", views.batch_size)
        with autocast(where, views.precision), advice:
            images = sample_all_poses(
                network, noise.to(where), poses[chosen], ddim_timesteps(views.steps),
                guidance, views.batch_size,
            )  # fmt: skip
        rows.append(to_pixels(images))
        references.append(chosen)
    which = " of their category" if config.categories > 1 else ""
    title = f"generated objects (rows) in all poses{which} (columns), gamma = {guidance.gamma:g}"
    tiles.write_sheet(out, np.stack(rows), references, title)


if __name__ == "__main__":
    run(main)
