"""Any photo from every side: cropped, posed, inverted, turned by what a run stored (Figure 4).

Writes for each photo ``NAME.png``, a strip of all poses in circular order with its own framed;
``NAME.gif``, which turns; ``NAME.json`` with pose, distance, quality of the reconstruction, times
and warnings; and ``NAME.views/`` with the separate images. A photo that cannot be turned is
reported with its reason, and the others are turned.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import tyro
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.errors import UserError
from mirage_steps.files.command import log
from mirage_steps.files.command import run as run_step
from mirage_steps.files.photos import distinct_stems
from mirage_steps.run import Run, require_free


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
    """Show the objects of given photos from all sides.

    Args:
        photos: Image files.
        run: Folder of a finished run, such as results/demo.
        out: Folder for the pictures.
        box: The object's box in a single photo, x0 y0 x1 y1 in pixels; found by PCA 1 if not given.
        name: What the outputs of a single photo are called; by default as the photo.
        views: Sampler.
        guidance: Hard-attention guidance.
        novel_views: Inversion, and what the other poses start from.
        backbone: Folder of the run's vision transformer, where it has moved since.
        device: auto, cpu or cuda.

    Returns:
        The stems of what was written.
    """
    if not photos:
        raise UserError("no photos; give one or more image files")
    if box is not None and len(photos) > 1:
        raise UserError(f"--box: belongs to one photo, {len(photos)} are given")
    if name is not None and len(photos) > 1:
        raise UserError(f"--name: belongs to one photo, {len(photos)} are given")
    stems = distinct_stems(photos) if name is None else [name]
    require_apart(photos, stems, out)
    started = time.perf_counter()
    tool = Run.load(run, backbone=backbone, device=device)
    log.info("%s loaded in %.1f s", run, time.perf_counter() - started)
    done, refused = [], []
    for photo, stem in zip(
        tqdm(photos, unit="photo", disable=len(photos) == 1), stems, strict=True
    ):
        try:
            if not photo.is_dir():
                require_free(out, stem)
            turned = tool.turn(
                photo, box=box, views=views, guidance=guidance, novel_views=novel_views
            )
        except UserError as error:
            refused.append(str(error))
            continue
        strip = turned.save(out, stem)
        for doubt in turned.doubts:
            log.warning("%s: %s", photo, doubt)
        log.info(
            "%s: pose %d of %d at distance %.3f, reconstructed at %.1f dB by %d evaluations: %s",
            photo, turned.pose, len(turned.poses), turned.located.distance, turned.psnr_db,
            turned.turned.evaluations, strip,
        )  # fmt: skip
        done.append(stem)
    if not done and len(photos) == 1:
        raise UserError(refused[0])
    for line in refused:
        log.warning("%s", line)
    if not done:
        raise UserError(f"none of the {len(photos)} photos can be turned, for the reasons above")
    if refused:
        log.warning("%d of %d photos were turned, not those above", len(done), len(photos))
    return done


def require_apart(photos: Sequence[Path], stems: Sequence[str], out: Path) -> None:
    """Refuse to write over the photos.

    Raises:
        UserError: an output has the place of a photo.
    """
    given = {place for photo in photos for place in (photo.resolve(), photo.resolve().parent)}
    for stem in stems:
        for end in (".png", ".gif", ".json", ".run.json", ".views"):
            if (out / f"{stem}{end}").resolve() in given:
                raise UserError(f"--out {out}: would write over {stem}{end}; give another folder")


if __name__ == "__main__":
    run_step(main)
