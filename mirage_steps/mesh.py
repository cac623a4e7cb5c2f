"""Textured meshes of photos, from their novel views, and of generated objects.

Writes for each photo ``NAME.glb``; ``NAME.obj`` with ``NAME.mtl`` and ``NAME.texture.png``; and
``NAME.mesh.png``, the views above the mesh as their cameras see it, with its colors and in gray.
With ``--ners`` also ``NAME.ners/``, the views, masks and cameras as NeRS reads them.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from mirage_steps.errors import UserError, errors_at
from mirage_steps.files.atomic import identity
from mirage_steps.files.cameras import CAMERAS, read_cameras
from mirage_steps.files.command import log
from mirage_steps.files.command import run as run_step
from mirage_steps.files.meshes import PhotoMesh, read_masks, read_object, read_views
from mirage_steps.files.names import encoded
from mirage_steps.files.ners import require_no_other
from mirage_steps.files.pack import run_folder
from mirage_steps.files.photo_views import require_no_other_mesh
from mirage_steps.files.records import read_json
from mirage_steps.run import MODEL, SHOWCASE, Run


def main(
    records: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path,
    run: Path = SHOWCASE,
    cameras: Path | None = None,
    objects: tuple[int, ...] = (),
    share: float = 0.9,
    voxels: int = 128,
    ners: bool = False,
) -> list[str]:
    """Make meshes of photos that novel_views has shown in all poses, or of generated objects.

    Args:
        records: PHOTO.json of novel_views, with the folder PHOTO.views beside it; or objects.h5 of
            a run's contact sheet.
        out: Folder for the meshes.
        run: Folder of the run that made the views, or its file of export --pack; by default the
            embedded model.
        cameras: cameras.json, if not that of the run; its cameras are used as they are, those of
            the run are refined on the masks.
        objects: Numbers of the objects of objects.h5, the rows of the contact sheet from 0.
        share: Share of the views that must see a voxel as object, above 0.5 to 1.
        voxels: Along the object's longest side, 16 to 256.
        ners: Whether to write the views for NeRS, too.

    Returns:
        The names of the outputs.
    """
    if not records:
        raise UserError("no records; give PHOTO.json of novel_views")
    if not 0.5 < share <= 1:
        raise UserError(f"--share {share}: give a number above 0.5, at most 1")
    if not 16 <= voxels <= 256:  # views x voxels^3 x 4 bytes of memory
        raise UserError(f"--voxels {voxels}: give 16 to 256")
    given = _named(records, objects)
    if again := {stem for stem, *_ in given if [one[0] for one in given].count(stem) > 1}:
        raise UserError(
            f"{encoded(min(again))}: several records have this name; process them in separate "
            "calls, each with its own --out"
        )
    for stem, record, number in given:
        require_no_other_mesh(out, stem)
        if ners:
            require_no_other(out / f"{stem}.ners")
        poses, views, masks = _shown(record, number, run, by_run=cameras is None)
        seen = read_cameras(cameras or run_folder(run) / CAMERAS, poses)
        with errors_at(f"{encoded(record)}: "):
            made = PhotoMesh.of(views, masks, seen, cameras is None, size=voxels, share=share)
        log.info("%s: %r", made.save(out, stem), made)
        for warning in made.warnings:
            log.warning("%s: %s", encoded(record), warning)
        if ners:
            made.save_ners(out / f"{stem}.ners")
    return [f"{stem}.mesh" for stem, *_ in given]


def _named(records: Sequence[Path], objects: Sequence[int]) -> list[tuple[str, Path, int | None]]:
    """Name of the outputs, file, and number of each object in it; None for a photo's record."""
    given = []
    for record in records:
        generated = record.suffix == ".h5"
        if generated and not objects:
            raise UserError(f"{encoded(record)}: give the numbers of its objects by --objects")
        numbers = objects if generated else [None]
        given += [(f"object-{n}" if generated else record.stem, record, n) for n in numbers]
    if objects and not any(number is not None for *_, number in given):
        raise UserError("--objects: are of objects.h5, which is not given")
    return given


_loaded = functools.cache(Run.load)


def _shown(
    record: Path, number: int | None, run: Path, by_run: bool
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Poses, views and masks of a photo, or of a generated object; if asked, by the run's model."""
    if number is None:
        poses = _poses(record, run if by_run else None)
        folder = record.with_suffix(".views")
        return poses, read_views(folder, poses), read_masks(folder, poses)
    poses, views = read_object(record, number)
    made_by = read_json(record.with_name("sheet.run.json")).get("inputs", {}).get("model")
    if by_run:
        _require_made_by(record, made_by, run)
    return poses, views, _loaded(run).masks(views) / 255


def _poses(record: Path, run: Path | None) -> list[int]:
    """Poses of a photo's views; if a run is given, its model must have made them."""
    content = read_json(record)
    poses = content.get("poses")
    if not isinstance(poses, list) or not all(isinstance(pose, int) for pose in poses):
        raise UserError(f"{encoded(record)}: not a record of novel_views; give its PHOTO.json")
    if run is not None:
        _require_made_by(record, content.get("settings", {}).get("model"), run)
    return poses


def _require_made_by(record: Path, used: dict | None, run: Path) -> None:
    """Refuse views that another model than a run's made, whose poses are others."""
    own = run_folder(run) / MODEL
    if {**identity(own), "path": ""} != {**(used or {}), "path": ""}:
        raise UserError(f"{encoded(record)}: made by another model than that of {run}; give "
                        "the run that made it by --run")  # fmt: skip


if __name__ == "__main__":
    run_step(main)
