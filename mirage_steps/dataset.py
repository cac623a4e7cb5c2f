"""List or generate the images of a data set.

Writes ``manifest.csv`` (image, width, height, and labels of the source: azimuth_deg, viewpoint,
category, box, mask) and ``rejected.csv`` (image, reason) into the output folder.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.atomic import write_csv
from mirage_steps.files.command import log, run
from mirage_steps.files.manifest import write_manifest
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
    generated = isinstance(source, settings.StableDiffusion)
    options = {"weights": weights, "device": device} if generated else {}
    entries, rejected = module_of(source).list_images(
        source, out, partial(progress, unit="image"), **options
    )
    write_csv(out / "rejected.csv", ("image", "reason"), rejected)
    if not entries:
        raise UserError(
            f"none of the {len(rejected)} files is a usable image; "
            f"the first, {rejected[0][0]}: {rejected[0][1]}"
        )
    write_manifest(out / "manifest.csv", entries)
    log.info("%d images, %d files rejected", len(entries), len(rejected))
    for name, reason in rejected[:5]:
        log.warning("rejected %s: %s", name, reason)
    if len(rejected) > 5:
        log.warning("and %d more in %s", len(rejected) - 5, out / "rejected.csv")


if __name__ == "__main__":
    run(main)
