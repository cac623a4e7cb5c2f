"""Which images to look at: near-duplicates, and those with warnings about object or pose.

From what earlier steps stored; nothing is left out here. A reason that holds for more than a
quarter of the images is one warning about the data set and is not listed for each. Writes
``warnings.csv`` (image, reason, measure, value, limit), ``screening.json`` (counts, ``warnings``
about the data set), ``screening.txt`` (the line of the overview) and ``screening.png`` (the images
with the worst warnings, and some groups of near-duplicates).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mirage_steps.errors import parsing
from mirage_steps.files import plots
from mirage_steps.files.atomic import atomic, csv_rows, write_csv, write_json
from mirage_steps.files.command import log, run
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.manifest import BOX, Entry, read_manifest
from mirage_steps.files.tables import CLEARNESS, read_duplicates
from mirage_steps.method.boxes import Box, as_box
from mirage_steps.method.reliability import (
    Clearness,
    PhotoWarning,
    cut_warnings,
    far_warnings,
    whole_warnings,
)

_SHOWN = 24  # images with warnings in the picture
_GROUPS = 6
_MANY = 0.25  # share of the images of which a reason says no more than of the data set
_NO_OBJECT = "no object was found, so the image is left out; give a box"


def main(
    *, manifest: Path, windows: Path, poses: Path, estimator: Path, duplicates: Path, out: Path
) -> None:
    """List the images that a user should look at.

    Args:
        manifest: The data set's manifest.csv.
        windows: The foreground step's foreground.csv.
        poses: poses.csv, for the distance of each image to its pose.
        estimator: The poses step's pose_estimator.safetensors.
        duplicates: duplicates.csv.
        out: Folder for warnings.csv, screening.json, screening.txt and screening.png.
    """
    entries = {one.image: one for one in read_manifest(manifest)}
    far = load_estimator(estimator, "far").far
    repeats = read_duplicates(duplicates)
    with parsing(f"{poses}", "not a table of poses", "poses"):
        distances = {row["image"]: float(row["distance"]) for row in csv_rows(poses)}
    fits = "does not fit the manifest", "foreground", "duplicates"
    warnings, boxes, seen = {}, {}, set()
    with parsing(f"{windows} or {duplicates}", *fits):
        for row in csv_rows(windows):
            image = row["image"]
            seen.add(image)
            if own := list(_warnings(entries[image], row, distances.get(image), far)):
                warnings[image], boxes[image] = own, _box(row)
        if missing := entries.keys() - seen:
            raise LookupError(min(missing))
        groups = _groups(entries, repeats)
    warnings, usual = _unusual(warnings, len(entries))
    rows = [
        (image, one.reason, one.measure, f"{one.value:.4g}", f"{one.limit:.4g}")
        for image, own in warnings.items()
        for one in own
    ]
    write_csv(out / "warnings.csv", ("image", "reason", "measure", "value", "limit"), rows)
    excess = {image: sum(one.excess for one in own) for image, own in warnings.items()}
    worst = sorted(excess, key=excess.get, reverse=True)[:_SHOWN]
    shown = [
        (entries[image], boxes[image], "; ".join(one.reason for one in warnings[image]))
        for image in worst
    ]
    plots.screening(out / "screening.png", shown, groups[:_GROUPS])
    about = {
        "images": len(entries),
        "near_duplicates": len(repeats),
        "images_with_warnings": len(warnings),
        "reasons": dict(Counter(reason for _, reason, *_ in rows).most_common()),
        "warnings": usual,
    }
    write_json(out / "screening.json", about)
    line = f"screening: {len(repeats)} near-duplicates, "
    line += f"warnings about {len(warnings)} of {len(entries)} images"
    log.info("%s", line)
    with atomic(out / "screening.txt") as temporary:
        temporary.write_text(f"{line}: {out / 'screening.png'}\n", encoding="utf-8")


def _groups(entries: Mapping[str, Entry], repeats: Mapping[str, str]) -> list[list[Entry]]:
    """Groups of near-duplicates, the image that the others repeat first; the largest first."""
    groups = {first: [entries[first]] for first in repeats.values()}
    for image, first in repeats.items():
        groups[first].append(entries[image])
    return sorted(groups.values(), key=len, reverse=True)


def _unusual(
    warnings: Mapping[str, list[PhotoWarning]], images: int
) -> tuple[dict[str, list[PhotoWarning]], list[str]]:
    """Warnings of each image without those common among all, and a line about each common one."""
    counts = Counter(one.reason for own in warnings.values() for one in own)
    counts.pop(_NO_OBJECT, None)
    usual = {reason: count for reason, count in counts.items() if count > _MANY * images}
    lines = [f"{count} of {images} images: {reason}" for reason, count in usual.items()]
    for line in lines:
        log.warning("%s; too many to list, see foreground.csv", line)
    kept = {
        image: [one for one in own if one.reason not in usual] for image, own in warnings.items()
    }
    return {image: own for image, own in kept.items() if own}, lines


def _warnings(
    entry: Entry, row: Mapping[str, str], distance: float | None, far: float
) -> Iterator[PhotoWarning]:
    """Warnings about an image.

    Args:
        entry: the image.
        row: of foreground.csv.
        distance: to its pose; None where it has none.
        far: a distance that hardly any training image has.

    Raises:
        LookupError, ValueError: the row is damaged.
    """
    if row["found"] == "0":
        if not (row["left_out"] or "").startswith("repeats"):
            yield PhotoWarning(_NO_OBJECT, "foreground patches", 0, 1)
        return
    if entry.box is None:
        clear = Clearness(*(float(row[key]) for key in CLEARNESS))
        yield from clear.warnings()
        yield from cut_warnings(clear)
        x0, y0, x1, y1 = _box(row)
        yield from whole_warnings((x1 - x0) * (y1 - y0) / (entry.width * entry.height))
    if distance is not None:
        yield from far_warnings(distance, far)


def _box(row: Mapping[str, str]) -> Box | None:
    """The object's box in a row of foreground.csv."""
    return as_box(row[key] for key in BOX) if row["found"] == "1" else None


if __name__ == "__main__":
    run(main)
