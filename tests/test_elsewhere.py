"""The project from other folders: its own files, the installed package, Snakemake's modules."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from workflow import ENVIRONMENT, ROOT

from mirage_steps import __main__ as command
from mirage_steps import __version__
from mirage_steps.errors import UserError
from mirage_steps.files import project
from mirage_steps.files.configuration import read_configuration, read_dataset
from mirage_steps.files.photos import photos_folder
from mirage_steps.networks.fetching import is_published, require_known, resolve
from mirage_steps.sources.checks import check_dataset
from mirage_steps.tools import status

STAND_IN = "weights/stand-in-dinov2-cars"
# As `snakedeploy deploy-workflow` writes it, but for names and part of the configuration.
DEPLOYED = """
configfile: "config/config.yaml"
module mirage_steps:
    snakefile: "{root}/Snakefile"
    config: config{part}
use rule * from mirage_steps{names}
rule everything:
    default_target: True
    input: "results/mini/foreground/foreground.png"
"""


def _mini(path: Path) -> Path:
    """The miniature with photos that only the project has."""
    settings = yaml.safe_load((ROOT / "tests/mini.yaml").read_text())
    settings["datasets"]["mini"]["photos"] = "examples/cars"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return path


def _snakemake(folder: Path, *words: str) -> str:
    words = [sys.executable, "-m", "snakemake", "--cores", "2", *words]
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _from_another_folder(folder: Path, *words: str) -> str:
    mini = _mini(folder / "mini.yaml")
    where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", "work"]
    return _snakemake(folder, *where, *words, "--configfile", str(mini))


def _as_module(folder: Path, *words: str, names: str = "", part: str = "") -> str:
    (folder / "workflow").mkdir()
    text = DEPLOYED.format(root=ROOT, names=names, part=part)
    (folder / "workflow/Snakefile").write_text(text)
    return _snakemake(folder, *words)


# The project's own files


def test_a_file_of_the_current_folder_goes_before_the_project_s(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "mirage_steps")
    project._tell.cache_clear()
    for _ in range(2):
        assert project.project_path(STAND_IN) == ROOT / STAND_IN
    (told,) = caplog.messages
    assert told == f"{STAND_IN}: not in the current folder; the one in {ROOT} is used"
    assert project.project_path("docs/pictures") == Path("docs/pictures"), "a mistake"
    assert project.project_path("weights/none") == Path("weights/none")
    assert project.project_path(tmp_path / STAND_IN) == tmp_path / STAND_IN
    (tmp_path / "weights").mkdir()
    (tmp_path / STAND_IN).symlink_to(tmp_path / "nothing")  # a mistake, which is not hidden
    assert project.project_path(STAND_IN) == Path(STAND_IN)


def test_an_inversion_that_cannot_be_refined_is_refused_before_the_run(tmp_path):
    demo = read_dataset(read_configuration([]), "demo")
    refined = demo.novel_views.model_copy(update={"inversion_iterations": 3})
    with pytest.raises(UserError, match="inversion_iterations 3: only DDIM inversion is refined"):
        check_dataset(demo.model_copy(update={"novel_views": refined}), tmp_path / "results/demo")


def test_the_demo_is_complete_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo = read_dataset(read_configuration([]), "demo")
    check_dataset(demo, tmp_path / "results/demo")
    assert resolve(STAND_IN, "backbone.model", Path("published")) == ROOT / STAND_IN
    assert photos_folder(demo.photos) == ROOT / "examples/cars"
    status.main(("demo",))
    assert "novel_views    missing   0 of 4" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_mistyped_network_of_the_project_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_published("weights/stand-in-cats", "backbone.model")
    with pytest.raises(UserError, match="no such file or folder"):
        require_known("weights/stand-in-cats", "backbone.model")


def test_a_configuration_in_the_current_folder_is_read_in_place_of_the_project_s(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _mini(tmp_path / "config/config.yaml")
    datasets = read_configuration([]).datasets
    assert "mini" in datasets and "demo" not in datasets and "compcars" in datasets


# The installed package


def test_a_wheel_has_all_packages_and_all_own_files():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inits = (ROOT / "mirage_steps").rglob("__init__.py")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    assert set(setuptools["packages"]) == packages | {"mirage_steps.project"}
    patterns = setuptools["package-data"]["mirage_steps.project"]
    packed = {path for pattern in patterns for path in ROOT.glob(f"{pattern}/*") if path.is_file()}
    packed |= {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    listed = subprocess.run(
        ["git", "ls-files", "config", "examples", "weights"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = {ROOT / name for name in listed.stdout.splitlines()}
    assert own - packed <= {ROOT / "config/README.md"}


def test_an_installed_package_finds_its_own_files(tmp_path):
    shutil.copytree(ROOT / "mirage_steps", tmp_path / "site/mirage_steps")
    own = tmp_path / "site/mirage_steps/project"
    own.mkdir()
    for name in ("config", "examples", "weights"):
        (own / name).symlink_to(ROOT / name)
    code = (
        "from mirage_steps.files.configuration import read_configuration; "
        "from mirage_steps.files.project import project_path; "
        f"print(len(read_configuration([]).datasets), project_path({STAND_IN!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.stdout.split() == ["7", str(own / STAND_IN)], done.stderr


@pytest.mark.parametrize(
    "name, module",
    [("novel-views", "novel_views"), ("novel_views", "novel_views"), ("status", "tools.status")],
)
def test_the_command_becomes_the_module_that_it_names(monkeypatch, name, module):
    started = []
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call))
    monkeypatch.setattr(sys, "argv", ["mirage-steps", name, "photo.jpg", "--help"])
    command.main()
    words = [sys.executable, "-P", "-m", f"mirage_steps.{module}", "photo.jpg", "--help"]
    assert started == [(sys.executable, words)]


def test_the_command_lists_all_steps_and_tools(monkeypatch, capsys):
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    steps = {one.replace("_", "-") for one in re.findall(r'step\(\s*"(\w+)"', rules)}
    tools = {path.stem.replace("_", "-") for path in (ROOT / "mirage_steps/tools").glob("[!_]*.py")}
    assert steps | tools == command.commands().keys()
    for words in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["mirage-steps", *words])
        command.main()
        assert "\n  novel-views      Novel views of given photos" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mirage-steps", "--version"])
    command.main()
    assert capsys.readouterr().out == f"mirage-steps {__version__}\n"


def test_an_unknown_command_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mirage-steps", "statu"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == "error: NAME statu: no such step or tool; did you mean status?"


# Snakemake


def test_the_workflow_is_planned_from_another_folder(tmp_path):
    done = _from_another_folder(tmp_path, "--dry-run", "results/mini/overview.txt")
    assert re.search(r"^novel_views +4$", done, re.MULTILINE)
    told = f"photos: examples/cars is the project's own, {ROOT / 'examples/cars'}"
    assert told in done


def test_the_workflow_is_planned_as_a_module_whatever_else_is_configured(tmp_path):
    settings = {"mirage": yaml.safe_load(_mini(tmp_path / "config/config.yaml").read_text())}
    (tmp_path / "config/config.yaml").write_text(f"umask: 022\n{yaml.safe_dump(settings)}")
    done = _as_module(tmp_path, "--dry-run", part='["mirage"]')
    assert re.search(r"^foreground +1$", done, re.MULTILINE)


def test_a_module_is_told_to_have_the_profile_of_this_project():
    text = (ROOT / "config/README.md").read_text()
    told = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    own = yaml.safe_load((ROOT / "profiles/default/profile.yaml").read_text())
    assert told == {key: value for key, value in own.items() if not key.startswith("__")}


@pytest.mark.slow
def test_the_workflow_runs_in_another_folder_and_no_module_of_it(tmp_path):
    for name in ("numpy.py", "mirage_steps/__init__.py"):
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text("raise SystemExit('of the current folder')")
    _from_another_folder(tmp_path, "results/mini/foreground/foreground.png")
    assert (tmp_path / "work/results/mini/foreground/foreground.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"mini.yaml", "work"}


@pytest.mark.slow
def test_the_workflow_runs_as_a_module(tmp_path):
    _mini(tmp_path / "config/config.yaml")
    _as_module(tmp_path, names=" as mirage_*")
    assert (tmp_path / "results/mini/foreground/foreground.png").is_file()
    _snakemake(tmp_path, "--report", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "One principal component of the patch tokens" in page, "the caption, by any name of rule"
