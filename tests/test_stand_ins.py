"""The embedded small networks, and the code that trains them."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, Dinov2Model

from mirage_steps import features, foreground, settings
from mirage_steps.demo.renderer import cars, mugs
from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.demo.renderer.rendering import Rendering
from mirage_steps.demo.stand_ins import backbone, evaluation, prompts, sam, scenes
from mirage_steps.demo.stand_ins.augment import random_colors, random_view
from mirage_steps.demo.stand_ins.surface_code import code_basis, code_dim, surface_code
from mirage_steps.demo.stand_ins.training import StandInTraining
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.manifest import Entry, write_manifest
from mirage_steps.files.tokens import open_tokens
from mirage_steps.method.foreground import fit_foreground
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.pose_scores import score_azimuths
from mirage_steps.networks.backbone import Backbone
from mirage_steps.networks.sam import load_sam
from mirage_steps.networks.tiny_sam import IMAGE_SIZE, build_tiny_sam

WEIGHTS = Path(__file__).parents[1] / "weights"
DINO = WEIGHTS / "stand-in-dinov2-cars"
FRESH = 77  # seed of objects that nothing was trained or measured on
LIMIT = 8_000_000  # bytes of a network


of_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def few_scenes() -> scenes.Scenes:
    return scenes.render_scenes(range(8), seed=5, size=48)


def _fresh(kind: str, count: int) -> list[Rendering]:
    families = KINDS[kind].demo_families
    return [KINDS[kind].render(FRESH, index, families) for index in range(count)]


@of_kinds
def test_backbone_loads_as_dinov2_does(kind):
    folder = WEIGHTS / f"stand-in-dinov2-{kind}"
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, Dinov2Model)
    assert (model.config.image_size, model.config.patch_size) == (64, 4)
    assert (folder / "model.safetensors").stat().st_size < LIMIT
    processor = AutoImageProcessor.from_pretrained(folder)
    assert tuple(processor.image_mean) == backbone.MEAN
    assert tuple(processor.image_std) == backbone.STD
    with torch.inference_mode():
        found = model(torch.zeros(2, 3, 64, 64))
    assert found.last_hidden_state.shape == (2, 1 + 16 * 16, 128)


def _backbone(kind: str) -> Backbone:
    network = settings.Backbone(model=str(WEIGHTS / f"stand-in-dinov2-{kind}"), resolution=64)
    return Backbone.load(network, torch.device("cpu"))


@of_kinds
def test_first_component_of_the_backbone_is_foreground(kind):
    found = _fresh(kind, 32)
    network = _backbone(kind)
    batches = evaluation.whole_images(network, [Image.fromarray(one.image) for one in found])
    model, _ = fit_foreground(batches, evaluation.FOREGROUND)
    estimator = PoseEstimator({}, model, 0.06)
    shown = np.concatenate([estimator.shown(batch) for batch in batches])
    truth = evaluation.patch_masks(np.stack([one.mask for one in found]), network.grid)
    assert evaluation.iou(shown.reshape(truth.shape), truth).mean() >= 0.6


@of_kinds
def test_the_evaluation_finds_poses_as_the_paper_does(kind):
    scores = evaluation.evaluate_backbone(_backbone(kind), kind, images=150, k=6)
    assert (scores.images, scores.k) == (150, 6)
    assert scores.foreground_iou > 0.9 and 0.6 < scores.first_variance < 1
    assert scores.median_error < 25 and scores.within_30 > 0.6


@pytest.mark.slow
def test_poses_of_fresh_cars_are_found(tmp_path):
    manifest, windows, k = tmp_path / "manifest.csv", tmp_path / "foreground.csv", 8
    entries = []
    for index in range(256):
        car = cars.render(FRESH, index, cars.DEMO_FAMILIES, size=64)
        entries.append(Entry(f"{index}.png", tmp_path / f"{index}.png", 64, 64, car.azimuth_deg))
        Image.fromarray(car.image).save(entries[-1].path)
    write_manifest(manifest, entries)
    network = settings.Backbone(model=str(DINO), resolution=64)
    features.main(manifest=manifest, out=tmp_path / "whole", backbone=network)
    foreground.main(manifest=manifest, tokens=tmp_path / "whole" / "tokens.h5", out=tmp_path)
    features.main(manifest=manifest, windows=windows, out=tmp_path, backbone=network)
    estimator = load_estimator(tmp_path / ESTIMATOR)
    with open_tokens(tmp_path / "tokens.h5") as tokens:
        one = np.zeros(256, int)
        estimator = estimator.fit_pose_space(tokens, one, settings.PoseSpace())
        made = [estimator.maps(b, one[b.rows]) for b in tokens]
    maps, valid, _ = (np.concatenate(part) for part in zip(*made, strict=True))
    estimator = estimator.fit_poses(maps, valid, one, settings.Poses(k=k))
    labels, _ = estimator.assign(maps, valid, one)
    scores = score_azimuths(labels, np.array([entry.azimuth_deg for entry in entries]), k)
    assert scores["median_error_deg"] <= 15 and scores["share_within_30_deg"] >= 0.8
    assert scores["order_errors"] == 0


@of_kinds
def test_sam_finds_objects_from_a_box_and_points(kind):
    folder = WEIGHTS / f"stand-in-sam-{kind}"
    assert (folder / "model.safetensors").stat().st_size < LIMIT
    network = load_sam(str(folder), torch.device("cpu"))
    rng = np.random.default_rng(0)
    found = []
    for one in _fresh(kind, 16):
        patches = functional.adaptive_avg_pool2d(torch.from_numpy(one.mask)[None], 16)[0]
        prompt = prompts.coarse_prompt(patches.numpy(), rng)
        found.append(sam.predicted_iou(network, one.image, one.mask, prompt, box=True))
    assert np.mean(found) >= 0.8


@pytest.mark.parametrize("kind, count", [("cars", 20_000), ("mugs", 12_000)])
@pytest.mark.parametrize(
    "name, module, scores_class",
    [("dinov2", backbone, evaluation.BackboneScores), ("sam", sam, sam.SamScores)],
    ids=["dinov2", "sam"],
)
def test_model_card_states_what_was_measured(name, module, scores_class, kind, count):
    folder = WEIGHTS / f"stand-in-{name}-{kind}"
    scores = json.loads((folder / "evaluation.json").read_text())
    training = inspect.signature(module.main).parameters["training"].default
    card = module.model_card(scores_class(**scores), training, count, kind)
    assert (folder / "README.md").read_text() == card
    assert "Stand-in" in card and "It is not" in card and scores["images"] >= 500


def test_sam_gives_the_same_through_predictor_and_forward():
    torch.manual_seed(0)
    network = build_tiny_sam()
    image = cars.render(FRESH, 0, cars.DEMO_FAMILIES, size=64).image
    predictor = SamPredictor(network)
    predictor.set_image(image)
    box, point = np.array([8.0, 16.0, 56.0, 48.0]), np.array([[30.0, 30.0]])
    one = predictor.predict(point, np.ones(1, int), box, multimask_output=False)
    transform = predictor.transform
    record = {
        "image": torch.from_numpy(transform.apply_image(image)).permute(2, 0, 1),
        "original_size": (64, 64),
        "boxes": torch.from_numpy(transform.apply_boxes(box[None], (64, 64))),
        "point_coords": torch.from_numpy(transform.apply_coords(point[None], (64, 64))),
        "point_labels": torch.ones(1, 1, dtype=torch.int),
    }
    two = network([record], multimask_output=False)[0]
    np.testing.assert_array_equal(one[0][0], two["masks"][0, 0].numpy())
    several = network([record], multimask_output=True)[0]
    assert several["masks"].shape == (1, 3, 64, 64)


def test_batched_decoding_equals_sams_own():
    torch.manual_seed(0)
    network = build_tiny_sam()
    embeddings = torch.randn(3, 64, 16, 16)
    points = (IMAGE_SIZE * torch.rand(3, 2, 2), torch.ones(3, 2, dtype=torch.int))
    boxes = torch.tensor([[10.0, 10, 90, 90], [20, 30, 60, 70], [0, 0, 128, 128]])
    with torch.inference_mode():
        logits, quality = sam.decode(network, embeddings, points, boxes)
        for i in range(3):
            own = network.mask_decoder.predict_masks(
                embeddings[i : i + 1],
                network.prompt_encoder.get_dense_pe(),
                *network.prompt_encoder(
                    (points[0][i : i + 1], points[1][i : i + 1]), boxes[i : i + 1], None
                ),
            )
            torch.testing.assert_close(logits[i : i + 1], own[0])
            torch.testing.assert_close(quality[i : i + 1], own[1])


def test_codes_are_carried_without_distortion():
    parts = len(cars.PARTS)
    basis = code_basis(128, parts)
    torch.testing.assert_close(basis @ basis.T, torch.eye(code_dim(parts)), atol=1e-5, rtol=0)
    off = surface_code(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, parts - 1))
    assert off.shape[1] == code_dim(parts)
    assert (off[:, 0] < 0).all() and not off[:, 1:].any()


def test_mirrored_scenes_exchange_left_and_right(few_scenes):
    rng = torch.Generator().manual_seed(0)
    rows = torch.zeros(32, dtype=torch.long)
    view = random_view(few_scenes, rows, 32, rng)
    columns = torch.linspace(-1, 1, 32)
    weight = view.foreground.clamp(min=1e-6)
    x, y = (view.position[:, axis] for axis in (0, 1))
    # The mean of x does not tell an image from its mirror image; y's sign does.
    slope = (columns * (x - (x.sum((1, 2)) / weight.sum((1, 2)))[:, None, None] * weight)).sum(
        (1, 2)
    )
    side = y.sum((1, 2))
    assert (
        torch.sign(slope) == torch.sign(slope[0]) * torch.sign(side[0]) * torch.sign(side)
    ).all()
    assert (side > 0).any() and (side < 0).any()
    assert float(view.image.min()) >= 0 and float(random_colors(view.image, rng).max()) <= 1


def test_mugs_are_not_mirrored():
    few = scenes.render_scenes(range(1), seed=5, size=48, kind="mugs")
    rng = torch.Generator().manual_seed(0)
    view = random_view(few, torch.zeros(16, dtype=torch.long), 32, rng)
    assert view.parts.shape[1] == len(mugs.PARTS) - 1
    side = torch.sign(view.position[:, 1].sum((1, 2)))
    assert (side == side[0]).all()


def test_scenes_do_not_depend_on_batches(few_scenes):
    again = scenes.render_scenes(range(5, 8), seed=5, size=48)
    np.testing.assert_array_equal(again.image, few_scenes.image[5:])


def test_scenes_step_writes_what_it_renders(tmp_path, few_scenes):
    scenes.main(out=tmp_path, scenes=8, size=48, seed=5, workers=1)
    loaded = scenes.load_scenes(tmp_path / "scenes.h5")
    assert loaded.kind == "cars"
    for name in scenes.ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(few_scenes, name))


def test_two_steps_of_training_change_the_networks(tmp_path, few_scenes):
    settings = StandInTraining(epochs=1, batch_size=4, warmup=1)
    model, losses = backbone.train(few_scenes, settings)
    assert len(losses) == 2 and all(np.isfinite(losses))
    backbone.save_backbone(model, tmp_path / "backbone")
    loaded = Dinov2Model.from_pretrained(tmp_path / "backbone")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    network, losses = sam.train(few_scenes, settings)
    assert len(losses) == 2 and all(np.isfinite(losses))
    sam.save_sam(network, tmp_path / "sam")
    loaded = load_sam(str(tmp_path / "sam"), torch.device("cpu"))
    torch.testing.assert_close(loaded.state_dict(), network.state_dict())
