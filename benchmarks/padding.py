"""What a crop should show where its window is taller than the photo, on rendered cars.

    python benchmarks/padding.py [--count 100] [--background photos]

Square scenes are cut to landscape photos that show the whole car, over 60 to 90 % of their width.
Crops of the photos, padded in several ways, are compared with crops of the scenes, which know what
lies beyond the photo: by PSNR in the padding, and by features of EfficientNet-Lite0 at 128 pixels
that each pair has (Euclidean distance) and both sets have (Frechet and kernel distance).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import tyro
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images

from mirage_steps import settings
from mirage_steps.demo.renderer import cars
from mirage_steps.method.boxes import (
    Box,
    Padding,
    centered,
    crop,
    extend,
    inner_part,
    padded_share,
    square_window,
)
from mirage_steps.method.evidence import Interval, mean_interval, paired_difference
from mirage_steps.method.metrics import frechet_from_features, kernel_distance, psnr
from mirage_steps.networks.backbone import Backbone

SHAPES = {"3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2.0}
_SEED = 78
_SIDE = 160  # of a scene in pixels
_MARGIN = 0.06
_GROUPS = 10  # of scenes, which the interval of the kernel distance resamples

Choice = tuple[Callable[[Box, int, int], Box], Callable[[np.ndarray, Padding], np.ndarray]]


@dataclass(frozen=True)
class Scene:
    """A square scene, the box of its car, and the box of the photo that is cut out of it."""

    image: Image.Image
    box: Box
    photo: tuple[int, int, int, int]

    def true_crop(self, window: Box, size: int) -> np.ndarray:
        """What a window in pixels of the photo shows, with all that the scene has."""
        return np.asarray(crop(self.image, tuple(np.add(window, self.photo[:2] * 2)), size))


def scenes(count: int, aspect: float, background: str) -> Iterator[Scene]:
    """Scenes with a photo of ``aspect`` (width by height)."""
    number, behind = 0, load_sample_images().images
    while count:
        rng = np.random.default_rng([_SEED, number])
        made = cars.render(_SEED, number, cars.DEMO_FAMILIES, _SIDE, 0.3, span=(0.45, 0.55))
        number += 1
        rows, columns = (np.flatnonzero((made.mask > 0.5).any(axis)) for axis in (1, 0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        size = np.array([1, 1 / aspect]) * (box[2] - box[0]) / rng.uniform(0.6, 0.9)
        if box[3] - box[1] > size[1] - 1 or size.max() > _SIDE:
            continue
        size = size.round()
        start = rng.uniform(np.maximum(box[2:] - size, 0), np.minimum(box[:2], _SIDE - size))
        image = made.image
        if background == "photos":
            image = _before(image, made.mask, behind[number % len(behind)], rng)
        photo = tuple(int(edge) for edge in (*start.round(), *(start.round() + size)))
        yield Scene(Image.fromarray(image), tuple(box.tolist()), photo)
        count -= 1


def _before(
    image: np.ndarray, mask: np.ndarray, photo: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The object of an image before a random window of a photo."""
    y, x = rng.integers(0, np.array(photo.shape[:2]) - 2 * _SIDE)
    window = Image.fromarray(photo[y : y + 2 * _SIDE, x : x + 2 * _SIDE])
    behind, share = np.asarray(window.resize((_SIDE, _SIDE))), mask[..., None]
    return (image * share + behind * (1 - share)).round().astype(np.uint8)


# --- windows and paddings ---------------------------------------------------------------------


def _default(box: Box, width: int, height: int) -> Box:
    return square_window(box, width, height, _MARGIN)


def _centered(box: Box, width: int, height: int) -> Box:
    """The object is in the middle, whatever the padding."""
    return centered(_default(box, width, height), box)


def _mid_photo(box: Box, width: int, height: int) -> Box:
    """Both ends are padded alike."""
    x0, y0, x1, y1 = _default(box, width, height)
    down = (height - y0 - y1) / 2 if y1 - y0 > height else 0
    return (x0, y0 + down, x1, y1 + down)


def _fitting(box: Box, width: int, height: int) -> Box:
    """No padding: the window has the photo's height and cuts the object."""
    side = min((box[2] - box[0]) / (1 - 2 * _MARGIN), width, height)
    middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    start = np.clip(middle - side / 2, 0, np.array([width, height]) - side)
    return tuple([*start.tolist(), *(start + side).tolist()])


def _numpy(part: np.ndarray, padding: Padding, mode: str) -> np.ndarray:
    return np.pad(part, (*padding, (0, 0)), mode)


def _changed(
    part: np.ndarray,
    padding: Padding,
    change: Callable[[np.ndarray], np.ndarray],
    mode: str = "edge",
) -> np.ndarray:
    """A part padded by numpy's ``mode``; ``change`` is made outside only."""
    whole = _numpy(part, padding, mode)
    changed = np.broadcast_to(change(whole.astype(float)), whole.shape).round().astype(np.uint8)
    return np.where(_outside(part, padding)[..., None], changed, whole)


