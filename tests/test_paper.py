"""The paper's data sets: their plans, what is missing, and the graph beyond the plain one."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from workflow import ROOT, Project, errors

from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.settings import differences, load

PAPER = yaml.safe_load((ROOT / "config/paper.yaml").read_text())["datasets"]
TARGETS = {
    "compcars": "results/compcars/fid.txt",
    "sd_armchairs": "results/sd_armchairs/fid.txt",
    "sd_mugs": "results/sd_mugs/fid.txt",
    "epfl": "results/epfl/photo_sheet/contact_sheet.png",
}


@pytest.fixture
def bare(tmp_path) -> Project:
    """The workflow with the project's own configuration and no data."""
    return Project(tmp_path / "bare", configfiles=())


def _photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def _add_data(folder: Path) -> None:
    """Trees in the layouts of CompCars and of EPFL, as small as they can be."""
    _photo(folder / "data/compcars/image/1/2/2014/a.jpg")
    label = folder / "data/compcars/label/1/2/2014/a.txt"
    label.parent.mkdir(parents=True)
    label.write_text("1\n1\n1 1 5 5\n")
    _photo(folder / "data/epfl/tripod_seq_01_001.jpg")
    (folder / "data/epfl/tripod-seq.txt").write_text("1 8 6\n")


def _commands(output: str) -> dict[str, list[str]]:
    """Words of each planned command, by its module."""
    lines = re.findall(r"python -m mirage_steps\.(\w+)( .*?) 2>&1", output)
    return {module: shlex.split(words) for module, words in lines}


def _value(words: list[str], flag: str) -> str:
    return words[words.index(f"--{flag}") + 1]


def test_what_the_paper_states_is_what_the_configurations_have():
    found = load({"datasets": PAPER}).datasets
    assert [differences(found[name]) for name in TARGETS if found[name].paper] == [[], [], []]
    k_and_iterations = {
        name: (one.poses.k, one.training.iterations) for name, one in found.items() if one.paper
    }
    assert k_and_iterations == {
        "compcars": (25, 1_000_000),
        "sd_armchairs": (10, 500_000),
        "sd_mugs": (10, 700_000),
    }
    for one in PAPER.values():  # photos with `use` have no settings of their own
        for section in ("training", "views"):
            assert one.get(section, {"precision": "float32"})["precision"] == "float32"
    changed = {**PAPER["compcars"], "guidance": {"gamma": 2.0}, "poses": {"k": 8}, "views": {}}
    told = differences(load({"datasets": {"a": changed}}).datasets["a"])
    assert told == [
        "views.precision auto (paper: float32)",
        "guidance.gamma 2.0 (paper: 1.5)",
        "poses.k 8 (paper: 25)",
        "poses.fitted_images 20000 (paper: all)",
    ]


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("training", {"hours": 2}, "training.hours 2.0 (paper: 1000000 iterations)"),
        ("training", {"pretrained": "a.safetensors"}, "training.pretrained a.safetensors"),
        ("backbone", {"model": "efficientnet-lite0"}, "backbone.model efficientnet-lite0 (paper: "),
        ("screening", {"duplicates": "drop"}, "screening.duplicates drop (paper: list)"),
        ("poses", {"edits": "edits.csv"}, "poses.edits edits.csv (paper: none)"),
    ],
)
def test_what_makes_a_run_another_than_the_paper_s_is_told(section, values, told):
    one = PAPER["compcars"]
    changed = {**one, section: {**one.get(section, {}), **values}}
    found = differences(load({"datasets": {"a": changed}}).datasets["a"])
    assert len(found) == 1 and found[0].startswith(told)


@pytest.mark.parametrize("name", TARGETS)
def test_the_plan_has_the_papers_values(bare, name):
    _add_data(bare.folder)
    output = bare.run("--dry-run", "--printshellcmds", "--", TARGETS[name])
    commands = _commands(output)
    used = PAPER[PAPER[name].get("use", name)]
    training = commands["train"]
    assert _value(training, "iterations") == str(used["training"]["iterations"])
    assert _value(training, "preset") == "paper" and _value(training, "image-size") == "64"
    assert float(_value(training, "learning-rate")) == 2e-4
    assert _value(commands["poses"], "k") == str(used["poses"]["k"])
    assert _value(commands["features"], "model") == "facebook/dinov2-base"
    if name != "epfl":
        assert _value(commands["views"], "steps") == "50"
        assert "--gamma 1.5" in output
        printed = {**used["paper"]["fid"], **used["paper"].get("fid_of_others", {})}
        found = re.findall(r"--paper (\S+) (\S+)", output)
        assert {row: float(value) for row, value in found} == printed
    networks = set(re.findall(r"--network (\S+)", output))
    needed = {"facebook/dinov2-base"} | ({"vit_h", "inception"} if name != "epfl" else set())
    assert needed <= networks


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("compcars", "datasets.compcars.source.path data/compcars: no such folder; ask for"),
        ("epfl", "datasets.epfl.source.path data/epfl: no such folder; get the multi-view"),
    ],
)
def test_without_its_data_a_plan_is_one_clear_line(bare, name, told):
    if name == "epfl":
        _add_data(bare.folder)
        (bare.folder / "data/epfl/tripod-seq.txt").unlink()
        (bare.folder / "data/epfl/tripod_seq_01_001.jpg").unlink()
        (bare.folder / "data/epfl").rmdir()
    output = bare.run("--dry-run", "--", TARGETS[name], ok=False)
    (line,) = errors(output)
    assert told in line and "https://" in line and "Traceback" not in output


