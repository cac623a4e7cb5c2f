"""What a data set will cost, before anything starts: disk, memory, floating-point operations.

``python -m mirage_steps.tools.plan NAME`` prints it; ``tools/planning.py`` says what
is counted. It ends with exit code 1 if the disk has too little room.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import human_size
from mirage_steps.files.command import one_line_errors
from mirage_steps.files.configuration import read_configuration
from mirage_steps.settings import Configuration, Dataset
from mirage_steps.sources import check_source
from mirage_steps.tools import unloaded
from mirage_steps.tools.planning import Artifact, Stage, artifacts, needed, published, stages

_SUSTAINED = 10  # TFLOP/s, for the arithmetic at the end


def main(
    name: tyro.conf.Positional[str],
    *,
    configfile: tuple[Path, ...] = (),
    images: int | None = None,
) -> None:
    """Print what a data set will cost before anything starts; write nothing.

    Args:
        name: Data set.
        configfile: Files merged over the project's own, as by snakemake --configfile.
        images: Number of images, in place of counting them.
    """
    configuration = read_configuration(configfile)
    if name not in configuration.datasets:
        raise UserError(
            f"{name} is no data set; known are {', '.join(configuration.datasets)}; one of your "
            "own needs --configfile"
        )
    if images is not None and images < 1:
        raise UserError(f"--images {images}: must be at least 1")
    dataset = effective(configuration, name)
    count = count_images(dataset.source) if images is None else images
    tokens = unloaded.backbone(dataset.backbone)
    k, categories = dataset.poses.k, dataset.categories
    generator = None if dataset.use else unloaded.Generator(dataset.training, k, categories)
    folder = Path(configuration.results) / name
    written = artifacts(dataset, count, tokens, generator, folder, configuration.shards)
    fetched = published(configuration, dataset, tokens)
    done = f"poses and model of {dataset.use}"
    if not dataset.use:
        done = f"K = {k * categories}, {dataset.training.iterations} iterations"
    print(f"{name}: at most {count} images, {done}\n")
    print("\n".join(disk_table(written, fetched, folder)), "\n")
    print("\n".join(stage_table(stages(dataset, count, tokens, generator))))
    if dataset.use:
        model = Path(configuration.results, dataset.use, "training/model.safetensors")
        there = "it is there" if model.exists() else f"not there yet: see the plan of {dataset.use}"
        print(f"\nNeeds {model}, the model of {dataset.use}; {there}.")
    sys.stdout.flush()  # before the errors below
    if not dataset.use and count < 2 * dataset.fid.samples:
        raise UserError(
            f"datasets.{name}.fid.samples = {dataset.fid.samples} needs {2 * dataset.fid.samples} "
            f"real images, there are at most {count}; set it to at most {count // 2}"
        )
    check_disk([(folder, needed(written)), (Path(configuration.weights), needed(fetched))])


def effective(configuration: Configuration, name: str) -> Dataset:
    """A data set's settings, those that it takes from another one filled in."""
    own = configuration.datasets[name]
    if own.use is None:
        return own
    kept = {"source": own.source, "use": own.use, "labels": own.labels, "sheet": own.sheet}
    return configuration.datasets[own.use].model_copy(update=kept)


def count_images(source: settings.Source) -> int:
    """Number of images by the names of the files; none is opened.

    Raises:
        UserError: the folder is missing, or holds none.
    """
    if isinstance(source, settings.Procedural | settings.StableDiffusion):
        return source.images
    folder = source.path.expanduser()
    if isinstance(source, settings.CompCars):
        folder = folder / "image"
    remedy = "or give --images N to plan without it"
    try:
        check_source(source)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    if isinstance(source, settings.Epfl):
        count = sum(1 for _ in folder.rglob("tripod_seq_*.jpg"))
    else:
        endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        count = 0
        for _, folders, files in os.walk(folder):
            folders[:] = [part for part in folders if not part.startswith(".")]
            count += sum(
                os.path.splitext(file)[1].lower() in endings and not file.startswith(".")
                for file in files
            )
    if not count:
        raise UserError(f"{folder}: holds no images; set source.path, {remedy}")
    return count


def check_disk(needs: Sequence[tuple[Path, float]]) -> None:
    """Refuse where a disk has too little room for what is still to be written to it.

    Raises:
        UserError: too little is free.
    """
    disks: dict[int, tuple[Path, float]] = {}
    for folder, size in needs:
        there = _existing(folder)
        first, before = disks.get(there.stat().st_dev, (there, 0))
        disks[there.stat().st_dev] = first, before + size
    for there, size in disks.values():
        free = shutil.disk_usage(there).free
        if free < size:
            raise UserError(
                f"{there.absolute()}: {human_size(size)} are still to be written, only "
                f"{human_size(free)} are free; make room or set results to another disk"
            )


def disk_table(written: Sequence[Artifact], fetched: Sequence[Artifact], folder: Path) -> list[str]:
    """Lines of the table of artifacts."""
    rows = [("disk", "size", "to write", "")]
    for one in (*written, *fetched):
        inside = one.path.is_relative_to(folder)
        path = one.path.relative_to(folder) if inside else one.path
        note = ", ".join(filter(None, ("temporary" * one.temporary, one.note)))
        rows.append((str(path), human_size(one.size), human_size(one.missing), note))
    kept = sum(one.size for one in (*written, *fetched) if not one.temporary)
    free = human_size(shutil.disk_usage(_existing(folder)).free)
    missing = human_size(needed(written) + needed(fetched))
    rows.append(("total", human_size(kept), missing, f"{free} free on the disk of {folder.parent}"))
    return _aligned(rows, "<>><")


def stage_table(made: Sequence[Stage]) -> list[str]:
    """Lines of the table of stages, and what its total means."""
    rows = [("stage", "operations", "memory", "runs")]
    for one in made:
        memory = "-" if one.memory is None else human_size(one.memory)
        rows.append((one.name, human_flops(one.flops), memory, one.runs))
    total = sum(one.flops or 0 for one in made)
    uncounted = ", without what is marked -" if any(one.flops is None for one in made) else ""
    days = total / (_SUSTAINED * 1e12) / 86400
    time = f"{days * 24 * 60:.2g} minutes"
    if days >= 1 / 24:
        time = f"{days:.1f} days" if days >= 1 else f"{days * 24:.1f} hours"
    return [
        *_aligned(rows, "<>><"),
        "",
        "Memory: weights and tensors in float32; in bfloat16 activations take about half.",
        f"{human_flops(total)} in all{uncounted}; at {_SUSTAINED} sustained TFLOP/s: {time} "
        "(arithmetic, no measurement).",
    ]


def human_flops(flops: float | None) -> str:
    """A number of operations as people read it, e.g. ``1.5 PFLOP``."""
    if flops is None:
        return "-"
    for unit in ("MFLOP", "GFLOP", "TFLOP", "PFLOP"):
        flops /= 1e6 if unit == "MFLOP" else 1000
        if flops < 1000:
            return f"{flops:.1f} {unit}"
    return f"{flops / 1000:.1f} EFLOP"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines of a table, each column to its side, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(
            main, prog="python -m mirage_steps.tools.plan", config=(tyro.conf.OmitArgPrefixes,)
        )
