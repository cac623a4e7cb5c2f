"""List or generate the images of a data set.

Writes ``manifest.csv`` (image, width, height, and labels of the source: azimuth_deg, viewpoint,
category, box) and ``rejected.csv`` (image, reason) into the output folder.
"""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_csv
from mirage_steps.files.command import log, run
from mirage_steps.files.manifest import write_manifest
from mirage_steps.files.names import encoded
from mirage_steps.files.records import read_json
from mirage_steps.files.terminal import progress
from mirage_steps.sources import module_of


def _command(name: str) -> object:
    return tyro.conf.subcommand(name, prefix_name=False)


Source = (
    Annotated[settings.Folder, _command("folder")]
    | Annotated[settings.CompCars, _command("compcars")]
    | Annotated[settings.Epfl, _command("epfl")]
    | Annotated[settings.StableDiffusion, _command("stable-diffusion")]
    | Annotated[settings.Procedural, _command("procedural")]
)


def main(
    *,
    source: Source,
    out: Path,
    weights: Path = Path(settings.WEIGHTS),
    device: str = "auto",
) -> None:
    """List the images of a data set, or make them.

    Args:
        source: Where the images come from.
        out: Folder of the data set, e.g. results/demo.
        weights: Folder of fetched networks, for Stable Diffusion.
        device: auto, cpu or cuda, for Stable Diffusion.
    """
    _require_same_source(source, out)
    generated = isinstance(source, settings.StableDiffusion)
    options = {"weights": weights, "device": device} if generated else {}
    entries, rejected = module_of(source).list_images(
        source, out, partial(progress, unit="image"), **options
    )
    write_csv(out / "rejected.csv", ("image", "reason"), rejected)
    if not entries:
        raise UserError(
            f"none of the {len(rejected)} files is a readable image; "
            f"the first, {rejected[0][0]}: {rejected[0][1]}"
        )
    write_manifest(out / "manifest.csv", entries)
    log.info("%d images, %d files rejected", len(entries), len(rejected))
    for name, reason in rejected[:5]:
        log.warning("rejected %s: %s", name, reason)
    if len(rejected) > 5:
        log.warning("and %d more in %s", len(rejected) - 5, out / "rejected.csv")


def _require_same_source(source: settings.Settings, out: Path) -> None:
    """Refuse to replace the list of another source, to which the other steps' results belong."""
    before = read_json(out / "dataset.run.json").get("settings")
    if not isinstance(before, dict) or not (out / "manifest.csv").exists():
        return
    # Snakemake removes both files before it makes them again.
    places = (before.get("path"), getattr(source, "path", None))
    old, new = (os.path.abspath(path) if path else None for path in places)
    if (before.get("kind"), old) != (source.kind, new):
        lists = encoded(old or f"images of the kind {before.get('kind')}")
        raise UserError(f"{out / 'manifest.csv'}: lists {lists}; give another --out")


if __name__ == "__main__":
    run(main)
