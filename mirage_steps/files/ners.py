"""An object's views in the layout that NeRS reads (Zhang et al. 2021).

NeRS makes a mesh of ``images/NAME.jpg``, ``masks/NAME.png`` and ``metadata.json`` with ``azimuths``
and ``elevations`` of the images, in the order of their names, and ``extents`` of a cuboid to start
from: width, height and depth, the largest about 1. Its objects have y up and their front towards z;
cameras look at the origin from azimuth and elevation in degrees, as ours do.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files.atomic import atomic, atomic_set, write_json
from mirage_steps.files.names import encoded
from mirage_steps.files.records import read_json
from mirage_steps.files.tiles import save_image
from mirage_steps.method.cameras import Camera

_HALF_FIELD = np.tan(np.radians(30))  # it starts from a field of view of 60 degrees
_NEAREST = 0.1  # perspective of cameras that are nearly orthographic, whose field has no end
METADATA = "metadata.json"


def require_no_other(folder: Path) -> None:
    """Refuse to overwrite a folder unless this module wrote it.

    Raises:
        UserError: it exists.
    """
    if folder.exists() and "cameras" not in read_json(folder / METADATA):
        raise UserError(f"{encoded(folder)}: exists already; give another --out")


def write_ners(
    folder: Path,
    views: np.ndarray,
    masks: np.ndarray,
    cameras: Sequence[Camera],
    extents: np.ndarray,
) -> None:
    """Write views, masks and cameras for NeRS.

    Every view is padded, or cropped, so that the origin is in its middle and its field of view is
    what NeRS assumes at the camera's distance: offsets, scales and perspective are kept, though
    ``metadata.json`` has no place for them. They are in its ``cameras``, which NeRS does not read.

    Args:
        folder: replaced, if this module wrote it.
        views: (n, S, S, 3) uint8.
        masks: (n, S, S) in [0, 1].
        cameras: of the views.
        extents: (3,) of the object, along its length, width and height.

    Raises:
        UserError: the folder exists and is another's.
    """
    require_no_other(folder)
    with atomic_set(folder.parent, [folder.name]) as own:
        for number, (view, mask, camera) in enumerate(zip(views, masks, cameras, strict=True)):
            half = _HALF_FIELD / max(camera.perspective, _NEAREST) * camera.scale * len(view)
            x, y = ((0.5 + value) * len(view) for value in camera.offset)
            window = (round(x - half), round(y - half), round(x + half), round(y + half))
            outline = Image.fromarray(np.uint8(255 * (mask > 0.5))).crop(window)
            save_image(own / folder.name / f"masks/{number:03d}.png", np.asarray(outline))
            with atomic(own / folder.name / f"images/{number:03d}.jpg") as temporary:
                Image.fromarray(view).crop(window).save(temporary, quality=95, subsampling=0)
        length, width, height = extents / extents.max()
        content = {
            "azimuths": [one.azimuth_deg % 360 for one in cameras],
            "elevations": [one.elevation_deg for one in cameras],
            "extents": [float(value) for value in (width, height, length)],
            "cameras": [asdict(one) for one in cameras],
        }
        write_json(own / folder.name / METADATA, content)
