"""What a data set will cost: networks measured by hand, sizes as a finished run had them."""

import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.configuration import CONFIGFILES, read_configuration
from mirage_steps.method.cost import forward_flops, peak_bytes
from mirage_steps.tools import plan, planning, unloaded

ROOT = Path(plan.__file__).parents[1]
Usage = namedtuple("Usage", "total used free")

# Bytes that a finished run of the data set demo wrote, on two cores.
FINISHED = {
    "images": 11_652_064,
    "true_masks": 856_385,
    "features/tokens.h5": 131_945_184,
    "crops/crops.h5": 24_823_584,
    "pose_space/maps.h5": 6_979_040,
    "training/checkpoints/step-*.pt": 2 * 129_198_838,
    "training/model.safetensors": 42_584_032,
    "sets/real-a/*.h5": 2_484_072 + 108_544,
    "sets/mv-bg-hag/*.h5": 2_483_224 + 108_544,
    "sets/mv-nobg-hag/*.h5": 3_318_952 + 108_544,
}


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def demo() -> settings.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return read_configuration([]).datasets["demo"]


# Measuring


def _meta(*shape: int, **options: bool) -> torch.Tensor:
    return torch.empty(shape, device="meta", **options)


def _chain(*widths: int) -> nn.Sequential:
    pairs = zip(widths, widths[1:], strict=False)
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(one, two, bias=False) for one, two in pairs))


def test_flops_of_a_linear_layer_and_a_convolution():
    linear, x = _chain(10, 20), _meta(7, 10)
    assert forward_flops(lambda: linear(x)) == 2 * 7 * 10 * 20
    with torch.device("meta"):
        convolution = nn.Conv2d(3, 5, 3, padding=1)
    image = _meta(2, 3, 8, 6)
    assert forward_flops(lambda: convolution(image)) == 2 * 2 * 5 * 8 * 6 * 3 * 9


def test_flops_count_the_backward_pass():
    chain, x = _chain(10, 20, 5), _meta(7, 10)
    forward = 2 * 7 * (10 * 20 + 20 * 5)
    # Of the first layer no gradient of the input is needed.
    backward = 2 * 7 * (10 * 20 + 2 * 20 * 5)
    assert forward_flops(lambda: chain(x).sum().backward()) == forward + backward


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_peak_without_gradients_is_two_neighbouring_layers(mode):
    chain, x = _chain(10, 20, 30, 5), _meta(7, 10)

    def run():
        with mode():
            chain(x)

    # The input was there before; when the third output comes, the first is gone.
    assert peak_bytes(run) == 4 * 7 * (20 + 30)


def test_peak_of_a_training_step_keeps_activations_and_makes_gradients():
    chain, x = _chain(10, 20, 30, 5), _meta(7, 10)

    def loss():
        return chain(x).sum()

    # Kept for the backward pass: the inputs of layers 2 and 3; then the output and its sum.
    assert peak_bytes(loss) == 4 * (7 * (20 + 30 + 5) + 1)
    least = 4 * (10 * 20 + 20 * 30 + 30 * 5)  # in the end all gradients
    assert least < peak_bytes(lambda: loss().backward()) < least + 4 * 7 * (2 * 55) + 64


def test_attention_is_fused():
    query, key = _meta(2, 4, 64, 32, requires_grad=True), _meta(2, 4, 16, 32)

    def attend():
        return functional.scaled_dot_product_attention(query, key, key)

    assert forward_flops(attend) == 2 * 2 * (2 * 4 * 64 * 16 * 32)
    logits = 4 * 2 * 4 * 64 * 16
    assert peak_bytes(attend) < query.numel() * 4 + logits  # the result alone, no logits


def test_views_in_place_and_what_was_there_before_are_no_new_memory():
    x = _meta(100)
    assert peak_bytes(lambda: x.view(10, 10).t().add_(1)) == 0
    assert peak_bytes(lambda: (x + 1).view(10, 10).mul_(2)) == 400


# Networks


def test_published_backbones_have_their_known_sizes():
    for size, parameters in {"small": 22.1e6, "giant": 1136e6}.items():
        chosen = settings.Backbone(model=f"facebook/dinov2-{size}", resolution=28)
        found = unloaded.backbone(chosen)
        assert found.cost.parameters == pytest.approx(parameters, rel=0.005)
        assert found.patches == 4


