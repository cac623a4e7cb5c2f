"""What turns a function into a step: command line, log, one-line errors, provenance."""

import contextlib
import inspect
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro
from pydantic import BaseModel

import mirage_steps
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import identity, write_json

log = logging.getLogger("mirage_steps")

_PACKAGES = (
    "torch", "transformers", "diffusers", "segment-anything", "clean-fid", "scikit-learn", "h5py",
    "numpy", "pillow", "snakemake",
)  # fmt: skip
# Settings that name a network.
_NETWORKS = ("model", "sam", "inception")


def run(main: Callable[..., Sequence[str] | None]) -> None:
    """Run ``main`` as a command whose flags are its keyword arguments.

    ``main`` names its output folder ``out``; what was done goes to ``out/STEP.run.json``, or to
    ``out/NAME.run.json`` of every name that ``main`` returns, where several calls share ``out``.
    Errors of the user and of the disk end with one line and exit code 1; anything else is a defect
    and keeps its traceback.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    # Leave through the `finally` blocks, so that temporary files go when a scheduler says stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    module = sys.modules[main.__module__]
    name = module.__spec__.name if module.__spec__ else Path(module.__file__).stem

    def recorded(**given: Any) -> None:
        _require_folder(Path(given["out"]))
        started = time.time()
        records = main(**given) or [name.rpartition(".")[2]]
        _write_provenance(name, records, given, started)

    recorded.__signature__ = inspect.signature(main)
    recorded.__annotations__ = dict(main.__annotations__)
    recorded.__doc__ = main.__doc__
    with one_line_errors():
        tyro.cli(recorded, prog=f"python -m {name}", config=(tyro.conf.OmitArgPrefixes,))


def run_tool(main: Callable[..., None]) -> None:
    """Run ``main`` as a command beside the pipeline: flags and one-line errors, no record."""
    name = sys.modules[main.__module__].__spec__.name
    with one_line_errors():
        tyro.cli(main, prog=f"python -m {name}", config=(tyro.conf.OmitArgPrefixes,))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one line and exit code 1 on an error of the user's or the disk's."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _require_folder(out: Path) -> None:
    """Refuse an output folder that cannot be made, before any work is done in vain."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file; give a folder")


def flags(settings: BaseModel, exclude: Collection[str] = ()) -> list[str]:
    """The command-line words that give a step these settings, every key spelled out.

    Written out in full so that Snakemake's comparison of parameters sees every change, also one
    of a default.

    Args:
        settings: a section.
        exclude: keys to leave out.
    """
    return [word for key, value in settings if key not in exclude for word in flag(key, value)]


def flag(key: str, value: object) -> list[str]:
    """The words of one setting."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if value is None:
        return []
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    # Joined, so that a value that begins with a dash is no flag of its own.
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]


def _write_provenance(
    name: str, records: Sequence[str], arguments: dict[str, Any], started: float
) -> None:
    """Write ``RECORD.run.json``: settings, inputs, versions, commit, time."""
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
        "step": name,
        "version": mirage_steps.__version__,
        "commit": _commit(),
        "settings": settings,
        "inputs": inputs,
        "networks": _networks(settings, arguments["weights"]) if "weights" in arguments else {},
        "packages": {package: _version(package) for package in _PACKAGES},
        "device": _device_name(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 2),
        "peak_memory_mb": _peak_memory(),
    }
    # Of several processes that work together only the first writes.
    together = "TORCHELASTIC_RUN_ID" in os.environ
    for record in () if together and os.environ.get("RANK") != "0" else records:
        write_json(Path(arguments["out"]) / f"{record}.run.json", content)


def _inputs(value: object) -> object:
    """What tells the files of an argument apart; None where it is no file.

    Args:
        value: a path, a tuple of paths, or rows of a table: tuples of a name and paths.
    """
    if isinstance(value, Path):
        return identity(value)
    if isinstance(value, tuple) and any(_inputs(part) for part in value):
        return [_inputs(part) or part for part in value]
    return None


def _version(package: str) -> str | None:
    """Version of an installed package, None where a step runs without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _networks(settings: dict[str, Any], weights: Path) -> dict[str, object]:
    """What tells the networks of a step apart: what was fetched, or the local files."""
    # Only steps with networks wait for the import.
    from mirage_steps.networks.fetching import is_published, item_marker

    found: dict[str, object] = {}
    for key in _NETWORKS:
        value = str(settings.get(key, "none"))
        path = Path(value)
        item = "inception" if value == "auto" else value
        if path.exists():
            files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
            found[key] = [identity(file) for file in files]
        elif is_published(item) and (marker := item_marker(item, weights)).is_file():
            found[key] = json.loads(marker.read_text(encoding="utf-8"))
    return found


def _commit() -> str | None:
    """Commit of the code that ran, with ``-dirty`` where it was changed since; None outside git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(mirage_steps.__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
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
