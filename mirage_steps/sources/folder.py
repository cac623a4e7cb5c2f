"""A folder of images, searched recursively; shared by the sources with a folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.images import UnreadableImage, find_files, printable, read_rgb
from mirage_steps.files.loading import ahead
from mirage_steps.files.manifest import Entry
from mirage_steps.settings import Folder
from mirage_steps.sources import Listing


def list_images(source: Folder, out: Path, progress) -> Listing:
    """Decode every file of a folder once, in sorted order; the images stay where they are.

    Hidden files and folders are skipped. Images are named by their absolute path, which may hold
    any characters but a line break, and must be UTF-8. A link keeps its own name: two links to one
    file are two images, and labels find them.

    Raises:
        UserError: the folder is missing or empty.
    """
    root = check(source)
    files = find_files(root)
    if not files:
        raise UserError(f"source.path {root}: holds no files")
    return inspect_images(files, source.max_pixels, progress)


def check(source: Folder) -> Path:
    """The folder, absolute; raises UserError if it is not there."""
    return require_folder(source.path, "set it to the folder with your images")


def require_folder(path: Path, remedy: str) -> Path:
    """``path`` absolute; raises UserError with the remedy if it is no folder."""
    root = path.expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"source.path {path}: no such folder; {remedy}")
    return root


def inspect_images(files: Sequence[Path], max_pixels: int, progress) -> Listing:
    """Decode each file once, to know its size and that it can be used.

    Args:
        files: absolute paths, in the order of the manifest.
        max_pixels: images with more are rejected before decoding.
        progress: wraps an iterable of known length, such as ``tqdm``.
    """

    def read(path: Path) -> tuple[Path, tuple[int, int] | str]:
        if printable(path) != str(path):
            return path, "file name holds a line break or is not UTF-8; rename it"
        try:
            return path, read_rgb(path, max_pixels).size
        except (UnreadableImage, OSError) as error:
            return path, str(error)

    entries, rejected = [], []
    for path, result in progress(ahead(read, files), total=len(files)):
        if isinstance(result, str):
            rejected.append((printable(path), result))
        else:
            entries.append(Entry(str(path), path, *result))
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
