"""Step 7b: the contact sheet, objects in rows and all poses in circular order (Figure 1).

Writes ``contact_sheet.png`` and ``turn.gif``, the same objects turning.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.files import tiles
from mirage_steps.files.command import run
from mirage_steps.method.device import autocast, choose_device
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
    """Show objects from all sides.

    Args:
        model: The training step's model.safetensors; its config.json lies beside it.
        out: Folder for contact_sheet.png and turn.gif.
        sheet: How many objects.
        views: Sampler.
        guidance: Hard-attention guidance.
        device: auto, cpu or cuda.
    """
    where = choose_device(device)
    network = load_model(model.parent, where)
    config = network.config
    rows, references = [], []
    for number in tqdm(range(sheet.objects), unit="object"):
        # The noises of the sets count from 0; the sheet's objects are others.
        noise = keyed_noise(views.seed + 1, [number], (3, config.image_size, config.image_size))
        poses = config.siblings(number % config.categories * (config.poses // config.categories))
        chosen = int(np.random.default_rng([views.seed + 1, number, 1]).integers(len(poses)))
        with autocast(where, views.precision):
            images = sample_all_poses(
                network, noise.to(where), poses[chosen], ddim_timesteps(views.steps),
                guidance.gamma, views.batch_size,
            )  # fmt: skip
        rows.append(to_pixels(images))
        references.append(chosen)
    kind = " of their kind" if config.categories > 1 else ""
    title = f"generated objects (rows) in all poses{kind} (columns), gamma = {guidance.gamma:g}"
    tiles.contact_sheet(out / "contact_sheet.png", np.stack(rows), references, title)
    tiles.turn(out / "turn.gif", np.stack(rows))


if __name__ == "__main__":
    run(main)
