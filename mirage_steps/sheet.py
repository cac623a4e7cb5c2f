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
from mirage_steps.core.unet import UNet
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
            images = all_poses(network, noise.to(where), poses[chosen], views, guidance.gamma)
        rows.append(to_pixels(images))
        references.append(chosen)
    kind = " of their kind" if config.categories > 1 else ""
    title = f"generated objects (rows) in all poses{kind} (columns), gamma = {guidance.gamma:g}"
    pictures.contact_sheet(out / "contact_sheet.png", np.stack(rows), references, title)
    pictures.turn(out / "turn.gif", np.stack(rows))


def all_poses(
    network: UNet,
    noise: torch.Tensor,
    reference: int,
    views: settings.Views,
    gamma: float,
    trajectory: torch.Tensor | None = None,
) -> torch.Tensor:
    """One object in every pose of its category, the reference in its own, (k, 3, S, S).

    Views depend on the reference alone (equation 1), so they may be made a few at a time.

    Args:
        network: the diffusion model.
        noise: (1, 3, S, S).
        reference: pose of the reference.
        views: sampler.
        gamma: of the guidance.
        trajectory: (steps, 1, 3, S, S) where the reference is a given image.
    """
    poses = network.config.siblings(reference)
    others = [pose for pose in poses if pose != reference]
    size = max(1, (views.batch_size - 1) // (2 if gamma != 1 else 1))
    images = noise.new_empty(len(poses), *noise.shape[1:])
    for start in range(0, len(others), size):
        chosen = [reference, *others[start : start + size]]
        asked = torch.tensor([chosen], device=noise.device)
        made = sample_views(network, noise, asked, views.steps, gamma, trajectory=trajectory)[0]
        images[[poses.index(pose) for pose in chosen]] = made.to(images.dtype)
    return images


if __name__ == "__main__":
    run(main)
