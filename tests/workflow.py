"""A copy of the workflow that tests run as a user would."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import yaml

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


class Project:
    """A copy of the workflow with its own configuration and its own records."""

    def __init__(
        self, folder: Path, configfiles: tuple[str, ...] = ("mini.yaml",), made: bool = False
    ):
        self.folder, self.configfiles = folder, configfiles
        if made:
            return
        folder.mkdir(parents=True)
        for name in (
            "Snakefile",
            "rules",
            "config",
            "envs",
            "profiles",
            "mirage_steps",
            "weights",
            "examples",
        ):
            (folder / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "tests" / "mini.yaml", folder / "mini.yaml")
        (folder / "my photos/below").mkdir(parents=True)
        for name, place in (("green", "green.png"), ("ochre", "below/an 'öchre' car.v2.png")):
            shutil.copy(ROOT / f"examples/cars/{name}.png", folder / "my photos" / place)

    def settings(self, **sections: dict) -> None:
        """Change keys of sections of the data set ``mini``."""
        path = self.folder / "mini.yaml"
        config = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            if section == "source":
                config["datasets"]["mini"]["source"] = values
            else:
                config["datasets"]["mini"].setdefault(section, {}).update(values)
        path.write_text(yaml.safe_dump(config))

    def start(
        self, *words: str, output: int | IO[str] = subprocess.PIPE, env: dict | None = None
    ) -> subprocess.Popen:
        """Snakemake in the background; what it prints goes to a pipe, or to an open file."""
        # Sums depend on the number of threads, which a training chooses by the load of the machine.
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--max-threads", "1"]
        if self.configfiles:
            command += ["--configfile", *self.configfiles]
        return subprocess.Popen(
            [*command, *words], cwd=self.folder, env=env or ENVIRONMENT, text=True,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *words: str, ok: bool = True, env: dict | None = None) -> str:
        process = self.start(*words, env=env)
        try:
            output, _ = process.communicate(timeout=1200)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it would go on beside the other tests
            raise
        assert (process.returncode == 0) == ok, output[-6000:]
        return output

    def planned(self, *targets: str, env: dict | None = None) -> dict[str, int]:
        """Jobs that a run would do, by rule."""
        output = self.run("--dry-run", "--", *targets, env=env)
        return {
            rule: int(count)
            for rule, count in re.findall(r"^([a-z_]+) +(\d+)$", output, flags=re.MULTILINE)
            if rule != "total"
        }

    def __getitem__(self, path: str) -> Path:
        return self.folder / "results" / "mini" / path


def errors(text: str) -> list[str]:
    """The one-line errors of an output."""
    return [line for line in text.splitlines() if line.startswith("error: ")]
