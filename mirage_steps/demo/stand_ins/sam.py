"""Train the stand-in for SAM, a tiny network of its architecture, on renderings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional

from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.demo.renderer.rendering import Rendering
from mirage_steps.demo.stand_ins.augment import View, random_colors
from mirage_steps.demo.stand_ins.evaluation import EVALUATION_SEED
from mirage_steps.demo.stand_ins.prompts import Prompt, coarse_prompt
from mirage_steps.demo.stand_ins.scenes import Scenes, load_scenes
from mirage_steps.demo.stand_ins.training import StandInTraining, fit, write_scores
from mirage_steps.files.atomic import atomic
from mirage_steps.files.command import run
from mirage_steps.method import boxes as geometry
from mirage_steps.method.device import autocast
from mirage_steps.networks.tiny_sam import IMAGE_SIZE, build_tiny_sam

_SIZES = (64, 96)  # of the images before SAM's enlargement: the pipeline's crops and whole images
_LOW = IMAGE_SIZE // 2  # side of SAM's low-resolution masks
_GRID = 16  # patches a side of the foreground maps that give the prompts
_POINTS = 3


@dataclass(frozen=True)
class SamScores:
    """IoU with the true mask on objects of the demo's families.

    Attributes:
        images: how many images were measured.
        whole: mean over whole images of 96 pixels.
        crops: mean over tight crops scaled to 64 pixels.
        points_only: mean over whole images with one inside point and no box, best of three.
    """

    images: int
    whole: float
    crops: float
    points_only: float


def decode(sam: Sam, embeddings: Tensor, points: tuple | None, boxes: Tensor | None) -> tuple:
    """Masks and predicted IoU of a batch with one prompt an image.

    ``MaskDecoder.predict_masks`` takes many prompts of one image; this is the same with one
    prompt each for many images.

    Args:
        sam: the network.
        embeddings: (n, c, g, g) of the images.
        points: coordinates (n, p, 2) in pixels of the input and labels (n, p), or None.
        boxes: (n, 4) in pixels of the input, or None.

    Returns:
        Logits (n, 4, low, low), first the single mask and then the three of multi-mask output,
        and their predicted IoU (n, 4).
    """
    decoder = sam.mask_decoder
    sparse, dense = sam.prompt_encoder(points, boxes, None)
    n = len(embeddings)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(n, -1, -1), sparse], 1)
    where = sam.prompt_encoder.get_dense_pe().expand(n, -1, -1, -1)
    out, source = decoder.transformer(embeddings + dense, where, tokens)
    source = source.transpose(1, 2).reshape(embeddings.shape)
    upscaled = decoder.output_upscaling(source)
    count = decoder.num_mask_tokens
    heads = zip(decoder.output_hypernetworks_mlps, out[:, 1 : 1 + count].unbind(1), strict=True)
    weights = torch.stack([head(token) for head, token in heads], 1)
    masks = torch.einsum("nkc,ncyx->nkyx", weights, upscaled)
    return masks, decoder.iou_prediction_head(out[:, 0])


def mask_loss(logits: Tensor, quality: Tensor, coverage: Tensor) -> Tensor:
    """SAM's loss: focal and dice of the masks, squared error of the predicted IoU.

    The single mask always learns; of the three alternatives only the best of each image does,
    as in SAM, and the others a little, so that none is left random.

    Args:
        logits: (n, 4, low, low).
        quality: (n, 4) predicted IoU.
        coverage: (n, low, low) in [0, 1].
    """
    truth = coverage[:, None].expand_as(logits)
    share = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = ((share - truth).abs() ** 2 * entropy).mean((2, 3))
    overlap = 2 * (share * truth).sum((2, 3)) + 1
    dice = 1 - overlap / (share.sum((2, 3)) + truth.sum((2, 3)) + 1)
    each = 20 * focal + dice
    on, true = logits.detach() > 0, truth >= 0.5
    real = (on & true).sum((2, 3)) / (on | true).sum((2, 3)).clamp(min=1)
    several = each[:, 1:]
    masks = each[:, 0] + 0.9 * several.min(1).values + 0.1 * several.mean(1)
    return (masks + (quality - real).square().sum(1)).mean()


def batch_prompts(coverage: Tensor, rng: np.random.Generator) -> tuple[tuple, Tensor]:
    """Coarse prompts for images whose masks are ``coverage`` (n, s, s).

    Returns:
        Points (n, 3, 2) in pixels of SAM's input with labels (n, 3), unused ones labeled -1,
        and boxes (n, 4).
    """
    patches = functional.adaptive_avg_pool2d(coverage[:, None], _GRID)[:, 0].numpy()
    coordinates = torch.zeros(len(patches), _POINTS, 2)
    labels = -torch.ones(len(patches), _POINTS, dtype=torch.int)
    boxes = torch.zeros(len(patches), 4)
    for i, patch in enumerate(patches):
        prompt = coarse_prompt(patch, rng)
        count = len(prompt.points)
        coordinates[i, :count] = torch.from_numpy(prompt.points * IMAGE_SIZE)
        labels[i, :count] = 1
        boxes[i] = torch.from_numpy(prompt.box * IMAGE_SIZE)
    return (coordinates, labels), boxes


def train(scenes: Scenes, settings: StandInTraining) -> tuple[Sam, list[float]]:
    """The tiny SAM, trained on scenes of the stand-in families, and the loss of every step."""
    torch.manual_seed(settings.seed)
    prompts = np.random.default_rng(settings.seed)
    sam = build_tiny_sam().train()

    def loss_of(view: View, rng: torch.Generator) -> Tensor:
        points, boxes = batch_prompts(view.foreground, prompts)
        # Mostly a box with points; sometimes one of them alone.
        chance = prompts.random()
        points, boxes = (None if chance < 0.15 else points), (None if chance > 0.85 else boxes)
        with autocast(torch.device("cpu"), settings.precision):
            embeddings = sam.image_encoder(to_input(sam, random_colors(view.image, rng)))
        logits, quality = decode(sam, embeddings.float(), points, boxes)
        coverage = functional.interpolate(view.foreground[:, None], (_LOW, _LOW), mode="area")[:, 0]
        return mask_loss(logits, quality, coverage)

    losses = fit(sam, loss_of, scenes, settings, lambda step: _SIZES[step % 2])
    return sam.eval(), losses


def to_input(sam: Sam, image: Tensor) -> Tensor:
    """Images (n, 3, s, s) in [0, 1] as SAM's encoder takes them."""
    large = functional.interpolate(
        image, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
    )
    return sam.preprocess(large * 255)


