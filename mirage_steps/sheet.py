"""Step 7b: the contact sheet, objects in rows and all poses in circular order (Figure 1).

Writes ``contact_sheet.png`` and ``turn.gif``, the same objects turning.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.core.diffusion import keyed_noise, to_pixels
from mirage_steps.core.multiview import sample_views
from mirage_steps.support import pictures
from mirage_steps.support.device import autocast, choose_device
from mirage_steps.support.model import load_model
from mirage_steps.support.step import run


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
        model: The training step's config.json; its weights lie beside it.
        out: Folder for contact_sheet.png and turn.gif.
        sheet: How many objects.
        views: Sampler.
        guidance: Hard-attention guidance.
        device: auto, cpu or cuda.
    """
    where = choose_device(device)
    network = load_model(model.parent, where)
    poses, side = network.config.poses, network.config.image_size
    rows, references = [], []
    for number in tqdm(range(sheet.objects), unit="object"):
        # The noises of the sets count from 0; the sheet's objects are others.
        noise = keyed_noise(views.seed + 1, [number], (3, side, side)).to(where)
        reference = int(np.random.default_rng([views.seed + 1, number, 1]).integers(poses))
        # The reference's own pose is no other view: the reference itself stands in its place.
        others = [pose for pose in range(poses) if pose != reference]
        chosen = torch.tensor([[reference, *others]], device=where)
        with autocast(where, views.precision):
            images = sample_views(network, noise, chosen, views.steps, guidance.gamma)
        ordered = torch.empty_like(images[0])
        ordered[chosen[0]] = images[0]
        rows.append(to_pixels(ordered))
        references.append(reference)
    pictures.contact_sheet(out / "contact_sheet.png", np.stack(rows), references, guidance.gamma)
    pictures.turn(out / "turn.gif", np.stack(rows))


if __name__ == "__main__":
    run(main)
