"""Pins agree, and the project's own files keep the rules they set."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mirage_steps.settings import load

ROOT = Path(__file__).parents[1]


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())


def test_lock_pins_every_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[A-Za-z0-9_.-]+", item)[0].lower() for item in wanted}
    assert names <= LOCK.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.name)
def test_conda_pins_equal_the_lock(path):
    *_, pip = yaml.safe_load(path.read_text())["dependencies"]
    found = pins(pip["pip"])
    assert len(found) >= 10
    for name, version in found.items():
        assert LOCK[name] == version, f"{path.name}: {name}"


@pytest.mark.parametrize("name", ["config/config.yaml", "config/photos.yaml", "tests/mini.yaml"])
def test_configurations_are_valid(name):
    load(yaml.safe_load((ROOT / name).read_text()))


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=str)
def test_documents_have_no_gaps_and_no_dead_links(path):
    text = path.read_text()
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$|TODO|FIXME", text, flags=re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), link


def test_snakemake_lint_is_clean():
    done = subprocess.run(["snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
