"""Meshes of photos as GLB and OBJ, and the views that they are made from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.obj import export_obj
from trimesh.visual.material import PBRMaterial, SimpleMaterial
from trimesh.visual.texture import TextureVisuals

from mirage_steps.errors import UserError
from mirage_steps.files import tiles
from mirage_steps.files.atomic import atomic, atomic_set
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.names import MESH_ENDS
from mirage_steps.files.ners import write_ners
from mirage_steps.files.photo_views import require_no_other_mesh
from mirage_steps.method.camera_fit import refined
from mirage_steps.method.cameras import Camera
from mirage_steps.method.reconstruction import Reconstruction, reconstruct
from mirage_steps.method.texture import TexturedMesh, rendered

_WHITE = (255, 255, 255, 255)
_AGAIN = "make the views again: python -m mirage_steps.novel_views"


class PhotoMesh(Reconstruction):
    """A mesh of a photo's object, in files and in notebooks."""

    @classmethod
    def of(
        cls,
        views: np.ndarray,
        masks: np.ndarray,
        cameras: Sequence[Camera],
        refine: bool = True,
        **options: Any,
    ) -> "PhotoMesh":
        """Make one, as :func:`.reconstruct` does.

        Args:
            views: (k, S, S, 3) uint8.
            masks: (k, S, S) in [0, 1].
            cameras: (k,) of the views.
            refine: whether the cameras, then those of poses, are refined on the masks.
            options: of :func:`.reconstruct`.
        """
        own = refined(masks, cameras) if refine else cameras
        made = reconstruct(views, masks, own, **options)
        return cls(**vars(made))

    def __repr__(self) -> str:
        return (
            f"PhotoMesh({len(self.mesh.faces)} faces from {len(self.views)} views, silhouette IoU "
            f"{self.silhouette_iou:.2f})"
        )

    def picture(self) -> Image.Image:
        """The views, above the mesh as their cameras see it, with its colors and in gray."""
        side = self.views.shape[1]
        rows = [self.views]
        for shaded in (False, True):
            made = [rendered(self.mesh, one, side, shaded=shaded)[0] for one in self.cameras]
            rows.append(np.stack(made))
        return Image.fromarray(tiles.tile(np.concatenate(rows), len(self.views)))

    def save_ners(self, folder: Path | str) -> None:
        """Write views, masks and cameras as NeRS reads them (:mod:`.ners`).

        Raises:
            UserError: a folder that this did not write exists already.
        """
        extents = np.ptp(self.mesh.vertices, axis=0)
        write_ners(Path(folder), self.views, self.masks, self.cameras, extents)

    def _repr_jpeg_(self) -> bytes:
        """JPEG for notebooks, a tenth of a PNG."""
        return self.picture()._repr_jpeg_()

    def save(self, folder: Path | str, stem: str) -> Path:
        """Write ``STEM`` with each of the suffixes ``MESH_ENDS``.

        A GLB has y up and z to the viewer, as glTF asks; an OBJ has the object's own frame, z up.

        Returns:
            The path of the GLB.

        Raises:
            UserError: files that this did not write exist already.
        """
        folder = Path(folder)
        require_no_other_mesh(folder, stem)
        with atomic_set(folder, [f"{stem}{end}" for end in MESH_ENDS]) as own:
            _write(own, stem, self.mesh)
            tiles.save_image(own / f"{stem}.mesh.png", self.picture())
        return folder / f"{stem}.glb"


def _write(folder: Path, stem: str, mesh: TexturedMesh) -> None:
    """Write a mesh as GLB and as OBJ, whose texture is named after the material."""
    picture = Image.fromarray(mesh.texture)
    upright = mesh.vertices[:, [1, 2, 0]]  # x to the left, y up, z to the front
    glossless = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
    plain = SimpleMaterial(picture, ambient=_WHITE, diffuse=_WHITE, specular=(0, 0, 0, 255))
    plain.name = f"{stem}.texture"
    glb, obj = (
        trimesh.Trimesh(places, mesh.faces, visual=TextureVisuals(mesh.uv, material), process=False)
        for places, material in ((upright, glossless), (mesh.vertices, plain))
    )
    text, files = export_obj(obj, return_texture=True, mtl_name=f"{stem}.mtl", header=None)
    files |= {f"{stem}.glb": glb.export(file_type="glb"), f"{stem}.obj": text.encode()}
    for name, content in files.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(content)


def read_masks(folder: Path, poses: Sequence[int]) -> np.ndarray:
    """Masks (k, S, S) in [0, 1] that the photo command stored beside its views.

    Raises:
        UserError: one is missing or no image.
    """
    return _stack([folder / f"pose_{pose:02d}.mask.png" for pose in poses], "L") / 255


def read_views(folder: Path, poses: Sequence[int]) -> np.ndarray:
    """Views (k, S, S, 3) uint8 that the photo command stored.

    Raises:
        UserError: one is missing or no image.
    """
    return _stack([folder / f"pose_{pose:02d}.png" for pose in poses], "RGB")


def read_object(path: Path, number: int) -> tuple[list[int], np.ndarray]:
    """Poses (k,) and views (k, S, S, 3) uint8 of a generated object in a sheet's ``objects.h5``.

    Raises:
        UserError: the file is damaged, or has no object of this number.
    """
    with open_h5(path, "images", "pose") as file:
        count = len(file["images"])
        if not 0 <= number < count:
            raise UserError(f"--objects {number}: {path} has {count} objects, 0 to {count - 1}")
        return file["pose"][number].tolist(), file["images"][number]


def _stack(paths: Sequence[Path], mode: str) -> np.ndarray:
    """Images of one size in one array."""
    images = [_read(path, mode) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(f"{path}: has another size than {paths[0].name}; {_AGAIN}")
    return np.stack(images)


def _read(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
