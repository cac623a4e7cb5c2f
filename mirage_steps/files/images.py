"""Image files: found in folders, read upright as RGB, with a limit on their size.

Every command reads images here, so that the same files are images to all of them.
"""

import contextlib
import functools
import os
import re
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from mirage_steps.files.names import MESH_ENDS, encoded
from mirage_steps.files.records import read_json

# Pillow's own guard only warns up to twice its limit; `_opened` checks the header itself.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd metadata that no one here reads.
warnings.filterwarnings("ignore", module="PIL")

MAX_PIXELS = 100_000_000
SMALLEST = 16  # pixels a side below which a photo shows nothing
# Not those that run other programs (EPS), hold images of any size in a small one (ICO, ICNS) or
# hold no photos.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "PCX", "QOI",
    "SGI",
)  # fmt: skip
_RAW = "a camera's raw file, of which only a preview can be read; convert it to JPEG or TIFF"
_RAW_SUFFIX = re.compile(
    r"\.(3fr|arw|c[ar]p|cr[23w]|dc[rs]|dng|erf|fff|gpr|iiq|k25|kdc|me?f|mos|mrw|n[er][fw]|orf|pef|"
    r"raf|raw|rw[2lz]|sr[2fw]|x3f)",
    re.IGNORECASE,
)
# What else a file may be by its first bytes, tried in this order.
_KINDS = (
    (rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "a HEIC (HEIF) photo; convert it to JPEG"),
    (rb"....ftypavi[fs]", "an AVIF photo that this Pillow cannot read; convert it to JPEG"),
    (rb"....ftypcrx |FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR|\0MRM|FOVb|II\x1a\0\0\0HEAPCCDR", _RAW),
    (rb"\xff\x0a|\0{3}\x0cJXL ", "a JPEG XL photo; convert it to JPEG or PNG"),
    (rb"....ftyp|....moov|....mdat|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]", "a video"),
    (rb"8BPS", "a Photoshop document; export it as JPEG or PNG"),
    (rb"(\xef\xbb\xbf)?\s*<([?!].*<)?svg", "a drawing (SVG)"),
    (rb"%PDF|%!PS|\xc5\xd0\xd3\xc6", "a document (PDF or PostScript)"),
    (rb"\0\0[\x01\x02]\0|icns", "an icon"),
)
# Copies that file managers, network disks and archives keep of photos.
_COPIES = re.compile(r"@eadir|__macosx|[#@$]recycle(\.bin)?|_?thumb(nail)?s?", re.IGNORECASE)
_RECORD_BYTES = 2**22
_MOST_SCANS = 500  # of a JPEG of MAX_PIXELS


class UnreadableImage(Exception):
    """The reason why an image is unusable, in a few words."""


# --- reading ----------------------------------------------------------------------------------