def _outside(part: np.ndarray, padding: Padding) -> np.ndarray:
    return np.pad(np.zeros(part.shape[:2], bool), padding, constant_values=True)


def _smooth(whole: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return ndimage.gaussian_filter(whole, len(whole) / 8, axes=axes, mode="nearest")


def _photo_color(part: np.ndarray, padding: Padding) -> np.ndarray:
    return _changed(part, padding, lambda whole: part.mean((0, 1)))


EDGE = partial(_numpy, mode="edge")
CHOICES: dict[str, Choice] = {
    "edge pixels, window in the middle of the photo": (_mid_photo, EDGE),
    "edge pixels": (_default, EDGE),
    "edge, blur grows with distance": (_default, extend),
    "the same, window in the middle of the photo": (_mid_photo, extend),
    "the same, window always centered": (_centered, extend),
    "edge, constant blur": (_default, partial(_changed, change=partial(_smooth, axes=(1,)))),
    "mean color of the edge": (
        _default,
        partial(_changed, change=lambda whole: whole.mean(1, keepdims=True)),
    ),
    "mean color of the photo": (_default, _photo_color),
    "reflection": (_default, partial(_numpy, mode="symmetric")),
    "reflection, blurred": (
        _default,
        partial(_changed, change=partial(_smooth, axes=(0, 1)), mode="symmetric"),
    ),
    "window that fits, object cut": (_fitting, EDGE),
}


# --- measures ---------------------------------------------------------------------------------


def main(
    count: int = 100,
    shapes: tuple[str, ...] = tuple(SHAPES),
    background: Literal["rendered", "photos"] = "rendered",
    size: int = 64,
) -> None:
    """Print a table.

    Args:
        count: Scenes of each shape.
        shapes: Of the photos.
        background: The renderer's, or windows of the two photos that scikit-learn has.
        size: Side of a crop in pixels.
    """
    chosen = settings.Backbone(model="efficientnet-lite0", resolution=128)
    network = Backbone.load(chosen, torch.device("cpu"))
    made = [one for shape in shapes for one in scenes(count, SHAPES[shape], background)]
    truth = [
        np.asarray(crop(one.image, square_window(one.box, _SIDE, _SIDE, _MARGIN), size))
        for one in made
    ]
    real, before = _features(network, truth), None
    print(f"{len(made)} photos of {', '.join(shapes)}; background: {background}\n")
    print("| crop | padded | PSNR, dB | distance | less the first | FD | KID |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, choice in CHOICES.items():
        crops, shares, ratios = zip(*(_padded(one, choice, size) for one in made), strict=True)
        features = _features(network, list(crops))
        apart = np.linalg.norm(features - real, axis=1)
        before = apart if before is None else before
        ratio = np.array([one for one in ratios if one is not None])
        cells = [
            f"{np.mean(shares):.0%}",
            _cell(mean_interval(ratio)) if len(ratio) else "",
            _cell(mean_interval(apart)),
            _cell(paired_difference(apart, before)) if apart is not before else "",
            f"{frechet_from_features(features, real):.0f}",
            _cell(_kernel(features, real), 2),
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _padded(scene: Scene, choice: Choice, size: int) -> tuple[np.ndarray, float, float | None]:
    """A crop of a photo, the share that is padding, and the PSNR there in dB."""
    choose, pad = choice
    photo = scene.image.crop(scene.photo)
    window = choose(tuple(np.subtract(scene.box, scene.photo[:2] * 2)), *photo.size)
    part, padding = inner_part(photo, window, size)
    pixels, outside = pad(part, padding), _outside(part, padding)
    share = padded_share(window, *photo.size)
    if not outside.any():
        return pixels, share, None
    return pixels, share, psnr(pixels[outside], scene.true_crop(window, size)[outside])


def _kernel(features: np.ndarray, real: np.ndarray) -> Interval:
    """Kernel distance of groups of crops to true crops of other scenes, less that of true ones."""
    parts = [np.array_split(values, _GROUPS) for values in (features, real)]
    others = parts[1][1:] + parts[1][:1]
    found = [
        kernel_distance(one, other) - kernel_distance(same, other)
        for one, same, other in zip(*parts, others, strict=True)
    ]
    return mean_interval(np.array(found))


def _features(network: Backbone, crops: Sequence[np.ndarray]) -> np.ndarray:
    batches = (np.stack(crops[start : start + 50]) for start in range(0, len(crops), 50))
    return np.concatenate([network.feature(batch, "cls") for batch in batches])


def _cell(one: Interval, decimals: int = 1) -> str:
    low, high = (f"{value:.{decimals}f}" for value in (one.low, one.high))
    return f"{one.value:.{decimals}f} ({low} to {high})"


if __name__ == "__main__":
    tyro.cli(main)
