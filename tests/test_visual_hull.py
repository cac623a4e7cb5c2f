"""Hulls, cameras and textures of objects whose silhouettes are known."""

import numpy as np
import pytest
import trimesh
from scipy.spatial import Delaunay

from mirage_steps.demo.renderer import mug_shapes, rendering
from mirage_steps.demo.renderer.car_shapes import FAMILIES, build_mesh, draw_shape
from mirage_steps.errors import UserError
from mirage_steps.method import reconstruction
from mirage_steps.method.camera_fit import fit, start
from mirage_steps.method.cameras import Camera
from mirage_steps.method.reconstruction import reconstruct
from mirage_steps.method.texture import TexturedMesh, rendered, smoothed, textured
from mirage_steps.method.visual_hull import carve, surface

CIRCLE = [Camera(30.0 * view, 15.0, 0.8, perspective=0.3) for view in range(12)]


def silhouettes(mesh: trimesh.Trimesh, cameras, size: int = 64) -> np.ndarray:
    """(k, size, size) in [0, 1], by the same rays as a rendering."""
    plain = TexturedMesh(
        mesh.vertices, mesh.faces, np.zeros((len(mesh.vertices), 2)), np.zeros((2, 2, 3)), 1.0
    )
    return np.stack([rendered(plain, camera, size)[1] for camera in cameras]).astype(float)


def overlap(hull, mesh: trimesh.Trimesh) -> float:
    """Volumetric intersection over union of a hull with a mesh."""
    places = np.indices(hull.occupancy.shape).reshape(3, -1).T * hull.pitch + hull.origin
    inside, true = hull.occupancy.ravel() > 0.5, mesh.contains(places)
    return (inside & true).sum() / (inside | true).sum()


def test_camera_projects_as_the_renderer_does():
    rng = np.random.default_rng(0)
    mesh = build_mesh(draw_shape(FAMILIES["sedan"], rng))
    middle = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0))
    for azimuth in (0.0, 50.0, 200.0):
        theirs = rendering.draw_camera(azimuth, mesh, 1.0, rendering.SPAN, None, rng)
        distance = np.linalg.norm(theirs.center - middle)
        u, v, side = theirs.window
        ours = Camera(
            azimuth,
            float(np.degrees(np.arcsin(-theirs.forward[2]))),
            1 / (distance * side),
            (-u / side, v / side),
            1 / distance,
        )
        seen = mesh.vertices - theirs.center
        depth = seen @ theirs.forward
        x = 0.5 + (seen @ theirs.right / depth - u) / side
        y = 0.5 - (seen @ theirs.up / depth - v) / side
        place = ours.project(mesh.vertices - middle)
        np.testing.assert_allclose(place, np.stack([x, y], -1), atol=1e-6)


@pytest.mark.parametrize("perspective", [0.0, 0.4])
def test_rays_pass_through_what_is_projected_to_their_pixel(perspective):
    camera = Camera(70.0, 20.0, 0.7, (0.1, -0.05), perspective)
    origins, directions = camera.rays(8)
    place = camera.project(origins + directions * 2.5)
    centers = (np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) + 0.5) / 8
    np.testing.assert_allclose(place, centers, atol=1e-9)


def test_discs_of_a_sphere_give_the_sphere():
    cameras = [Camera(30.0 * view, 15.0, 0.8) for view in range(12)]
    y, x = (np.indices((64, 64)) + 0.5) / 64 - 0.5
    masks = np.repeat([(np.hypot(x, y) < 0.8 * 0.4).astype(float)], 12, 0)
    hull = carve(masks, cameras, 48)
    vertices, faces = surface(hull)
    mesh = trimesh.Trimesh(*smoothed(vertices, faces))
    assert mesh.is_watertight and mesh.volume > 0
    radius = np.linalg.norm(mesh.vertices, axis=1)
    # No view from above rounds the poles.
    side = np.abs(mesh.vertices[:, 2]) < 0.2
    np.testing.assert_allclose(radius[side], 0.4, atol=0.02)
    assert radius.max() < 0.5


