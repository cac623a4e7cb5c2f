"""Pins agree, and the project's own files keep the rules they set."""

import contextlib
import json
import re
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import mirage_steps
from mirage_steps.errors import UserError
from mirage_steps.settings import load

ROOT = Path(__file__).parents[1]


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())


def test_lock_pins_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["slurm"]
    names = {re.match(r"[A-Za-z0-9_.-]+", item)[0].lower() for item in wanted}
    assert names <= LOCK.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.name)
def test_conda_pins_equal_the_lock(path):
    *_, pip = yaml.safe_load(path.read_text())["dependencies"]
    found = pins(pip["pip"])
    assert len(found) >= 10
    for name, version in found.items():
        assert LOCK[name] == version, f"{path.name}: {name}"


SCHEMA = ROOT / "config/schema.json"


@pytest.mark.parametrize("name", ["config/config.yaml", "config/photos.yaml", "tests/mini.yaml"])
def test_configurations_are_valid(name):
    config = yaml.safe_load((ROOT / name).read_text())
    load(config)
    jsonschema.validate(config, json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_configurations_fit_the_schema_that_they_name(path):
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(.+)\n", text)
    assert (path.parent / named[1]).resolve() == SCHEMA
    jsonschema.validate(yaml.safe_load(text), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    "change, fits",
    [
        ({"poses": {"k": 12}, "sheet": {"references": ["front", 3]}}, True),
        ({"training": {"hours": "none", "learning_rate": 1}, "labels": None}, True),
        ({"poses": {"kk": 12}}, False),
        ({"poses": {"k": "many"}}, False),
        ({"views": {"solver": "euler"}}, False),
        ({"source": {"kind": "folder"}}, False),
    ],
)
def test_the_schema_refuses_what_the_settings_refuse(change, fits):
    config = {"datasets": {"mine": {"source": {"kind": "folder", "path": "photos"}, **change}}}
    schema = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    assert schema.is_valid(config) == fits
    with contextlib.nullcontext() if fits else pytest.raises(UserError):
        load(config)


def test_the_version_is_one_everywhere():
    version = mirage_steps.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == newest[1] == version


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation.keys() <= {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
        "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
        "references", "repository", "repository-artifact", "repository-code", "title", "type",
        "url", "version",
    }  # fmt: skip
    assert citation["cff-version"] == "1.2.0"
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [one["family-names"] for one in paper["authors"]] == [
        "Cerkezi", "Davtyan", "Sameni", "Favaro",
    ]  # fmt: skip


def test_the_license_is_one_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["license"] == citation["license"] == "Apache-2.0"
    text = (ROOT / project["license-files"][0]).read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_workflow_on_github_runs_what_continuous_integration_runs():
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    jobs = tests["jobs"]["locked"]["strategy"]["matrix"]["command"]
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [job[job.index("make ") :] for job in jobs] == [
        line for line in lines if line.startswith("make ")
    ]


def test_files_for_github_are_yaml():
    for path in (ROOT / ".github").rglob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_snakemake_lint_is_clean():
    done = subprocess.run(["snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_rule_that_requests_a_gpu_can_do_without_by_the_profile():
    """The commented lines of the SLURM profile, for a cluster that has none."""
    profile = (ROOT / "profiles/slurm/profile.yaml").read_text()
    profile = re.sub(r"# (\w+: \{gpu: 0\}|gpu: 0)$", r"\1", profile, flags=re.MULTILINE)
    without = yaml.safe_load(profile)["set-resources"]
    bodies: dict[str, str] = {}
    for path in (ROOT / "rules").glob("*.smk"):
        for part in re.split(r"^(?=rule |use rule )", path.read_text(), flags=re.MULTILINE)[1:]:
            name = re.match(r"(?:rule (\w+)|use rule (\w+) as (\w+))", part)
            bodies[name[3] or name[1]] = bodies.get(name[2], "") + part
    found = {name for name, body in bodies.items() if re.search(r"^\s+gpu=", body, re.MULTILINE)}
    assert len(found) > 10
    assert {name for name, resources in without.items() if resources.get("gpu") == 0} == found
