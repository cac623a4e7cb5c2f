"""A mesh with its colors: smoothing, unwrapping, a texture baked from views, and its rendering.

Embree casts the rays, as for the renderer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
import xatlas
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.ndimage import binary_erosion, distance_transform_edt, map_coordinates

from mirage_steps.method.cameras import Camera

_FRONTAL = 4.0  # exponent of the cosine to the view: the most frontal views count
_GRAY = 128  # of texels where no view shows the surface and none near it


@dataclass(frozen=True)
class TexturedMesh:
    """A closed surface; equal corners have several vertices where the texture is cut.

    Attributes:
        vertices: (n, 3); x to the front, y to the object's left, z up.
        faces: (m, 3) counterclockwise from outside.
        uv: (n, 2) in [0, 1], v upwards.
        texture: (T, T, 3) uint8.
        seen: share of the surface that some view shows.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    seen: float


def smoothed(
    vertices: np.ndarray, faces: np.ndarray, iterations: int = 10, most_faces: int = 16_000
) -> tuple[np.ndarray, np.ndarray]:
    """A mesh without the steps of its voxels, by Taubin's filter, which keeps the volume.

    More than ``most_faces`` are simplified to as many: unwrapping takes time in proportion.
    """
    mesh = trimesh.Trimesh(vertices, faces)
    mesh = trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=iterations)
    if len(faces) > most_faces:
        # A gentle aggression keeps the surface closed, nearly always.
        mesh = mesh.simplify_quadric_decimation(face_count=most_faces, aggression=3)
    return mesh.vertices.view(np.ndarray), mesh.faces.view(np.ndarray)


