"""CompCars (Yang et al. 2015, "A large-scale car dataset for fine-grained categorization").

``image/MAKE/MODEL/YEAR/NAME.jpg`` with ``label/MAKE/MODEL/YEAR/NAME.txt``, whose lines are the
viewpoint, the number of boxes, and the boxes as ``x0 y0 x1 y1`` in pixels. The paper trains on
these photos without any label: viewpoints serve to score poses, and boxes are read only if asked
for.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from mirage_steps.errors import UserError
from mirage_steps.files.command import log
from mirage_steps.files.manifest import Entry
from mirage_steps.method.boxes import Box, clipped
from mirage_steps.settings import CompCars
from mirage_steps.sources.folder import inspect_images

HOME = "https://mmlab.ie.cuhk.edu.hk/datasets/comp_cars/"
# The first line of a label; -1 is "unknown".
VIEWPOINTS = {1: "front", 2: "rear", 3: "side", 4: "front-side", 5: "rear-side"}


@dataclass(frozen=True)
class Label:
    """What a label file says.

    Args:
        viewpoint: one of ``VIEWPOINTS``, None where unknown.
        box: the first box in pixels, None where there is none.
    """

    viewpoint: str | None
    box: Box | None


def list_images(source: CompCars, out: Path, progress) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Decode every photo once, in sorted order, and read its label.

    Args:
        source: the data set's folder, and whether its boxes are used.
        out: the data set's folder of results; not used, the photos stay where they are.
        progress: wraps an iterable of known length, such as ``tqdm``.

    Returns:
        Usable photos, and (name, reason) of every other one. With ``boxes``, a photo without a
        usable box is among the others.

    Raises:
        UserError: the folder is not that of CompCars.
    """
    root = check(source)
    files = sorted(path for path in (root / "image").rglob("*.jpg") if path.is_file())
    if not files:
        raise UserError(f"source.path {root}: image/ holds no .jpg files; {_remedy()}")
    entries, rejected = inspect_images(files, source.max_pixels, progress)
    kept, unlabelled = [], []
    for entry in entries:
        try:
            label = read_label(_label_of(root, entry.path), entry.width, entry.height)
        except ValueError as error:
            unlabelled.append(f"{entry.image}: {error}")
            label = Label(None, None)
        if source.boxes and label.box is None:
            rejected.append((entry.image, "no usable box in its label, and source.boxes is on"))
            continue
        box = label.box if source.boxes else None
        kept.append(replace(entry, viewpoint=label.viewpoint, box=box))
    if unlabelled:
        log.warning("%d photos have no usable label; %s", len(unlabelled), unlabelled[0])
    return kept, rejected


def check(source: CompCars) -> Path:
    """The data set's folder, absolute.

    Raises:
        UserError: it is not there or not laid out as CompCars is.
    """
    root = source.path.expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"source.path {source.path}: no such folder; {_remedy()}")
    missing = [name for name in ("image", "label") if not (root / name).is_dir()]
    if missing:
        inner = root / "data"
        found = all((inner / name).is_dir() for name in ("image", "label"))
        hint = f"did you mean {inner}?" if found else _remedy()
        raise UserError(f"source.path {source.path}: has no folder {' or '.join(missing)}; {hint}")
    return root


def read_label(path: Path, width: int, height: int) -> Label:
    """Read a label file.

    Args:
        path: of the file.
        width: of the photo in pixels, to which boxes are clipped.
        height: of the photo in pixels.

    Raises:
        ValueError: with what is wrong in a few words.
    """
    try:
        lines = path.read_text(encoding="ascii").split("\n")
        code, count = int(lines[0]), int(lines[1])
        boxes = [tuple(map(float, line.split())) for line in lines[2 : 2 + count]]
    except FileNotFoundError:
        raise ValueError("no label file") from None
    except (OSError, ValueError, IndexError):
        raise ValueError(f"not a label of CompCars: {path}") from None
    if len(boxes) < count or any(len(box) != 4 for box in boxes):
        raise ValueError(f"not a label of CompCars: {path}")
    return Label(VIEWPOINTS.get(code), clipped(boxes[0], width, height) if boxes else None)


def _label_of(root: Path, photo: Path) -> Path:
    return (root / "label" / photo.relative_to(root / "image")).with_suffix(".txt")


def _remedy() -> str:
    return (
        f"ask for CompCars at {HOME}, unpack its web-nature data, and set source.path to the "
        "folder that holds image/ and label/"
    )