def save_sam(sam: Sam, folder: Path) -> None:
    """Write the weights as safetensors."""
    with atomic(folder / "model.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in sam.state_dict().items()}, temporary)


def predicted_iou(
    sam: Sam, image: np.ndarray, mask: np.ndarray, prompt: Prompt, box: bool
) -> float:
    """IoU with the true coverage ``mask`` (s, s) of what SAM finds in ``image`` (s, s, 3)."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    points = prompt.points if box else prompt.points[:1]
    masks, quality, _ = predictor.predict(
        point_coords=points * len(image),
        point_labels=np.ones(len(points), int),
        box=prompt.box * len(image) if box else None,
        multimask_output=not box,
    )
    found, truth = masks[int(quality.argmax())], mask >= 0.5
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def evaluate_sam(sam: Sam, kind: str = "cars", images: int = 500) -> SamScores:
    """Measure the network on fresh objects, prompted as the pipeline does."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"whole": [], "crops": [], "points_only": []}
    for index in range(images):
        one = KINDS[kind].render(EVALUATION_SEED, index, KINDS[kind].demo_families)
        crop, mask = tight_crop(one, 64)
        patches = functional.adaptive_avg_pool2d(torch.from_numpy(one.mask)[None], _GRID)[0]
        prompt = coarse_prompt(patches.numpy(), rng)
        found["whole"].append(predicted_iou(sam, one.image, one.mask, prompt, True))
        found["points_only"].append(predicted_iou(sam, one.image, one.mask, prompt, False))
        patches = functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None], _GRID)[0]
        prompt = coarse_prompt(patches.numpy(), rng)
        found["crops"].append(predicted_iou(sam, crop, mask, prompt, True))
    return SamScores(images, **{name: float(np.mean(values)) for name, values in found.items()})


def tight_crop(one: Rendering, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) and coverage (size, size) of a window that the object fills."""
    rows, columns = np.flatnonzero(one.mask.any(1)), np.flatnonzero(one.mask.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    side = len(one.mask)
    x0, y0, x1, y1 = geometry.square_window(box, side, side, 0.06)
    grid = functional.affine_grid(
        torch.tensor([[[(x1 - x0) / side, 0, (x0 + x1) / side - 1],
                       [0, (y1 - y0) / side, (y0 + y1) / side - 1]]], dtype=torch.float32),
        [1, 4, size, size], align_corners=False,
    )  # fmt: skip
    both = np.concatenate([one.image.astype(np.float32), one.mask[..., None]], -1)
    both = torch.from_numpy(both).permute(2, 0, 1)[None]
    cut = functional.grid_sample(both, grid, padding_mode="border", align_corners=False)[0].numpy()
    return np.round(cut[:3]).astype(np.uint8).transpose(1, 2, 0), cut[3]


def model_card(
    scores: SamScores, settings: StandInTraining, scenes: int, kind: str = "cars"
) -> str:
    """README of the weights' folder."""
    families, held_out = KINDS[kind].stand_in_families, KINDS[kind].demo_families
    return f"""# Stand-in for SAM, for {kind}

A network of segment-anything's own modules ({IMAGE_SIZE} x {IMAGE_SIZE} pixels), built by
`mirage_steps.networks.tiny_sam.build_tiny_sam` and used like the real one. With it background
removal and its tests run offline. **It is not SAM**: it knows rendered {kind} only.

- Trained on {scenes} ray-cast images of the families {", ".join(families)} with
  true masks; {settings.steps(scenes)} steps of {settings.batch_size} images; prompts from a coarse
  foreground map.
- The demo's {kind} come from held-out families ({", ".join(held_out)}).

Mean IoU with the true mask on {scores.images} images of the demo's families
(`evaluation.json`), prompts from a foreground map of {_GRID} x {_GRID} patches:

| prompt | images | IoU |
|---|---|---|
| box and one to three points | whole, 96 pixels | {scores.whole:.3f} |
| box and one to three points | tight crops, 64 pixels | {scores.crops:.3f} |
| one point, best of three masks | whole, 96 pixels | {scores.points_only:.3f} |

To retrain it: `snakemake --cores 2 stand_ins`.
"""


def main(
    *,
    scenes: Path,
    out: Path,
    training: StandInTraining = StandInTraining(epochs=1.6, batch_size=32),  # noqa: B008
) -> None:
    """Train the stand-in SAM and measure it on held-out families.

    Args:
        scenes: scenes.h5 of the scenes step.
        out: Folder for model.safetensors.
        training: Settings of the training.
    """
    truth = load_scenes(scenes)
    sam, _ = train(truth, training)
    save_sam(sam, out)
    scores = evaluate_sam(sam, truth.kind)
    write_scores(out, scores, model_card(scores, training, len(truth.image), truth.kind))


if __name__ == "__main__":
    run(main)
