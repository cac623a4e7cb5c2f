"""Step 1: list the images of a data set, or make them.

Writes ``manifest.csv`` (image, width, height, azimuth_deg where the source knows it) and
``rejected.csv`` (image, reason) into the output folder.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from mirage_steps.settings import Folder, Procedural
from mirage_steps.support.errors import UserError
from mirage_steps.support.files import write_csv
from mirage_steps.support.manifest import write_manifest
from mirage_steps.support.step import log, run


def main(
    *,
    source: Annotated[Folder, tyro.conf.subcommand("folder", prefix_name=False)]
    | Annotated[Procedural, tyro.conf.subcommand("procedural", prefix_name=False)],
    out: Path,
) -> None:
    """List the images of a data set, or make them.

    Args:
        source: Where the images come from.
        out: Folder of the data set, e.g. results/demo.
    """
    progress = partial(tqdm, unit="image", mininterval=1.0)
    if isinstance(source, Folder):
        from mirage_steps.sources.folder import list_images

        entries, rejected = list_images(source, out, progress)
    else:
        from mirage_steps.sources.procedural import render_images

        entries, rejected = render_images(source, out, progress)
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


if __name__ == "__main__":
    run(main)
