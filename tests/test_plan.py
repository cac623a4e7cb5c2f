"""What a data set will cost: formulas against torch's counts, sizes against a finished run."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from workflow import ROOT

from mirage_steps import settings
from mirage_steps.ablation import _variants
from mirage_steps.errors import UserError
from mirage_steps.files.configuration import read_configuration
from mirage_steps.method.unet import UNet, preset
from mirage_steps.tools import plan

Usage = namedtuple("Usage", "total used free")
# Bytes that a finished run of the data set demo wrote; a third checkpoint is there while written.
FINISHED = {
    "features/tokens*.h5": 131_945_184,
    "crops/crops.h5": 24_823_584,
    "pose_space/maps.h5": 6_979_040,
    "training/checkpoints/*.pt": 3 * 118_160_645,
    "training/model.safetensors": 39_038_344,
    "sets/*/*.h5": 29_400_000,
}
STAND_IN = settings.Backbone(model="weights/stand-in-dinov2-cars", resolution=64)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def _counted(function) -> int:
    # The counter knows no fused attention of the CPU.
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        function()
    return counter.get_total_flops()


def test_backbone_s_operations_are_those_that_torch_counts():
    network = transformers.AutoModel.from_pretrained(STAND_IN.model)
    counted = _counted(lambda: network(torch.zeros(1, 3, 64, 64)))
    found = plan.backbone(STAND_IN)
    assert (found.patches, found.dim) == (256, 128)
    assert found.flops == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("name, size", [("small", 64), ("small", 128), ("paper", 32)])
def test_unet_s_operations_are_those_that_torch_counts(name, size):
    network = UNet(preset(name, size, 5, 0.0))
    encoder, decoder = plan.unet_flops(network)
    image, zero = torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long)
    embedding = network.embed(zero, zero)
    encoded = network.encode(image, embedding)
    counted = _counted(lambda: network.encode(image, embedding))
    assert encoder == pytest.approx(counted, rel=0.05)
    counted = _counted(lambda: network.decode(encoded, embedding))
    assert decoder == pytest.approx(counted, rel=0.05)


def test_published_backbones_are_known_and_others_are_refused():
    base = plan.backbone(settings.Backbone(model="facebook/dinov2-base", resolution=224))
    assert (base.patches, base.dim) == (256, 768) and base.size == pytest.approx(346e6, rel=0.05)
    for model in ("someone/else", "tests"):
        with pytest.raises(UserError, match=r"^backbone.model [^\n]*$"):
            plan.backbone(settings.Backbone(model=model))


def test_sizes_are_those_of_a_finished_run():
    configuration = read_configuration([])
    demo = configuration.dataset("demo")
    network = UNet(preset("small", demo.training.image_size, demo.poses.k, 0.0))
    vit = plan.backbone(demo.backbone)
    sizes = {
        path: size for path, size, _ in plan.artifacts(configuration, "demo", 2000, vit, network)
    }
    for pattern, size in FINISHED.items():
        assert sizes[pattern] == pytest.approx(size, rel=0.1), pattern
    # The shards of the crops' tokens and the whole.
    divided = configuration.model_copy(update={"shards": 4})
    other = {path: size for path, size, _ in plan.artifacts(divided, "demo", 2000, vit, network)}
    crops = "crop_features/tokens*.h5"
    assert other[crops] == 2 * sizes.pop(crops) and sizes.items() <= other.items()


def test_what_is_there_is_not_written_again(tmp_path, monkeypatch, capsys):
    mine, folder = _mine(tmp_path), tmp_path / "results/demo"
    (folder / "features").mkdir(parents=True)
    (folder / "features/tokens.h5").write_bytes(bytes(10**6))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 713_000_000))
    plan.main("demo", configfile=(mine,))
    assert "crop_features/tokens" in capsys.readouterr().out
    (folder / "features/tokens.h5").unlink()
    with pytest.raises(UserError, match="needs 713.5 MB, only 713.0 MB free"):
        plan.main("demo", configfile=(mine,))
    (folder / "pose_space").mkdir()
    (folder / "pose_space/maps.h5").touch()
    plan.main("demo", configfile=(mine,))
    assert "crop_features/tokens" not in capsys.readouterr().out.rpartition("demo:")[2]


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.5])
@pytest.mark.parametrize("gammas", [settings.Ablation().gammas, (1.0, 3.0), (3.0, 5.0), ()])
def test_rows_of_the_ablation_are_those_that_it_makes(gamma, gammas):
    configuration = read_configuration([])
    changed = configuration.dataset("demo").model_copy(
        update={
            "guidance": settings.Guidance(gamma=gamma),
            "ablation": settings.Ablation(gammas=gammas),
        }
    )
    names = {**configuration.datasets, "demo": changed}
    configuration = configuration.model_copy(update={"datasets": names})
    network = UNet(preset("small", 64, changed.poses.k, 0.0))
    vit = plan.backbone(changed.backbone)
    work = plan.operations(configuration, "demo", 2000, vit, network)
    (runs,) = [runs for step, _, runs in work if step == "ablation"]
    rows = len(_variants(changed.views, changed.guidance, changed.ablation))
    assert runs.startswith(f"at most {rows} x ")


def test_images_are_counted_by_name(tmp_path):
    for name in ("a.jpg", "b/c.PNG", "label.txt", "image/f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/tripod_seq_01_001.jpg").touch()
    (tmp_path / "tripod-seq.txt").touch()
    (tmp_path / "label").mkdir()
    assert plan.count_images(settings.Folder(path=tmp_path)) == 4
    assert plan.count_images(settings.CompCars(path=tmp_path)) == 1
    assert plan.count_images(settings.Epfl(path=tmp_path)) == 1
    assert plan.count_images(settings.StableDiffusion(category="mug", images=7)) == 7


def _mine(folder: Path) -> Path:
    """A configuration whose results go to ``folder``."""
    path = folder / "mine.yaml"
    path.write_text(
        f"results: {folder / 'results'}\nweights: {folder / 'weights'}\n"
        f"datasets:\n  mine:\n    source: {{kind: folder, path: {folder / 'absent'}}}\n"
        f"  theirs:\n    source: {{kind: epfl, path: {folder / 'absent'}}}\n    use: mine\n"
    )
    return path


def test_command_prints_the_demo_s_plan_and_writes_nothing(tmp_path, capsys):
    mine = _mine(tmp_path)
    plan.main("demo", configfile=(mine,))
    text = capsys.readouterr().out
    assert text.startswith("demo: at most 2000 images\n")
    assert re.search(r"^features/tokens\*.h5 +131.6 MB *$", text, re.MULTILINE)
    assert re.search(r"^train +\d+\.\d +1300 steps of 32 images, small U-Net$", text, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_published_networks_are_written_and_another_s_model_is_not(tmp_path, monkeypatch, capsys):
    mine = _mine(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    plan.main("mine", images=20_000, configfile=(mine,))
    text = capsys.readouterr().out
    for name in ("facebook/dinov2-base", "sam/sam_vit_h", "inception/", "train "):
        assert f"\n{name}" in text
    plan.main("theirs", images=50, configfile=(mine,))
    text = capsys.readouterr().out
    assert "facebook/dinov2-base" in text and "pose_space/maps.h5" in text
    assert "\ntrain" not in text and "sam_vit_h" not in text


def test_what_a_run_refuses_is_refused(tmp_path):
    mine = _mine(tmp_path)
    (tmp_path / "labels.csv").write_text("image,azimuth_deg\na.jpg,12,5\n")
    (tmp_path / "file").touch()
    for setting, told in (
        ({"labels": "/nope"}, "labels /nope: no such file"),
        ({"labels": str(tmp_path / "labels.csv")}, "labels .*labels.csv, line 2: has more cells"),
        ({"photos": str(tmp_path / "file")}, "photos .*file: is a file; set it to the folder"),
        ({"masks": {"sam": "vit_x"}}, "masks.sam vit_x: no such file or folder, and none of"),
        ({"masks": {"sam": "/dev/null"}}, "masks.sam /dev/null: is not a regular file, and none"),
        ({"embed": {"inception": 5000 * "x"}}, "embed.inception x*: File name too long, and"),
        ({"backbone": {"resolution": 225}}, "backbone.resolution 225: not a multiple of the patch"),
        ({"baselines": {"gan": {"path": "/nope"}}}, "baselines.gan.path /nope: no such folder"),
        ({"source": {"kind": "procedural", "images": 9}}, "fid.samples 10000: needs 20000 real"),
    ):
        config = yaml.safe_load(mine.read_text())
        config["datasets"]["mine"] |= setting
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
        images = None if "source" in setting else 20_000
        with pytest.raises(UserError, match=f"^datasets.mine.{told}"):
            plan.main("mine", images=images, configfile=(tmp_path / "wrong.yaml",))


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    mine = _mine(tmp_path)
    for name, images, told in (
        ("dem", None, "NAME dem: no such data set; did you mean 'demo'"),
        ("mine", None, "absent: no such folder; "),
    ):
        with pytest.raises(UserError, match=told):
            plan.main(name, images=images, configfile=(mine,))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="fid.samples 10000: needs 20000 .* set it to at most 25"):
        plan.main("mine", images=50, configfile=(mine,))
    assert "features/tokens" in capsys.readouterr().out  # the table comes first
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(
        UserError, match=r"what is still to be written needs .* only 1.0 MB free; make"
    ):
        plan.main("demo", configfile=(mine,))
    assert "features/tokens" in capsys.readouterr().out  # the table comes first
