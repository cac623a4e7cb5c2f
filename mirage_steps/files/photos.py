"""Photos for novel views: opened, found in a folder, and the names of their outputs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import sha256_of
from mirage_steps.files.file_cache import FileCache
from mirage_steps.files.images import (
    MAX_PIXELS,
    UnreadableImage,
    find_files,
    read_rgb,
    require_size,
    upright_rgb,
    upright_size,
)
from mirage_steps.files.loading import ahead
from mirage_steps.files.names import encoded, file_of, not_a, output_names
from mirage_steps.files.project import project_path

Photo = Path | str | Image.Image | np.ndarray


@dataclass(frozen=True, repr=False)
class OpenPhoto:
    """An upright RGB image, with what tells it from other photos."""

    name: str  # printable
    path: str | None  # absolute and printable; None where an image was given
    sha256: str  # of the file, or of the pixels where an image was given
    image: Image.Image


def open_photo(photo: Photo, max_pixels: int = MAX_PIXELS) -> OpenPhoto:
    """Read a photo.

    Args:
        photo: a file, an image, or (H, W, 3) uint8.
        max_pixels: larger ones are refused.

    Raises:
        UserError: it cannot be read, or is too small or too large.
    """
    path = file_of(photo) if isinstance(photo, (Path, str)) else None
    where = "the photo" if path is None else encoded(path)
    if path and (why := not_a("file", path)):
        hint = "; give the photos in it" if why == "is a folder" else ""
        raise UserError(f"{where}: {why}{hint}")
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise UserError(
                f"the photo: {photo.dtype} of shape {photo.shape}; give (H, W, 3) uint8"
            )
        photo = Image.fromarray(photo)
    try:
        if isinstance(photo, (Path, str)):
            image = read_rgb(path, max_pixels)
            return OpenPhoto(encoded(path.name), *photo_identity(path), image)
        require_size(photo.size, max_pixels)
        image = upright_rgb(photo)
    except (UnreadableImage, OSError) as error:
        flag = " by --max-pixels" if str(error).endswith("; raise it") else ""
        raise UserError(f"{where}: cannot be used: {error}{flag}") from None
    return OpenPhoto("photo", None, hashlib.sha256(image.tobytes()).hexdigest(), image)


def photo_identity(path: Path) -> tuple[str, str]:
    """Absolute path of a photo, printable, and the SHA-256 of the file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return encoded(path.absolute()), sha256_of(path)
    except OSError as error:
        raise UserError(f"{encoded(path)}: cannot be used: {error.strerror}") from None


def photos_folder(folder: Path) -> Path:
    """The folder of the key ``photos``; raises UserError if it is not there."""
    if wrong := not_a("folder", project_path(folder)):
        raise UserError(f"photos {folder}: {wrong}; set it to the folder with your photos")
    return project_path(folder)


def photos_of(
    folder: Path, max_pixels: int, cache: FileCache
) -> tuple[dict[str, Path], list[tuple[str, str]], list[tuple[str, str]]]:
    """The photos of a folder, searched recursively, by the names of their outputs.

    Args:
        folder: as in the key ``photos``.
        max_pixels: larger photos are not usable.
        cache: of what was found out before; a photo is decoded only if it is new or was changed.

    Returns:
        Images; (name, reason) of files that are no usable images; and of what is passed over, such
        as hidden files.

    Raises:
        UserError: there is no such folder.
    """
    root = photos_folder(folder)
    files, passed_over = find_files(root)

    def reason(path: Path) -> str:
        try:
            # Errors are not kept: another permission or library may have mended them.
            cache.get(
                path, f"size, at most {max_pixels}", lambda one: upright_size(one, max_pixels)
            )
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if file_of(encoded(path)) != path:  # what a command would be given
            return "its name, written with %XX, is also that of another file; rename one of them"
        return ""

    reasons = dict(zip(files, ahead(reason, files), strict=True))
    usable = [path for path, why in reasons.items() if not why]
    names = output_names([path.relative_to(root.resolve()) for path in usable])
    unusable = [(encoded(path), why) for path, why in reasons.items() if why]
    return dict(zip(names, usable, strict=True)), unusable, passed_over