def test_a_data_set_without_a_model_of_its_own_says_what_its_target_is(bare):
    _add_data(bare.folder)
    output = bare.run("--dry-run", "--", "results/epfl/fid.txt", ok=False)
    (line,) = errors(output)
    assert "epfl uses the model of compcars and trains none" in line
    assert TARGETS["epfl"] in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """Two categories, baselines, and photos of another data set, in miniature."""
    project = Project(tmp_path_factory.mktemp("paper") / "run", ("mini.yaml", "more.yaml"))
    theirs = project.folder / "their images"
    theirs.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(theirs / f"{number}.png")
    source = {"kind": "procedural", "objects": "cars-and-chairs", "images": 60, "size": 64}
    baselines = {
        f"theirs-{background}": {"path": str(theirs), "background": background}
        for background in ("kept", "removed", "remove")
    }
    mini = {
        "source": {**source, "seed": 21},
        "categories": 2,
        "poses": {"k": 4},
        "baselines": baselines,
        "paper": {
            "source": "Table 1", "kind": "procedural", "iterations": 7,
            "fid": {"no-mv": 6.081},
            "fid_of_others": {"monnier": 115.56, "theirs-kept": 1.5, "theirs-remove": 2.5},
        },
    }  # fmt: skip
    photos = {"source": {**source, "images": 6, "seed": 9}, "use": "mini", "sheet": {"objects": 3}}
    more = {"datasets": {"mini": mini, "photos": photos}}
    (project.folder / "more.yaml").write_text(yaml.safe_dump(more))
    project.run("--", "results/mini/overview.txt", "results/photos/photo_sheet/contact_sheet.png")
    return project


@pytest.mark.slow
def test_categories_have_poses_of_their_own(finished):
    rows = [line.split(",") for line in finished["poses/poses.csv"].read_text().splitlines()[1:]]
    assert {int(pose) // 4 for _, pose, _, _ in rows} == {0, 1}
    assert all(int(pose) // 4 == int(category) for _, pose, _, category in rows)
    config = json.loads(finished["training/config.json"].read_text())["unet"]
    assert (config["poses"], config["categories"]) == (8, 2)
    about = json.loads(finished["categories/categories.json"].read_text())
    assert about["truth"]["labels"] == ["car", "chair"] and sum(about["images"]) == len(rows)


@pytest.mark.slow
def test_views_of_an_object_stay_within_its_category(finished):
    import h5py

    with h5py.File(finished["sets/mv-bg-hag/images.h5"]) as file:
        poses, objects = file["pose"][:], file["object"][:]
    for number in set(objects.tolist()):
        assert len(set((poses[objects == number] // 4).tolist())) == 1


@pytest.mark.slow
def test_baselines_and_the_papers_figures_stand_in_the_table(finished):
    text = finished["fid.txt"].read_text()
    cells = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert cells["no-mv"][3] == "6.081" and cells["mv-bg-hag"][3] == "-"
    assert {"theirs-kept", "theirs-removed", "theirs-remove-nobg"} <= cells.keys()
    assert cells["theirs-kept"][3] == "-" and cells["theirs-remove-nobg"][3] == "2.500"
    assert "also gives: monnier 115.560, theirs-kept without background 1.500." in text
    assert "training.iterations 4 (paper: 7)" in text


@pytest.mark.slow
def test_photos_get_their_poses_from_the_other_data_set_s_estimator(finished):
    folder = finished.folder / "results/photos"
    ours, theirs = (load_estimator(run / "poses" / ESTIMATOR) for run in (folder, finished[""]))
    np.testing.assert_array_equal(ours.foreground.pca.components, theirs.foreground.pca.components)
    for mine, other in zip(ours.poses, theirs.poses, strict=True):
        np.testing.assert_array_equal(mine.centroids, other.centroids)
    sheet = json.loads((folder / "photo_sheet/photos.json").read_text())
    assert len(sheet["photos"]) == 3
    assert not (folder / "training").exists()


@pytest.mark.slow
def test_a_second_run_does_nothing(finished):
    targets = ("results/mini/overview.txt", "results/photos/photo_sheet/contact_sheet.png")
    assert "Nothing to be done" in finished.run("--", *targets)
