"""Put together what several jobs made of one step: files, and the records beside them.

Reads ``NAME.1-of-N.h5`` ... ``NAME.N-of-N.h5`` and writes ``NAME.h5``, the same as a single job
would have written, its record, and for generated images ``images.png``.
"""

import json
from pathlib import Path

import h5py
from tqdm import tqdm

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import human_size, require_disk, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.h5 import create_h5, open_h5, slices
from mirage_steps.files.shards import ROWS, Shard
from mirage_steps.views import write_picture

_ROWS = 256  # copied at once


def main(*, parts: tuple[Path, ...], out: Path) -> None:
    """Put together what several jobs made of one step.

    Args:
        parts: The jobs' HDF5 files, in order; their records lie beside them.
        out: Folder for the whole.
    """
    stem = _stem(parts)
    size = sum(part.stat().st_size for part in parts)
    require_disk(out, size, f"{stem}.h5")
    gather(parts, out / f"{stem}.h5")
    _gather_records(parts, out)
    with open_h5(out / f"{stem}.h5") as file:
        if "kind" in file.attrs:
            write_picture(out / "images.png", file)
    log.info("%d parts, %s, put together", len(parts), human_size(size))


def gather(parts: tuple[Path, ...], path: Path) -> None:
    """Join the rows of all datasets; memory does not grow with their number.

    Args:
        parts: HDF5 files with the same datasets, apart from their numbers of rows.
        path: of the new file.

    Raises:
        UserError: a part is missing or does not fit the first.
    """
    lengths: dict[str, int] = {}
    chunks: dict[str, tuple[int, ...]] = {}
    end = 0
    with open_h5(parts[0]) as first:
        attributes = {name: value for name, value in first.attrs.items() if name != ROWS}
        kinds = {name: (data.dtype, data.shape[1:]) for name, data in first.items()}
    for part in parts:
        with open_h5(part, *kinds) as file:
            found = {name: (data.dtype, data.shape[1:]) for name, data in file.items()}
            own = dict(file.attrs)
            start, stop, total = map(int, own.pop(ROWS, (-1, -1, -1)))
            if own != attributes or found != kinds:
                raise UserError(f"{part}: was not made as {parts[0]}; delete both and rerun")
            # Another batch size moves the borders, and some parts may be from before its change.
            if start != end or (part == parts[-1] and stop != total):
                raise UserError(
                    f"{part}: has rows {start} to {stop} of {total}, the parts before it end at "
                    f"{end}: batch_size changed in between; delete all parts and rerun"
                )
            end = stop
            for name, data in file.items():
                lengths[name] = lengths.get(name, 0) + len(data)
                chunks[name] = chunks.get(name) or data.chunks  # empty parts have none
    with create_h5(path) as out, tqdm(total=sum(lengths.values()), unit="row") as bar:
        out.attrs.update(attributes)
        for name, (dtype, shape) in kinds.items():
            out.create_dataset(name, (lengths[name], *shape), dtype, chunks=chunks[name])
        done = dict.fromkeys(lengths, 0)
        for part in parts:
            with open_h5(part) as file:
                for name, data in file.items():
                    _copy(data, out[name], done[name], bar)
                    done[name] += len(data)


def _copy(source: h5py.Dataset, target: h5py.Dataset, start: int, bar: tqdm) -> None:
    """Copy all rows of a part."""
    for rows in slices(len(source), _ROWS):
        target[start + rows.start : start + rows.stop] = source[rows]
        bar.update(rows.stop - rows.start)


def _stem(parts: tuple[Path, ...]) -> str:
    """What the whole is called.

    Raises:
        UserError: the parts are not all of one whole, or not in order.
    """
    stem = parts[0].stem.partition(".")[0] if parts else ""
    for number, part in enumerate(parts, 1):
        expected = f"{Shard(number, len(parts)).name(stem)}.h5"
        if part.name != expected:
            raise UserError(f"--parts: part {number} of {len(parts)} is {part}, not {expected}")
        if not part.is_file():
            raise UserError(f"{part}: no such file")
    if not parts:
        raise UserError("--parts: give the files of all jobs")
    return stem


def _gather_records(parts: tuple[Path, ...], out: Path) -> None:
    """Write the step's record: the first job's, with the seconds and the peak memory of all."""
    folder = parts[0].parent
    for first in folder.glob(f"*.1-of-{len(parts)}.run.json"):
        step = first.name.partition(".")[0]
        records = [
            json.loads((folder / f"{Shard(n, len(parts)).name(step)}.run.json").read_text())
            for n in range(1, len(parts) + 1)
        ]
        whole = records[0]
        whole["settings"] = {**whole["settings"], "shard": f"all of {len(parts)}"}
        whole["seconds"] = round(sum(record["seconds"] for record in records), 2)
        whole["peak_memory_mb"] = max(record["peak_memory_mb"] for record in records)
        write_json(out / f"{step}.run.json", whole)


if __name__ == "__main__":
    run(main)
