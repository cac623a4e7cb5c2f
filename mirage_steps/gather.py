"""Join the shards of a step into one file.

Reads ``NAME.1-of-N.h5`` ... ``NAME.N-of-N.h5`` and writes ``NAME.h5``, the same as a single job
would have written, its record, and the pictures and counts that a single job writes of generated
images and of masks.
"""

import json
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import require_disk, write_json
from mirage_steps.files.command import run
from mirage_steps.files.h5 import create_h5, open_h5, slices
from mirage_steps.files.image_set import write_preview
from mirage_steps.files.shards import ROWS, Shard
from mirage_steps.files.terminal import progress

_ROWS = 256  # copied at once


def main(*, shards: tuple[Path, ...], out: Path, images: Path | None = None) -> None:
    """Join the shards of a step.

    Args:
        shards: The HDF5 files of all jobs, in order; their records are in the same folder.
        out: Folder for the whole.
        images: Of masks, the set with its background.
    """
    stem = _require_one_whole(shards)
    require_disk(out, sum(shard.stat().st_size for shard in shards), f"{stem}.h5")
    join(shards, out / f"{stem}.h5")
    _join_records(shards, out)
    with open_h5(out / f"{stem}.h5") as file:
        if images is not None:
            # No edit there makes all shards stale, which are gone (files/step_code.py).
            from mirage_steps.files.masked_set import summarize

            with open_h5(images, "images") as source:
                summarize(file, source, out)
        elif "columns" in file.attrs:
            write_preview(out / "images.png", file)


def join(shards: tuple[Path, ...], path: Path) -> None:
    """Join the rows of all datasets; memory does not grow with their number.

    Args:
        shards: HDF5 files with the same datasets, each with its range of rows and their total.
        path: of the new file.
    """
    with create_h5(path) as out:
        for shard in progress(shards, unit="shard"):
            with open_h5(shard) as file:
                about = dict(file.attrs)
                start, stop, total = map(int, about.pop(ROWS))
                out.attrs.update(about)
                for name, data in file.items():
                    if name not in out and stop > start:  # empty shards have no chunks
                        shape = (total, *data.shape[1:])
                        chunks = data.chunks if data.chunks and data.chunks[0] == 1 else None
                        out.create_dataset(name, shape, data.dtype, chunks=chunks)
                    for rows in slices(len(data), _ROWS):
                        out[name][start + rows.start : start + rows.stop] = data[rows]


def _require_one_whole(shards: tuple[Path, ...]) -> str:
    """What the whole is called; the shards must follow one another.

    Raises:
        UserError: a shard is missing, or was made with other settings or another batch size.
    """
    if not shards:
        raise UserError("--shards: give the files of all jobs")
    stem = shards[0].name.partition(".")[0]
    end, first = 0, None
    for number, shard in enumerate(shards, 1):
        expected = f"{Shard(number, len(shards)).name(stem)}.h5"
        if shard.name != expected:
            raise UserError(f"--shards: {number} of {len(shards)} is {shard}, not {expected}")
        with open_h5(shard) as file:
            about = dict(file.attrs)
            start, stop, total = map(int, about.pop(ROWS, (-1, -1, -1)))
            found = about, {name: (data.dtype, data.shape[1:]) for name, data in file.items()}
        first = first or found
        if found != first:
            raise UserError(
                f"{shard}: attributes or shapes differ from {shards[0]} (settings changed between "
                "the jobs); make the older one again: run snakemake with --forcerun and its path"
            )
        # Another batch size moves the borders, and some shards may be from before its change.
        if start != end or (number == len(shards) and stop != total):
            raise UserError(
                f"{shard}: has rows {start} to {stop} of {total}, the shards before it end at "
                f"{end}: batch_size changed in between; make all shards again: run snakemake with "
                "--forcerun and their paths"
            )
        end = stop
    return stem


def _join_records(shards: tuple[Path, ...], out: Path) -> None:
    """Write the step's record: the first job's, with the seconds and the peak memory of all."""
    folder, count = shards[0].parent, len(shards)
    for first in folder.glob(f"*.1-of-{count}.run.json"):
        step = first.name.partition(".")[0]
        names = [f"{Shard(n, count).name(step)}.run.json" for n in range(1, count + 1)]
        records = [json.loads((folder / name).read_text()) for name in names]
        whole = records[0]
        whole["settings"] = {**whole["settings"], "shard": f"all of {count}"}
        whole["seconds"] = round(sum(record["seconds"] for record in records), 2)
        whole["peak_memory_mb"] = max(record["peak_memory_mb"] for record in records)
        write_json(out / f"{step}.run.json", whole)


if __name__ == "__main__":
    run(main)
