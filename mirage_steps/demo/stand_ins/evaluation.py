"""How well the stand-in networks work on cars of families that they never saw."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor

from mirage_steps.demo.renderer import cars
from mirage_steps.method import boxes
from mirage_steps.method.foreground import find_objects, otsu_threshold
from mirage_steps.method.pca import Moments, Pca

EVALUATION_SEED = 2000
_MARGIN = 0.06


@dataclass(frozen=True)
class BackboneScores:
    """Measurements of a backbone.

    Attributes:
        images: how many pictures were measured.
        foreground_iou: mean IoU, over whole pictures and at patch resolution, of the first
            component cut by Otsu's threshold with the true mask.
        first_variance: the first component's share of the variance of all tokens.
        k: clusters of the pose check.
        median_error: median distance in degrees between a picture's azimuth and the circular mean
            of its cluster.
        within_30: share of pictures at most 30 degrees from that mean.
    """

    images: int
    foreground_iou: float
    first_variance: float
    k: int
    median_error: float
    within_30: float


@torch.inference_mode()
def patch_tokens(model: torch.nn.Module, normalise: Callable, images: np.ndarray) -> np.ndarray:
    """Patch tokens (n, tokens, dim) float32 of pictures (n, s, s, 3) uint8, scaled to its input."""
    side = model.config.image_size
    found = []
    for start in range(0, len(images), 100):
        pixels = torch.stack([_to_input(image, side) for image in images[start : start + 100]])
        found.append(model(normalise(pixels)).last_hidden_state[:, 1:].numpy())
    return np.concatenate(found)


def _to_input(image: np.ndarray, side: int) -> Tensor:
    scaled = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255


def patch_masks(masks: np.ndarray, grid: int) -> np.ndarray:
    """Coverage (n, s, s) as bool (n, grid, grid): at least half of the patch is covered."""
    tensor = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks)[:, None], grid)
    return (tensor[:, 0] >= 0.5).numpy()


def iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of bool masks (n, h, w)."""
    both = (found & truth).sum((1, 2))
    return both / np.maximum((found | truth).sum((1, 2)), 1)


def foreground_scores(tokens: np.ndarray) -> tuple[np.ndarray, float, Pca]:
    """First component of tokens (n, T, dim) as maps (n, g, g), its Otsu threshold, and the PCA.

    The sign is the one that makes the pictures' border negative.
    """
    moments = Moments(tokens.shape[-1])
    moments.add(tokens.reshape(-1, tokens.shape[-1]))
    pca = Pca.fit(moments, 3)
    grid = round(tokens.shape[1] ** 0.5)
    scores = pca.project(tokens)[..., 0].reshape(-1, grid, grid)
    border = np.ones((grid, grid), bool)
    border[1:-1, 1:-1] = False
    if scores[:, border].mean() > scores[:, ~border].mean():
        scores = -scores
    counts, edges = np.histogram(scores, 256)
    return scores, otsu_threshold(counts, edges), pca


def cluster_errors(maps: np.ndarray, azimuth: np.ndarray, k: int) -> np.ndarray:
    """(n,) degrees between each azimuth and the circular mean of its K-Means cluster."""
    labels = KMeans(k, n_init=5, random_state=0).fit_predict(maps.reshape(len(maps), -1))
    turns = np.exp(1j * np.deg2rad(azimuth))
    means = np.array([np.angle(turns[labels == c].mean()) for c in range(k)])
    return np.abs(np.rad2deg(np.angle(turns * np.exp(-1j * means[labels]))))


def evaluate_backbone(
    model: torch.nn.Module, normalise: Callable[[Tensor], Tensor], images: int = 1000, k: int = 12
) -> BackboneScores:
    """Run the paper's way to poses on fresh cars: foreground, crops, pose space, K-Means.

    The pipeline itself does better (``docs/pose_discovery.md``): it leaves the background out.

    Args:
        model: called with pictures (n, 3, s, s), gives ``last_hidden_state`` with a CLS token.
        normalise: the preprocessing of pictures in [0, 1].
        images: how many cars.
        k: clusters.
    """
    found = [cars.render(EVALUATION_SEED, i, cars.DEMO_FAMILIES) for i in range(images)]
    pictures = np.stack([car.image for car in found])
    azimuth = np.array([car.azimuth_deg for car in found])
    scores, threshold, pca = foreground_scores(patch_tokens(model, normalise, pictures))
    truth = patch_masks(np.stack([car.mask for car in found]), scores.shape[1])
    overlap = iou(scores > threshold, truth).mean()
    crops, kept = [], []
    for i, region in enumerate(find_objects(scores, threshold)):
        if region is not None:
            side = pictures.shape[1]
            box = tuple(side * value for value in region.box)
            window = boxes.square_window(box, side, side, _MARGIN)
            crop = boxes.crop(Image.fromarray(pictures[i]), window, model.config.image_size)
            crops.append(np.asarray(crop))
            kept.append(i)
    maps = pose_maps(patch_tokens(model, normalise, np.stack(crops)), pca, threshold)
    errors = cluster_errors(maps, azimuth[kept], k)
    return BackboneScores(
        images,
        float(overlap),
        float(pca.variance_ratio[0]),
        k,
        float(np.median(errors)),
        float((errors <= 30).mean()),
    )


def pose_maps(tokens: np.ndarray, first: Pca, threshold: float) -> np.ndarray:
    """Tokens (n, T, dim) of crops in pose space, (n, T, 3).

    PCA 2 is fitted on the crops' foreground tokens and applied to all.
    """
    scores = first.project(tokens)[..., 0]
    # On crops most of the picture is the object; its sign is the one with the fuller middle.
    grid = round(tokens.shape[1] ** 0.5)
    middle = scores.reshape(-1, grid, grid)[:, grid // 4 : -grid // 4, grid // 4 : -grid // 4]
    sign = 1 if middle.mean() > scores.mean() else -1
    moments = Moments(tokens.shape[-1])
    moments.add(tokens[sign * scores > threshold])
    return Pca.fit(moments, 3).project(tokens)
