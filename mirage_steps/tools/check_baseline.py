"""Check another method's renderings against the paper's protocol, before they are scored.

``python -m mirage_steps.tools.check_baseline FOLDER`` decodes each file once and prints what is met
and what is not, the first wrong files, and the lines of the configuration. It writes nothing, and
ends with exit code 1 where anything is not met. ``docs/baselines.md`` has the protocol.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
import yaml

from mirage_steps.errors import UserError
from mirage_steps.files.command import run_tool
from mirage_steps.files.images import MAX_PIXELS, UnreadableImage, find_files
from mirage_steps.files.loading import ahead
from mirage_steps.files.names import encoded, not_a
from mirage_steps.files.renderings import WHITE_SHARE, by_object, read_square, white_share
from mirage_steps.files.terminal import progress, start_log
from mirage_steps.files.text_table import aligned

_NAMED = 3  # wrong files of each check


class Square(NamedTuple):
    """What is kept of an image: side in pixels, hash of the pixels, white share of the border."""

    side: int
    digest: bytes
    white: float


class Check(NamedTuple):
    """A row of the table; ``met`` is None where nothing was given to check."""

    about: str
    asked: str
    found: object
    met: bool | None
    wrong: Sequence[tuple[Path | str, str]] = ()  # file or object, and reason


def main(
    folder: tyro.conf.Positional[Path],
    *,
    objects: int = 15_000,
    views: int = 4,
    meshes: Path | None = None,
    reconstructions: int = 30_000,
    background: Literal["kept", "removed", "remove"] = "removed",
    image_size: int = 64,
    max_pixels: int = MAX_PIXELS,
    name: str = "theirs",
) -> None:
    """Print whether renderings follow the paper's protocol, and the configuration for them.

    Args:
        folder: Files NAME_VIEW.png or NAME/VIEW.png, searched recursively.
        objects: At least so many objects must have all views.
        views: Of each object.
        meshes: Folder with an .obj file for each reconstruction, counted if it is given.
        reconstructions: At least so many there must be.
        background: As the key baselines.NAME.background; removed: every image must be on white.
        image_size: Smaller images would be enlarged, in pixels.
        max_pixels: Images with more are refused.
        name: Of the method in the table.
    """
    start_log()
    for flag, value, least in (("objects", objects, 1), ("views", views, 2)):
        if value < least:
            raise UserError(f"--{flag} {value}: must be at least {least}")
    root, files = _files("FOLDER", folder)
    built = None
    if meshes:
        built = sum(path.suffix == ".obj" for path in _files("--meshes", meshes)[1])
    images, refused = _look_at(files, max_pixels)
    found = by_object(files, root)
    usable = {key: sum(path in images for path in paths) for key, paths in found.items()}
    named = {path for paths in found.values() for path in paths}
    checks = [
        *_of_objects(usable, objects, views),
        _at_least("reconstructions (--meshes)", reconstructions, built),
        *_of_files(refused, [path for path in images if path not in named]),
        *_of_images(images, image_size, background),
    ]
    print("\n".join(_as_text(root, checks)))
    shown = {"views": views} if views in usable.values() else {}
    if not shown:
        print(f"\nNo object has {views} usable views: a row of the table, but no comparison.png.")
    section = {"path": str(root), "background": background, **shown}
    lines = {"datasets": {"NAME": {"baselines": {name: section}}}}
    options = {"default_flow_style": None, "sort_keys": False, "width": 10_000}
    print("", yaml.safe_dump(lines, allow_unicode=True, **options), sep="\n", end="")
    if unmet := [check.about for check in checks if check.met is False]:
        raise UserError(f"{folder}: not met: {', '.join(unmet)}")


def _files(flag: str, folder: Path) -> tuple[Path, list[Path]]:
    """A folder, absolute, and the files in it; raises UserError if there are none."""
    if wrong := not_a("folder", folder):
        raise UserError(f"{flag} {folder}: {wrong}")
    files, _ = find_files(folder)
    if not files:
        raise UserError(f"{flag} {folder}: holds no files")
    return Path(os.path.expanduser(folder)).resolve(), files


def _look_at(files: list[Path], max_pixels: int) -> tuple[dict[Path, Square], dict[Path, str]]:
    """What is kept of the square images, and why other files cannot be used."""
    images: dict[Path, Square] = {}
    refused: dict[Path, str] = {}
    results = ahead(partial(_look, max_pixels=max_pixels), files)
    for path, result in zip(files, progress(results, total=len(files), unit="image"), strict=True):
        if isinstance(result, str):
            refused[path] = result
        else:
            images[path] = result
    return images, refused


def _look(path: Path, max_pixels: int) -> Square | str:
    try:
        pixels = np.asarray(read_square(path, max_pixels))
    except (UnreadableImage, OSError) as error:
        return str(error)
    digest = hashlib.blake2b(pixels.data, digest_size=16).digest()
    return Square(len(pixels), digest, white_share(pixels[None]))


def _at_least(about: str, asked: int, found: int | None) -> Check:
    if found is None:
        return Check(about, f">= {asked}", "not given", None)
    return Check(about, f">= {asked}", found, found >= asked)


def _none(about: str, wrong: Sequence[tuple[Path | str, str]]) -> Check:
    return Check(about, "none", len(wrong), not wrong, wrong)


def _of_objects(usable: Mapping[str, int], objects: int, views: int) -> Iterator[Check]:
    """Checks of the number of usable views of each object."""
    ragged = [(key, f"{n} usable views") for key, n in usable.items() if n != views]
    yield _at_least(f"objects with {views} views", objects, len(usable) - len(ragged))
    yield _none("objects with fewer or more views", ragged)


def _of_files(refused: Mapping[Path, str], nameless: Sequence[Path]) -> Iterator[Check]:
    """Checks of the files that are not used, and of those that are but name no view."""
    oblong = [(path, why) for path, why in refused.items() if why.startswith("not square")]
    others = [(path, why) for path, why in refused.items() if not why.startswith("not square")]
    yield _none("unreadable", others)
    yield _none("not square", oblong)
    reason = "name it NAME_VIEW or NAME/VIEW, VIEW a number"
    yield _none("without object and view", [(path, reason) for path in nameless])


def _of_images(images: Mapping[Path, Square], image_size: int, background: str) -> Iterator[Check]:
    """Checks of sizes, duplicates and background."""
    sides = Counter(one.side for one in images.values())
    usual = max(sides, key=sides.__getitem__, default=0)
    small = [(path, one.side) for path, one in images.items() if one.side < image_size]
    yield _none(f"smaller than {image_size} pixels", [(path, f"{n} pixels") for path, n in small])
    other = [(path, one.side) for path, one in images.items() if one.side != usual]
    yield _none(f"not of {usual} pixels, as most", [(path, f"{n} pixels") for path, n in other])
    first: dict[bytes, Path] = {}
    for path, one in images.items():
        first.setdefault(one.digest, path)
    copies = [(path, first[one.digest]) for path, one in images.items()]
    twice = [(path, f"as {encoded(one.name)}") for path, one in copies if path != one]
    yield _none("the same pixels as another", twice)
    colored = [
        (path, f"{one.white:.0%} of the border is white")
        for path, one in images.items()
        if one.white < WHITE_SHARE
    ]
    if background == "removed":
        yield _none("not on white", colored)
    else:
        white = len(images) - len(colored)
        yield Check("on white", "at most half", white, 2 * white <= len(images))


def _as_text(root: Path, checks: Sequence[Check]) -> Iterator[str]:
    """The table, and the first wrong files of each check."""
    met = {True: "met", False: "NOT MET", None: "not checked"}
    rows = [(one.about, one.asked, str(one.found), met[one.met]) for one in checks]
    yield from aligned([(encoded(root), "asked", "found", ""), *rows], "<>><")
    for check in checks:
        for path, reason in check.wrong[:_NAMED]:
            name = path if isinstance(path, str) else encoded(path.relative_to(root))
            yield f"{check.about}: {name}: {reason}"


if __name__ == "__main__":
    run_tool(main)
