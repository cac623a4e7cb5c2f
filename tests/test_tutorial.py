"""The notebook of the documentation: stored with its outputs, and its code runs."""

import json
import re
import subprocess
import sys

import pytest
from workflow import ENVIRONMENT, ROOT

TUTORIAL = ROOT / "docs/tutorial.ipynb"


def _cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_tutorial_is_stored_as_it_was_executed_and_small():
    code = _cells("code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) > 8 and {one["output_type"] for one in outputs} == {"execute_result"}
    assert sum("image/jpeg" in one["data"] for one in outputs) > 5
    assert TUTORIAL.stat().st_size < 600_000
    told = json.dumps([one["data"]["text/plain"] for one in outputs])
    assert not re.search(r"/(tmp|home|root|work)", told)


def test_the_tutorial_has_no_dead_links():
    text = "".join(line for cell in _cells("markdown") for line in cell["source"])
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert len(links) > 2
    for link in links:
        assert (TUTORIAL.parent / link).exists(), link


@pytest.mark.slow
def test_the_code_of_the_tutorial_runs(tmp_path):
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in _cells("code")))
    with script.open("a") as out:
        out.write("\nassert views.masks.any() and len(objects.images) == 2\n")
        out.write("assert len(mesh.mesh.faces) > 1000 and 'car.glb' in files\n")
    subprocess.run([sys.executable, str(script)], cwd=ROOT / "docs", env=ENVIRONMENT, check=True)