def read_rgb(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Gray, palette and CMYK are converted, 16-bit and float images scaled to 8 bits, transparency
    laid on white, the EXIF orientation applied; of an animation the first frame is taken.

    Args:
        path: the file.
        max_pixels: images with more are refused before any pixel is decoded.

    Raises:
        UnreadableImage: with the reason.
    """
    with _opened(path, max_pixels) as image:
        return upright_rgb(image)


def upright_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image that :func:`read_rgb` can read; the whole file is decoded."""
    with _opened(path, max_pixels) as image:
        size, turned = image.size, False
        # Of a JPEG an eighth of the pixels, which takes all of the file but a part of the time.
        if image.draft(None, (1, 1)):
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            upright_rgb(image)
            return size[::-1] if turned else size
        return upright_rgb(image).size


def read_mask(path: Path, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The object in a mask, bool (h, w): whatever is neither black nor transparent.

    Args:
        path: the file.
        size: width and height of its photo, whose aspect it must have to a pixel.
        max_pixels: as of :func:`read_rgb`.

    Raises:
        UnreadableImage: with the reason; also where the mask is empty.
    """
    with _opened(path, max_pixels) as image:
        if image.format == "JPEG":
            raise UnreadableImage("a JPEG, whose background is not quite black; save it as PNG")
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "L" or image.mode[0] in "1IF":
            mask = np.asarray(image) != 0
        else:
            values = np.asarray(image.convert("RGBA"))
            mask = values[..., :3].any(2) & (values[..., 3] > 0)
    height, width = mask.shape
    if abs(width * size[1] - height * size[0]) > max(size):
        raise UnreadableImage(f"{width}x{height} is not the aspect of {size[0]}x{size[1]}")
    if not mask.any():
        raise UnreadableImage("shows no object")
    return mask


def require_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that is too small or too large to be used.

    Raises:
        UnreadableImage: with its width and height.
    """
    width, height = size
    if min(size) < SMALLEST:
        raise UnreadableImage(
            f"{width}x{height} pixels are too few; use at least {SMALLEST}x{SMALLEST}"
        )
    if width * height > max_pixels:
        raise UnreadableImage(
            f"{width}x{height} has more than max_pixels = {max_pixels} pixels; raise it"
        )


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is that of a usable photo; any error is an UnreadableImage."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImage("not a regular file")
        if not found.st_size:  # as of files in /proc, in which reading may wait without end
            raise UnreadableImage("empty file")
        # TGA has no mark by which to know it.
        tga = ("TGA",) if Path(path).suffix.lower() == ".tga" else ()
        with Image.open(path, formats=_FORMATS + tga) as image:
            require_size(image.size, max_pixels)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _require_whole(path, image, max_pixels)
            if image.info.get("progressive"):
                _require_few_scans(path, image.width * image.height)
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(_kind(path)) from None
    except Exception as error:
        # Pillow's decoders raise nearly anything on damaged data (OSError, SyntaxError,
        # ValueError, struct.error, ...); in any case the file is unusable.
        if isinstance(error, OSError) and error.errno:
            raise UnreadableImage(f"cannot be read: {os.strerror(error.errno)}") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnreadableImage(encoded(reason)) from None


def _require_whole(path: Path, image: TiffImagePlugin.TiffImageFile, max_pixels: int) -> None:
    """Refuse a TIFF that is a camera's raw file, or whose tiles are larger than any image."""
    tags = image.tag_v2
    with open(path, "rb") as content:
        canon = content.read(10)[8:] == b"CR"
    reduced = tags.get(254, 0) & 1 or tags.get(255) == 2  # NewSubfileType, SubfileType
    if reduced or canon or 50706 in tags or _RAW_SUFFIX.fullmatch(Path(path).suffix):  # DNGVersion
        raise UnreadableImage(_RAW)
    width, height = tags.get(322, 1), tags.get(323, 1)  # of a tile
    if width * height > max(max_pixels, MAX_PIXELS):
        raise UnreadableImage(f"its tiles have {width}x{height} pixels, far more than the image")


def _require_few_scans(path: Path, pixels: int) -> None:
    """Refuse a progressive JPEG that a small file would keep the decoder busy with for hours."""
    with open(path, "rb") as content:
        blocks = iter(functools.partial(content.read, 2**20), b"")
        scans = sum(block.count(b"\xff\xda") for block in blocks)
    if scans * pixels > _MOST_SCANS * MAX_PIXELS:
        raise UnreadableImage(f"a JPEG of {scans} scans; save it again with the usual ten")


def _kind(path: Path) -> str:
    """What a file is that no decoder knows, with the remedy."""
    try:
        with open(path, "rb") as content:
            start = content.read(1024)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    kind = next((kind for magic, kind in _KINDS if re.match(magic, start, re.DOTALL)), None)
    if kind is None and _RAW_SUFFIX.fullmatch(Path(path).suffix):
        kind = _RAW
    return f"not an image: {kind}" if kind else "not an image"


def _passed_over(chunk: Callable) -> Callable:
    """A reader of PNG's texts and profiles that passes over those that Pillow refuses."""

    @functools.wraps(chunk)
    def read(self: PngImagePlugin.PngStream, position: int, length: int) -> bytes:
        try:
            return chunk(self, position, length)
        except (ValueError, SyntaxError, IndexError):
            # Pillow would refuse the image, whose pixels do not depend on it.
            self.fp.seek(position)
            return ImageFile._safe_read(self.fp, length)

    return read


for _chunk in ("chunk_iCCP", "chunk_tEXt", "chunk_zTXt", "chunk_iTXt"):
    _reader = getattr(PngImagePlugin.PngStream, _chunk)
    setattr(PngImagePlugin.PngStream, _chunk, _passed_over(_reader))


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


# --- finding ----------------------------------------------------------------------------------


def find_files(root: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """All files of a folder and its subfolders in sorted order, and what is passed over.

    Linked folders are followed, each folder once; a link to a file is a file. Hidden files,
    thumbnails and results of this pipeline are passed over.

    Returns:
        Paths, and (name, reason) of each file or whole folder that is passed over.
    """
    root = Path(os.path.expanduser(root)).resolve()
    files: list[Path] = []
    passed: list[tuple[Path, str]] = []
    # A link to a folder above would list everything again.
    seen = {_place(folder) for folder in root.parents}
    folders, links = [root], deque[Path]()
    while folders or links:
        # Links come last, so that what is in the folder itself keeps its name.
        folder = folders.pop() if folders else links.popleft()
        try:
            if (place := _place(folder)) in seen:
                passed.append((folder, "a link to a folder that is listed already"))
                continue
            seen.add(place)
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            passed.append((folder, f"cannot be read: {error.strerror}"))
            continue
        names = {entry.name for entry in entries}
        own = _own_files(folder, names)
        if folder != root and _is_result(folder, names - own):
            passed.append((folder, "results of this pipeline"))
            continue
        for entry in entries:
            path = folder / entry.name
            if reason := _left_out(entry, own):
                passed.append((path, reason))
            elif not entry.is_dir():
                files.append(path)
            else:
                (links if entry.is_symlink() else folders).append(path)
    return sorted(files), [(encoded(path), reason) for path, reason in sorted(passed)]


def _place(folder: Path) -> tuple[int, int]:
    """What tells folders apart, however they are reached."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def _left_out(entry: os.DirEntry, own: set[str]) -> str | None:
    """Why a file or folder is passed over, None if it is not."""
    try:
        if entry.name.startswith("."):
            return "hidden"
        if entry.name in own:
            return "made by novel_views"
        if entry.is_dir():
            return "copies of photos" if _COPIES.fullmatch(entry.name) else None
        if entry.is_file():
            return None
        return "a link to nothing" if entry.is_symlink() else "not a regular file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _own_files(folder: Path, names: set[str]) -> set[str]:
    """Names in a folder that are outputs of ``novel_views``."""
    stems = {name.removesuffix(".views") for name in names if name.endswith(".views")}
    stems |= {name.removesuffix(".gif") for name in names if name.endswith(".gif")}
    own = {one for one in stems if "inversion_evaluations" in _record(folder / f"{one}.json")}
    ends = (".png", ".gif", ".json", ".run.json", ".views", *MESH_ENDS)
    return {f"{stem}{end}" for stem in own for end in ends} & names


def _is_result(folder: Path, names: set[str]) -> bool:
    """Whether a step wrote into a folder: its record, and files that the record names."""
    records = (_record(folder / name) for name in names if name.endswith(".run.json"))
    outputs = (record.get("outputs") for record in records)
    return any(isinstance(one, dict) and names & one.keys() for one in outputs)


def _record(path: Path) -> dict:
    """A record of this pipeline; empty if it is none."""
    try:
        return read_json(path) if path.stat().st_size <= _RECORD_BYTES else {}
    except (OSError, RecursionError):
        return {}
