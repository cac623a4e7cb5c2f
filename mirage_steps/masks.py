"""Step 8: remove the background of an image set: foreground scores prompt segment-anything.

The paper's rows "without background" (section 4) compare real and generated images after SAM.
The object's box and one to three points inside it come from the pose estimator's PCA 1. Writes
``images.h5``, the same set on white with its masks, ``masks.json``, and ``masks.png``, the first
images as they were, with the mask's outline, and on white.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic, require_disk, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.h5 import by_image, create_h5, open_h5, slices
from mirage_steps.method.device import choose_device
from mirage_steps.method.foreground import Region, find_objects
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.sam import load_sam, sam_name

WHITE = 255
# The picture shows this many images, so many in a row, at least so many pixels a side.
SHOWN, SHOWN_PER_ROW, SHOWN_SIDE = 24, 4, 96


@dataclass
class Tally:
    """What is reported of a run: counts of images, sums over images."""

    images: int = 0
    without_foreground: int = 0
    empty_masks: int = 0
    predicted_iou: float = 0.0
    mask_share: float = 0.0

    def add(self, regions: list[Region | None], masks: np.ndarray, ious: np.ndarray) -> None:
        """Take in a batch: its regions, masks (n, S, S) and predicted IoUs (n,)."""
        shares = masks.mean(axis=(1, 2))
        self.images += len(masks)
        self.without_foreground += sum(region is None for region in regions)
        self.empty_masks += int((shares == 0).sum())
        self.predicted_iou += float(ious.sum())
        self.mask_share += float(shares.sum())


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
    chosen = choose_device(device)
    model = load_estimator(estimator).foreground
    network = Backbone.load(backbone, chosen, weights)
    if len(model.pca.mean) != network.dim:
        raise UserError(
            f"{estimator}: fitted on tokens of length {len(model.pca.mean)}, those of "
            f"{network.name} have {network.dim}; use the backbone it was fitted with"
        )
    sam = load_sam(masks.sam, chosen, weights)
    name = sam_name(masks.sam)

    def locate(pixels: np.ndarray) -> list[Region | None]:
        patches = network.tokens(pixels)[0].cpu().numpy()
        return find_objects(model.scores(patches), model.threshold)

    with open_h5(images, "images") as source:
        count, side = source["images"].shape[:2]
        require_disk(out, count * side * side * 4, "the masked set")
        with create_h5(out / "images.h5") as target:
            target.attrs["sam"] = name
            tally = mask_set(source, target, locate, sam, backbone, masks)
            first = (source["images"], target["images"], target["mask"])
            sheet = draw(*(dataset[:SHOWN] for dataset in first))
    with atomic(out / "masks.png") as temporary:
        sheet.save(temporary)
    report(out / "masks.json", name, tally)


def mask_set(
    source: h5py.File,
    target: h5py.File,
    locate: Callable[[np.ndarray], list[Region | None]],
    sam: Sam,
    backbone: settings.Backbone,
    masks: settings.Masks,
) -> Tally:
    """Stream a set through the model into a new one.

    Args:
        source: has ``images`` (n, S, S, 3) uint8, and ``pose`` (n,) if the views have poses.
        target: gets ``images`` with a white background, ``mask`` (n, S, S) and ``pose``.
        locate: finds the object in each image of a batch.
        sam: the model.
        backbone: images located at once.
        masks: images segmented at once.
    """
    count, side = source["images"].shape[:2]
    by_image(target, "images", count, (side, side, 3), np.uint8)
    by_image(target, "mask", count, (side, side), np.uint8)
    if "pose" in source:
        target["pose"] = source["pose"][:]
    tally = Tally()
    with tqdm(total=count, desc="masks", unit="image", mininterval=1.0) as progress:
        for rows in slices(count, backbone.batch_size):
            pixels = source["images"][rows]
            regions = locate(pixels)
            found, ious = segment(sam, pixels, regions, masks.sam_batch_size)
            target["images"][rows] = np.where(found[..., None], pixels, WHITE)
            target["mask"][rows] = found
            tally.add(regions, found, ious)
            progress.update(len(pixels))
    return tally


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
    sam: Sam, images: np.ndarray, regions: list[Region | None], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mask of the object in each image.

    Args:
        sam: the model.
        images: (n, S, S, 3) uint8 RGB.
        regions: where each object is, None where nobody knows.
        batch_size: images the model sees at once.

    Returns:
        Masks bool (n, S, S) and the model's own guess of their IoU (n,) float32.
    """
    masks, ious = [], []
    side, device = sam.image_encoder.img_size, sam.device
    for batch in slices(len(images), batch_size):
        pairs = zip(images[batch], regions[batch], strict=True)
        # One mask and not three of different extent: box and points leave no doubt which part.
        records = [prompt(image, region, side, device) for image, region in pairs]
        for answer in sam(records, multimask_output=False):
            masks.append(answer["masks"][0, 0].cpu().numpy())
            ious.append(float(answer["iou_predictions"][0, 0]))
    return np.stack(masks), np.array(ious, np.float32)


def draw(images: np.ndarray, masked: np.ndarray, masks: np.ndarray) -> Image.Image:
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
    outlined = np.where((masks & ~inner)[..., None], np.uint8([255, 0, 0]), images)
    triples = np.concatenate([images, outlined, masked], axis=2)
    gap = 6
    triples = np.pad(triples, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=WHITE)
    columns = min(SHOWN_PER_ROW, len(triples))
    rows = -(-len(triples) // columns)
    missing = ((0, rows * columns - len(triples)), (0, 0), (0, 0), (0, 0))
    cells = np.pad(triples, missing, constant_values=WHITE)
    height, width = cells.shape[1:3]
    cells = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(cells.reshape(rows * height, columns * width, 3))


def report(path: Path, sam: str, tally: Tally) -> None:
    """Write what happened as JSON, and say it in the log."""
    iou, share = tally.predicted_iou / tally.images, tally.mask_share / tally.images
    write_json(
        path,
        {
            "sam": sam,
            "images": tally.images,
            "images_without_foreground": tally.without_foreground,
            "images_with_empty_mask": tally.empty_masks,
            "mean_predicted_iou": iou,
            "mean_mask_share": share,
        },
    )
    log.info(
        "%d images masked by %s: mean predicted IoU %.3f, mean share of the object %.3f",
        tally.images, sam, iou, share,
    )  # fmt: skip
    if tally.without_foreground:
        log.warning(
            "%d images without foreground were prompted with the whole image",
            tally.without_foreground,
        )
    if tally.empty_masks:
        log.warning("%d images have an empty mask and are all white", tally.empty_masks)


if __name__ == "__main__":
    run(main)
