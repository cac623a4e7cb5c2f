"""Step: train the stand-in for DINOv2, a tiny network of its architecture, on rendered cars.

The stand-in lets the whole pipeline run where nothing can be downloaded. Its patch tokens learn
the surface codes of ``surface_code``; nothing it learns from names a pose.
"""

import math
import time
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from mirage_steps.demo.renderer import cars
from mirage_steps.demo.stand_ins.augment import View, random_colours, random_view
from mirage_steps.demo.stand_ins.evaluation import BackboneScores, evaluate_backbone
from mirage_steps.demo.stand_ins.scenes import Scenes, load_scenes
from mirage_steps.demo.stand_ins.surface_code import code_basis, surface_code
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import log, run
from mirage_steps.method.device import autocast
from mirage_steps.networks.backbone import Backbone
from mirage_steps.settings import Backbone as BackboneSettings
from mirage_steps.settings import Settings

IMAGE_SIZE = 64
PATCH_SIZE = 4
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_SAVE_EVERY = 200
# Side of the training pictures until these shares of the run: attention's cost grows with the
# fourth power of the side, and most can be learnt from few tokens. DINOv2 interpolates its
# position embedding; the rest of the run is at IMAGE_SIZE.
_SMALL_SIZES = ((0.55, 32), (0.90, 48))


