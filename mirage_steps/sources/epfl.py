"""EPFL multi-view cars (Ozuysal, Lepetit and Fua, CVPR 2009): cars on a turntable at a motor show.

``tripod-seq.txt`` has a line each of: number of sequences and size of the photos; photos of each
sequence; name of a photo; name of a file of boxes; photos of one full turn; number of the frontal
photo (from 1); sense of rotation. ``times.txt`` has the seconds of every photo, a line each
sequence. The turntable turns evenly, so the azimuth follows from the time.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.files.manifest import Entry
from mirage_steps.method.boxes import Box, clipped
from mirage_steps.settings import Epfl
from mirage_steps.sources.folder import inspect_images

HOME = "https://www.epfl.ch/labs/cvlab/data/data-pose-index-php/"


@dataclass(frozen=True)
class Photo:
    """One photo of a sequence.

    Args:
        path: where it should be.
        azimuth_deg: in [0, 360), as in the manifest.
        box: x0, y0, x1, y1 in pixels.
    """

    path: Path
    azimuth_deg: float
    box: Box


def list_images(source: Epfl, out: Path, progress) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Decode every photo once, sequence by sequence.

    Args:
        source: the data set's folder, and whether its boxes are used.
        out: the data set's folder of results; not used, the photos stay where they are.
        progress: wraps an iterable of known length, such as ``tqdm``.

    Returns:
        Usable photos with their azimuths, and (name, reason) of every other one.

    Raises:
        UserError: the folder is not that of the data set.
    """
    photos = read_sequences(check(source))
    there = [photo for photo in photos if photo.path.is_file()]
    reason = "listed in tripod-seq.txt but not there"
    absent = [(str(photo.path), reason) for photo in photos if not photo.path.is_file()]
    known = {photo.path: photo for photo in there}
    entries, rejected = inspect_images(list(known), source.max_pixels, progress)
    found = []
    for entry in entries:
        photo = known[entry.path]
        box = clipped(photo.box, entry.width, entry.height)
        if source.boxes and box is None:
            rejected.append((entry.image, "its box lies outside, and source.boxes is on"))
            continue
        kept = box if source.boxes else None
        found.append(replace(entry, azimuth_deg=photo.azimuth_deg, box=kept))
    return found, absent + rejected


def check(source: Epfl) -> Path:
    """The folder that holds ``tripod-seq.txt``, absolute.

    Raises:
        UserError: it is not there.
    """
    root = source.path.expanduser().resolve()
    for folder in (root, root / "tripod-seq"):
        if (folder / "tripod-seq.txt").is_file():
            return folder
    missing = "no such folder" if not root.is_dir() else "has no tripod-seq.txt"
    raise UserError(
        f"source.path {source.path}: {missing}; get the multi-view car data set at {HOME} and set "
        "source.path to the folder that holds tripod-seq.txt, times.txt and the photos"
    )


def read_sequences(folder: Path) -> list[Photo]:
    """Every photo that the data set's tables list.

    Args:
        folder: holds ``tripod-seq.txt``, ``times.txt`` and the boxes.

    Raises:
        UserError: a table is missing or not what it should be.
    """
    try:
        lines = (folder / "tripod-seq.txt").read_text(encoding="ascii").splitlines()
        count = int(lines[0].split()[0])
        lengths, turns, fronts, senses = (
            [int(word) for word in lines[number].split()] for number in (1, 4, 5, 6)
        )
        times = [
            np.array(line.split(), float)
            for line in (folder / "times.txt").read_text(encoding="ascii").splitlines()
        ]
        photos = []
        if count < 1:
            raise ValueError(f"{count} sequences")
        for index in range(count):
            seconds = times[index][: lengths[index]]
            azimuths = turntable(seconds, turns[index], fronts[index], senses[index])
            boxes = _read_boxes(_inside(folder, lines[3], index + 1))
            if min(len(seconds), len(boxes)) < lengths[index]:
                raise ValueError(
                    f"sequence {index + 1} has {lengths[index]} photos, {len(seconds)} times and "
                    f"{len(boxes)} boxes"
                )
            for number, azimuth in enumerate(azimuths, 1):
                x, y, width, height = boxes[number - 1]
                path = _inside(folder, lines[2], index + 1, number)
                photos.append(Photo(path, azimuth, (x, y, x + width, y + height)))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; get it at {HOME}") from None
    except (ValueError, IndexError, TypeError) as error:
        if isinstance(error, IndexError):
            error = "a line, or a number in one, is missing"
        raise UserError(
            f"{folder}: tripod-seq.txt, times.txt and the boxes do not fit the data set's format "
            f"({error}); get them anew at {HOME}"
        ) from None
    return photos


def _read_boxes(path: Path) -> list[Box]:
    """Boxes as x, y, width, height, a line each."""
    lines = path.read_text(encoding="ascii").splitlines()
    return [tuple(map(float, line.split())) for line in lines if line.strip()]


def _inside(folder: Path, template: str, *numbers: int) -> Path:
    """A file of the folder by its template, such as ``bbox_%02d.txt``; never one elsewhere."""
    template = template.strip()
    if not re.fullmatch(r"[^%/]{1,100}(%0?\d?d[^%/]{0,100})+", template):
        raise ValueError(f"{template[:40]!r} is no name of a file with its numbers")
    return folder / (template % numbers)


def turntable(seconds: np.ndarray, turn: int, front: int, sense: int) -> list[float]:
    """Azimuths of a sequence from the times of its photos.

    Args:
        seconds: (n,) time of each photo.
        turn: photos of one full turn; the last of them ends it.
        front: number of the frontal photo, from 1.
        sense: 1 where the car turns clockwise seen from above, so that from facing the camera it
            comes to face image-left; -1 where it turns the other way.

    Returns:
        (n,) degrees in [0, 360), 0 front to the camera, 90 facing image-left.
    """
    if not (1 <= front <= len(seconds) and 2 <= turn <= len(seconds)):
        raise ValueError(f"photo {front} is frontal and {turn} make a turn, of {len(seconds)}")
    period = seconds[turn - 1] - seconds[0]
    if not (period > 0 and np.isfinite(seconds).all()) or abs(sense) != 1:
        raise ValueError(f"a turn of {period} seconds in the sense {sense}")
    angles = sense * 360.0 * (seconds - seconds[front - 1]) / period
    return [float(angle) for angle in angles % 360.0]