def test_a_backbone_that_cannot_be_known_is_one_line():
    for model, told in {"someone/else": "cannot be known", "tests": "no model folder"}.items():
        with pytest.raises(UserError, match=told) as error:
            unloaded.backbone(settings.Backbone(model=model))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not a multiple"):
        unloaded.backbone(settings.Backbone(resolution=225))


def test_sam_is_known_by_name_and_by_the_size_of_its_file(tmp_path):
    vit_b = unloaded.sam(settings.Masks(sam="vit_b", sam_batch_size=1))
    assert 4 * vit_b.parameters == pytest.approx(unloaded.SAM_BYTES["vit_b"], rel=0.05)
    file = tmp_path / "weights.pth"
    with open(file, "wb") as out:
        out.truncate(375_042_383)  # sparse
    assert unloaded.sam(settings.Masks(sam=str(file), sam_batch_size=1)) == vit_b
    with pytest.raises(UserError, match="no such file"):
        unloaded.sam(settings.Masks(sam="vit_x"))


def test_guided_sets_cost_more_and_memory_follows_the_batch(demo):
    generator = unloaded.Generator(demo.training, demo.poses.k)
    plain, guided = generator.multi(3, 64, 1.0), generator.multi(3, 64, 1.5)
    single = generator.single(64)
    # Four frames are four images; the decoder runs seven frames where it is guided.
    assert 3.5 * single.flops < plain.flops <= 4 * single.flops
    assert plain.flops < guided.flops < 7 / 4 * plain.flops
    assert generator.single(8).memory < single.memory
    assert generator.single(8).flops == single.flops


# Disk


def test_sizes_are_those_of_a_finished_run(demo):
    tokens = unloaded.backbone(demo.backbone)
    generator = unloaded.Generator(demo.training, demo.poses.k)
    folder = Path("results/demo")
    made = planning.artifacts(demo, 2000, tokens, generator, folder)
    sizes = {str(one.path.relative_to(folder)): one.size for one in made}
    for name, size in FINISHED.items():
        assert sizes[name] == pytest.approx(size, rel=0.1), name


def test_what_is_there_is_not_written_again(tmp_path):
    maps = tmp_path / "pose_space/maps.h5"
    tokens = planning.Artifact(tmp_path / "tokens.h5", 1000, temporary=True, until=maps)
    pictures = planning.Artifact(tmp_path / "images", 500)
    copy = planning.Artifact(tmp_path / "copy", 300, temporary=True)
    # Of the temporary ones only the larger is there at a time.
    assert planning.needed([tokens, pictures, copy]) == 1000 + 500
    tokens.path.write_bytes(bytes(400))
    (tmp_path / "images/key").mkdir(parents=True)
    (tmp_path / "images/key/0.png").write_bytes(bytes(200))
    assert planning.needed([tokens, pictures, copy]) == 600 + 300
    maps.parent.mkdir()
    maps.touch()
    assert planning.needed([tokens, pictures, copy]) == 300 + 300


def test_names_of_sets_and_files_are_those_of_the_rules():
    rules = (ROOT / "rules/common.smk").read_text()
    rows = re.search(r"^ROWS = \{\n(.*?)^\}", rules, re.MULTILINE | re.DOTALL)[1]
    names = {name for pair in re.findall(r'\("(.*)", "(.*)"\)', rows) for name in pair}
    assert names == {*settings.REAL, *settings.GENERATED, *settings.MASKED}
    files = re.findall(r'^configfile: "(.*)"$', (ROOT / "Snakefile").read_text(), re.MULTILINE)
    assert tuple(files) == CONFIGFILES


# Counting


def test_images_are_counted_by_name(tmp_path):
    names = ("a.jpg", "b/c.PNG", "b/.hidden.png", ".d/e.png", "label.txt", "image/f.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/tripod_seq_01_001.jpg").touch()
    (tmp_path / "tripod-seq.txt").touch()
    (tmp_path / "label").mkdir()
    assert plan.count_images(settings.Folder(path=tmp_path)) == 4
    assert plan.count_images(settings.CompCars(path=tmp_path)) == 1
    assert plan.count_images(settings.Epfl(path=tmp_path)) == 1
    assert plan.count_images(settings.StableDiffusion(category="mug", images=7)) == 7
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images; .*--images N"):
        plan.count_images(settings.Folder(path=tmp_path / "empty"))