def test_hull_of_a_box_is_what_projects_into_all_its_outlines():
    box = trimesh.creation.box((0.9, 0.4, 0.3))
    hull = carve(silhouettes(box, CIRCLE), CIRCLE, 48, share=1.0)
    places = np.indices(hull.occupancy.shape).reshape(3, -1).T * hull.pitch + hull.origin
    literal = np.ones(len(places), bool)
    for camera in CIRCLE:
        outline = Delaunay(camera.project(box.vertices.view(np.ndarray)))
        literal &= outline.find_simplex(camera.project(places)) >= 0
    inside = hull.occupancy.ravel() > 0.5
    assert (inside & literal).sum() / (inside | literal).sum() > 0.93


def test_a_torus_keeps_its_hole():
    ring = trimesh.creation.torus(0.35, 0.1)
    ring.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    mesh = trimesh.Trimesh(*surface(carve(silhouettes(ring, CIRCLE), CIRCLE, 48)))
    assert mesh.is_watertight
    assert mesh.euler_number == 0  # 2 of a sphere


@pytest.mark.parametrize("seed", [1, 3])
def test_a_mug_keeps_the_hole_of_its_handle(seed):
    family = mug_shapes.FAMILIES[mug_shapes.DEMO_FAMILIES[seed % len(mug_shapes.DEMO_FAMILIES)]]
    mug = mug_shapes.build_mesh(mug_shapes.draw_shape(family, np.random.default_rng(seed)))
    # The handle in the plane of symmetry, the middle in that of the frames.
    x, y, z = (mug.vertices - (mug.vertices.min(0) + mug.vertices.max(0)) / 2).T
    masks = silhouettes(trimesh.Trimesh(np.stack([y, -x, z], 1), mug.faces), CIRCLE)
    first = start(masks, [one.azimuth_deg for one in CIRCLE], 15.0)
    cameras = fit(masks, first, azimuth=False, steps=60, size=16).cameras
    mesh = trimesh.Trimesh(*smoothed(*surface(carve(masks, cameras, 96))))
    assert mesh.is_watertight
    assert mesh.euler_number == 0  # one handle


def test_views_against_the_others_are_outvoted():
    box = trimesh.creation.box((0.9, 0.4, 0.3))
    masks = silhouettes(box, CIRCLE)
    masks[3] = np.roll(masks[3], 20, 0)
    assert overlap(carve(masks, CIRCLE, 48, share=0.9), box) > 0.65
    assert overlap(carve(masks, CIRCLE, 48, share=1.0), box) < 0.6


def test_too_few_silhouettes_are_one_line():
    masks = silhouettes(trimesh.creation.box((0.9, 0.4, 0.3)), CIRCLE)
    with pytest.raises(UserError, match="2 of 2 views"):
        carve(masks[:2], CIRCLE[:2])
    masks[2:] = 0
    with pytest.raises(UserError, match="2 of 12 views"):
        carve(masks, CIRCLE)
    rows = np.zeros((3, 9, 9))
    rows[[0, 1, 2], [0, 4, 8]] = 1
    with pytest.raises(UserError, match="no volume in common"):
        carve(rows, CIRCLE[:3], share=1.0)


def test_empty_masks_in_some_views_are_left_out():
    box = trimesh.creation.box((0.9, 0.4, 0.3))
    masks = silhouettes(box, CIRCLE)
    masks[[2, 7]] = 0
    assert overlap(carve(masks, CIRCLE, 48), box) > 0.6


