"""Images of Stable Diffusion: prompts, noise, resuming, rejection; on a tiny random model."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mirage_steps.errors import UserError
from mirage_steps.files import atomic as files
from mirage_steps.settings import StableDiffusion
from mirage_steps.sources import stable_diffusion as module
from mirage_steps.sources.stable_diffusion import list_images, prompts

UNET = "unet/diffusion_pytorch_model.safetensors"


def _save_tiny(folder: Path) -> Path:
    """A Stable Diffusion of few random weights whose tokens are single letters."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz-,"
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    n = len(words)
    text = CLIPTextConfig(
        vocab_size=n, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77,
        bos_token_id=n - 2, eos_token_id=n - 1, pad_token_id=n - 1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
        ),
        unet=UNet2DConditionModel(
            sample_size=16, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
            cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            skip_prk_steps=True, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return _save_tiny(tmp_path_factory.mktemp("stable_diffusion") / "tiny")


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """The tiny model, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def _source(model: Path, **changes) -> StableDiffusion:
    given = dict(category="chair", images=5, steps=2, size=32, saved_size=16, batch_size=2)
    return StableDiffusion(model=str(model), **{**given, **changes})


def _plain(iterable, total):
    return iterable


def _generate(source: StableDiffusion, out: Path, **options):
    return list_images(source, out, _plain, device="cpu", **options)


def _pixels(entries) -> np.ndarray:
    return np.stack([np.asarray(Image.open(entry.path)) for entry in entries]).astype(int)


def _set_part(folder: Path, part: str, library: str, name: str) -> None:
    """State the class of a part in ``model_index.json``."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: [library, name]}))


def _files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


class _Fake:
    """A pipeline that makes images of noise, and fails, flags or blanks what a test asks for."""

    safety_checker = None
    Tokens = namedtuple("Tokens", "input_ids")

    def __init__(self, fail_at: int = -1, flagged: tuple = (), blank: tuple = ()):
        self.calls: list[dict] = []
        self.fail_at, self.flagged, self.blank = fail_at, flagged, blank
        self.count = 0

    def tokenizer(self, text: str):
        return self.Tokens(text.split())

    tokenizer.model_max_length = 77

    def __call__(self, **given):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(given)
        images, flags = [], []
        for generator in given["generator"]:
            rng = np.random.default_rng(generator.initial_seed())
            shape = (given["height"], given["width"], 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            images.append(Image.fromarray(pixels * (self.count not in self.blank)))
            flags.append(self.count in self.flagged)
            self.count += 1
        return SimpleNamespace(images=images, nsfw_content_detected=flags)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the pipeline by a fake one."""

    def use(**options) -> _Fake:
        pipeline = _Fake(**options)
        monkeypatch.setattr(module, "resolve", lambda name, key, weights: Path(name))
        monkeypatch.setattr(module, "load_pipeline", lambda folder, device: pipeline)
        return pipeline

    return use


def _no_loading(monkeypatch) -> None:
    monkeypatch.setattr(module, "resolve", lambda *_: pytest.fail("looks for the model"))


# Prompts


NEGATIVE = "Low-quality, close-up, cropped"


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, ("A high-quality photo of red car, front view", NEGATIVE, "front")),
        (1, ("A high-quality photo of red car, side view", f"{NEGATIVE}, front view", "side")),
        (2, ("A high-quality photo of red car, back view", f"{NEGATIVE}, front view", "back")),
        (99_999, ("A high-quality photo of red car, front view", NEGATIVE, "front")),
    ],
)
def test_the_prompts_are_the_papers(index, expected):
    assert prompts("red car", index) == expected


def test_every_image_gets_its_prompts_settings_and_viewpoint(fake, tmp_path):
    pipeline = fake()
    source = _source("m", images=4, batch_size=3, steps=7, guidance_scale=3, seed=9)
    entries, rejected = _generate(source, tmp_path)
    first, second = pipeline.calls
    assert first["prompt"] == [prompts("chair", i)[0] for i in range(3)]
    assert first["negative_prompt"] == [prompts("chair", i)[1] for i in range(3)]
    assert second["prompt"] == [prompts("chair", 3)[0]]
    given = [first[k] for k in ("height", "width", "num_inference_steps", "guidance_scale")]
    assert given == [32, 32, 7, 3.0]
    assert [entry.viewpoint for entry in entries] == ["front", "side", "back", "front"]
    folder = next((tmp_path / "images").iterdir()).name
    assert [entry.image for entry in entries] == [f"images/{folder}/{i:06d}.png" for i in range(4)]
    assert {(e.width, e.height, e.azimuth_deg) for e in entries} == {(16, 16, None)}
    assert all(Image.open(entry.path).size == (16, 16) for entry in entries)
    assert not rejected


def test_every_image_has_noise_of_its_own(fake, tmp_path):
    pipeline = fake()
    _generate(_source("m"), tmp_path / "a")
    _generate(_source("m", seed=1), tmp_path / "b")
    seeds = [g.initial_seed() for call in pipeline.calls for g in call["generator"]]
    assert len(set(seeds)) == 10


def test_a_category_too_long_for_the_text_encoder_is_refused(fake, tmp_path):
    fake()
    with pytest.raises(UserError, match=r"^source\.category: its prompt has 87 tokens, .*77"):
        _generate(_source("m", category="very " * 80), tmp_path)


# Images


def test_images_do_not_depend_on_the_batch_or_on_what_was_there(model, tmp_path):
    whole, _ = _generate(_source(model, batch_size=5), tmp_path / "whole")
    single, _ = _generate(_source(model, batch_size=1), tmp_path / "single")
    _generate(_source(model, images=2), tmp_path / "grown")
    grown, _ = _generate(_source(model), tmp_path / "grown")
    expected = _pixels(whole)
    assert len({image.tobytes() for image in expected}) == 5
    for entries in (single, grown):
        assert [e.image for e in entries] == [e.image for e in whole]
        # Sums of a larger batch are taken in another order.
        assert abs(_pixels(entries) - expected).max() <= 1


# Of diffusers, under numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_scheduler_that_draws_noise_takes_each_images_own(copy, tmp_path):
    from diffusers import EulerAncestralDiscreteScheduler

    EulerAncestralDiscreteScheduler(steps_offset=1).save_pretrained(copy / "scheduler")
    _set_part(copy, "scheduler", "diffusers", "EulerAncestralDiscreteScheduler")
    whole, _ = _generate(_source(copy, images=3, batch_size=3), tmp_path / "whole")
    single, _ = _generate(_source(copy, images=3, batch_size=1), tmp_path / "single")
    assert abs(_pixels(whole) - _pixels(single)).max() <= 1


def test_images_are_scaled_down_but_never_up(fake, tmp_path):
    fake()
    small, _ = _generate(_source("m", images=1, saved_size=16), tmp_path)
    kept, _ = _generate(_source("m", images=1, saved_size=32), tmp_path)
    huge, _ = _generate(_source("m", images=1, saved_size=4096), tmp_path)
    large = Image.open(kept[0].path)
    assert large.size == (32, 32) and huge == kept
    down = large.resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(Image.open(small[0].path)), np.asarray(down))


# Resuming


def test_only_missing_images_are_generated_again(model, tmp_path):
    source = _source(model, batch_size=1)
    before_entries, _ = _generate(source, tmp_path)
    before = _files(tmp_path)
    gone = [before_entries[1], before_entries[4]]
    for entry in gone:
        entry.path.unlink()
    # What a killed run leaves behind is no image.
    left = gone[0].path.parent / ".partial-elsewhere-1-1"
    left.mkdir()
    (left / "000001.png").write_bytes(b"half")
    seen = []

    def progress(iterable, total):
        seen.append(total)
        for item in iterable:
            seen.append(item[0])
            yield item

    after_entries, _ = list_images(source, tmp_path, progress, device="cpu")
    shutil.rmtree(left)
    after = _files(tmp_path)
    assert seen == [5, 0, 2, 3, 1, 4]
    assert after_entries == before_entries
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    changed = {name for name in before if after[name][1] != before[name][1]}
    assert changed == {entry.image for entry in gone}


def test_an_interrupted_run_keeps_its_whole_batches(fake, tmp_path):
    fake(fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        _generate(_source("m"), tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["000000.png", "000001.png"]
    kept = _files(tmp_path)
    pipeline = fake()
    entries, _ = _generate(_source("m"), tmp_path)
    assert [len(call["prompt"]) for call in pipeline.calls] == [2, 1]
    assert len(entries) == 5 and kept.items() <= _files(tmp_path).items()


def test_a_complete_set_does_not_load_the_pipeline(fake, tmp_path, monkeypatch):
    fake()
    entries, _ = _generate(_source("m"), tmp_path)
    before = _files(tmp_path)
    _no_loading(monkeypatch)
    for source in (_source("m"), _source("m", batch_size=4)):
        assert _generate(source, tmp_path)[0] == entries
    assert _generate(_source("m", images=3), tmp_path)[0] == entries[:3]
    assert _files(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"category": "car"}, {"model": "other"}, {"steps": 3}, {"guidance_scale": 2},
        {"size": 40}, {"saved_size": 24}, {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_other_settings_take_another_folder_and_back(change, fake, tmp_path, monkeypatch, caplog):
    fake()
    source = _source("m", images=2)
    entries, _ = _generate(source, tmp_path)
    before = _files(tmp_path)
    changed, _ = _generate(source.model_copy(update=change), tmp_path)
    former, other = entries[0].path.parent, changed[0].path.parent
    assert former != other and before.items() <= _files(tmp_path).items()
    written = json.loads((other / "settings.json").read_text())
    assert change.items() <= written.items() and written["version"] == module.VERSION
    _no_loading(monkeypatch)
    with caplog.at_level("INFO", "mirage_steps"):
        assert _generate(source, tmp_path)[0] == entries
    assert caplog.messages[-1].endswith(f"which may be deleted: {other.name}")


def test_another_version_of_the_program_takes_another_folder(fake, tmp_path, monkeypatch):
    fake()
    before, _ = _generate(_source("m", images=1), tmp_path)
    assert _generate(_source("m", images=2, batch_size=9), tmp_path)[0][:1] == before
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert _generate(_source("m", images=1), tmp_path)[0] != before


# Rejection


def test_flagged_and_blank_images_are_rejected_and_remembered(fake, tmp_path, monkeypatch):
    fake(flagged=(1,), blank=(3,))
    entries, rejected = _generate(_source("m"), tmp_path)
    folder = entries[0].path.parent
    assert [entry.path.name for entry in entries] == ["000000.png", "000002.png", "000004.png"]
    assert [entry.viewpoint for entry in entries] == ["front", "back", "side"]
    assert rejected == [
        (f"images/{folder.name}/000001.png", "flagged by the model's safety checker"),
        (f"images/{folder.name}/000003.png", module.BLANK),
    ]
    assert not (folder / "000001.png").exists() and not (folder / "000003.png").exists()
    _no_loading(monkeypatch)
    assert _generate(_source("m"), tmp_path) == (entries, rejected)


@pytest.mark.parametrize("flags", [True, False])
def test_the_models_own_safety_checker_is_used(flags, copy, tmp_path):
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    tiny = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tiny, projection_dim=16))
    # A similarity beyond its threshold is a finding: none is below -1 or beyond 1.
    checker.concept_embeds_weights.data.fill_(-1.5 if flags else 1.5)
    checker.special_care_embeds_weights.data.fill_(1.5)
    torch.nn.init.normal_(checker.concept_embeds)
    checker.save_pretrained(copy / "safety_checker")
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(copy / "feature_extractor")
    _set_part(copy, "safety_checker", "stable_diffusion", "StableDiffusionSafetyChecker")
    _set_part(copy, "feature_extractor", "transformers", "CLIPImageProcessor")
    entries, rejected = _generate(_source(copy, images=2), tmp_path)
    assert (len(entries), len(rejected)) == ((0, 2) if flags else (2, 0))
    assert {reason for _, reason in rejected} <= {module.FLAGGED}


# Errors


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop_weight(path: Path) -> None:
    weights = load_file(path)
    weights.pop(min(weights))
    save_file(weights, path, metadata={"format": "pt"})


def _write_index(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "no file named model_index.json"),
        (lambda folder: _write_index(folder, "{"), "not a valid JSON file"),
        (lambda folder: _write_index(folder, '{"_class_name": "Flux"}'), "holds a Flux, not"),
        (lambda folder: _truncate(folder / UNET), "cannot be loaded (Unable to load weights"),
        (lambda folder: (folder / UNET).unlink(), "cannot be loaded (Error no file named"),
        (lambda folder: _truncate(folder / "text_encoder/model.safetensors"), "cannot be loaded ("),
        (lambda folder: _drop_weight(folder / UNET), "(unet: 1 weights missing, as conv_in.bias)"),
        (
            lambda folder: _drop_weight(folder / "text_encoder/model.safetensors"),
            "(text_encoder: 1 weights missing",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer/ has no vocabulary"),
        (lambda folder: _truncate(folder / "tokenizer/tokenizer.json"), "cannot be loaded ("),
    ],
)
def test_an_unusable_folder_is_named_in_one_line(damage, reason, copy, tmp_path, monkeypatch):
    damage(copy)
    monkeypatch.setattr(module, "resolve", lambda *_: copy)
    with pytest.raises(UserError) as caught:
        _generate(_source("hub/name"), tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"source.model {copy}: ") and reason in message
    assert "\n" not in message
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^source\.model .*: no such file or folder"):
        _generate(_source(tmp_path / "gone"), tmp_path / "out")


def test_pickled_weights_are_not_read(copy, tmp_path):
    import torch

    torch.save(load_file(copy / UNET), (copy / UNET).with_suffix(".bin"))
    (copy / UNET).unlink()
    with pytest.raises(UserError, match="no file named diffusion_pytorch_model.safetensors"):
        _generate(_source(copy), tmp_path / "out")


def test_too_little_memory_names_the_batch_size(fake, tmp_path, monkeypatch):
    import torch

    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    fake()
    monkeypatch.setattr(_Fake, "__call__", run_out)
    with pytest.raises(UserError, match=r"^source\.batch_size 2: .* lower it"):
        _generate(_source("m"), tmp_path)


def test_a_full_disk_is_noticed_before_the_model_is_loaded(tmp_path, monkeypatch):
    _no_loading(monkeypatch)
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"generating 5 images needs 2\.0 kB, only 1\.0 kB free"):
        _generate(_source("m"), tmp_path)


def test_the_module_is_imported_without_the_slow_packages():
    code = (
        "import sys, mirage_steps.sources.stable_diffusion; "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
