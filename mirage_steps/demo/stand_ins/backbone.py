"""Train the stand-in for DINOv2, a tiny network of its architecture, on renderings.

The stand-in lets the whole pipeline run offline. Its patch tokens regress the surface codes of
``surface_code``; no label is a pose.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.demo.stand_ins.augment import View, random_colors
from mirage_steps.demo.stand_ins.evaluation import BackboneScores, evaluate_backbone
from mirage_steps.demo.stand_ins.scenes import Scenes, load_scenes
from mirage_steps.demo.stand_ins.surface_code import code_basis, surface_code
from mirage_steps.demo.stand_ins.training import StandInTraining, fit, write_scores
from mirage_steps.files.command import run
from mirage_steps.method.device import autocast
from mirage_steps.networks.backbone import Backbone
from mirage_steps.settings import Backbone as BackboneSettings

IMAGE_SIZE = 64
PATCH_SIZE = 4
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Side of the training images until these shares of the run: attention's cost grows with the
# fourth power of the side, and most can be learned from few tokens. DINOv2 interpolates its
# position embedding; the rest of the run is at IMAGE_SIZE.
_SMALL_SIZES = ((0.55, 32), (0.90, 48))


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


def normalize(image: Tensor) -> Tensor:
    """Images (n, 3, s, s) in [0, 1] as DINOv2's preprocessing gives them."""
    return (image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(STD)[:, None, None]


def target_codes(view: View) -> Tensor:
    """Codes (n, tokens, ``code_dim``) of the patches of a batch, row by row."""
    pool = (functional.avg_pool2d(values, PATCH_SIZE) for values in (
        view.foreground[:, None], view.position, view.parts))  # fmt: skip
    foreground, position, parts = (values.flatten(2).transpose(1, 2) for values in pool)
    position = position / foreground.clamp(min=1e-3)
    return surface_code(foreground[..., 0], position, parts)


def train(scenes: Scenes, settings: StandInTraining) -> tuple[Dinov2Model, list[float]]:
    """The network, trained on scenes of the stand-in families, and the loss of every step."""
    torch.manual_seed(settings.seed)
    model = Dinov2Model(configuration()).train()
    basis = code_basis(model.config.hidden_size, len(KINDS[scenes.kind].parts))

    def loss_of(view: View, rng: torch.Generator) -> Tensor:
        """Mean squared error of the patch tokens."""
        target = target_codes(view) @ basis
        pixels = normalize(random_colors(view.image, rng))
        with autocast(torch.device("cpu"), settings.precision):
            tokens = model(pixels).last_hidden_state[:, 1:]
        return (tokens.float() - target).square().mean()

    steps = settings.steps(len(scenes.image))
    losses = fit(model, loss_of, scenes, settings, lambda step: training_size(step / steps))
    return model.eval(), losses


def training_size(progress: float) -> int:
    """Side of the training images in pixels at ``progress`` in [0, 1) of the run."""
    return next((size for until, size in _SMALL_SIZES if progress < until), IMAGE_SIZE)


def save_backbone(model: Dinov2Model, folder: Path) -> None:
    """Write weights, configuration and preprocessing as ``transformers`` reads them."""
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(folder)


def model_card(
    scores: BackboneScores, settings: StandInTraining, scenes: int, kind: str = "cars"
) -> str:
    """README of the weights' folder: what they are, and what they are not."""
    families, held_out = KINDS[kind].stand_in_families, KINDS[kind].demo_families
    return f"""# Stand-in for DINOv2, for {kind}

A network of DINOv2's architecture ({configuration().num_hidden_layers} layers, width
{configuration().hidden_size}, {IMAGE_SIZE} x {IMAGE_SIZE} pixels, patches of {PATCH_SIZE}) that
`transformers.Dinov2Model` loads like the real one. With it the pipeline and its tests run offline.
**It is not DINOv2**: it was not trained by self-supervision, it knows rendered {kind} only, and it is
useless for photos.

- Trained on {scenes} ray-cast images of the families {", ".join(families)};
  {settings.steps(scenes)} steps of {settings.batch_size} images.
- The target of each patch token is the renderer's label of that patch: foreground, part of the {kind[:-1]},
  and position on the {kind[:-1]}'s surface. No azimuth, pose, camera or other label of the whole image
  was used.
- The demo's {kind} come from held-out families ({", ".join(held_out)}).

Measured on {scores.images} images of the demo's families (`evaluation.json`):

| | |
|---|---|
| IoU of the first principal component, cut by Otsu's threshold, with the true mask (patches) | {scores.foreground_iou:.3f} |
| share of the tokens' variance on the first component | {scores.first_variance:.2f} |
| median azimuth error within K-Means clusters of all tokens, as in the paper (K = {scores.k}) | {scores.median_error:.1f} degrees |
| share of images within 30 degrees of their cluster's mean | {scores.within_30:.1%} |

To retrain it: `snakemake --cores 2 stand_ins`.
"""  # noqa: E501


def main(
    *,
    scenes: Path,
    out: Path,
    training: StandInTraining = StandInTraining(epochs=4.8, batch_size=40),  # noqa: B008
) -> None:
    """Train the stand-in backbone and measure it on held-out families.

    Args:
        scenes: scenes.h5 of the scenes step.
        out: Folder for the network in transformers' format.
        training: Settings of the training.
    """
    truth = load_scenes(scenes)
    model, _ = train(truth, training)
    save_backbone(model, out)
    network = BackboneSettings(model=str(out), resolution=IMAGE_SIZE)
    scores = evaluate_backbone(Backbone.load(network, torch.device("cpu")), truth.kind)
    write_scores(out, scores, model_card(scores, training, len(truth.image), truth.kind))


if __name__ == "__main__":
    run(main)
