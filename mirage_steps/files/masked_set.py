"""Image sets without background: on white, with the masks that removed it.

``images.h5`` has, beside ``images`` (n, S, S, 3) uint8, ``mask`` (n, S, S) uint8,
``has_foreground`` (n,) bool, whether the foreground prompted (else the whole image did), and
``predicted_iou`` (n,) float32, the network's own guess of its mask's IoU. ``masks.json`` has their
counts and means, ``masks.png`` the first images as they were, with the mask's outline, and on
white.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import ndimage

from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import log
from mirage_steps.files.h5 import by_image
from mirage_steps.files.image_set import create_image_set

WHITE = 255
CHECK = "check backbone.model, masks.sam, and that foreground.png shows the objects"
SHOWN, SHOWN_PER_ROW, SHOWN_SIDE = 24, 4, 96  # images in the picture, in a row, least side
_FULL = 0.98  # share of the image beyond which a mask removes no background


@contextlib.contextmanager
def create_masked_set(
    path: Path, count: int, side: int, poses: np.ndarray | None, **attributes: Any
) -> Iterator[h5py.File]:
    """Open a new set for writing; it gets its name only if the block succeeds.

    Args:
        path: of the HDF5 file.
        count: number of images.
        side: of an image in pixels.
        poses: (n,) of the images, where they have some.
        attributes: of the file; ``sam`` names the network.
    """
    with create_image_set(path, count, side, **attributes) as file:
        by_image(file, "mask", count, (side, side), np.uint8)
        file.create_dataset("has_foreground", (count,), bool)
        file.create_dataset("predicted_iou", (count,), np.float32)
        if poses is not None:
            file["pose"] = poses
        yield file


def summarize(masked: h5py.File, source: h5py.File, out: Path) -> None:
    """Write ``masks.json`` and ``masks.png`` of a whole set.

    Args:
        masked: the set.
        source: the same with its background.
        out: Folder.

    Raises:
        UserError: all masks are empty.
    """
    shares = np.array([one.mean() for one in masked["mask"]])
    if not shares.any():
        raise UserError(f"{source.filename}: all {len(shares)} masks are empty; {CHECK}")
    first = (source["images"], masked["images"], masked["mask"])
    tiles.save_image(out / "masks.png", draw(*(dataset[:SHOWN] for dataset in first)))
    found, ious = masked["has_foreground"][:], masked["predicted_iou"][:].astype(np.float64)
    report(out / "masks.json", str(masked.attrs["sam"]), found, ious, shares)


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
