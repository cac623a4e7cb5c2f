"""Background removal of an image set: the foreground prompts segment-anything (section 4).

The paper's rows "without background" compare real and generated images after SAM. Writes
``images.h5``, the same set on white, ``masks.json`` and ``masks.png`` (see
:mod:`mirage_steps.files.masked_set`).
"""

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import require_disk
from mirage_steps.files.command import run
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.h5 import open_h5, slices
from mirage_steps.files.masked_set import CHECK, WHITE, create_masked_set, summarize
from mirage_steps.files.shards import Shard
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import autocast, choose_device, memory_advice
from mirage_steps.method.finite import require_finite
from mirage_steps.method.foreground import Region, find_objects
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.sam import load_sam, sam_name


def main(
    *,
    images: Path,
    estimator: Path,
    out: Path,
    backbone: settings.Backbone = settings.Backbone(),
    masks: settings.Masks = settings.Masks(),
    shard: str = "1-of-1",
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> list[str]:
    """Give every image of a set a mask and a white background.

    Args:
        images: HDF5 file of the set.
        estimator: pose_estimator.safetensors, whose foreground prompts.
        out: Folder for images.h5, masks.png and masks.json.
        backbone: The vision transformer.
        masks: segment-anything.
        shard: Which of several jobs this is, such as 2-of-7; ``gather`` joins them.
        weights: Folder of fetched networks.
        device: auto, cpu or cuda.

    Returns:
        Name of the record.
    """
    own = Shard.parse(shard)
    where = choose_device(device)
    model = load_estimator(estimator).foreground
    network = Backbone.load(backbone, where, weights)
    if len(model.pca.mean) != network.dim:
        raise UserError(
            f"{estimator}: fitted on tokens of length {len(model.pca.mean)}, those of "
            f"{network.name} have {network.dim}; use the backbone it was fitted with"
        )
    sam = load_sam(masks.sam, where, weights)
    path = out / f"{own.name('images')}.h5"
    with open_h5(images, "images") as source:
        total, side = source["images"].shape[:2]
        part = own.rows(total, backbone.batch_size)
        require_disk(out, len(part) * side * side * 4, "the masked set")
        poses = source["pose"][part.start : part.stop] if "pose" in source else None
        note, name = own.note(part, total), sam_name(masks.sam)
        with create_masked_set(path, len(part), side, poses, sam=name, **note) as target:
            advice = memory_advice("backbone.batch_size", backbone.batch_size)
            with progress(total=len(part), desc="masks", unit="image") as bar, advice:
                for rows in slices(len(part), backbone.batch_size):
                    names = [f"{images}, image {n}" for n in part[rows]]
                    pixels = source["images"][part.start + rows.start : part[rows].stop]
                    scores = model.scores(network.tokens(pixels)[0].cpu().numpy())
                    regions = find_objects(scores, model.threshold)
                    mask, ious = segment(sam, pixels, regions, masks)
                    require_finite(names, "scores", CHECK, scores, ious)
                    target["images"][rows] = np.where(mask[..., None], pixels, WHITE)
                    target["mask"][rows] = mask
                    target["has_foreground"][rows] = [region is not None for region in regions]
                    target["predicted_iou"][rows] = ious
                    bar.update(len(pixels))
            if own.of == 1:
                summarize(target, source, out)
    return [own.name("masks")]


def inside_points(mask: np.ndarray) -> np.ndarray:
    """One to three points well inside a region and far from one another.

    The first is the deepest, by the distance to the region's border; the others are, in turn, the
    farthest from those chosen among the patches at least half as deep.

    Args:
        mask: bool (g, g), not empty.

    Returns:
        (k, 2) float64, x and y in fractions of the image, k <= 3.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    deep = np.argwhere(depth >= depth.max() / 2)
    chosen = [np.array(np.unravel_index(depth.argmax(), depth.shape))]
    while len(chosen) < 3:
        gaps = np.min([np.linalg.norm(deep - point, axis=1) for point in chosen], axis=0)
        if gaps.max() == 0:
            break
        chosen.append(deep[gaps.argmax()])
    return (np.array(chosen)[:, ::-1] + 0.5) / len(mask)


def prompt(
    image: np.ndarray, region: Region | None, input_side: int, device: torch.device
) -> dict[str, object]:
    """An image with its prompts as segment-anything's batched forward takes it.

    The prompts are the region's box and points inside it; without a region the whole image's box.

    Args:
        image: (S, S, 3) uint8 RGB.
        region: where the object is.
        input_side: side of the model's input in pixels.
        device: of the model.
    """
    size = image.shape[:2]
    transform = ResizeLongestSide(input_side)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    box = np.array(region.box if region else (0, 0, 1, 1)) * size[0]
    record = {
        "image": tensor(transform.apply_image(image)).permute(2, 0, 1),
        "original_size": size,
        "boxes": tensor(transform.apply_boxes(box[None], size)),
    }
    if region:
        points = inside_points(region.mask) * size[0]
        record["point_coords"] = tensor(transform.apply_coords(points, size))[None]
        record["point_labels"] = torch.ones(1, len(points), dtype=torch.int, device=device)
    return record


def segment(
    sam: Sam, images: np.ndarray, regions: list[Region | None], masks: settings.Masks
) -> tuple[np.ndarray, np.ndarray]:
    """The mask of the object in each image.

    Args:
        sam: the model.
        images: (n, S, S, 3) uint8 RGB.
        regions: where each object is, None where nobody knows.
        masks: images the model sees at once, and its arithmetic.

    Returns:
        Masks bool (n, S, S) and the model's own guess of their IoU (n,) float32.
    """
    found, ious = [], []
    side, device = sam.image_encoder.img_size, sam.device
    for batch in slices(len(images), masks.sam_batch_size):
        pairs = zip(images[batch], regions[batch], strict=True)
        # Box and points are unambiguous: one mask, not three of different extent.
        records = [prompt(image, region, side, device) for image, region in pairs]
        advice = memory_advice("masks.sam_batch_size", masks.sam_batch_size)
        with advice, autocast(device, masks.sam_precision):
            answers = sam(records, multimask_output=False)
        found += [answer["masks"][0, 0].cpu().numpy() for answer in answers]
        ious += [float(answer["iou_predictions"][0, 0]) for answer in answers]
    return np.stack(found), np.array(ious, np.float32)


if __name__ == "__main__":
    run(main)
