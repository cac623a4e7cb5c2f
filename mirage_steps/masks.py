"""Background removal of an image set: the foreground prompts segment-anything (section 4).

The paper's rows "without background" compare real and generated images after SAM. Writes
``images.h5``, the same set on white with ``mask`` (n, S, S) uint8, ``masks.json``, and
``masks.png``, the first images as they were, with the mask's outline, and on white.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import require_disk, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.h5 import by_image, open_h5, slices
from mirage_steps.files.image_set import create_image_set
from mirage_steps.files.terminal import progress
from mirage_steps.method.device import autocast, choose_device, memory_advice
from mirage_steps.method.finite import require_finite
from mirage_steps.method.foreground import Region, find_objects
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.sam import load_sam, sam_name

WHITE = 255
_CHECK = "check backbone.model, masks.sam, and that foreground.png shows the objects"
_FULL = 0.98  # share of the image beyond which a mask removes no background
SHOWN, SHOWN_PER_ROW, SHOWN_SIDE = 24, 4, 96  # images in the picture, in a row, least side


def main(
    *,
    images: Path,
    estimator: Path,
    out: Path,
    backbone: settings.Backbone = settings.Backbone(),
    masks: settings.Masks = settings.Masks(),
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> None:
    """Give every image of a set a mask and a white background.

    Args:
        images: HDF5 file of the set.
        estimator: pose_estimator.safetensors, whose foreground prompts.
        out: Folder for images.h5, masks.png and masks.json.
        backbone: The vision transformer.
        masks: segment-anything.
        weights: Folder of fetched networks.
        device: auto, cpu or cuda.
    """
    where = choose_device(device)
    model = load_estimator(estimator).foreground
    network = Backbone.load(backbone, where, weights)
    if len(model.pca.mean) != network.dim:
        raise UserError(
            f"{estimator}: fitted on tokens of length {len(model.pca.mean)}, those of "
            f"{network.name} have {network.dim}; use the backbone it was fitted with"
        )
    sam, name = load_sam(masks.sam, where, weights), sam_name(masks.sam)
    found, ious = [], []  # of each image: whether it has foreground, SAM's own guess of the IoU
    with open_h5(images, "images") as source:
        count, side = source["images"].shape[:2]
        require_disk(out, count * side * side * 4, "the masked set")
        with create_image_set(out / "images.h5", count, side, sam=name) as target:
            by_image(target, "mask", count, (side, side), np.uint8)
            if "pose" in source:
                target["pose"] = source["pose"][:]
            advice = memory_advice("backbone.batch_size", backbone.batch_size)
            with progress(total=count, desc="masks", unit="image") as bar, advice:
                for rows in slices(count, backbone.batch_size):
                    pixels = source["images"][rows]
                    scores = model.scores(network.tokens(pixels)[0].cpu().numpy())
                    regions = find_objects(scores, model.threshold)
                    mask, predicted = segment(sam, pixels, regions, masks)
                    names = [f"{images}, image {n}" for n in range(rows.start, rows.stop)]
                    require_finite(names, "scores", _CHECK, scores, predicted)
                    target["images"][rows] = np.where(mask[..., None], pixels, WHITE)
                    target["mask"][rows] = mask
                    found += [region is not None for region in regions]
                    ious += predicted.tolist()
                    bar.update(len(pixels))
            shares = np.array([one.mean() for one in target["mask"]])
            if not shares.any():
                raise UserError(f"{images}: all {count} masks are empty; {_CHECK}")
            first = (source["images"], target["images"], target["mask"])
            tiles.save_image(out / "masks.png", draw(*(dataset[:SHOWN] for dataset in first)))
    report(out / "masks.json", name, np.array(found), np.array(ious), shares)


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


def draw(images: np.ndarray, masked: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A picture of triples: the image, the same with the mask's outline, and without background.

    Args:
        images: (n, S, S, 3) uint8, n > 0.
        masked: (n, S, S, 3) uint8.
        masks: (n, S, S), 1 on the object.
    """
    scale = -(-SHOWN_SIDE // images.shape[1])
    images, masked, masks = (
        array.repeat(scale, 1).repeat(scale, 2) for array in (images, masked, masks.astype(bool))
    )
    inner = ndimage.binary_erosion(masks, np.ones((1, 3, 3)), iterations=2)
    outlined = np.where((masks & ~inner)[..., None], np.array([255, 0, 0], np.uint8), images)
    triples = np.concatenate([images, outlined, masked], axis=2)
    return tiles.tile(triples, min(SHOWN_PER_ROW, len(triples)))


def report(path: Path, sam: str, found: np.ndarray, ious: np.ndarray, shares: np.ndarray) -> None:
    """Write what happened as JSON, and what speaks against the masks, which is logged too.

    Args:
        path: of the JSON file.
        sam: name of the model.
        found: bool (n,), whether an image has foreground.
        ious: (n,) predicted by the model.
        shares: (n,) of the image inside the mask.
    """
    content: dict[str, Any] = {
        "sam": sam,
        "images": (count := len(found)),
        "images_without_foreground": (missing := int((~found).sum())),
        "images_with_empty_mask": (empty := int((shares == 0).sum())),
        "images_filled_by_their_mask": (full := int((shares > _FULL).sum())),
        "mean_predicted_iou": float(ious.mean()),
        "mean_mask_share": float(shares.mean()),
    }
    log.info(", ".join(f"{key} {value}" for key, value in content.items()))
    reasons = {
        "have no foreground and were prompted with the whole image": missing,
        "have an empty mask and become white": empty,
        "are nearly covered by their mask, so no background was removed": full,
    }
    content["warnings"] = [
        f"{number} of {count} images ({number / count:.0%}) {reason}"
        for reason, number in reasons.items()
        if number
    ]
    for warning in content["warnings"]:
        log.warning("%s", warning)
    write_json(path, content)


if __name__ == "__main__":
    run(main)
