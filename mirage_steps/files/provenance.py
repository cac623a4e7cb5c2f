"""``STEP.run.json``, the record of a step: settings, files, networks, versions, time."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import mirage_steps
from mirage_steps.files.atomic import WRITTEN, identity, write_json
from mirage_steps.files.project import PROJECT
from mirage_steps.files.records import read_json

_PACKAGES = (
    "torch", "transformers", "diffusers", "segment-anything", "clean-fid", "scikit-learn", "h5py",
    "numpy", "pillow", "snakemake",
)  # fmt: skip
# Settings that name a network.
NETWORK_KEYS = ("model", "sam", "inception", "judge", "pretrained")


def write_provenance(
    step: str, records: Sequence[str], arguments: dict[str, Any], started: float
) -> None:
    """Write the record of a step into its output folder.

    Args:
        step: full name of its module.
        records: names of the records, without ``.run.json``.
        arguments: of its ``main``, ``out`` among them.
        started: in unix seconds.
    """
    settings: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(value, BaseModel):
            settings.update(value.model_dump(mode="json"))
        elif key != "out" and (paths := _inputs(value)):
            inputs[key] = paths
        elif key != "out":
            settings[key] = value
    content = {
        "step": step,
        "version": mirage_steps.__version__,
        "commit": _commit(),
        "settings": settings,
        "inputs": inputs,
        "outputs": _outputs(Path(arguments["out"])),
        "networks": _networks(settings, arguments["weights"]) if "weights" in arguments else {},
        "packages": {package: _version(package) for package in _PACKAGES},
        "device": _device_name(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 2),
        "peak_memory_mb": _peak_memory(),
    }
    # Of several training processes only the first writes.
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        return
    for record in records:
        path = Path(arguments["out"]) / f"{record}.run.json"
        try:
            write_json(path, content)
        except OSError:
            path.unlink(missing_ok=True)  # a record of an earlier call would be wrong
            raise


def changed_since(path: Path) -> bool:
    """Whether a file is no longer what its step wrote, by the hash in the step's record.

    Records are in the folder of the file, or in the one above, where one step fills several.
    """
    records = [*path.parent.glob("*.run.json"), *path.parent.parent.glob("*.run.json")]
    names = (path.name, f"{path.parent.name}/{path.name}")
    outputs = [found for one in records if isinstance(found := read_json(one).get("outputs"), dict)]
    expected = {one[name] for one in outputs for name in names if one.get(name)}
    return bool(expected) and identity(path).get("sha256") not in expected


def _inputs(value: object) -> object:
    """Identities of the files of an argument; None if it is not a file.

    Args:
        value: a path, a tuple of paths, or rows of a table: tuples of names and paths.
    """
    if isinstance(value, Path):
        return identity(value)
    if isinstance(value, tuple) and any(_inputs(part) for part in value):
        return [_inputs(part) or part for part in value]
    return None


def _outputs(out: Path) -> dict[str, object]:
    """SHA-256 of the files that this process wrote, by their paths in the output folder.

    None for large ones; images of a data set, which lie deeper, are left out.
    """
    written = sorted({path for path in WRITTEN if path.is_relative_to(out) and path.is_file()})
    names = {path: path.relative_to(out) for path in written}
    return {
        str(name): identity(path).get("sha256")
        for path, name in names.items()
        if len(name.parts) <= 2
    }


def files_of_network(path: Path) -> list[Path]:
    """The files that a local network's results depend on: its weights and how they are used.

    Args:
        path: of a file, or of a folder as transformers writes it.
    """
    if not path.is_dir():
        return [path]
    return sorted(one for one in path.rglob("*") if one.suffix in (".safetensors", ".bin", ".json"))


def _networks(settings: dict[str, Any], weights: Path) -> dict[str, object]:
    """Identities of a step's networks: markers of downloads, or local files."""
    found: dict[str, object] = {}
    for key in NETWORK_KEYS:
        value = str(settings.get(key, "none"))
        path = Path(value)
        # Written by networks/fetching.py.
        marker = weights / f"{'inception' if value == 'auto' else value}.json"
        if path.exists():
            found[key] = [identity(file) for file in files_of_network(path)]
        elif marker.is_file():
            found[key] = read_json(marker)
    return found


def _version(package: str) -> str | None:
    """Version of an installed package, None where a step runs without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the code that ran, with ``-dirty`` where it was changed since; None outside git."""
    if not (PROJECT / ".git").exists():  # an installed package may lie in another repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _peak_memory() -> int:
    """Largest resident memory of this process or of one of its children, in MB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) // 1024


def _device_name() -> str:
    """The accelerator that torch saw, or the CPU; does not import torch by itself."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({os.cpu_count()} cores)"
