"""CompCars (Yang et al. 2015, "A large-scale car dataset for fine-grained categorization").

``image/MAKE/MODEL/YEAR/NAME.jpg`` with ``label/MAKE/MODEL/YEAR/NAME.txt``, whose lines are the
viewpoint, the number of boxes, and the boxes as ``x0 y0 x1 y1`` in pixels. The paper trains on
these photos without any label: viewpoints only score the poses, and boxes are used on request.
"""

from dataclasses import replace
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.command import log
from mirage_steps.files.images import find_files
from mirage_steps.method.boxes import Box, as_box, clipped
from mirage_steps.settings import CompCars
from mirage_steps.sources import Listing
from mirage_steps.sources.folder import inspect_images, require_folder, select_boxes

HOME = "https://mmlab.ie.cuhk.edu.hk/datasets/comp_cars/"
# By the first line of a label, where -1 is "unknown".
VIEWPOINTS = {1: "front", 2: "rear", 3: "side", 4: "front-side", 5: "rear-side"}
_REMEDY = (
    f"ask for CompCars at {HOME}, unpack its web-nature data, and set source.path to the folder "
    "that holds image/ and label/"
)


def list_images(source: CompCars, out: Path, progress) -> Listing:
    """Decode every photo once, in sorted order, and read its label; photos stay where they are.

    Raises:
        UserError: the folder is not that of CompCars.
    """
    root = check(source)
    # `image` itself may be a link.
    folder = (root / "image").resolve()
    files, passed_over = find_files(folder)
    if not any(path.suffix.lower() == ".jpg" for path in files):
        raise UserError(f"source.path {root}: image/ holds no .jpg files; {_REMEDY}")
    entries, rejected = inspect_images(files, source.max_pixels, progress)
    labeled, unlabeled = [], []
    for entry in entries:
        label = root / "label" / entry.path.relative_to(folder).with_suffix(".txt")
        try:
            viewpoint, box = read_label(label, entry.width, entry.height)
        except ValueError as error:
            unlabeled.append(f"{entry.image}: {error}")
            viewpoint, box = None, None
        labeled.append(replace(entry, viewpoint=viewpoint, box=box))
    if unlabeled:
        log.warning("%d photos have no usable label; %s", len(unlabeled), unlabeled[0])
    kept, without_box = select_boxes(labeled, source.boxes)
    return kept, rejected + passed_over + without_box


def check(source: CompCars) -> Path:
    """The data set's folder, absolute; raises UserError if it is not there or another."""
    root = require_folder(source.path, _REMEDY)
    if missing := _missing(root):
        hint = _REMEDY if _missing(root / "data") else f"did you mean {root / 'data'}?"
        raise UserError(f"source.path {source.path}: has no folder {' or '.join(missing)}; {hint}")
    return root


def _missing(root: Path) -> list[str]:
    """Those of the data set's folders that are not there."""
    return [name for name in ("image", "label") if not (root / name).is_dir()]


def read_label(path: Path, width: int, height: int) -> tuple[str | None, Box | None]:
    """Viewpoint and box of a label file.

    Args:
        path: of the file.
        width, height: of the photo in pixels, to which boxes are clipped.

    Returns:
        One of ``VIEWPOINTS`` or None, and the first box in pixels, None if none is on the photo.

    Raises:
        ValueError: with what is wrong in a few words.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        code, count = int(lines[0]), int(lines[1])
        boxes = [as_box(lines[2 + number].split()) for number in range(count)]
    except FileNotFoundError:
        raise ValueError("no label file") from None
    except (OSError, ValueError, IndexError):
        raise ValueError(f"not a label of CompCars: {path}") from None
    return VIEWPOINTS.get(code), clipped(boxes[0], width, height) if boxes else None
