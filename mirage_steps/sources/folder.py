"""A folder of images, searched recursively; shared by the sources with a folder."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import read_csv
from mirage_steps.files.images import UnreadableImage, find_files, read_mask, upright_size
from mirage_steps.files.labels import match_boxes
from mirage_steps.files.loading import ahead
from mirage_steps.files.manifest import Entry
from mirage_steps.files.names import encoded, not_a
from mirage_steps.files.terminal import log
from mirage_steps.method.boxes import box_of
from mirage_steps.settings import Folder
from mirage_steps.sources import Listing


def list_images(source: Folder, out: Path, progress) -> Listing:
    """Decode every file of a folder once, in sorted order; the images stay where they are.

    Images are named by their absolute path. A link keeps its own name: two links to one file are
    two images, and labels find them. Linked folders are searched, each once.

    Raises:
        UserError: the folder is missing or empty, or the boxes or masks cannot be used.
    """
    root = check(source)
    files, passed_over = find_files(root)
    if not files and not passed_over:
        raise UserError(f"source.path {root}: holds no files")
    entries, rejected = inspect_images(files, source.max_pixels, progress)
    if source.boxes == "image":
        entries = [replace(one, box=(0.0, 0.0, one.width, one.height)) for one in entries]
    elif source.boxes is not None and entries:
        boxes = match_boxes(Path(source.boxes), entries)
        entries = [replace(one, box=boxes.get(one.image)) for one in entries]
    elif source.masks is not None and entries:
        entries, wrong = _masked(source, root, entries, progress)
        rejected += wrong
    return entries, rejected + passed_over


def _masked(source: Folder, root: Path, entries: list[Entry], progress) -> Listing:
    """Entries with their masks and the boxes of these; images whose mask is bad are rejected.

    Raises:
        UserError: no image has a mask.
    """
    folder = Path(os.path.expanduser(source.masks)).resolve()
    files, _ = find_files(folder)
    found = defaultdict(list)
    for path in files:
        found[_stem(path, folder)].append(path)

    def read(entry: Entry) -> tuple[Entry, str]:
        path, *others = found.get(_stem(entry.path, root)) or [None]
        if path is None:
            return entry, ""
        if others:
            return entry, f"has several masks: {encoded(path)}, {encoded(others[0])}"
        try:
            mask = read_mask(path, (entry.width, entry.height), source.max_pixels)
        except UnreadableImage as error:
            return entry, f"its mask {encoded(path)}: {error}"
        return replace(entry, box=box_of(mask, entry.width, entry.height), mask=path), ""

    if without := [one.image for one in entries if _stem(one.path, root) not in found]:
        if len(without) == len(entries):
            expected = folder / entries[0].path.relative_to(root).with_suffix(".png")
            raise UserError(
                f"source.masks {source.masks}: holds no mask of any photo; that of {without[0]} "
                f"would be {encoded(expected)}"
            )
        log.warning(
            "source.masks %s: %d of %d photos have no mask (%s); PCA 1 finds their objects",
            source.masks, len(without), len(entries), without[0],
        )  # fmt: skip
    kept, rejected = [], []
    for entry, reason in progress(ahead(read, entries), total=len(entries)):
        if reason:
            rejected.append((entry.image, reason))
        else:
            kept.append(entry)
    return kept, rejected


def _stem(path: Path, root: Path) -> str:
    """A file's path below a folder without its extension, in one Unicode form."""
    return unicodedata.normalize("NFC", str(path.relative_to(root).with_suffix("")))


def added_files(source: Folder, manifest: Path) -> list[str]:
    """Names of files that came into the folder after ``manifest`` was made; no image is read."""
    names = {
        row["image"]
        for path in (manifest, manifest.with_name("rejected.csv"))
        for row in read_csv(path)
    }
    files, _ = find_files(source.path)
    return [name for name in map(encoded, files) if name not in names]


def check(source: Folder) -> Path:
    """The folder, absolute; raises UserError if it is not there, or that of the masks is not."""
    root = require_folder(source.path, "set it to the folder with your images")
    if source.masks is not None:
        masks = require_folder(source.masks, "set it to the folder with your masks", "source.masks")
        if masks.is_relative_to(root):
            raise UserError(
                f"source.masks {source.masks}: is in source.path, where masks would be photos; "
                "move it out"
            )
    return root


def require_folder(path: Path, remedy: str, key: str = "source.path") -> Path:
    """``path`` absolute; raises UserError with the remedy if it is no folder."""
    if wrong := not_a("folder", path):
        raise UserError(f"{key} {path}: {wrong}; {remedy}")
    return Path(os.path.expanduser(path)).resolve()


def inspect_images(files: Sequence[Path], max_pixels: int, progress) -> Listing:
    """Decode each file once, to know its size and that it can be used.

    Args:
        files: absolute paths, in the order of the manifest.
        max_pixels: images with more are rejected before decoding.
        progress: wraps an iterable of known length, such as ``tqdm``.
    """

    def read(path: Path) -> tuple[Path, tuple[int, int] | str]:
        try:
            return path, upright_size(path, max_pixels)
        except (UnreadableImage, OSError) as error:
            return path, str(error)

    entries, rejected = [], []
    for path, result in progress(ahead(read, files), total=len(files)):
        if isinstance(result, str):
            rejected.append((encoded(path), result))
        else:
            entries.append(Entry(encoded(path), path, *result))
    return entries, rejected


def select_boxes(entries: list[Entry], boxes: bool) -> Listing:
    """Entries with the boxes that their data set states, or without.

    Args:
        entries: each with its box, None where it has none that lies on the image.
        boxes: keep the boxes and reject images without one; otherwise remove all boxes.
    """
    if not boxes:
        return [replace(entry, box=None) for entry in entries], []
    reason = "has no usable box, and source.boxes is on"
    rejected = [(entry.image, reason) for entry in entries if entry.box is None]
    return [entry for entry in entries if entry.box is not None], rejected
