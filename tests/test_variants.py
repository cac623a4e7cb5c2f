"""Variants: data sets that share another's images, poses and model and differ in the sampler."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from workflow import ROOT, Project, errors

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_json
from mirage_steps.files.records import home_of
from mirage_steps.run import Run
from mirage_steps.settings import load
from mirage_steps.tools import compare, plan, status

DEMO = {
    "source": {"kind": "procedural"},
    "photos": "examples/cars",
    "views": {"steps": 20, "seed": 4},
    "guidance": {"attention": "all"},
    "baselines": {"theirs": {"path": "x", "background": "remove"}},
}


def _load(**mine) -> settings.Configuration:
    return load({"datasets": {"demo": DEMO, "mine": {"use": "demo", **mine}}})


def _add(project: Project, **datasets: dict) -> Project:
    """More data sets in the project's configuration."""
    path = project.folder / "mini.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"] |= datasets
    path.write_text(yaml.safe_dump(config))
    return project


# Settings


def test_a_variant_differs_in_the_keys_that_it_gives():
    found = _load(guidance={"gamma": 3}, views={"steps": 10}, photos=None)
    mine, demo = found.dataset("mine"), found.dataset("demo")
    assert mine.guidance == settings.Guidance(gamma=3, attention="all")
    assert (mine.views.steps, mine.views.seed) == (10, 4)
    assert (mine.training, mine.baselines, mine.fid) == (demo.training, demo.baselines, demo.fid)
    assert mine.is_variant and mine.photos is None and found.home("mine") == "demo"
    assert _load().dataset("mine").photos == demo.photos


def test_photos_of_another_source_are_no_variant_and_may_differ_too():
    source = {"kind": "epfl", "path": "x"}
    found = _load(source=source, guidance={"gamma": 3}, labels="l.csv").dataset("mine")
    assert (found.guidance.gamma, found.guidance.attention) == (3, "all")
    assert found.labels == "l.csv" and found.photos is None
    assert not (found.is_variant or found.is_evaluated)


@pytest.mark.parametrize(
    "section",
    ["backbone", "foreground", "pose_space", "poses", "training", "fid", "masks", "embed", "labels",
     "categories", "baselines"],
)  # fmt: skip
def test_what_is_shared_is_refused(section):
    value = {"labels": "x.csv", "categories": 2}.get(section, {})
    with pytest.raises(UserError) as error:
        _load(guidance={"gamma": 3}, **{section: value})
    assert f"datasets.mine: {section}: is taken from demo (use: demo); remove it" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_sets_are_made_where_their_settings_are():
    def own(**mine) -> set[str]:
        return set(_load(**mine).own_sets("mine"))

    assert own() == own(sheet={"objects": 3}, views={"batch_size": 1}) == set()
    assert own(guidance={"gamma": 3}) == {"mv-bg-hag", "mv-nobg-hag"}
    multi_view = {"mv-bg-hag", "mv-nobg-hag", "mv-bg-no-hag", "mv-nobg-no-hag"}
    assert own(guidance={"attention": "decoder"}) == multi_view
    assert own(views={"steps": 9}) == {*multi_view, "no-mv", "untrained"}
    makers = _load(views={"steps": 9}).makers("mine")
    assert makers["real-a-nobg"] == makers["theirs-nobg"] == "demo"
    assert own(guidance={"gamma": 1}) == set()


def test_without_guidance_there_are_no_guided_sets():
    mine = _load(guidance={"gamma": 1})
    assert not any(one.guided for one in mine.dataset("mine").sets.values())
    left_out = mine.dataset("demo").sets.keys() - mine.dataset("mine").sets.keys()
    assert left_out == {"mv-bg-hag", "mv-nobg-hag"}
    unguided = {**DEMO, "guidance": {"gamma": 1}}
    both = load({"datasets": {"demo": unguided, "mine": {"use": "demo", "guidance": {"gamma": 3}}}})
    assert set(both.own_sets("mine")) == left_out


# The graph


def test_a_variant_trains_nothing_and_makes_what_differs(tmp_path):
    mine = {"use": "mini", "guidance": {"gamma": 3}, "sheet": {"references": ["front", 2]}}
    project = _add(Project(tmp_path / "new"), mine=mine)
    config = project.folder / "mini.yaml"
    config.write_text(f"targets: [mine]\n{config.read_text()}")
    output = project.run("--dry-run", "--printshellcmds")
    commands = [line for line in output.splitlines() if "python -m mirage_steps." in line]
    made = [line for line in commands if "results/mine" in line]
    steps = sorted(line.partition("mirage_steps.")[2].split()[0] for line in made)
    assert steps == ["ablation", "contact_sheet", "contact_sheet", "contact_sheet", "embed",
                     "embed", "evidence", "fid", "masks", "novel_views", "novel_views", "report",
                     "sheet", "sheet", "sheet", "views"]  # fmt: skip
    sampled = [line for line in made if "--gamma" in line]
    assert len(sampled) == 8 and all("--gamma 3.0" in line for line in sampled)
    (table,) = (line for line in made if "mirage_steps.fid" in line)
    assert "results/mini/sets/no-mv/features.h5" in table
    assert "results/mine/sets/mv-bg-hag/features.h5" in table and "--dataset mine" in table


