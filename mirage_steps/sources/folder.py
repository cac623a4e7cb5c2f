"""A folder of images, searched recursively."""

from pathlib import Path

from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files.images import UnreadableImage, find_files, printable, read_rgb
from mirage_steps.files.loading import ahead
from mirage_steps.files.manifest import Entry
from mirage_steps.settings import Folder


def list_images(source: Folder, out: Path, progress) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Decode every file of a folder once, in sorted order.

    Hidden files and folders are passed over. Images are named by their absolute path, which may
    hold any characters but a line break, and must be UTF-8 to stand in a table. A link keeps its
    own name: two links to one file are two images, and labels find them.

    Args:
        source: the folder and the bound on pixels.
        out: the data set's folder; not used, since the images stay where they are.
        progress: wraps an iterable of known length, such as ``tqdm``.

    Returns:
        Usable images, and (name, reason) of every other file.

    Raises:
        UserError: the folder is missing or empty.
    """
    root = check(source)
    files = find_files(root)
    if not files:
        raise UserError(f"source.path {root}: holds no files")

    return inspect_images(files, source.max_pixels, progress)


def check(source: Folder) -> Path:
    """The folder, absolute.

    Raises:
        UserError: it is not there.
    """
    root = source.path.expanduser()
    if not root.is_dir():
        raise UserError(
            f"source.path {root}: no such folder; set it to the folder with your images"
        )
    return root.resolve()


def inspect_images(
    files: list[Path], max_pixels: int, progress
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Decode each file once, to know its size and that it can be used.

    Args:
        files: absolute paths, in the order of the manifest.
        max_pixels: images with more are rejected before decoding.
        progress: wraps an iterable of known length, such as ``tqdm``.

    Returns:
        Usable images, and (name, reason) of every other file.
    """

    def read(path: Path) -> tuple[Path, tuple[int, int] | str]:
        if "\n" in str(path) or not _is_utf8(path):
            return path, "file name cannot stand in a UTF-8 table; rename it"
        try:
            image: Image.Image = read_rgb(path, max_pixels)
        except (UnreadableImage, OSError) as error:
            return path, str(error)
        return path, image.size

    entries, rejected = [], []
    for path, result in progress(ahead(read, files), total=len(files)):
        if isinstance(result, str):
            rejected.append((printable(path), result))
        else:
            entries.append(Entry(str(path), path, *result))
    return entries, rejected


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
