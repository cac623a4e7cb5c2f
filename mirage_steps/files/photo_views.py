"""Results of a photo: its object and pose, its views, warnings, and their files."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import atomic_set, write_json
from mirage_steps.files.names import MESH_ENDS, decoded, encoded, output_names
from mirage_steps.files.records import read_json
from mirage_steps.method.boxes import Box
from mirage_steps.method.reliability import PhotoWarning

# The outputs of a photo. The first marks the others as ours, even if their moving is interrupted.
_ENDS = (".json", ".png", ".gif", ".views")
PAGE = ".html"
_MOST_BYTES = 200  # of a name, so that those of all its files have at most 255


@dataclass(frozen=True, repr=False)
class LocatedPhoto:
    """A photo with its object and the object's pose; boxes are (x0, y0, x1, y1) in pixels."""

    photo: str  # name
    path: str | None  # absolute; None where an image was given
    sha256: str  # of the file, or of the pixels where an image was given
    size: tuple[int, int]  # width and height of the upright photo in pixels
    box: Box  # of the object
    box_by: str  # `foreground`, `user`, `photo` if objects fill the run's, or `whole photo` if none
    window: Box  # of the crop
    crop: np.ndarray  # (S, S, 3) uint8, input of the diffusion model
    pose: int  # that of the nearest centroid
    category: int  # 0 where there is one category
    distance: float  # Euclidean, to that centroid
    # Share of the variance of the photo's scores between foreground and background, in [0, 1].
    foreground_separation: float
    warnings: tuple[PhotoWarning, ...]  # reasons not to trust all this

    def __repr__(self) -> str:
        box = ", ".join(f"{side:.0f}" for side in self.box)
        found = f"pose {self.pose}, distance {self.distance:.2f}, box ({box})"
        return f"{type(self).__name__}({self.photo}: {found}; {len(self.warnings)} warnings)"


@dataclass(frozen=True, repr=False)
class CropViews:
    """A crop in all poses of its category, by inversion."""

    poses: tuple[int, ...]  # (k,) in circular order, or those that were chosen
    views: np.ndarray  # (k, S, S, 3) uint8 in the same order; in its own pose the crop itself
    reconstruction: np.ndarray  # (S, S, 3) uint8, sampled from the inverted noise
    # In dB, at most 99: beyond that 8 bits tell no difference.
    reconstruction_psnr_db: float
    inversion_evaluations: int  # of the network
    seconds: dict[str, float]  # of each part of the work