# The command


def test_command_prints_the_demo_s_plan_and_writes_nothing(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"results: {tmp_path / 'results'}\nweights: {tmp_path / 'weights'}\n")
    command = [sys.executable, "-m", "mirage_steps.tools.plan", "demo", "--configfile", str(mine)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("demo: at most 2000 images, K = 12, 850 iterations\n")
    assert re.search(r"^features/tokens.h5 +131.6 MB +131.6 MB$", done.stdout, re.MULTILINE)
    assert re.search(r"^train +\d.*FLOP .* 850 steps of 32 images", done.stdout, re.MULTILINE)
    assert "at 10 sustained TFLOP/s" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    "words, told",
    [
        ({"name": "dem"}, r"dem is no data set; known are .*demo.*"),
        ({"name": "demo", "images": 0}, r"--images 0: must be at least 1"),
        ({"name": "demo", "configfile": (Path("absent.yaml"),)}, r"absent.yaml: No such file.*"),
        ({"name": "demo", "configfile": (Path("README.md"),)}, r"README.md: .*"),
    ],
)
def test_a_mistake_ends_with_one_line(words, told, capsys):
    with pytest.raises(SystemExit) as error, plan.one_line_errors():
        plan.main(**words)
    assert re.fullmatch(f"error: {told}", str(error.value.code))
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_missing_can_be_planned_for(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"results: {tmp_path}\n"
        "datasets:\n"
        "  mine:\n"
        f"    source: {{kind: folder, path: {tmp_path / 'absent'}}}\n"
        "    backbone: {model: facebook/dinov2-small, resolution: 28}\n"
        "    training: {preset: small}\n"
        "    masks: {sam: vit_b, sam_batch_size: 1}\n"
        "    categories: 2\n"
        "    baselines: {other: {path: x, background: remove}}\n"
        "  theirs:\n"
        f"    source: {{kind: epfl, path: {tmp_path / 'absent'}}}\n"
        "    use: mine\n"
    )
    with pytest.raises(UserError, match="absent: no such folder; .*--images N"):
        plan.main("mine", configfile=(mine,))
    told = r"datasets.mine.fid.samples = 10000 needs 20000 .* at most 25"
    with pytest.raises(UserError, match=told):
        plan.main("mine", configfile=(mine,), images=50)
    text = capsys.readouterr().out
    assert text.startswith("mine: at most 50 images, K = 50,")
    assert "sam_vit_b_01ec64.pth" in text and "inception-2015-12-05.pt" in text
    assert "4 x 10000 images, vit_b" in text and "10 x 10000 images, the backbone" in text
    plan.main("theirs", configfile=(mine,), images=50)
    text = capsys.readouterr().out
    assert text.startswith("theirs: at most 50 images, poses and model of mine\n")
    assert "pose_space/maps.h5" in text and "dinov2-small" in text
    assert "steps of" not in text and "vit_b" not in text
    assert "training/model.safetensors, the model of mine; not there yet" in text


def test_too_little_disk_is_told_after_the_table(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.yaml").write_text(f"results: {tmp_path}\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(SystemExit) as error, plan.one_line_errors():
        plan.main("demo", configfile=(tmp_path / "mine.yaml",))
    message = str(error.value.code)
    assert re.fullmatch(r"error: .*63\d\.\d MB are still to be written, only 1.0 MB .*", message)
    assert "1.0 MB free" in capsys.readouterr().out


def test_human_numbers_of_operations():
    told = {5e5: "0.5 MFLOP", 1.25e10: "12.5 GFLOP", 3e15: "3.0 PFLOP", 2.5e21: "2500.0 EFLOP"}
    for flops, text in told.items():
        assert plan.human_flops(flops) == text
    assert plan.human_flops(None) == "-"


def test_parts_of_divided_work_need_room_beside_the_whole(demo, tmp_path):
    tokens, generator = unloaded.backbone(demo.backbone), None
    one, seven = (
        planning.artifacts(demo, 1000, tokens, generator, tmp_path, shards) for shards in (1, 7)
    )
    size = next(made.size for made in one if made.path.name == "tokens.h5")
    assert planning.needed(seven) == planning.needed(one) + size
