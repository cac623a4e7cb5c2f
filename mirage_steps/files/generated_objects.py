"""Generated objects in Python: their images, poses and references, a sheet of them, and files."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import atomic_set, write_json
from mirage_steps.files.names import encoded
from mirage_steps.files.photo_views import require_name
from mirage_steps.files.records import read_json

# The outputs of a call. The first marks the others as ours.
_ENDS = (".json", ".png", ".gif", ".objects")


@dataclass(frozen=True, repr=False)
class GeneratedObjects:
    """Objects that a run's model generated, all in poses of the same places in their category."""

    images: np.ndarray  # (n, p, S, S, 3) uint8
    poses: np.ndarray  # (n, p) int; the same for all objects where there is one category
    references: tuple[int, ...]  # (n,) poses of the references, shown or not
    numbers: tuple[int, ...]  # (n,) of the noises; not 0 to n - 1 where views.reject left some out
    settings: dict[str, object]  # that made the images, the seed among them
    names: tuple[str, ...] = ()  # (p,) of the poses, by poses.edits; none of several categories

    def __repr__(self) -> str:
        objects, poses, side = self.images.shape[:3]
        return f"GeneratedObjects({objects} objects in {poses} poses, {side}x{side} pixels)"

    def sheet(self) -> Image.Image:
        """Objects in rows, poses in columns, references framed."""
        pairs = zip(self.poses.tolist(), self.references, strict=True)
        columns = [poses.index(own) if own in poses else None for poses, own in pairs]
        k = self.images.shape[1]
        title = f"generated objects in {k} poses, gamma = {self.settings['gamma']:g}"
        title += "; red: the reference" * any(column is not None for column in columns)
        return tiles.contact_sheet(self.images, columns, self.names or range(k), title)

    def save(self, folder: Path | str, stem: str = "generated") -> Path:
        """Write the images and their record.

        Args:
            folder: gets ``STEM.png``, the sheet; ``STEM.gif``, a turntable; ``STEM.json``; and
                ``STEM.objects/``, with ``object_NN/pose_NN.png``.
            stem: name of these files.

        Returns:
            The sheet's path.

        Raises:
            UserError: the name cannot be one, or files that this did not write exist already.
        """
        folder = Path(folder)
        require_name(stem)
        there = [path for end in _ENDS if (path := folder / f"{stem}{end}").exists()]
        if there and "references" not in read_json(folder / f"{stem}.json"):
            raise UserError(f"{encoded(there[0])}: exists already; give another folder or stem")
        record = {**asdict(self), "poses": self.poses.tolist()}
        del record["images"]
        with atomic_set(folder, [f"{stem}{end}" for end in _ENDS]) as own:
            write_json(own / f"{stem}.json", record)
            for place in np.ndindex(self.poses.shape):
                name = f"object_{place[0]:02d}/pose_{self.poses[place]:02d}.png"
                tiles.save_image(own / f"{stem}.objects" / name, self.images[place])
            tiles.turntable(own / f"{stem}.gif", self.images)
            tiles.save_image(own / f"{stem}.png", self.sheet())
        return folder / f"{stem}.png"

    def _repr_jpeg_(self) -> bytes:
        """JPEG for notebooks, a tenth of a PNG."""
        return self.sheet()._repr_jpeg_()
