"""Novel views of a data set's photos (paper, section 3.3 and Figure 4).

DDIM inverts evenly spaced photos in their own poses; the other poses read their keys and values
along the trajectory. Writes ``photos.h5``, as the sheet's ``objects.h5`` with the photos as
references, which ``contact_sheet`` draws, and ``photos.json``: pose, distance to the centroid and
reconstruction quality of each photo. (``novel_views`` is for any other photo.)
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import create_h5, open_h5
from mirage_steps.files.tables import read_labels, require_pose_counts
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import choose_device, memory_advice
from mirage_steps.networks.diffusion_model import load_model
from mirage_steps.run import crop_views


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
    """Show some photos of a data set from all sides.

    Args:
        model: The training step's model.safetensors, with config.json in the same folder.
        crops: crops.h5 of the photos.
        poses: poses.csv of the photos, by the centroids that the model was trained with.
        out: Folder for photos.h5 and photos.json.
        sheet: How many photos.
        views: Sampler.
        guidance: Hard-attention guidance.
        novel_views: Inversion, and what the other poses start from.
        device: auto, cpu or cuda.
    """
    network = load_model(model.parent, choose_device(device))
    config = network.config
    require_pose_counts(poses, config.poses, config.categories)
    labels, table = read_labels(poses, crops), read_csv(poses)
    chosen = np.unique(np.linspace(0, len(labels) - 1, sheet.objects).astype(int)).tolist()
    with open_h5(crops, "images") as file:
        side = file["images"].shape[1]
        if side != config.image_size:
            raise UserError(f"{crops}: crops of {side} pixels, the model makes {config.image_size}")
        photos = file["images"][chosen]
    rows, own, records = [], [], []
    for photo, index in zip(progress(photos, unit="photo"), chosen, strict=True):
        pose = int(labels[index])
        with memory_advice("views.batch_size", views.batch_size):
            made = crop_views(network, photo, pose, views, guidance, novel_views)
        rows.append(made.views)
        own.append(made.poses.index(pose))
        records.append(
            {
                "image": table[index]["image"],
                "pose": pose,
                "distance": float(table[index]["distance"]),
                "reconstruction_psnr_db": made.reconstruction_psnr_db,
                "inversion_evaluations": made.inversion_evaluations,
            }
        )
    write_json(out / "photos.json", {"photos": records})
    which = " of their category" if config.categories > 1 else ""
    title = f"photos (framed) in all poses{which}, gamma = {guidance.gamma:g}"
    with create_h5(out / "photos.h5") as file:
        file["images"], file["reference"] = np.stack(rows), np.array(own)
        file.attrs.update(title=title, categories=config.categories)
    middle = float(np.median([record["reconstruction_psnr_db"] for record in records]))
    log.info("%d photos, reconstructed at %.1f dB in the median", len(records), middle)


if __name__ == "__main__":
    run(main)
