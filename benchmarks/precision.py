"""Whether bfloat16 changes poses and masks: agreement with float32 on a folder of photos.

    python benchmarks/precision.py --run results/demo --photos FOLDER [--count 200]
                                   [--sam weights/stand-in-sam-cars]

Relative error of the tokens, share of photos with the same pose, IoU of the foreground boxes and,
with ``--sam``, IoU of the masks. What bfloat16 may change at most is what another rounding changes:
the same measures after noise of one half of a gray level is added to the photos.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.masks import segment
from mirage_steps.method.foreground import find_objects
from mirage_steps.networks.sam import load_sam
from mirage_steps.run import Run


def main(*, run: Path, photos: Path, count: int = 200, sam: str | None = None) -> None:
    """Print one row for bfloat16 and one for noise.

    Args:
        run: A finished run.
        photos: Folder of photos.
        count: Of photos, evenly from the sorted folder.
        sam: A model whose masks are compared too.
    """
    exact = Run.load(run, device="cpu")
    half = replace(exact, backbone=replace(exact.backbone, precision="bfloat16"))
    model = load_sam(sam, torch.device("cpu")) if sam else None
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    rows: dict[str, list] = {"bfloat16": [], "half a gray level of noise": []}
    rng = np.random.default_rng(0)
    for path in tqdm([paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]):
        image = np.asarray(Image.open(path).convert("RGB"))
        noisy = image + rng.uniform(-1, 1, image.shape)
        noisy = noisy.round().clip(0, 255).astype(np.uint8)
        before = seen(exact, image, model, "float32")
        rows["bfloat16"].append(compared(before, seen(half, image, model, "bfloat16")))
        other = seen(exact, noisy, model, "float32")
        rows["half a gray level of noise"].append(compared(before, other))
    print(f"{count} photos, {exact.backbone.name}" + (f", {sam}" if sam else ""))
    print(
        "| changed by | error of tokens | same pose | IoU of boxes | IoU of masks |\n"
        + "|---" * 5
        + "|"
    )
    for name, values in rows.items():
        means = np.mean(values, axis=0)
        print(f"| {name} | " + " | ".join(f"{one:.4f}" for one in means) + " |")


def seen(run: Run, image: np.ndarray, sam, precision: str) -> tuple:
    """Tokens of the crop, pose, box and mask of a photo."""
    located = run.locate(image)
    tokens = run.backbone.tokens(located.crop[None])[0].numpy()
    mask = np.zeros(1)
    if sam is not None:
        foreground = run.estimator.foreground
        regions = find_objects(foreground.scores(tokens), foreground.threshold)
        chosen = settings.Masks(sam_precision=precision)
        mask = segment(sam, located.crop[None], regions, chosen)[0]
    return tokens, located.pose, located.box, mask


def compared(a: tuple, b: tuple) -> tuple[float, ...]:
    """Error of the tokens, equal poses, IoU of boxes, IoU of masks."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = a[2], b[2]
    inner = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    outer = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - inner
    union = np.logical_or(a[3], b[3]).sum()
    masks = np.logical_and(a[3], b[3]).sum() / union if union else np.nan
    error = np.linalg.norm(a[0] - b[0]) / np.linalg.norm(a[0])
    return error, float(a[1] == b[1]), inner / outer, masks


if __name__ == "__main__":
    tyro.cli(main)
