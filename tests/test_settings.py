"""Configurations: what is refused and how it is said, and the way to the command line."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
import yaml
from pydantic import BaseModel

from mirage_steps import dataset, settings
from mirage_steps.errors import UserError
from mirage_steps.files.command import flags, run
from mirage_steps.files.manifest import Entry
from mirage_steps.settings import Folder, Procedural, load

ROOT = Path(settings.__file__).parents[1]
SECTIONS = [
    cls
    for _, cls in inspect.getmembers(settings, inspect.isclass)
    if issubclass(cls, settings.Settings) and cls is not settings.Settings
]
SOURCES = (
    Folder, settings.CompCars, settings.Epfl, settings.StableDiffusion, Procedural,
)  # fmt: skip
# Sections that no step takes as flags.
NO_FLAGS = (
    settings.Dataset,
    settings.Configuration,
    settings.Baseline,
    settings.Paper,
    settings.Sampling,
)
STEP_SECTIONS = [cls for cls in SECTIONS if cls not in (*SOURCES, *NO_FLAGS)]


def _config(**sections) -> dict:
    return {"datasets": {"demo": {"source": {"kind": "procedural"}, **sections}}}


def _refusal(config) -> str:
    with pytest.raises(UserError) as error:
        load(config)
    message = str(error.value)
    assert "\n" not in message and message.startswith("config: ")
    return message


# Refusals


@pytest.mark.parametrize(
    "config, told",
    [
        ({"dataset": {}}, "config: dataset is not a key; did you mean 'datasets'?"),
        (_config(pose={"k": 9}), "config: datasets.demo.pose is not a key; did you mean 'poses'?"),
        (_config(poses={"start": 3}), "datasets.demo.poses.start is not a key; did you mean 'sta"),
        (
            {"datasets": {"photos": {"source": {"kind": "procedural"}, "poses": {"start": 3}}}},
            "datasets.photos.poses.start is not a key; did you mean 'starts'?",
        ),
        (_config(views={"xyz": 3}), "views.xyz is not a key; known here: solver, steps, last"),
        (_config(novel_views={"stride": 4}), "novel_views.stride is gone: with views.solver dpm"),
        (_config(novel_views={"inversion_steps": 50}), "inversion_steps is gone: photos are inv"),
        (
            {"datasets": {"a": {"source": {"kind": "folder", "path": "x", "max_pixel": 1}}}},
            "datasets.a.source.max_pixel is not a key; did you mean 'max_pixels'?",
        ),
        (
            {"datasets": {"a": {"source": {"kind": "procedural", "path": "x"}}}},
            "datasets.a.source.path is not a key; known here: kind, objects, images",
        ),
        (
            {"datasets": {"a": {"source": {"kind": "procedural", "imges": 1}}}},
            "datasets.a.source.imges is not a key; did you mean 'images'?",
        ),
    ],
)
def test_unknown_keys_are_told_with_what_was_meant(config, told):
    assert told in _refusal(config)


@pytest.mark.parametrize(
    "config, where",
    [
        ({}, "datasets is required"),
        ({"datasets": {"a": {}}}, "datasets.a.source is required"),
        (
            {
                "datasets": {
                    "compcrs": {"poses": {"k": 5}},
                    "compcars": _config()["datasets"]["demo"],
                }
            },
            "datasets.compcrs.source is required; did you mean 'compcars'?",
        ),
        (
            {"datasets": {"a": {"source": {"path": "x"}}}},
            "source.kind is required: folder, compcars, ",
        ),
        ({"datasets": {"a": {"source": {"kind": "folder"}}}}, "datasets.a.source.path is required"),
    ],
)
def test_what_is_missing_is_told(config, where):
    assert where in _refusal(config)


@pytest.mark.parametrize(
    "sections, told",
    [
        ({"poses": {"k": "many"}}, "datasets.demo.poses.k: input should be a valid integer"),
        ({"poses": {"k": "many"}}, "(got 'many')"),
        ({"poses": None}, "datasets.demo.poses: "),
        ({"poses": 5}, "datasets.demo.poses: "),
        ({"training": {"ema": 1.0}}, "training.ema: input should be less than 1 (got 1.0)"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: "),
        ({"training": {"preset": "small", "image_size": 40}}, "training: image_size must be a"),
        ({"training": {"precision": "half"}}, "training.precision: input should be 'auto'"),
        ({"foreground": {"margin": 0.5}}, "foreground.margin: input should be less than 0.5"),
        ({"foreground": {"fallback_sign": 0}}, "foreground.fallback_sign: input should be -1 or 1"),
        ({"source": {"kind": "web"}}, "datasets.demo.source.kind is unknown: folder, "),
        ({"source": {"kind": "procedural", "size": 4}}, "datasets.demo.source.size: "),
        ({"source": {"kind": "folder", "path": 3}}, "datasets.demo.source.path: "),
        ({"source": "photos"}, "datasets.demo.source: "),
        ({"fid": {"samples": 1}}, "fid.samples: "),
    ],
)
def test_wrong_values_are_told_with_their_path(sections, told):
    assert told in _refusal(_config(**sections))


@pytest.mark.parametrize("config", [None, [], "demo", {"datasets": None}, {"datasets": {"a": 1}}])
def test_a_config_of_another_shape_is_refused(config):
    _refusal(config)


@pytest.mark.parametrize("name", ["two words", "../up", "", ".hidden", "a/b", "-x"])
def test_names_that_are_no_folder_names_are_refused(name):
    assert "names are ASCII letters, digits" in _refusal({"datasets": {name: {"source": {}}}})


def test_what_other_data_sets_are_named_for_is_checked():
    one = {"source": {"kind": "procedural"}}
    told = {
        "targets: b is not a data set": {"targets": ["b"], "datasets": {"a": one}},
        "datasets.a.use: b is not another": {"datasets": {"a": {**one, "use": "b"}}},
        "datasets.a.use: a is not another": {"datasets": {"a": {**one, "use": "a"}}},
        "datasets.a.use: b has no model of its own; use c": {
            "datasets": {"a": {**one, "use": "b"}, "b": {**one, "use": "c"}, "c": one}
        },
    }
    for message, config in told.items():
        assert message in _refusal(config)


def test_file_names_are_written_out_and_wildcards_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = {"weights": "~/shared", **_config(masks={"sam": "~/sam.pth"}, labels="~/l.csv")}
    found = load(config)
    assert (found.weights, found.datasets["demo"].masks.sam) == (
        "/home/me/shared",
        "/home/me/sam.pth",
    )
    assert found.datasets["demo"].labels == "/home/me/l.csv"
    for name in ("a{x}", "<w>/m", "a$b", "`a`", 'a"b', "a\\b"):
        assert "must not hold any of" in _refusal(_config(backbone={"model": name}))
        assert "must not hold any of" in _refusal({"results": name, **_config()})
        assert load(_config(photos=name)).datasets["demo"].photos == Path(name)


def test_whatever_the_paper_states_is_compared():
    stated = {
        "categories": 2,
        "source": {"kind": "procedural"},
        "training": {"batch_size": 2, "ema": 0.5, "dropout": 0.0},
        "paper": {"kind": "compcars", "k": 9, "iterations": 5, "fid": {}, "source": "Table 1"},
    }
    told = settings.differences(load({"datasets": {"a": stated}}).datasets["a"])
    for words in (
        "categories 2 (paper: 1)",
        "source.kind procedural (paper: compcars)",
        "training.batch_size 2 (paper: 128)",
        "training.ema 0.5 (paper: 0.9999)",
        "training.dropout 0.0 (paper: 0.1)",
        "poses.k 25 (paper: 9)",
        "training.iterations 1000000 (paper: 5)",
    ):
        assert words in told


def test_a_page_lists_the_defaults_that_are_not_the_papers():
    """Rows of its table are KEY, default, paper."""
    page = (ROOT / "docs/differences.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \| `([^`]+)` \|", page, re.M)
    declared = settings.deviations(settings.Dataset, "")
    for name, section in settings.sections().items():
        declared += settings.deviations(section, name)
    assert [f"{key} {default} (paper: {paper})" for key, default, paper in rows] == declared
    assert len(declared) >= 6


def test_without_sam_no_baseline_can_be_compared_without_background():
    for background in ("removed", "remove"):
        baselines = {"gan": {"path": "x", "background": background}}
        told = _refusal(_config(masks={"sam": "none"}, baselines=baselines))
        assert f"baselines.gan.background {background}: needs real images without" in told
    load(_config(masks={"sam": "none"}, baselines={"gan": {"path": "x"}}))


def test_keys_of_baselines_and_of_the_paper_are_checked():
    told = _refusal(_config(baselines={"monnier": {"path": "x", "mask": 1}}))
    assert "baselines.monnier.mask is not a key; known here: path, background" in told
    assert "paper.kk is not a key" in _refusal(_config(paper={"kk": 1}))


def test_all_problems_are_told_at_once():
    message = _refusal(_config(poses={"kk": 1, "starts": 0}, view={}))
    assert message.count("config: ") == 3


def test_poses_of_cameras_are_checked_and_one_needs_no_list():
    assert load(_config(cameras={"front": 7})).datasets["demo"].cameras.front == (7,)
    told = _refusal(_config(poses={"k": 8}, categories=2, cameras={"front": [3, 16]}))
    assert "datasets.demo.cameras.front 16: there are 16 poses, 0 to 15" in told
    assert "cameras.left" in _refusal(_config(cameras={"left": -1}))


def test_three_novel_views_need_four_poses():
    assert "poses.k must be at least 4" in _refusal(_config(poses={"k": 3}))
    assert load(_config(poses={"k": 4})).datasets["demo"].poses.k == 4


# What is accepted


def test_sources_are_told_apart_by_their_kind():
    config = _config()
    config["datasets"]["photos"] = {"source": {"kind": "folder", "path": "my photos"}}
    found = load(config).datasets
    assert found["demo"].source == Procedural()
    assert found["photos"].source == Folder(path=Path("my photos"))


def test_yaml_s_way_of_writing_small_numbers_is_understood():
    config = yaml.safe_load("training: {learning_rate: 1e-4}")
    assert config["training"]["learning_rate"] == "1e-4"
    assert load(_config(**config)).datasets["demo"].training.learning_rate == 1e-4


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        settings.Poses().k = 3


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "config").glob("*.yaml")), ROOT / "tests" / "mini.yaml"],
    ids=lambda path: path.name,
)
def test_configurations_of_the_project_load(path):
    assert load(yaml.safe_load(path.read_text())).datasets


@pytest.mark.parametrize("section", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_key_has_a_description(section):
    for key, field in section.model_fields.items():
        nested = inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
        if key in ("kind", "source", "datasets") or nested:
            continue
        assert field.description and field.description.endswith("."), key


# The command line


def _parse(section: type[BaseModel], words: list[str]) -> BaseModel:
    """Read words as a step does, in which sections stand without a prefix."""

    def main(*, section: section) -> BaseModel:
        return section

    return tyro.cli(main, args=words, config=(tyro.conf.OmitArgPrefixes,))


def _other(value: object, field) -> object:
    """A value that is not the default but valid."""
    choices = {"rule": "first-component", "threshold": "zero", "fallback_sign": -1}
    choices |= {"component": -2, "duplicates": "drop", "hours": 2.5}
    choices |= {"preset": "small", "schedule": "cosine", "precision": "bfloat16"}
    choices |= {"token_precision": "bfloat16", "sam_precision": "bfloat16"}
    choices |= {"optimizer": "muon", "levels": (16,), "attention": "all", "reference": "guided"}
    choices |= {"gammas": (7.0,), "references": ("3", "45.5deg")}
    choices |= {"front": (7, 19), "left": (0,), "solver": "dpm-solver++", "last_timestep": 60}
    choices |= {"token": "mean-patch", "background": "kept", "method": "spectral"}
    if field in choices:
        return choices[field]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 64
    if isinstance(value, float):
        return value / 3 or 0.25
    return "a folder/with 'quotes' and ünicode"


@pytest.mark.parametrize("section", STEP_SECTIONS, ids=lambda cls: cls.__name__)
def test_flags_come_back_as_the_same_settings(section):
    default = section()
    other = section(**{key: _other(value, key) for key, value in default})
    assert all(a != b for (_, a), (_, b) in zip(default, other, strict=True))
    for given in (default, other):
        words = flags(given)
        assert _parse(section, words) == given
        # Every key is spelled out, also where it has its default, unless that is none.
        written = [value for _, value in given if value is not None]
        assert sum(word.startswith("--") for word in words) == len(written)


GIVEN_SOURCES = [
    Folder(path=Path("my 'own' Fotos ü"), max_pixels=7),
    Folder(path=Path("photos"), masks=Path("my 'own' masks ü")),
    settings.CompCars(path="a b", boxes=True),
    settings.CompCars(path="a b"),
    settings.Epfl(path="-x", boxes=True),
    settings.StableDiffusion(category='a "single" mug, ü', images=3, guidance_scale=2.5),
    Procedural(images=3, objects="chairs"),
]


def test_every_source_has_an_example():
    source = settings.Dataset.model_json_schema()["properties"]["source"]["anyOf"][0]
    assert {one.kind for one in GIVEN_SOURCES} == source["discriminator"]["mapping"].keys()


@pytest.mark.parametrize("given", GIVEN_SOURCES, ids=lambda source: source.kind)
def test_flags_of_sources_come_back_through_their_subcommand(given, monkeypatch, tmp_path):
    taken = []

    def listing(source, out, progress, **_):
        taken.append(source)
        return [Entry("a.png", Path("a.png"), 1, 1)], []

    monkeypatch.setattr(dataset, "module_of", lambda _: SimpleNamespace(list_images=listing))
    words = flags(given)
    at = words.index("--kind")
    command = [given.kind, *words[:at], *words[at + 2 :]]
    monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path / "out"), *command])
    run(dataset.main)
    assert taken == [given]
