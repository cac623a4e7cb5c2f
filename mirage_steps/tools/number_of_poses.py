"""How many poses a data set has: what speaks for each number, from the data and from the truth.

``python -m mirage_steps.tools.number_of_poses NAME`` clusters the maps of a run again, for several
numbers of poses. It writes ``number_of_poses/number_of_poses.json`` and ``.png`` into the run's
folder, and changes nothing else: the number is ``poses.k`` of the configuration.
"""

from pathlib import Path

import numpy as np
import tyro

from mirage_steps.errors import UserError, rerun
from mirage_steps.files import plots
from mirage_steps.files.atomic import write_json
from mirage_steps.files.command import log, run_tool
from mirage_steps.files.configuration import read_configuration, read_dataset
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.files.labels import match_labels
from mirage_steps.files.manifest import read_manifest
from mirage_steps.files.tables import read_categories
from mirage_steps.files.terminal import progress, start_log
from mirage_steps.files.text_table import aligned
from mirage_steps.method.finite import require_finite
from mirage_steps.method.number_of_poses import judge_number, nearest, shared_poses
from mirage_steps.method.poses import fill_padding
from mirage_steps.settings import Dataset

_LEAST = 4  # images for each pose, two in each half


def main(
    name: tyro.conf.Positional[str],
    *,
    k: tuple[int, ...] = (4, 6, 8, 10, 12, 16, 20, 25, 32, 40),
    images: int = 5000,
    halves: int = 3,
    seed: int = 0,
    configfile: tuple[Path, ...] = (),
) -> None:
    """Print what speaks for each number of poses, and which poses of the run are the same.

    Args:
        name: A data set whose poses were found.
        k: Numbers of poses; the run's own is added.
        images: At most so many images of each category are clustered.
        halves: How often they are split in two.
        seed: Of K-Means, and of the choice of images and halves.
        configfile: Files merged over the project's own, as by snakemake --configfile.
    """
    start_log()
    for flag, value, least in (("k", min(k, default=0), 4), ("halves", halves, 1)):
        if value < least:
            raise UserError(f"--{flag} {value}: must be at least {least}")
    configuration = read_configuration(configfile)
    dataset, folder = read_dataset(configuration, name), Path(configuration.results, name)
    maps, categories, azimuths = _read(folder, dataset, images, seed)
    model = load_estimator(folder / "poses" / ESTIMATOR, "poses")
    found = []
    for category, poses in enumerate(model.poses):
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(categories == category))
        numbers = sorted({*k, model.k})
        if unfit := [one for one in numbers if _LEAST * one > len(rows)]:
            log.warning("%d images are too few for %s poses", len(rows), ", ".join(map(str, unfit)))
        if not (numbers := [one for one in numbers if one not in unfit]):
            raise UserError(f"--k {min(k)}: {len(rows)} images are too few; give more images")
        given = None if azimuths is None else azimuths[rows]
        curve = [
            judge_number(
                maps[rows], one, starts=dataset.poses.starts, halves=halves, seed=seed,
                method=dataset.poses.method, normalized=model.normalize,
                azimuths=None if given is None or np.isnan(given).all() else given,
            )
            for one in progress(numbers, unit="number")
        ]  # fmt: skip
        counts = np.bincount(nearest(maps[rows], poses), minlength=model.k)
        groups = shared_poses(poses.mean_maps, counts)
        shared = [[category * model.k + pose for pose in group] for group in groups]
        about = {"category": category, "images": len(rows), "run": {"k": model.k, "shared": shared}}
        found.append({**about, "numbers": curve})
    out = folder / "number_of_poses"
    write_json(out / "number_of_poses.json", {"dataset": name, "categories": found})
    plots.number_of_poses(out / "number_of_poses.png", name, found)
    print("\n\n".join(as_text(name, one) for one in found))
    print(f"\n{out / 'number_of_poses.png'}")


def _read(
    folder: Path, dataset: Dataset, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Maps (n, d) of at most so many images of each category, with padding filled.

    And their categories (n,) and azimuths (n,), NaN where unknown.
    """
    several = folder / "categories/categories.csv" if dataset.categories > 1 else None
    with open_h5(folder / "pose_space/maps.h5", "maps", "valid") as file:
        names = read_names(file)
        categories = read_categories(several, names)
        rng, own = np.random.default_rng(seed), np.unique(categories)
        chosen = [rng.permutation(np.flatnonzero(categories == one))[:most] for one in own]
        rows = np.sort(np.concatenate(chosen))
        maps, valid = (np.stack([file[key][row] for row in rows]) for key in ("maps", "valid"))
    names, categories = [names[row] for row in rows], categories[rows]
    require_finite(names, "map", rerun("pose_space"), maps)
    for category in np.unique(categories):
        own = np.flatnonzero(categories == category)
        part = maps[own]
        fill_padding(part, valid[own])
        maps[own] = part
    entries = read_manifest(folder / "manifest.csv")
    truth = {one.image: one.azimuth_deg for one in entries if one.azimuth_deg is not None}
    if dataset.labels is not None:
        truth |= match_labels(Path(dataset.labels), [one.image for one in entries])
    azimuths = np.array([truth.get(name, np.nan) for name in names]) if truth else None
    return maps.reshape(len(maps), -1), categories, azimuths


def as_text(name: str, found: dict) -> str:
    """The curve of a category as a table, and how to read it."""
    head = ["K", "stability", "order", "silhouette", "smallest", "sharing"]
    known = "median_error_deg" in found["numbers"][0]
    table = [head + (["error", "even", "true order"] if known else [])]
    for row in found["numbers"]:
        cells = [
            f"{row['k']}{'*' if row['k'] == found['run']['k'] else ''}",
            f"{row['stability']:.3f}",
            f"{row['order_errors_of_halves']:.1f}",
            f"{row['silhouette']:.3f}",
            str(row["smallest"]),
            str(sum(map(len, row["shared"]))),
        ]
        if known:
            cells += [f"{row['median_error_deg']:.1f}", f"{90 / row['k']:.1f}"]
            cells += [str(row["order_errors"])]
        table.append(cells)
    which = f", category {found['category']}" if found["category"] else ""
    groups = "; ".join(" and ".join(map(str, group)) for group in found["run"]["shared"])
    notes = [
        "* the run's. stability: agreement of two halves of the images, 1 is best, 0 is chance;",
        "order: breaks of the circular order between them; smallest: images of the smallest",
        "cluster; sharing: clusters that share their pose with another.",
    ]
    if known:
        notes.append("error: median, in degrees; even: that of K equal parts of a turn.")
    notes.append(f"Poses of the run that are the same: {groups or 'none'}.")
    title = f"{name}{which}: numbers of poses, {found['images']} images"
    return "\n".join([title, "", *aligned(table, ">" * len(table[0])), "", *notes])


if __name__ == "__main__":
    run_tool(main)
