"""Held-out objects rendered from all sides, the ground truth for the evidence step.

Only a renderer has it. Every object is rendered once from a random side, as the photo to start
from, and once from the mean azimuth of each pose, with the same light as seen by the camera and the
same background: an object on a turntable. Writes ``turntables.h5``:

- ``images`` (n, 1 + k, H, W, 3) uint8 and ``masks`` (n, 1 + k, H, W) uint8 in 0..255, the photo
  first, then the poses;
- ``azimuth_deg`` (n, 1 + k).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mirage_steps import settings
from mirage_steps.demo.renderer import chairs
from mirage_steps.demo.renderer.kinds import KINDS
from mirage_steps.demo.renderer.rendering import Rendering
from mirage_steps.errors import UserError, rerun
from mirage_steps.files.command import run
from mirage_steps.files.h5 import by_image, create_h5
from mirage_steps.files.records import read_json
from mirage_steps.files.terminal import progress

# Added to the data set's seed, so that no object is one of the training set's.
_HELD_OUT = 1_000_003


def main(
    *,
    pose_eval: Path,
    shape: Literal["cars", "chairs", "mugs"],
    size: int,
    placement: float,
    seed: settings.Seed,
    out: Path,
    judged_objects: int = 24,
) -> None:
    """Render held-out objects from all sides.

    Args:
        pose_eval: pose_eval.json, for the mean azimuth of every pose.
        shape: What is rendered.
        size: Side of an image in pixels.
        placement: How much scale and position vary.
        seed: The data set's; others are drawn.
        out: Folder for turntables.h5.
        judged_objects: How many objects.
    """
    poses = read_json(pose_eval).get("poses") or []
    azimuths = [pose["mean_azimuth_deg"] for pose in poses]
    if not azimuths or None in azimuths:
        raise UserError(f"{pose_eval}: lacks the azimuth of a pose; {rerun('pose_eval')}")
    render = partial(_render, shape, size, placement, (seed + _HELD_OUT) % 2**32, azimuths)
    count, sides = judged_objects, 1 + len(azimuths)
    with create_h5(out / "turntables.h5") as file:
        by_image(file, "images", count, (sides, size, size, 3), np.uint8)
        by_image(file, "masks", count, (sides, size, size), np.uint8)
        file["azimuth_deg"] = np.zeros((count, sides), np.float32)
        for number in progress(range(count), unit="object"):
            views = render(number)
            file["images"][number] = np.stack([view.image for view in views])
            masks = np.stack([view.mask for view in views])
            file["masks"][number] = np.round(255 * masks).astype(np.uint8)
            file["azimuth_deg"][number] = [view.azimuth_deg for view in views]


def _render(
    shape: str, size: int, placement: float, seed: int, azimuths: Sequence[float], index: int
) -> list[Rendering]:
    """One object, from a random side and from all others."""
    if shape == "chairs":
        render = partial(chairs.render, seed, index, size, placement)
    else:
        kind = KINDS[shape]
        render = partial(kind.render, seed, index, kind.demo_families, size, placement)
    return [render(azimuth=azimuth) for azimuth in (None, *azimuths)]


if __name__ == "__main__":
    run(main)
