"""Step 7e: given photos from every side, by inversion (paper, section 3.3 and Figure 4).

A few photos of a data set, evenly spaced, each inverted in its own pose by DDIM; the other poses
read its keys and values along the way. Writes ``contact_sheet.png`` with the photos framed in their
poses, ``turn.gif``, and ``turned.json``: of each photo the pose, the distance to its centroid, and
how well its noise gives the photo back. (``novel_views`` turns any single photo.)
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import read_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.files.tables import read_pose_counts
from mirage_steps.method.device import choose_device
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.run import turn_crop


def main(
    *,
    model: Path,
    crops: Path,
    poses: Path,
    out: Path,
    sheet: settings.Sheet = settings.Sheet(),
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    novel_views: settings.NovelViews = settings.NovelViews(),
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
        novel_views: Inversion, and what the other poses start from.
        device: auto, cpu or cuda.
    """
    where = choose_device(device)
    network = load_model(model.parent, where)
    assigned = read_csv(poses)
    if read_pose_counts(poses) != (network.config.poses, network.config.categories):
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
        turned = turn_crop(network, photo, pose, views, guidance, novel_views)
        rows.append(turned.views)
        records.append(
            {
                "image": assigned[index]["image"],
                "pose": pose,
                "distance": float(assigned[index]["distance"]),
                "reconstruction_psnr_db": turned.psnr_db,
                "inversion_evaluations": turned.evaluations,
            }
        )
    write_json(out / "turned.json", {"photos": records})
    kind = " of their kind" if network.config.categories > 1 else ""
    title = f"photos (framed) turned to all poses{kind}, gamma = {guidance.gamma:g}"
    columns = [network.config.siblings(r["pose"]).index(r["pose"]) for r in records]
    tiles.contact_sheet(out / "contact_sheet.png", np.stack(rows), columns, title)
    tiles.turn(out / "turn.gif", np.stack(rows))
    middle = float(np.median([record["reconstruction_psnr_db"] for record in records]))
    log.info("%d photos turned; reconstructed at %.1f dB in the median", len(records), middle)


if __name__ == "__main__":
    run(main)
