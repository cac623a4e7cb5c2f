"""Files of the configuration: whatever they hold, there is a configuration or one line."""

import copy
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from workflow import ENVIRONMENT, ROOT, Project, errors

from mirage_steps.errors import UserError
from mirage_steps.files.command import flags
from mirage_steps.files.configuration import read_configfile, read_configuration
from mirage_steps.settings import Configuration, Settings, load

VALID = [ROOT / "tests/mini.yaml", *sorted((ROOT / "config").glob("*.yaml"))]
MINI = VALID[0].read_text()


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def _one_line(text: str) -> bool:
    return len(text.splitlines()) == 1 and len(text) < 5000 and bool(text.encode("utf-8"))


def _refusal(folder: Path, content: str | bytes) -> str:
    path = folder / "my.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_configuration([path])
    assert _one_line(str(error.value))
    return str(error.value).replace(str(path), "my.yaml")


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(10 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "numeric name": (MINI.replace("mini:", "2024:"), r'line 3: datasets.2024: .*in quotes: "2024"'),
    "boolean name": (MINI.replace("mini:", "no:"), r'datasets.no: .* in quotes: "no"'),
    "section twice": (
        MINI + "    training: {preset: small}\n",
        r"datasets.mini.training was given",
    ),
    "data set twice": (MINI + "  mini: {}\n", r"line \d+: datasets.mini was given in line 3"),
    "Latin-1": ("# Mühle\n" + MINI).encode("latin-1"),
    "UTF-16": MINI.encode("utf-16"),
    "zero byte": ("results: a\0b", "special characters are not allowed"),
    "tab": ("datasets:\n\tmini: 1", r"line 2: .*indent with spaces, not tabs"),
    "cut off": ("datasets: {mini: [", "line 1: .*expected the node content"),
    "empty": ("# all of it a comment\n", "has no keys at its top level"),
    "a number": ("5", "has no keys at its top level"),
    "base 60": ("shards: 1:30", "line 1: shards: 1:30 is 90 to YAML; write 90 if that is meant"),
    "base 60 with a point": ("a: {b: -1:30.5}", "line 1: a.b: -1:30.5 is -90.5 to YAML"),
    "base 8": ("shards: 010", "line 1: shards: 010 is 8 to YAML"),
    "base 2": ("shards: [0b11]", "line 1: shards: 0b11 is 3 to YAML"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "a program": ("__use_yte__: true\nresults: ?1/0", "__use_yte__"),
    "a Python object": ("results: !!python/name:os.system", r"line 1: results: .* is no python/n"),
    "no date": ("results: 2024-99-99", "line 1: results: '2024-99-99' is no timestamp"),
    "many digits": ("shards: " + 5000 * "9", "line 1: shards: "),
    "deep": ("targets: " + 5000 * "[", "nested too deeply"),
    "billion laughs": (LAUGHS, "more than 50000 values"),
    "itself": ("targets: &a [*a]", "line 1: targets: contains itself"),
    "key that is a list": ("? [1]\n: 2", "line 1: a key of it is no text"),
    "huge": ("# " + 2**18 * "x", "has more than 256 kB"),
    "JSON with a key twice": ('{"shards": 1, "shards": 2}', "line 1: shards was given in line 1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(tmp_path, name):
    content, told = HOSTILE[name] if isinstance(HOSTILE[name], tuple) else (HOSTILE[name], "UTF-8")
    assert re.search(told, _refusal(tmp_path, content))


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"absent.yaml: no such file; .* put -- before targets$"):
        read_configuration([tmp_path / "absent.yaml"])
    with pytest.raises(UserError, match="is a folder"):
        read_configuration([tmp_path])
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, told in (
        (tmp_path / "fifo", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=f"{path}: {told}; "):
            read_configuration([path])


def test_files_of_another_folder(tmp_path, monkeypatch):
    """As with Snakemake's --directory: they are merged over the project's own."""
    monkeypatch.chdir(tmp_path)
    own = read_configuration([]).datasets.keys()
    assert read_configuration([VALID[0]]).datasets.keys() == {*own, "mini"}


def test_json_with_tabs_merge_keys_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text('{\n\t"shards": 2\n}')
    assert read_configfile(path) == {"shards": 2}
    path.write_text("\ufeffa: &a {x: 1}\nb: {<<: *a, x: 2, y: 3}\nc: {<<: *a}\n")
    assert read_configfile(path) == {"a": {"x": 1}, "b": {"x": 2, "y": 3}, "c": {"x": 1}}


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_valid_files_are_read_as_snakemake_reads_them(path):
    from snakemake.common.configfile import load_configfile

    assert read_configfile(path) == load_configfile(path)


@pytest.mark.parametrize(
    "section, told",
    [
        ({"poses": {"seed": 2**32}}, "poses.seed: input should be less than 4294967296"),
        ({"source": {"kind": "procedural", "seed": 2**32}}, "source.seed: input should be less"),
        ({"poses": {"k": True}}, "poses.k: is true or false to YAML, like yes, no,"),
        ({"guidance": {"gamma": float("inf")}}, "guidance.gamma: must be finite (got inf)"),
        ({"guidance": {"gamma": -1e30}}, "guidance.gamma: is too small (got -1e+30)"),
        ({"photos": 5}, "photos: must be the text of a path (got 5; put it in quotes)"),
        ({"paper": {"fid": {"mv": True}}}, "paper.fid.mv: input should be a valid number"),
        ({"masks": {"sam": False}}, "masks.sam: is true or false to YAML"),
        ({"novel_views": {"phase_cutoff": "all"}},
         "novel_views.phase_cutoff: input should be a valid integer, or none (got 'all')"),
        ({"novel_views": {"phase_cutoff": -2}}, "greater than or equal to 0, or none (got -2)"),
        ({"novel_views": {"phase_cutoff": False}}, "novel_views.phase_cutoff: is true or false"),
        ({"use": 2024}, "use: input should be a valid string (got 2024; put it in quotes)"),
        ({"training": None}, "training: input should be a valid dictionary or instance of Training "
         "(it is empty: give a value or remove the key)"),
        ({"training": {"iterations": "1e-3"}}, "training.iterations: input should be a valid int"),
        ({"training": {"iterations": 10**30}}, "training.iterations: is too large"),
        ({"labels": ""}, "labels: is empty"),
        ({"photos": "a\nb"}, "photos: must not hold control characters (got 'a\\nb')"),
        ({"source": {"kind": "folder", "path": "\ud800"}}, "source.path: must not hold control"),
        ({"po\nses": {}}, "mini.po\\nses is not a key"),
    ],
)  # fmt: skip
def test_traps_of_yaml_are_told(section, told):
    with pytest.raises(UserError) as error:
        load({"datasets": {"mini": {"source": {"kind": "procedural"}, **section}}})
    assert told in str(error.value) and _one_line(str(error.value))


def test_numbers_that_python_does_not_print_are_told():
    with pytest.raises(UserError, match=r"shards: is too large \(got a number of thousands"):
        load({"datasets": {}, "shards": 16**5000})


def test_whole_numbers_may_have_an_exponent():
    config = yaml.safe_load("{iterations: 1e6, warmup: 1.5e3, batch_size: 1.0e+2}")
    found = load({"datasets": {"a": {"source": {"kind": "procedural"}, "training": config}}})
    training = found.datasets["a"].training
    assert (training.iterations, training.warmup, training.batch_size) == (10**6, 1500, 100)


def test_a_typo_in_a_copy_of_the_template(tmp_path):
    text = (ROOT / "config/photos.yaml").read_text().replace("poses: {k", "poses: {kk")
    assert "datasets.photos.poses.kk is not a key" in _refusal(tmp_path, text)


def test_of_many_mistakes_the_first_are_told():
    with pytest.raises(UserError, match="and 90 more$"):
        load({"datasets": {}} | {f"key{n}": 1 for n in range(100)})


# Mutations of valid files

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.sampled_from([2**63, 10**400, "1e6", "1e400", "~", "{x}", "none", "folder", "demo", "no"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5) | st.integers() | st.booleans(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _mutate(config: dict, rng: random.Random, value: object) -> None:
    """Replace, remove, rename or move a random key, at any depth."""
    node = config
    while node:
        key = rng.choice(list(node))
        if not (isinstance(node[key], dict) and node[key]) or rng.random() < 0.15:
            break
        node = node[key]
    else:
        return
    way = rng.choice(("replace", "replace", "remove", "rename", "rename to any", "wrap"))
    if way == "replace":
        node[key] = value
    elif way == "wrap":
        node[key] = {key: node[key]}
    else:
        old = node.pop(key)
        if way == "rename":
            node[rng.choice(("kind", "path", "use", "paper", str(key) + "s", "fid"))] = old
        elif way == "rename to any" and not isinstance(value, dict | list):
            node[value] = old


def _read(folder: Path, content: bytes) -> None:
    """Read a file, which gives a configuration that steps can take, or one line."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(content)
    try:
        found = read_configuration([path])
    except UserError as error:
        assert _one_line(str(error))
        assert re.match("config: |.*fuzzed.yaml: ", str(error))
    else:
        assert isinstance(found, Configuration)
        for name in found.datasets:
            for section in vars(found.dataset(name)).values():
                words = flags(section) if isinstance(section, Settings) else []
                "".join(words).encode("utf-8")


FUZZED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip


@FUZZED
@given(st.sampled_from(VALID), st.integers(), st.lists(ANY, min_size=1, max_size=3))
def test_changed_keys_and_values(tmp_path_factory, path, seed, values):
    config = copy.deepcopy(yaml.safe_load(path.read_text()))
    for number, value in enumerate(values):
        _mutate(config, random.Random(seed + number), value)
    _read(tmp_path_factory.getbasetemp(), yaml.safe_dump(config).encode("utf-8", "surrogatepass"))


@FUZZED
@given(st.sampled_from(VALID), st.integers(), st.lists(st.binary(max_size=3), max_size=4))
@example(VALID[0], 0, [])
def test_changed_bytes(tmp_path_factory, path, seed, changes):
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    for change in changes:
        start = rng.randrange(len(content))
        content[start : start + rng.choice((0, 1, 3))] = change
    lines = bytes(content).splitlines(keepends=True)
    if rng.random() < 0.3:  # a line again, or lines in another order
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    _read(tmp_path_factory.getbasetemp(), b"".join(lines))


# Snakemake itself


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("configuration") / "project")


def _snakemake(project: Project, *words: str, target: str = "manifest.csv") -> str:
    """What a dry run says that ends with one error line."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", *words]
    done = subprocess.run(
        [*command, "--", f"results/mini/{target}"], cwd=project.folder, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
    (line,) = errors(done.stdout)
    return line


def _hostile(project: Project, name: str) -> str:
    content = HOSTILE[name][0] if isinstance(HOSTILE[name], tuple) else HOSTILE[name]
    path = project.folder / "hostile.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return _snakemake(project, "--configfile", path.name)


def test_snakemake_says_it_in_one_line(project):
    assert 'datasets.2024: is no text; put it in quotes: "2024"' in _hostile(
        project, "numeric name"
    )
    assert "line 1: byte 0xfc is not UTF-8" in _hostile(project, "Latin-1")
    assert "absent.yaml: no such file" in _snakemake(project, "--configfile", "absent.yaml")


def test_labels_that_cannot_be_used_end_snakemake_before_anything_starts(project):
    path = project.folder / "my.yaml"
    path.write_text(MINI + "    labels: /nope\n")
    told = _snakemake(project, "--configfile", path.name, target="poses/pose_eval.json")
    assert told == "error: datasets.mini.labels /nope: no such file"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_snakemake_says_every_hostile_file_in_one_line(project, name):
    assert "hostile.yaml: " in _hostile(project, name)


@pytest.mark.slow
def test_without_the_profile_too(project):
    (project.folder / "my.yaml").write_text(HOSTILE["section twice"][0])
    told = _snakemake(project, "--workflow-profile", "none", "--configfile", "my.yaml")
    assert "datasets.mini.training was given" in told
    (project.folder / "my.yaml").write_text("datasets: {mini: {poses: {seed: 4294967296}}}")
    assert "datasets.mini.poses.seed: input" in _snakemake(project, "--configfile", "my.yaml")