def test_an_unguided_data_set_lists_its_unguided_views(tmp_path):
    project = Project(tmp_path / "new")
    config = project.folder / "mini.yaml"
    mini = yaml.safe_load(config.read_text())["datasets"]["mini"]
    _add(project, mini=mini | {"guidance": {"gamma": 1}})
    output = project.run("--dry-run", "--printshellcmds", "--", "results/mini/overview.txt")
    assert "sets/mv-bg-no-hag/images.png" in output and "mv-nobg-no-hag" in output
    assert "mv-bg-hag" not in output and "mv-nobg-hag" not in output


@pytest.mark.parametrize("target", ["training/model.safetensors", "turntables/turntables.h5"])
def test_what_a_variant_lacks_is_told(tmp_path, target):
    project = _add(Project(tmp_path / "new"), mine={"use": "mini"})
    (line,) = errors(project.run("--dry-run", "--", f"results/mine/{target}", ok=False))
    assert "mine is a variant of mini" in line and "ask for these in results/mini" in line
    assert "results/mine/overview.txt" in line


@pytest.mark.slow
def test_a_second_gamma_is_a_second_folder(changed):
    mine = {"use": "mini", "guidance": {"gamma": 3}, "sheet": {"references": ["side", 2]}}
    _add(changed, mine=mine)
    model = changed["training/model.safetensors"]
    before = (model.stat().st_mtime_ns, changed["fid.txt"].read_bytes())
    changed.run("--", "results/mine/overview.txt")
    assert (model.stat().st_mtime_ns, changed["fid.txt"].read_bytes()) == before
    folder = changed.folder / "results/mine"
    assert sorted(path.name for path in (folder / "sets").iterdir()) == ["mv-bg-hag", "mv-nobg-hag"]
    rows = {
        name: json.loads((folder.parent / name / "metrics.json").read_text())["rows"]
        for name in ("mini", "mine")
    }
    changed_rows = [a["row"] for a, b in zip(*rows.values(), strict=True) if a != b]
    assert set(changed_rows) <= {"mv-bg-hag", "mv-nobg-hag"} and "mv-bg-hag" in changed_rows
    pictures = (folder / "overview.txt").read_text().partition("Pictures:\n")[2].split("\n")
    assert "  results/mine/sheet/reference-side.png" in pictures
    assert all((changed.folder / path.strip()).stat().st_size > 1000 for path in pictures if path)
    assert home_of(folder) == folder.parent / "mini"
    assert "Nothing to be done" in changed.run("--", "results/mine/overview.txt")
    changed.settings(guidance={"gamma": 2.0})  # of the used data set, not of the variant
    assert changed.planned("results/mine/overview.txt") == {}


# The tools


def test_plan_and_status_of_a_variant(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    mine = tmp_path / "mine.yaml"
    datasets = "datasets:\n  mine: {use: demo, guidance: {gamma: 3}}\n"
    mine.write_text(f"results: {tmp_path / 'results'}\n{datasets}")
    plan.main("mine", configfile=(mine,))
    text = capsys.readouterr().out
    assert text.startswith("mine: at most 2000 images, with the model of demo\n")
    assert "\nsets/*/*.h5" in text and "\nviews" in text
    assert not any(f"\n{word}" in text for word in ("features", "crops", "train", "pose_space"))
    status.main(("mine",), configfile=(mine,), as_json=True)
    stages = json.loads(capsys.readouterr().out)["mine"]["stages"]
    assert not {"dataset", "poses", "real", "train", "baseline", "photo_sheet"} & stages.keys()
    assert (stages["views"]["of"], stages["masks"]["of"], stages["embed"]["of"]) == (1, 1, 2)


def _variant(folder: Path) -> Path:
    """What the photo command and compare see of a variant, beside the run that it uses."""
    inputs = {"model": {"path": "results/demo/training/model.safetensors"}}
    for name, gamma in (("demo", 1.5), ("mine", 3)):
        content = {
            "step": "mirage_steps.sheet", "settings": {"gamma": gamma}, "networks": {},
            "packages": {}, "inputs": inputs,
        }  # fmt: skip
        write_json(folder / name / "sheet/sheet.run.json", content)
    train = {**content, "step": "mirage_steps.train", "settings": {"seed": 0}}
    write_json(folder / "demo/training/train.run.json", train)
    return folder / "mine"


def test_comparing_a_variant_shows_what_differs_only(tmp_path):
    mine = _variant(tmp_path)
    found = [compare.settings(compare.read_run(folder)) for folder in (tmp_path / "demo", mine)]
    (one,) = compare.differences(found)
    assert one == {"step": "sheet", "key": "gamma", "values": ["1.5", "3"]}
    shutil.rmtree(tmp_path / "demo")
    with pytest.raises(UserError, match="demo: no results there"):
        compare.read_run(mine)


def test_the_photo_command_names_the_run_that_has_the_model(tmp_path):
    mine = _variant(tmp_path)
    with pytest.raises(UserError, match=f"run {mine}: is a variant of {tmp_path / 'demo'}, which"):
        Run.load(mine)
