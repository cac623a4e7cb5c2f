"""Measure the stand-in backbone on families outside its training set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.files.h5 import slices
from mirage_steps.method.boxes import Box, content_box, crop, letterbox
from mirage_steps.method.foreground import TokenBatch, fit_foreground
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.pose_scores import score_azimuths
from mirage_steps.networks.backbone import Backbone
from mirage_steps.settings import Foreground, Poses, PoseSpace

EVALUATION_SEED = 2000
# The paper's choices, except that the component is cut at Otsu's threshold.
FOREGROUND = Foreground(rule="first-component", threshold="otsu")
_POSE_SPACE = PoseSpace(mask_background=False, normalize=False)
_BATCH = 64


@dataclass(frozen=True)
class BackboneScores:
    """Measurements of a backbone.

    Attributes:
        images: how many images were measured.
        foreground_iou: mean IoU, over whole images and at patch resolution, of the first component
            cut by Otsu's threshold with the true mask.
        first_variance: the first component's share of the variance of all tokens.
        k: number of poses.
        median_error: median distance in degrees between an image's azimuth and the circular mean
            of its pose.
        within_30: share of images at most 30 degrees from that mean.
    """

    images: int
    foreground_iou: float
    first_variance: float
    k: int
    median_error: float
    within_30: float


def token_batches(
    network: Backbone, squares: Sequence[Image.Image], content: Sequence[Box]
) -> list[TokenBatch]:
    """Tokens of square images in memory.

    Args:
        network: the vision transformer.
        squares: RGB images of its resolution.
        content: the part of each that is image, in fractions.
    """
    boxes, batches = np.array(content, np.float32), []
    for rows in slices(len(squares), _BATCH):
        tokens = network.half_tokens(np.stack([np.asarray(square) for square in squares[rows]]))
        batches.append(TokenBatch(rows, *tokens, boxes[rows]))
    return batches


def whole_images(network: Backbone, images: Sequence[Image.Image]) -> list[TokenBatch]:
    """Tokens of letterboxed images."""
    squares = [letterbox(image, network.resolution, network.fill) for image in images]
    return token_batches(network, squares, [content_box(*image.size) for image in images])


def patch_masks(masks: np.ndarray, grid: int) -> np.ndarray:
    """Coverage (n, s, s) as bool (n, grid, grid): at least half of the patch is covered."""
    tensor = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks)[:, None], grid)
    return (tensor[:, 0] >= 0.5).numpy()


def iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of bool masks (n, h, w)."""
    both = (found & truth).sum((1, 2))
    return both / np.maximum((found | truth).sum((1, 2)), 1)


def evaluate_backbone(
    network: Backbone, kind: str = "cars", images: int = 1000, k: int = 12
) -> BackboneScores:
    """Find poses of fresh objects as the paper does, with the pipeline's own pose estimator.

    The pipeline's defaults do better (``docs/pose_discovery.md``): they mask the background.

    Args:
        network: the vision transformer.
        kind: of objects.
        images: how many.
        k: number of poses.
    """
    families = KINDS[kind].demo_families
    found = [KINDS[kind].render(EVALUATION_SEED, i, families) for i in range(images)]
    pictures = [Image.fromarray(one.image) for one in found]
    whole = whole_images(network, pictures)
    model, _ = fit_foreground(whole, FOREGROUND)
    estimator = PoseEstimator({}, model, FOREGROUND.margin)
    truth = patch_masks(np.stack([one.mask for one in found]), network.grid)
    shown = np.concatenate([estimator.shown(batch) for batch in whole])
    squares, content, azimuths = [], [], []
    for batch in whole:
        sizes = [picture.size for picture in pictures[batch.rows]]
        located = estimator.locate(batch, sizes)
        for index, one in enumerate(located, batch.rows.start):
            if one.box is not None:
                squares.append(crop(pictures[index], one.centered, network.resolution))
                content.append(content_box(*pictures[index].size, one.centered))
                azimuths.append(found[index].azimuth_deg)
    scores = _score_poses(estimator, token_batches(network, squares, content), azimuths, k)
    return BackboneScores(
        images,
        float(iou(shown.reshape(truth.shape), truth).mean()),
        float(model.pca.variance_ratio[0]),
        k,
        scores["median_error_deg"],
        scores["share_within_30_deg"],
    )


def _score_poses(
    estimator: PoseEstimator, crops: list[TokenBatch], azimuths: list[float], k: int
) -> dict:
    """Scores of the poses that the paper's maps give."""
    categories = np.zeros(len(azimuths), np.int64)
    estimator = estimator.fit_pose_space(crops, categories, _POSE_SPACE)
    made = [estimator.maps(b, categories[b.rows]) for b in crops]
    maps, valid, _ = (np.concatenate(part) for part in zip(*made, strict=True))
    estimator = estimator.fit_poses(maps, valid, categories, Poses(k=k, starts=5))
    return score_azimuths(estimator.assign(maps, valid, categories)[0], np.array(azimuths), k)
