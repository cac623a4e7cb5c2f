"""The benchmark of pose discovery, in small."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mirage_steps.demo.stand_ins.evaluation import EVALUATION_SEED
from mirage_steps.settings import Procedural

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "poses.py"
SCENES_SEED = 1000  # the default of the step that renders what the stand-ins learn from


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("pose_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_its_cars_are_of_seeds_of_their_own(benchmark):
    seeds = [cars.seed for cars in benchmark.SETS.values()]
    assert len(set(seeds)) == len(seeds)
    assert not {Procedural().seed, SCENES_SEED, EVALUATION_SEED} & set(seeds)


@pytest.mark.slow
def test_a_quick_run_measures_the_default_and_its_choices(benchmark, tmp_path, monkeypatch, capsys):
    words = ["poses.py", "--quick", "--sets", "border", "--scratch", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert re.search(r"\| 60 \| 0 \| 0\.9\d\d \|", rows["border"])
    assert "15.0° / 100.0 / 0" in rows["perfect bins of 360°/K"]
    # The variants begin from what the steps themselves find.
    found = re.search(r"[\d.]+° / [\d.]+ / \d+", rows["border"]).group()
    assert found in rows["default"]
    quick = [n for n, c in benchmark.CHOICES.items() if c.foreground == benchmark.Foreground()]
    assert len(quick) > 15 and set(quick) <= set(rows)
    assert (tmp_path / "border-60/default/poses-6/poses.png").exists()
