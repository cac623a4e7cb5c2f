"""Image files: found in folders, read upright as RGB, with a limit on their size."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's own guard only warns up to twice its limit; `read_rgb` checks the header itself.
Image.MAX_IMAGE_PIXELS = None


class UnreadableImage(Exception):
    """The reason why an image is unusable, in a few words."""


def read_rgb(path: Path, max_pixels: int = 100_000_000) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Gray, palette and CMYK are converted, 16-bit and float images scaled to 8 bits, transparency
    laid on white, the EXIF orientation applied; of an animation the first frame is taken.

    Args:
        path: the file.
        max_pixels: images with more are refused before any pixel is decoded.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImage(
                    f"{width}x{height} has more than max_pixels = {max_pixels} pixels"
                )
            return upright_rgb(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        empty = Path(path).stat().st_size == 0
        raise UnreadableImage("empty file" if empty else "not an image") from None
    except Exception as error:
        # Pillow's decoders raise nearly anything on damaged data (OSError, SyntaxError,
        # ValueError, struct.error, ...); in any case the file is unusable.
        raise UnreadableImage(" ".join(f"{type(error).__name__}: {error}".split())) from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB and upright, as :func:`read_rgb` gives files."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image)), "L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float gray values to 0..255.

    16-bit values by their type's range; the others by the narrowest of 0..1, 0..255 and 0..65535
    that holds them, else by their own.
    """
    if values.dtype.kind == "u":
        return np.round(values / np.iinfo(values.dtype).max * 255).astype(np.uint8)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImage("holds values that are infinite or not a number")
    low, high = values.min(), values.max()
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(top for top in (1.0, 255.0, 65535.0) if high <= top)
    return np.round((values - low) / max(high - low, np.finfo(float).tiny) * 255).astype(np.uint8)


def find_files(root: Path) -> list[Path]:
    """All files of a folder and its subfolders in sorted order, without hidden ones."""
    root = root.expanduser().resolve()
    found = (path for path in root.rglob("*") if path.is_file())
    return sorted(p for p in found if not f"/{p.relative_to(root)}".count("/."))


def printable(path: Path) -> str:
    """The path with undecodable bytes escaped, so that it can be written down."""
    return str(path).encode(errors="backslashreplace").decode().replace("\n", "\\n")
