"""Novel views of given photos in all poses, by a finished run (Figure 4).

Writes for each photo ``NAME.png``, a strip of all poses in circular order with its own framed;
``NAME.gif``, a turntable; ``NAME.json`` with pose, distance, reconstruction quality, times and
warnings; and ``NAME.views/`` with the separate images. Unusable photos are reported and skipped;
the exit code is 1 if there are any.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from mirage_steps import settings
from mirage_steps.errors import Incomplete, UserError
from mirage_steps.files.command import log
from mirage_steps.files.command import run as run_step
from mirage_steps.files.names import encoded, file_of, output_names
from mirage_steps.files.photo_views import require_free
from mirage_steps.files.photos import photo_identity
from mirage_steps.files.terminal import progress
from mirage_steps.run import Run


def main(
    photos: tyro.conf.Positional[tuple[Path, ...]],
    *,
    run: Path,
    out: Path,
    box: tuple[float, float, float, float] | None = None,
    name: str | None = None,
    views: settings.Views = settings.Views(),
    guidance: settings.Guidance = settings.Guidance(),
    novel_views: settings.NovelViews = settings.NovelViews(),
    backbone: Path | None = None,
    device: str = "auto",
) -> list[str]:
    """Render the objects of given photos in all poses.

    Args:
        photos: Image files.
        run: Folder of a finished run, such as results/demo.
        out: Folder for the pictures.
        box: The object's box in a single photo, x0 y0 x1 y1 in pixels; found by PCA 1 if not given.
        name: Name of the outputs of a single photo; by default the photo's.
        views: Sampler.
        guidance: Hard-attention guidance.
        novel_views: Inversion, and the initial noise of the other poses.
        backbone: Folder of the run's vision transformer, if it was moved.
        device: auto, cpu or cuda.

    Returns:
        The names of the outputs.

    Raises:
        Incomplete: some photos cannot be used; the others were done.
    """
    photos = tuple(map(file_of, photos))
    stems = _output_names(photos, box, name)
    started = time.perf_counter()
    tool = Run.load(run, backbone=backbone, device=device)
    log.info("%s loaded in %.1f s", run, time.perf_counter() - started)
    done = []
    shown = progress(photos, unit="photo", disable=len(photos) == 1)
    for photo, stem in zip(shown, stems, strict=True):
        try:
            if os.path.isfile(photo):
                require_free(out, stem, *photo_identity(photo))
            found = tool.novel_views(
                photo, box=box, views=views, guidance=guidance, novel_views=novel_views
            )
        except UserError as error:
            if len(photos) == 1:
                raise
            log.warning("%s", error)
            continue
        strip = found.save(out, stem)
        for warning in found.warnings:
            log.warning("%s: %s", encoded(photo), warning)
        log.info("%s: %s", strip, found.title())
        done.append(stem)
    if not done:
        raise UserError(f"none of the {len(photos)} photos can be used, for the reasons above")
    if len(done) < len(photos):
        counts = f"{len(done)} of {len(photos)} photos were done"
        raise Incomplete(f"{counts}, the others cannot be used, for the reasons above", done)
    return done


def _output_names(photos: Sequence[Path], box: Sequence[float] | None, name: str | None) -> list:
    """Names of the outputs, one for each photo.

    Raises:
        UserError: no photos, a flag that applies to one of several, or two outputs of one name.
    """
    if not photos:
        raise UserError("no photos; give one or more image files")
    for flag, value in (("--box", box), ("--name", name)):
        if value is not None and len(photos) > 1:
            raise UserError(
                f"{flag}: is for a single photo, {len(photos)} are given; call once for each photo"
            )
    stems = output_names([Path(photo.name) for photo in photos]) if name is None else [name]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise UserError(
            f"the outputs of several photos would be called {min(twice)}; give them in several "
            "calls, each with its own --out"
        )
    return stems


if __name__ == "__main__":
    run_step(main)
