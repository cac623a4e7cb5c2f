"""Photos for novel views: opened, found in a folder, and the names of their outputs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

_FORMS = "(H, W), (H, W, 3) or (H, W, 4), or channels first, as uint8 or as floats in [0, 1]"


class Tensor(Protocol):
    """A tensor of torch, which takes long to import."""

    def detach(self) -> "Tensor":
        """Without its gradient."""


Photo = Path | str | Image.Image | np.ndarray | Tensor


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
        photo: a file, an image, or an array or tensor: gray (H, W), RGB (H, W, 3) or RGBA
            (H, W, 4), or with the channels first; uint8, or floats in [0, 1]. What is transparent
            is laid on white.
        max_pixels: larger ones are refused.

    Raises:
        UserError: it cannot be read, is none of these, or is too small or too large.
    """
    path = file_of(photo) if isinstance(photo, (Path, str)) else None
    where = "the photo" if path is None else encoded(path)
    if path and (why := not_a("file", path)):
        hint = "; give the photos in it" if why == "is a folder" else ""
        raise UserError(f"{where}: {why}{hint}")
    try:
        if isinstance(photo, (Path, str)):
            image = read_rgb(path, max_pixels)
            return OpenPhoto(encoded(path.name), *photo_identity(path), image)
        if not isinstance(photo, Image.Image):
            photo = _image_of(photo, max_pixels)
        require_size(photo.size, max_pixels)
        image = upright_rgb(photo)
    except (UnreadableImage, OSError) as error:
        flag = " by --max-pixels" if str(error).endswith("; raise it") else ""
        raise UserError(f"{where}: cannot be used: {error}{flag}") from None
    return OpenPhoto("photo", None, hashlib.sha256(image.tobytes()).hexdigest(), image)


def _image_of(photo: Any, max_pixels: int) -> Image.Image:
    """An array or a tensor as an image, RGBA where it has four channels.

    Raises:
        UserError: it is none, or has another shape, type or range.
        UnreadableImage: it is too small or too large.
    """
    if hasattr(photo, "detach"):
        photo = photo.detach().cpu()
        photo = (photo.float() if photo.is_floating_point() else photo).numpy()
    if not isinstance(photo, np.ndarray):
        kind = type(photo).__name__
        raise UserError(f"the photo: is a {kind}; give a file, a Pillow image, an array or tensor")
    shape, dtype = photo.shape, photo.dtype
    # A side of so few pixels is no photo's.
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        photo = np.moveaxis(photo, 0, 2)
    known = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[2] in (1, 3, 4))
    if not known or (dtype != np.uint8 and dtype.kind != "f"):
        raise UserError(f"the photo: is {dtype} of shape {shape}; give {_FORMS}")
    require_size(photo.shape[1::-1], max_pixels)
    if dtype.kind == "f":
        low, high = float(photo.min()), float(photo.max())  # NaN if any is
        if not (low >= 0 and high <= 1):
            raise UserError(f"the photo: has floats from {low:g} to {high:g}; give them in [0, 1]")
        photo = np.round(photo * 255).astype(np.uint8)
    return Image.fromarray(
        np.ascontiguousarray(photo.squeeze(2) if photo.shape[2:] == (1,) else photo)
    )


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
