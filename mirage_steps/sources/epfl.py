"""EPFL multi-view cars (Ozuysal, Lepetit and Fua, CVPR 2009): cars on a turntable at a motor show.

``tripod-seq.txt`` has a line each of: number of sequences and size of the photos; photos of each
sequence; name of a photo; name of a file of boxes; photos of one full rotation; number of the
frontal photo (from 1); sense of rotation. ``times.txt`` has the seconds of every photo, a line each
sequence. The turntable rotates evenly, so the azimuth follows from the time.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files.names import encoded
from mirage_steps.method.boxes import Box, clipped
from mirage_steps.settings import Epfl
from mirage_steps.sources import Listing
from mirage_steps.sources.folder import inspect_images, require_folder, select_boxes

HOME = "https://www.epfl.ch/labs/cvlab/data/data-pose-index-php/"
_REMEDY = (
    f"get the multi-view car data set at {HOME} and set source.path to the folder that holds "
    "tripod-seq.txt, times.txt and the photos"
)


def list_images(source: Epfl, out: Path, progress) -> Listing:
    """Decode every photo once, sequence by sequence; photos stay where they are.

    Raises:
        UserError: the folder is not that of the data set.
    """
    truth = read_sequences(check(source))
    files = [path for path in truth if path.is_file()]
    gone = [encoded(path) for path in truth if not path.is_file()]
    absent = [(name, "listed in tripod-seq.txt but not there") for name in gone]
    entries, rejected = inspect_images(files, source.max_pixels, progress)
    labeled = []
    for entry in entries:
        azimuth, box = truth[entry.path]
        box = clipped(box, entry.width, entry.height)
        labeled.append(replace(entry, azimuth_deg=azimuth, box=box))
    kept, without_box = select_boxes(labeled, source.boxes)
    return kept, absent + rejected + without_box


def check(source: Epfl) -> Path:
    """The folder with ``tripod-seq.txt``, absolute; raises UserError if it is not there."""
    root = require_folder(source.path, _REMEDY)
    for folder in (root, root / "tripod-seq"):
        if (folder / "tripod-seq.txt").is_file():
            return folder
    raise UserError(f"source.path {source.path}: has no tripod-seq.txt; {_REMEDY}")


def read_sequences(folder: Path) -> dict[Path, tuple[float, Box]]:
    """Azimuth (degrees in [0, 360)) and box (x0, y0, x1, y1 in pixels) of every listed photo.

    Raises:
        UserError: a table is missing or damaged.
    """
    try:
        lines, times = _lines(folder / "tripod-seq.txt"), _lines(folder / "times.txt")
        count = int(lines[0].split()[0])
        lengths, periods, fronts, senses = (
            [int(word) for word in lines[number].split()] for number in (1, 4, 5, 6)
        )
        if count < 1:
            raise ValueError(f"{count} sequences")
        found = {}
        for i in range(count):
            seconds = np.array(times[i].split(), float)[: lengths[i]]
            azimuths = turntable_azimuths(seconds, periods[i], fronts[i], senses[i])
            table = _lines(_inside(folder, lines[3], i + 1))
            boxes = [[float(word) for word in line.split()] for line in table if line.strip()]
            if min(len(seconds), len(boxes)) < lengths[i]:
                counts = f"{lengths[i]} photos, {len(seconds)} times and {len(boxes)} boxes"
                raise ValueError(f"sequence {i + 1} has {counts}")
            for number, azimuth in enumerate(azimuths):
                x, y, width, height = boxes[number]
                path = _inside(folder, lines[2], i + 1, number + 1)
                found[path] = (azimuth, (x, y, x + width, y + height))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; get it at {HOME}") from None
    except (ValueError, IndexError, TypeError) as error:
        reason = "a line or a number is missing" if isinstance(error, IndexError) else error
        raise UserError(
            f"{folder}: tripod-seq.txt, times.txt and the boxes do not fit the data set's format "
            f"({reason}); download them again from {HOME}"
        ) from None
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


def _inside(folder: Path, template: str, *numbers: int) -> Path:
    """A file of the folder by its template, such as ``bbox_%02d.txt``; never one elsewhere."""
    template = template.strip()
    if not re.fullmatch(r"[^%/]{1,100}(%0?\d?d[^%/]{0,100})+", template):
        raise ValueError(f"{template[:40]!r} is not a file name with numbers")
    return folder / (template % numbers)


def turntable_azimuths(seconds: np.ndarray, period: int, front: int, sense: int) -> list[float]:
    """Azimuths of a sequence from the times of its photos.

    Args:
        seconds: (n,) time of each photo.
        period: photos of one full rotation; the last of them ends it.
        front: number of the frontal photo, from 1.
        sense: 1 where the car rotates clockwise seen from above, so that from facing the camera it
            comes to face image-left; -1 counterclockwise.

    Returns:
        (n,) degrees in [0, 360), 0 front to the camera, 90 facing image-left.

    Raises:
        ValueError: numbers outside the sequence, or a rotation without duration or sense.
    """
    if not (1 <= front <= len(seconds) and 2 <= period <= len(seconds)):
        raise ValueError(f"photo {front} is frontal and {period} are a rotation, of {len(seconds)}")
    duration = seconds[period - 1] - seconds[0]
    if not (duration > 0 and np.isfinite(seconds).all()) or abs(sense) != 1:
        raise ValueError(f"a rotation of {duration} seconds in the sense {sense}")
    angles = sense * 360.0 * (seconds - seconds[front - 1]) / duration
    return [float(angle) for angle in angles % 360.0]