@dataclass(frozen=True, repr=False)
class PhotoViews(LocatedPhoto, CropViews):
    """A photo in all poses, or in chosen ones."""

    # Of each view, the Euclidean distance in 0..255 of the mean color of its foreground from that
    # of the crop; None where either shows no foreground.
    color_drift: tuple[float | None, ...]
    # Of each view, the pose that the run's estimator sees in it; None where it centers its maps and
    # only some poses are shown, since those of views are centered on their mean over all poses.
    view_poses: tuple[int, ...] | None
    settings: dict[str, object]  # that made the views
    masks: np.ndarray  # (k, S, S) uint8, 255 where the foreground model sees the object in a view
    names: tuple[str, ...] = ()  # of the poses, by poses.edits; pose N where one has none

    def __repr__(self) -> str:
        return f"PhotoViews({self.title()}; {len(self.warnings)} warnings)"

    def save(self, folder: Path | str, stem: str | None = None) -> Path:
        """Write the views and the record of the photo.

        Args:
            folder: gets ``STEM.png``, the strip of views; ``STEM.gif``, a turntable; ``STEM.json``;
                and ``STEM.views/`` with ``crop.png``, ``reconstruction.png``, ``pose_NN.png`` and
                ``pose_NN.mask.png``.
            stem: by default the photo's name without its suffix, as
                :func:`.names.output_names` spells it.

        Returns:
            The strip's path.

        Raises:
            UserError: files that this did not write exist already, or those of another photo.
        """
        folder = Path(folder)
        stem = output_names([Path(decoded(self.photo))])[0] if stem is None else stem
        require_free(folder, stem, self.path, self.sha256)
        fields = asdict(self).items()
        record = {key: value for key, value in fields if not isinstance(value, np.ndarray)}
        images = {"crop": self.crop, "reconstruction": self.reconstruction}
        images |= {f"pose_{p:02d}": view for p, view in zip(self.poses, self.views, strict=True)}
        masks = zip(self.poses, self.masks, strict=True)
        images |= {f"pose_{p:02d}.mask": mask for p, mask in masks}
        with atomic_set(folder, [f"{stem}{end}" for end in _ENDS]) as own:
            write_json(own / f"{stem}.json", record)
            for name, image in images.items():
                tiles.save_image(own / f"{stem}.views/{name}.png", image)
            tiles.turntable(own / f"{stem}.gif", self.views[None])
            tiles.save_image(own / f"{stem}.png", self.strip())
            for end in (".run.json", PAGE):
                (folder / f"{stem}{end}").unlink(missing_ok=True)  # of the files before
        return folder / f"{stem}.png"

    def strip(self) -> Image.Image:
        """The poses side by side, the photo's own framed, warnings below."""
        own = self.poses.index(self.pose) if self.pose in self.poses else None
        title = self.title() + "; red: its own pose" * (own is not None)
        warnings = [f"warning: {one}" for one in self.warnings]
        poses = self.names or self.poses
        return tiles.contact_sheet(self.views[None], [own], poses, title, warnings)

    def title(self) -> str:
        """Pose, distance and quality of the reconstruction in a line."""
        named = dict(zip(self.poses, self.names, strict=False))
        name = named.get(self.pose, "")
        name = "" if name in ("", f"pose {self.pose}") else f" ({name})"
        return (
            f"{self.photo}: pose {self.pose}{name} at distance {self.distance:.3f}, reconstructed "
            f"at {self.reconstruction_psnr_db:.1f} dB by {self.inversion_evaluations} evaluations"
        )

    def _repr_jpeg_(self) -> bytes:
        """JPEG for notebooks, a tenth of a PNG."""
        return self.strip()._repr_jpeg_()


def require_free(folder: Path, stem: str, path: str | None, sha256: str) -> None:
    """Refuse to overwrite any files but the outputs of the same photo.

    Args:
        folder: of the outputs.
        stem: their name.
        path: of the photo, absolute, as :func:`.names.encoded` spells it; None for an image.
        sha256: of the photo.

    Raises:
        UserError: the name cannot be one, or is taken.
    """
    require_name(stem)
    found = [there for end in (*_ENDS, PAGE) if (there := folder / f"{stem}{end}").exists()]
    if not found:
        return
    record = read_json(folder / f"{stem}.json")
    photo = None if path is None else Path(decoded(path)).resolve()
    given = set() if photo is None else {photo, photo.parent}
    if "inversion_evaluations" not in record or given & {there.resolve() for there in found}:
        raise UserError(f"{encoded(found[0])}: exists already; give another --out")
    same = path is not None and record.get("path") == path
    if not same and record.get("sha256") != sha256:
        of = record.get("path") or "another photo, or of this one by an earlier version"
        raise UserError(
            f"{encoded(found[0])}: has the views of {of}; give another --out, or a --name"
        )


def require_name(stem: str) -> None:
    """Refuse a name that outputs cannot have.

    Raises:
        UserError: it is empty, too long, hidden, or a path.
    """
    usual = Path(stem).name == stem and not stem.startswith(".")
    if not stem or not usual or len(os.fsencode(stem)) > _MOST_BYTES:
        raise UserError(f"{stem!r}: not a name for outputs; give another (--name)")


def require_no_other_mesh(folder: Path, stem: str) -> None:
    """Refuse to overwrite any mesh but one of ours.

    Raises:
        UserError: a file of that name exists.
    """
    found = [there for end in MESH_ENDS if (there := folder / f"{stem}{end}").exists()]
    if found and not (folder / f"{stem}{MESH_ENDS[0]}").exists():
        raise UserError(f"{encoded(found[0])}: exists already; give another --out")
