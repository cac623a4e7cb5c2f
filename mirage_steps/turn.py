"""Step 7e: given photos from every side, by inversion (paper, section 3.3 and Figure 4).

A few photos of a data set, evenly spaced, each inverted in its own pose by DDIM; the other poses
read its keys and values along the way. Writes ``contact_sheet.png`` with the photos framed in their
poses, ``turn.gif``, and ``turned.json``: of each photo the pose, the distance to its centroid, and
how well the noise gives the photo back.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.core.diffusion import from_pixels, to_pixels
from mirage_steps.core.metrics import psnr
from mirage_steps.core.multiview import invert, sample_single
from mirage_steps.sheet import all_poses
from mirage_steps.support import pictures
from mirage_steps.support.device import autocast, choose_device
from mirage_steps.support.errors import UserError
from mirage_steps.support.files import read_csv, write_json
from mirage_steps.support.h5 import open_h5, read_names
from mirage_steps.support.labels import read_circles
from mirage_steps.support.model import load_model
from mirage_steps.support.step import log, run


def main(
    *,
    model: Path,
    crops: Path,
    poses: Path,
    out: Path,
    sheet: settings.Sheet = settings.Sheet(),
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    device: str = "auto",
) -> None:
    """Show given photos from all sides.

    Args:
        model: The training step's model.safetensors; its config.json lies beside it.
        crops: crops.h5 of the photos.
        poses: poses.csv of the photos, by the centroids that the model was trained with.
        out: Folder for contact_sheet.png, turn.gif and turned.json.
        sheet: How many photos.
        views: Sampler.
        guidance: Hard-attention guidance.
        device: auto, cpu or cuda.
    """
    where = choose_device(device)
    network = load_model(model.parent, where)
    assigned = read_csv(poses)
    if read_circles(poses) != (network.config.poses, network.config.categories):
        raise UserError(f"{poses}: has other poses than {model} was trained with; rerun poses")
    with open_h5(crops, "images", "image") as file:
        if read_names(file) != [row["image"] for row in assigned]:
            raise UserError(f"{poses} and {crops} list different images; rerun the poses step")
        side = file["images"].shape[1]
        if side != network.config.image_size:
            raise UserError(
                f"{crops}: crops of {side} pixels, the model makes {network.config.image_size}"
            )
        chosen = np.unique(np.linspace(0, len(assigned) - 1, sheet.objects).astype(int))
        photos = np.stack([file["images"][int(index)] for index in chosen])
    rows, records = [], []
    for photo, index in zip(tqdm(photos, unit="photo"), chosen, strict=True):
        pose = int(assigned[index]["pose"])
        with autocast(where, views.precision):
            made, restored = turn(network, photo, pose, views, guidance.gamma)
        # Not finite is no JSON; 99 dB is beyond what 8 bits can tell.
        quality = min(psnr(photo, restored), 99.0)
        rows.append(made)
        distance = float(assigned[index]["distance"])
        name = assigned[index]["image"]
        records.append({"image": name, "pose": pose, "distance": distance, "psnr_db": quality})
    write_json(out / "turned.json", {"inversion_steps": views.steps, "photos": records})
    kind = " of their kind" if network.config.categories > 1 else ""
    title = f"photos (framed) turned to all poses{kind}, gamma = {guidance.gamma:g}"
    columns = [network.config.siblings(r["pose"]).index(r["pose"]) for r in records]
    pictures.contact_sheet(out / "contact_sheet.png", np.stack(rows), columns, title)
    pictures.turn(out / "turn.gif", np.stack(rows))
    middle = float(np.median([record["psnr_db"] for record in records]))
    log.info("%d photos turned; reconstructed at %.1f dB in the median", len(records), middle)


def turn(
    network: torch.nn.Module, photo: np.ndarray, pose: int, views: settings.Views, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """A photo in all poses, itself in its own, and what its noise gives back.

    Args:
        network: the diffusion model.
        photo: (S, S, 3) uint8.
        pose: of the photo.
        views: sampler.
        gamma: of the guidance.

    Returns:
        (k, S, S, 3) and (S, S, 3) uint8.
    """
    device = next(network.parameters()).device
    image = from_pixels(photo[None]).to(device)
    own = torch.tensor([pose], device=device)
    trajectory = invert(network, image, own, views.steps)
    restored = to_pixels(sample_single(network, trajectory[0], own, views.steps))[0]
    made = to_pixels(all_poses(network, trajectory[0], pose, views, gamma, trajectory))
    made[network.config.siblings(pose).index(pose)] = photo
    return made, restored


if __name__ == "__main__":
    run(main)
