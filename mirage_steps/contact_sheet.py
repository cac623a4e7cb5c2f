"""Pictures of objects in all poses: objects in rows, poses in columns (Figures 1, 4, 9 to 13).

Writes ``contact_sheet.png`` and ``turntable.gif``, the same objects as an animation; of
``reference-NAME.h5`` they are ``reference-NAME.png`` and ``.gif``. No images are made here, so that
other names of the poses cost nothing.
"""

from pathlib import Path

from mirage_steps.files import tiles
from mirage_steps.files.command import run
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.pose_names import read_pose_names


def main(*, objects: Path, out: Path, names: Path | None = None, shown: int = 8) -> list[str]:
    """Draw objects with the names of the poses.

    Args:
        objects: objects.h5 or reference-NAME.h5 of the sheet, or photos.h5 of the photo sheet.
        out: Folder for the pictures.
        names: names.json of the poses, by default numbers.
        shown: How many objects.

    Returns:
        Name of the record.
    """
    with open_h5(objects, "images", "reference") as file:
        rows, references = file["images"][:shown], file["reference"][:shown].tolist()
        title = file.attrs.get("title", "objects in all poses")
        several = file.attrs.get("categories", 1) > 1
    k = rows.shape[1]
    # Columns of several categories have no name in common.
    poses = range(k) if several else read_pose_names(names, k)
    title = f"{title}; red: the reference whose keys and values the others read"
    reference = objects.stem if objects.stem.startswith("reference-") else ""
    tiles.save_image(
        out / f"{reference or 'contact_sheet'}.png",
        tiles.contact_sheet(rows, references, poses, title),
    )
    tiles.turntable(out / f"{reference or 'turntable'}.gif", rows)
    return [f"contact_sheet{reference.removeprefix('reference')}"]


if __name__ == "__main__":
    run(main)