def test_texture_shows_in_each_view_what_the_view_showed():
    box = trimesh.creation.box((0.9, 0.4, 0.3)).subdivide().subdivide()
    masks = silhouettes(box, CIRCLE)
    # The front is red, the rear blue, the sides green.
    facing = np.array([abs(np.cos(np.radians(one.azimuth_deg))) for one in CIRCLE])
    images = np.zeros((12, 64, 64, 3), np.uint8)
    images[facing > 0.9] = (200, 40, 40)
    images[facing < 0.1] = (40, 200, 40)
    chosen = [0, 3, 6, 9]
    views = [CIRCLE[view] for view in chosen]
    mesh = textured(box.vertices, box.faces, images[chosen], masks[chosen], views, 128)
    assert mesh.seen > 0.6  # all but the bottom
    for view in chosen:
        picture, mask = rendered(mesh, CIRCLE[view], 64)
        inner = picture[24:40, 24:40][mask[24:40, 24:40]]
        assert np.abs(np.median(inner, 0) - images[view, 0, 0]).max() < 20


def test_silhouette_iou_is_low_where_the_views_differ(coarse):
    box = trimesh.creation.box((0.9, 0.4, 0.3))
    masks = silhouettes(box, CIRCLE, 32)
    masks[4] = 0
    images = np.repeat(np.uint8(255 * masks)[..., None], 3, -1)
    made = reconstruct(images, masks, CIRCLE, size=32)
    assert len(made.views) == len(made.cameras) == 11 and CIRCLE[4] not in made.cameras
    assert made.silhouette_iou > 0.9
    assert made.warnings == ("1 of 12 views show no object and are left out",)
    masks[::2] = np.roll(masks[::2], 8, 1)
    assert reconstruct(images, masks, CIRCLE, size=32).silhouette_iou < 0.8


def test_views_of_different_objects_are_warned_of(coarse):
    box, tower = (trimesh.creation.box(size) for size in ((0.9, 0.4, 0.3), (0.2, 0.2, 0.8)))
    masks = silhouettes(box, CIRCLE, 32)
    masks[::2] = silhouettes(tower, CIRCLE, 32)[::2]
    gray = np.repeat(np.uint8(200 * masks)[..., None], 3, -1)
    (warning,) = reconstruct(gray, masks, CIRCLE, size=32).warnings
    assert "may be of different objects: the silhouette IoU of the mesh is 0" in warning
    # Of one shape, but each of another color.
    masks = silhouettes(box, CIRCLE, 32)
    images = np.repeat(np.uint8(255 * masks)[..., None], 3, -1)
    assert reconstruct(images, masks, CIRCLE, size=32).warnings == ()
    images[::2, ..., 0] = images[1::3, ..., 1] = 0
    (warning,) = reconstruct(images, masks, CIRCLE, size=32).warnings
    assert "may be of different objects" in warning


def test_a_surface_that_is_not_closed_is_warned_of(coarse, monkeypatch):
    smooth = reconstruction.smoothed

    def opened(*words):
        vertices, faces = smooth(*words)
        return vertices, faces[1:]

    monkeypatch.setattr(reconstruction, "smoothed", opened)
    masks = silhouettes(trimesh.creation.box((0.9, 0.4, 0.3)), CIRCLE, 32)
    images = np.repeat(np.uint8(255 * masks)[..., None], 3, -1)
    made = reconstruct(images, masks, CIRCLE, size=32)
    assert made.warnings == ("the surface is not closed, or touches itself",)


def test_cameras_are_found_from_the_silhouettes():
    cabin = trimesh.creation.box((0.4, 0.36, 0.15)).apply_translation((-0.1, 0, 0.14))
    car = trimesh.util.concatenate([trimesh.creation.box((0.95, 0.4, 0.15)), cabin])
    true = [Camera(a, 15.0, 0.8, perspective=0.3) for a in (0, 40, 65, 90, 140, 180, 225, 300)]
    masks = silhouettes(car, true, 32)
    even = np.arange(8) * 45.0
    found = fit(masks, start(masks, even), steps=60, size=14)
    error = np.array(
        [a.azimuth_deg - b.azimuth_deg for a, b in zip(found.cameras, true, strict=True)]
    )
    even -= [one.azimuth_deg for one in true]
    assert np.median(np.abs(error)) < 0.6 * np.median(np.abs(even))
    assert abs(found.cameras[0].elevation_deg - 15) < 7
