"""A textured mesh of one object, from its views in known poses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh

from mirage_steps.method.cameras import Camera
from mirage_steps.method.texture import TexturedMesh, rendered, smoothed, textured
from mirage_steps.method.visual_hull import carve, surface

# Of meshes by views of one object, true or generated (docs/mesh.md).
_IOU = 0.8
_COLOR = 35


@dataclass(frozen=True)
class Reconstruction:
    """A mesh with the views that it was made from.

    Attributes:
        mesh: of the object.
        views: (n, S, S, 3) uint8, those that show an object.
        masks: (n, S, S) in [0, 1] of these.
        cameras: (n,) of these.
        silhouette_iou: mean IoU of the mesh's silhouettes with the masks; low where views differ.
        warnings: reasons not to trust the mesh.
    """

    mesh: TexturedMesh
    views: np.ndarray
    masks: np.ndarray
    cameras: tuple[Camera, ...]
    silhouette_iou: float
    warnings: tuple[str, ...] = ()


def reconstruct(
    images: np.ndarray,
    masks: np.ndarray,
    cameras: Sequence[Camera],
    size: int = 128,
    share: float = 0.9,
) -> Reconstruction:
    """The object's mesh.

    Args:
        images: (k, S, S, 3) uint8.
        masks: (k, S, S) in [0, 1]; views with empty ones are left out.
        cameras: of the views.
        size: voxels along the object's longest side.
        share: of the views that must see a voxel as object.

    Raises:
        UserError: too few masks show an object, or they have no volume in common.
    """
    vertices, faces = smoothed(*surface(carve(masks, cameras, size, share)))
    shown = [index for index, mask in enumerate(masks) if (mask > 0.5).any()]
    lacking = len(masks) - len(shown)
    images, masks, own = images[shown], masks[shown], [cameras[index] for index in shown]
    mesh = textured(vertices, faces, images, masks, own)
    seen = [rendered(mesh, camera, masks.shape[1]) for camera in own]
    pictures, outlines = map(np.stack, zip(*seen, strict=True))
    both, any_of = outlines & (masks > 0.5), outlines | (masks > 0.5)
    iou = float((both.sum((1, 2)) / any_of.sum((1, 2))).mean())
    color = np.abs(pictures[both].astype(float) - images[both]).mean() if both.any() else np.inf
    warnings = []
    if lacking:
        warnings.append(f"{lacking} of {len(cameras)} views show no object and are left out")
    if iou < _IOU or color > _COLOR:
        warnings.append(
            "the views may be of different objects: the silhouette IoU of the mesh is "
            f"{iou:.2f} (usual: above {_IOU}), their colors differ from its own by "
            f"{color:.0f} (usual: below {_COLOR}, of 255)"
        )
    if not trimesh.Trimesh(vertices, faces).is_watertight:
        warnings.append("the surface is not closed, or touches itself")
    return Reconstruction(mesh, images, masks, tuple(own), iou, tuple(warnings))