def textured(
    vertices: np.ndarray,
    faces: np.ndarray,
    images: np.ndarray,
    masks: np.ndarray,
    cameras: Sequence[Camera],
    size: int = 1024,
) -> TexturedMesh:
    """Unwrap a mesh and bake its texture from views.

    A texel is the mean of the views that see it, weighted by how frontal they see it. Texels that
    no view shows have the color of the nearest one that some view shows.

    Args:
        vertices: of the mesh.
        faces: of the mesh.
        images: (k, S, S, 3) uint8.
        masks: (k, S, S) in [0, 1].
        cameras: of the views.
        size: side of the texture.
    """
    kept, faces_out, uv = _unwrapped(vertices, faces, size)
    normals = trimesh.Trimesh(vertices, faces, process=False).vertex_normals[kept]
    places = vertices[kept]
    flat = np.column_stack([uv, np.zeros(len(uv))])
    texels = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(texels, texels[::-1])
    above = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    hits = _Hits.of(flat, faces_out, above, np.broadcast_to([0, 0, -1.0], above.shape))
    corners, weights = faces_out[hits.face], hits.weights[..., None]
    point, normal = (places[corners] * weights).sum(1), (normals[corners] * weights).sum(1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    colors, total = _seen(vertices, faces, point, normal, images, masks, cameras)
    seen = total > 1e-3
    texture = np.zeros((size * size, 3))
    known = np.zeros(size * size, bool)
    texture[hits.ray[seen]] = colors[seen] / total[seen, None]
    known[hits.ray[seen]] = True
    texture, known = texture.reshape(size, size, 3), known.reshape(size, size)
    if known.any():
        _, (row, column) = distance_transform_edt(~known, return_indices=True)
        texture = texture[row, column]
    else:
        texture[:] = _GRAY
    pixels = np.round(texture.clip(0, 255)).astype(np.uint8)
    return TexturedMesh(places, faces_out, uv, pixels, float(seen.mean()) if len(seen) else 0.0)


def _unwrapped(
    vertices: np.ndarray, faces: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Old vertex of each new one (n,), faces (m, 3), and uv (n, 2)."""
    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = size, 2, True
    atlas.add_mesh(vertices.astype(np.float32), faces.astype(np.uint32))
    chart = xatlas.ChartOptions()
    chart.max_iterations = 1
    atlas.generate(chart, pack)
    kept, faces_out, uv = atlas[0]
    return kept.astype(np.int64), faces_out.astype(np.int64), uv.astype(np.float64)


def _seen(
    vertices: np.ndarray,
    faces: np.ndarray,
    point: np.ndarray,
    normal: np.ndarray,
    images: np.ndarray,
    masks: np.ndarray,
    cameras: Sequence[Camera],
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of the colors (n, 3) that the views show of points, and of the weights."""
    colors, total = np.zeros((len(point), 3)), np.zeros(len(point))
    side = images.shape[1]
    for image, mask, camera in zip(images, masks, cameras, strict=True):
        # The outermost pixels of a silhouette are mixed with the background.
        inner = binary_erosion(mask > 0.5)
        towards = -(camera.axes[2] + camera.perspective * _across(point, camera))
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        cosine = (normal * towards).sum(1)
        candidates = np.flatnonzero(cosine > 0.1)
        origins = point[candidates] + 4e-3 * normal[candidates]
        free = ~_occluded(vertices, faces, origins, towards[candidates])
        chosen = candidates[free]
        x, y = (camera.project(point[chosen]) * side - 0.5).T
        shown = map_coordinates(inner.astype(np.float32), [y, x], order=1, cval=0)
        weight = cosine[chosen] ** _FRONTAL * shown
        channels = [map_coordinates(c, [y, x], order=1, mode="nearest")
                    for c in np.moveaxis(image.astype(np.float32), -1, 0)]  # fmt: skip
        colors[chosen] += weight[:, None] * np.stack(channels, -1)
        total[chosen] += weight
    return colors, total


def _across(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Where the rays of a camera through points (n, 3) cross the plane of the origin."""
    axes = camera.axes
    right, up, forward = (points @ axes.T).T
    scale = (1 / (1 + camera.perspective * forward))[:, None]
    return (right[:, None] * axes[0] + up[:, None] * axes[1]) * scale


def _occluded(
    vertices: np.ndarray, faces: np.ndarray, origins: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Whether each ray (n, 3) hits the mesh."""
    if not len(origins):
        return np.zeros(0, bool)
    scene = EmbreeScene()
    TriangleMesh(scene, vertices.astype(np.float32), faces.astype(np.int32))
    arrays = origins.astype(np.float32), np.ascontiguousarray(directions, np.float32)
    return scene.run(*arrays, query="OCCLUDED") >= 0


@dataclass(frozen=True)
class _Hits:
    """Numbers of the rays that hit a mesh (n,), the faces hit (n,), and barycentric weights."""

    ray: np.ndarray
    face: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(
        cls, vertices: np.ndarray, faces: np.ndarray, origins: np.ndarray, directions: np.ndarray
    ) -> "_Hits":
        scene = EmbreeScene()
        TriangleMesh(scene, vertices.astype(np.float32), faces.astype(np.int32))
        rays = origins.astype(np.float32), np.ascontiguousarray(directions, np.float32)
        found = scene.run(*rays, query="INTERSECT", output=True)
        ray = np.flatnonzero(found["primID"] >= 0)
        u, v = found["u"][ray], found["v"][ray]
        return cls(ray, found["primID"][ray], np.stack([1 - u - v, u, v], -1))


def rendered(
    mesh: TexturedMesh, camera: Camera, size: int, shaded: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Picture (size, size, 3) uint8 of a mesh on white, and its silhouette, bool.

    A shaded picture shows the shape alone, in gray, lit from the camera.
    """
    fine = 2 * size
    origins, directions = camera.rays(fine)
    hits = _Hits.of(mesh.vertices, mesh.faces, origins, directions)
    color = np.full((fine * fine, 3), 255.0)
    if shaded:
        normals = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).face_normals[hits.face]
        color[hits.ray] = 230 * np.abs(normals @ camera.axes[2])[:, None]
    else:
        uv = (mesh.uv[mesh.faces[hits.face]] * hits.weights[..., None]).sum(1)
        side = len(mesh.texture)
        place = [(1 - uv[:, 1]) * side - 0.5, uv[:, 0] * side - 0.5]
        for channel, values in enumerate(np.moveaxis(mesh.texture.astype(np.float32), -1, 0)):
            color[hits.ray, channel] = map_coordinates(values, place, order=1, mode="nearest")
    hit = np.zeros(fine * fine)
    hit[hits.ray] = 1
    picture = color.reshape(size, 2, size, 2, 3).mean((1, 3))
    return np.round(picture).astype(np.uint8), hit.reshape(size, 2, size, 2).mean((1, 3)) >= 0.5