class BackboneTraining(Settings):
    """Training of the stand-in backbone."""

    steps: int = Field(2400, ge=1, description="Optimiser steps.")
    batch_size: int = Field(40, ge=2, description="Pictures a step.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.02, ge=0, description="Weight decay of matrices.")
    warmup: int = Field(100, ge=0, description="Steps over which the learning rate rises.")
    precision: str = Field("auto", description="auto, float32 or bfloat16.")
    seed: int = Field(0, ge=0, description="Seed of weights, windows and colours.")


def configuration() -> Dinov2Config:
    """The tiny DINOv2: 16 x 16 tokens of 128 channels, about 0.9 million parameters."""
    return Dinov2Config(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        mlp_ratio=3,
        layerscale_value=1.0,
        stand_in=True,
    )


def normalise(image: Tensor) -> Tensor:
    """Pictures (n, 3, s, s) in [0, 1] as DINOv2's preprocessing gives them."""
    return (image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(STD)[:, None, None]


def target_codes(view: View) -> Tensor:
    """Codes (n, tokens, CODE_DIM) of the patches of a batch, row by row."""
    pool = (functional.avg_pool2d(values, PATCH_SIZE) for values in (
        view.foreground[:, None], view.position, view.parts))  # fmt: skip
    foreground, position, parts = (values.flatten(2).transpose(1, 2) for values in pool)
    position = position / foreground.clamp(min=1e-3)
    return surface_code(foreground[..., 0], position, parts)


def train(
    scenes: Scenes, settings: BackboneTraining, checkpoint: Path | None = None
) -> tuple[Dinov2Model, list[float]]:
    """Train the network on scenes of the stand-in families.

    Args:
        scenes: pictures and truth.
        settings: of the training.
        checkpoint: folder to save the weights to now and then, so that a run that is cut short
            leaves something to look at.

    Returns:
        The network and the loss of every step: mean squared error.
    """
    torch.manual_seed(settings.seed)
    rng = torch.Generator().manual_seed(settings.seed)
    model = Dinov2Model(configuration()).train()
    basis = code_basis(model.config.hidden_size)
    optimiser = Optimiser(model, settings)
    losses: list[float] = []
    for step in tqdm(range(settings.steps), unit="step", mininterval=2):
        rows = torch.randint(len(scenes.image), (settings.batch_size,), generator=rng)
        view = random_view(scenes, rows, training_size(step / settings.steps), rng)
        target = target_codes(view) @ basis
        pixels = normalise(random_colours(view.image, rng))
        with autocast(torch.device("cpu"), settings.precision):
            tokens = model(pixels).last_hidden_state[:, 1:]
        loss = (tokens.float() - target).square().mean()
        optimiser.step(loss)
        losses.append(loss.item())
        if checkpoint is not None and (step + 1) % _SAVE_EVERY == 0:
            log.info("step %d: loss %.3f", step + 1, sum(losses[-200:]) / len(losses[-200:]))
            model.save_pretrained(checkpoint)
    return model.eval(), losses


def training_size(progress: float) -> int:
    """Side of the training pictures in pixels at ``progress`` in [0, 1) of the run."""
    return next((size for until, size in _SMALL_SIZES if progress < until), IMAGE_SIZE)


class Optimiser:
    """Muon for the matrices of the network's layers, AdamW for all else, as one.

    The learning rate rises linearly and falls to zero along a cosine. Muon (Jordan 2024)
    learnt faster here than AdamW alone; it wants plain matrices, not embeddings or convolutions.

    Args:
        model: whose parameters are to be learnt.
        settings: of a training, with steps, warmup, learning_rate and weight_decay.
    """

    def __init__(self, model: torch.nn.Module, settings: Settings) -> None:
        linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
        matrices = {id(weight) for weight in linear}
        others = [p for p in model.parameters() if id(p) not in matrices]
        rate, decay = settings.learning_rate, settings.weight_decay
        # Scaled to AdamW's usual size of a step, so that one learning rate serves both.
        muon = torch.optim.Muon(linear, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self._model = model
        self._each = (muon, adam)
        warmup = min(settings.warmup, settings.steps // 2)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = (step - warmup) / max(1, settings.steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * progress))

        self._schedules = [torch.optim.lr_scheduler.LambdaLR(one, factor) for one in self._each]

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``, whose norm is clipped to 1."""
        self._model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for one, schedule in zip(self._each, self._schedules, strict=True):
            one.step()
            schedule.step()


def save_backbone(model: Dinov2Model, folder: Path) -> None:
    """Write weights, configuration and preprocessing as ``transformers`` reads them."""
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(folder)


def model_card(scores: BackboneScores, settings: BackboneTraining, scenes: int) -> str:
    """README of the weights' folder: what they are, and what they are not."""
    return f"""# Stand-in for DINOv2, for cars

A network of DINOv2's architecture ({configuration().num_hidden_layers} layers, width
{configuration().hidden_size}, {IMAGE_SIZE} x {IMAGE_SIZE} pixels, patches of {PATCH_SIZE}) that
`transformers.Dinov2Model` loads as it loads the real one. It exists so that the pipeline runs and
is tested where nothing can be downloaded. **It is not DINOv2**: it was not trained by
self-supervision, it knows nothing but rendered cars, and it is of no use for photos.

- Trained on {scenes} ray-cast pictures of the families {", ".join(cars.STAND_IN_FAMILIES)};
  {settings.steps} steps of {settings.batch_size} pictures.
- Each patch token learnt what the renderer knows of that patch: whether it shows the car, which
  part, and where on the car's surface. It never saw an azimuth, a pose, a camera or any other
  label of the picture as a whole.
- The demo's cars come from other families ({", ".join(cars.DEMO_FAMILIES)}), which it never saw.

Measured on {scores.images} pictures of the demo's families (`evaluation.json`):

| | |
|---|---|
| IoU of the first principal component, cut by Otsu's threshold, with the true mask (patches) | {scores.foreground_iou:.3f} |
| share of the tokens' variance on the first component | {scores.first_variance:.2f} |
| median azimuth error within K-Means clusters of all tokens, as in the paper (K = {scores.k}) | {scores.median_error:.1f} degrees |
| share of pictures within 30 degrees of their cluster's mean | {scores.within_30:.1%} |

To make it again: `snakemake --cores 2 stand_ins`.
"""  # noqa: E501


def main(*, scenes: Path, out: Path, training: BackboneTraining = BackboneTraining()) -> None:  # noqa: B008
    """Train the stand-in backbone and measure it on families it never saw.

    Args:
        scenes: scenes.h5 of the scenes step.
        out: Folder for the network in transformers' format.
        training: Settings of the training.
    """
    truth = load_scenes(scenes)
    started = time.time()
    model, losses = train(truth, training, out)
    log.info("trained in %.0f s, last loss %.3f", time.time() - started, losses[-1])
    save_backbone(model, out)
    network = BackboneSettings(model=str(out), resolution=IMAGE_SIZE)
    scores = evaluate_backbone(Backbone.load(network, torch.device("cpu")))
    log.info("%s", scores)
    write_json(out / "evaluation.json", vars(scores))
    (out / "README.md").write_text(model_card(scores, training, len(truth.image)))


if __name__ == "__main__":
    run(main)
