"""Novel views of given photos in all poses, by a finished run (Figure 4).

Writes for each photo ``NAME.png``, a strip of all poses in circular order with its own framed;
``NAME.gif``, a turntable; ``NAME.json`` with pose, distance, reconstruction quality, times and
warnings; ``NAME.views/`` with the separate images and masks; and ``NAME.html``, a page with the
turntable to drag. With ``--mesh`` also a textured mesh, on the page, too: ``NAME.glb`` and
``NAME.obj`` (with ``NAME.mtl`` and ``NAME.texture.png``), and its picture ``NAME.mesh.png``.
Unusable photos are reported and skipped; the exit code is 1 if there are any.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mirage_steps import settings
from mirage_steps.errors import Incomplete, UserError
from mirage_steps.files.command import log
from mirage_steps.files.command import run as run_step
from mirage_steps.files.names import encoded, file_of, name_of_outputs, output_names
from mirage_steps.files.pack import run_folder
from mirage_steps.files.page import ABOUT_PHOTOS, Page
from mirage_steps.files.photo_views import PAGE, PhotoViews, require_free, require_no_other_mesh
from mirage_steps.files.photos import open_photo
from mirage_steps.files.terminal import progress
from mirage_steps.run import SHOWCASE, Run, on_photo, stored_sampling

if TYPE_CHECKING:
    from mirage_steps.files.meshes import PhotoMesh


def main(
    photos: tyro.conf.Positional[tuple[Path, ...]],
    *,
    run: Path = SHOWCASE,
    out: Path = Path("novel_views"),
    box: tuple[float, float, float, float] | None = None,
    name: str | None = None,
    mesh: bool = False,
    views: settings.Views | None = None,
    guidance: settings.Guidance | None = None,
    novel_views: settings.NovelViews | None = None,
    backbone: Path | None = None,
    device: str = "auto",
) -> list[str]:
    """Render the objects of given photos in all poses.

    Settings that are not given are the run's.

    Args:
        photos: Image files.
        run: Folder of a finished run, such as results/demo, or a file of export --pack; by default
            the embedded model, which knows rendered cars.
        out: Folder for the pictures.
        box: The object's box in a single photo, x0 y0 x1 y1 in pixels; found by PCA 1 if not given.
        name: Name of the outputs of a single photo; by default the photo's.
        mesh: Whether to make a textured mesh of each photo, too.
        views: Sampler.
        guidance: Hard-attention guidance.
        novel_views: Inversion, and the initial noise of the other poses.
        backbone: Folder of the run's vision transformer, if it was moved.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The names of the outputs.

    Raises:
        Incomplete: some photos cannot be used; the others were done.
    """
    photos = _distinct(map(file_of, photos))
    stems = _output_names(photos, box, name)
    stored = stored_sampling(run)
    views, guidance = views or stored.views, guidance or stored.guidance
    novel_views = novel_views or stored.novel_views
    settings.require_invertible(views, novel_views)
    if mesh:
        from mirage_steps.files.cameras import CAMERAS, read_cameras  # as in Run.mesh

        read_cameras(run_folder(run) / CAMERAS, ())
    usable, done = [], []
    for photo, stem in zip(photos, stems, strict=True):
        with _one_of(photos):
            _require_usable(photo, stem, out, box, mesh, novel_views.max_pixels)
            usable.append((photo, stem))
    if usable:
        started = time.perf_counter()
        tool = Run.load(run, backbone=backbone, device=device)
        log.info("%s loaded in %.1f s", run, time.perf_counter() - started)
    for photo, stem in progress(usable, unit="photo", disable=len(photos) == 1):
        with _one_of(photos):
            result = tool.novel_views(
                photo, box=box, views=views, guidance=guidance, novel_views=novel_views
            )
            made = tool.mesh(result) if mesh else None
            _save(result, made, photo, out, stem, run)
            done.append(stem)
    if not done:
        raise UserError(f"none of the {len(photos)} photos can be used, for the reasons above")
    if len(done) < len(photos):
        counts = f"{len(done)} of {len(photos)} photos were done"
        raise Incomplete(f"{counts}, the others cannot be used, for the reasons above", done)
    return done


def _save(
    result: PhotoViews, mesh: "PhotoMesh | None", photo: Path, out: Path, stem: str, run: Path
) -> None:
    """Write views, mesh and page of a photo, and tell what was found, with the warnings."""
    glb, strip = None, result.save(out, stem)
    log.info("%s: %s", strip, result.title())
    if mesh is not None:
        glb = mesh.save(out, stem)
        log.info("%s: %r", glb, mesh)
    for warning in (*result.warnings, *(mesh.warnings if mesh else ())):
        log.warning("%s: %s", encoded(photo), warning)
    page = Page(out / f"{stem}{PAGE}", f"{encoded(photo.name)} in all poses")
    page.section("Novel views" + " and mesh" * (mesh is not None), ABOUT_PHOTOS)
    names = dict(zip(result.poses, result.names, strict=True))
    page.photo(out / f"{stem}.json", glb, names)
    page.picture(strip, "All views side by side", f"By the model of {encoded(run)}.")
    page.write()


def _distinct(photos: Iterable[Path]) -> tuple[Path, ...]:
    """Photos without those that are the same file as one before."""
    once: dict[str, Path] = {}
    for photo in photos:
        once.setdefault(os.path.realpath(photo), photo)
    return tuple(once.values())


def _require_usable(
    photo: Path, stem: str, out: Path, box: Sequence[float] | None, mesh: bool, max_pixels: int
) -> None:
    """Refuse a photo that cannot be read, or whose outputs or box cannot be."""
    opened = open_photo(photo, max_pixels)
    require_free(out, stem, opened.path, opened.sha256)
    if mesh:
        require_no_other_mesh(out, stem)
    if box is not None:
        on_photo(box, opened.image.size)


@contextlib.contextmanager
def _one_of(photos: Sequence[Path]) -> Iterator[None]:
    """Log why a photo among several cannot be used; for a single one it is the error."""
    try:
        yield
    except UserError as error:
        if len(photos) == 1:
            raise
        log.warning("%s", error)


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
    if name is not None:
        return [name_of_outputs(name)]
    stems = output_names([Path(photo.name) for photo in photos])
    first = dict(zip(reversed(stems), reversed(photos), strict=True))
    for stem, photo in zip(stems, photos, strict=True):
        if first[stem] != photo:
            raise UserError(
                f"{encoded(photo)}: its outputs would have the same names as those of "
                f"{encoded(first[stem])}; process the two in separate "
                "calls, each with its own --out"
            )
    return stems


def of_the_run(words: Sequence[str]) -> dict[str, settings.Settings]:
    """The sections of the run that a command line names, the defaults where it names none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--run", type=Path, nargs="?", default=SHOWCASE)
    folder = parser.parse_known_args(words)[0].run
    return dict(stored_sampling(folder) if folder else settings.Sampling())


if __name__ == "__main__":
    run_step(main, of_the_run)
