"""Meshes of held-out procedural cars or mugs, against the renderer's own meshes.

    python benchmarks/mesh.py [--objects 5] [--views 12] [--size 64] [--cameras perspective]
    python benchmarks/mesh.py --kind mugs [--objects 5] [--cameras true]
    python benchmarks/mesh.py --run weights/showcase-cars --generated [--objects 5]
    python benchmarks/mesh.py --run results/showcase --cameras run [--true-masks] [--objects 5]

The first makes meshes from true views, evenly spaced, or with `--pose-eval FILE` from the mean
azimuth of every pose of a run. `--cameras true` has the renderer's elevation and distance too;
`perspective` and `orthographic` fit what silhouettes give when azimuths are known; `found` fits the
azimuths as well, starting at the truth. `--cameras run` shows each object from the mean azimuths of
the poses, with the cameras that the run found, refined on its masks as the mesh command does; with
`--unrefined` as they are. With `--run` masks are those of the run's foreground model, not the true
ones, unless `--true-masks`. `--generated` takes a photo of each car, seen from anywhere, and lets
the run make the views, the masks and the mesh, with the cameras it found. `--mixed` takes every
view of another car, of which the warnings of a mesh should tell.

Prints a row for each object: volumetric IoU after alignment (shift, scale, turn around z; front and
rear may be exchanged), the same to the next object, color error of the rendered mesh where both
show it (mean absolute, 0..255) to the views, and to true ones from the same azimuths, IoU of
silhouettes to the views, share of the surface that a view shows, handles of the surface (1 for a
mug), and seconds. A mug's true volume is that of its outside: silhouettes do not show that it is
hollow.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from mirage_steps.demo.renderer import car_shapes, cars, mug_shapes, mugs
from mirage_steps.files.cameras import CAMERAS, read_cameras
from mirage_steps.files.meshes import PhotoMesh
from mirage_steps.method.boxes import crop, square_window
from mirage_steps.method.camera_fit import PERSPECTIVE, fit, start
from mirage_steps.method.cameras import Camera
from mirage_steps.method.reconstruction import Reconstruction, reconstruct
from mirage_steps.method.texture import rendered
from mirage_steps.run import Run

RENDERERS = {"cars": cars, "mugs": mugs}
SHAPES = {"cars": car_shapes, "mugs": mug_shapes}
STREAM = {"cars": (), "mugs": (mugs._STREAM,)}  # of a renderer's random numbers
# Azimuth in degrees that lies in the plane of symmetry: a mug's handle is at 90.
PLANE = {"cars": 0, "mugs": 90}
SEED = 1_000_010  # of no data set
_MARGIN = 0.05


def true_mesh(
    kind: str, index: int, seed: int = SEED
) -> tuple[list[trimesh.Trimesh], float, float]:
    """Closed parts of an object, the camera's elevation in degrees, and one over its distance."""
    shapes, renderer = SHAPES[kind], RENDERERS[kind]
    rng = np.random.default_rng([seed, index, *STREAM[kind]])
    rng.uniform(0, 360)
    names = renderer.DEMO_FAMILIES
    shape = shapes.draw_shape(shapes.FAMILIES[names[int(rng.integers(len(names)))]], rng)
    mesh = shapes.build_mesh(shape)
    elevation = float(rng.uniform(4, 24))
    distance = 0.62 / np.tan(0.5 * np.deg2rad(rng.uniform(16, 42)))
    whole = trimesh.Trimesh(mesh.vertices, mesh.faces)
    parts = list(whole.split())
    if kind == "mugs":
        z = np.linspace(0, shape.height, 40)
        outside = np.stack([shape.radius(z), z], 1)
        parts.append(trimesh.creation.revolve([(0, 0), *outside, (0, shape.height)], sections=64))
    for part in parts:
        part.apply_translation(-whole.bounds.mean(0))
    return parts, elevation, 1 / distance


def crops(
    kind: str, indices: Sequence[int], azimuths: np.ndarray, size: int, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Images (k, S, S, 3) and masks (k, S, S) of objects, cropped as the pipeline crops."""
    images, masks = [], []
    families = RENDERERS[kind].DEMO_FAMILIES
    for index, azimuth in zip(indices, azimuths, strict=True):
        made = RENDERERS[kind].render(seed, index, families, 2 * size, azimuth=float(azimuth))
        shown = np.argwhere(made.mask > 0.5)
        (top, left), (bottom, right) = shown.min(0), shown.max(0) + 1
        window = square_window((left, top, right, bottom), 2 * size, 2 * size, _MARGIN)
        images.append(np.asarray(crop(Image.fromarray(made.image), window, size)))
        gray = Image.fromarray(np.round(255 * made.mask).astype(np.uint8)).convert("RGB")
        masks.append(np.asarray(crop(gray, window, size))[..., 0] / 255)
    return np.stack(images), np.stack(masks)


def grid(low: np.ndarray, high: np.ndarray, pitch: float) -> np.ndarray:
    """(nx, ny, nz, 3) points."""
    axes = [np.arange(a, b, pitch) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def volume_iou(mesh: trimesh.Trimesh, parts: list[trimesh.Trimesh]) -> float:
    """Best IoU over shift, scale and turn, at points of a grid in the true mesh's box.

    Front and rear may be exchanged: silhouettes do not tell them apart.
    """
    low = np.min([part.bounds[0] for part in parts], 0)
    high = np.max([part.bounds[1] for part in parts], 0)
    pitch = (high - low).max() / 48
    places = grid(low - 4 * pitch, high + 4 * pitch, pitch)
    truth = np.any([part.contains(places.reshape(-1, 3)) for part in parts], 0)
    places, origin = places.reshape(-1, 3), mesh.bounds[0] - 0.02
    fine = mesh.extents.max() / 80
    own = grid(origin, mesh.bounds[1] + 0.02, fine)
    own = mesh.contains(own.reshape(-1, 3)).reshape(own.shape[:3]).astype(np.float32)

    def iou(change: np.ndarray) -> float:
        turn = np.radians(change[4] * 100)
        moved = places - change[:3]
        x, y = moved[:, 0], moved[:, 1]
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        moved = np.stack([x, y, moved[:, 2]]) / np.exp(change[3])
        inside = map_coordinates(own, (moved - origin[:, None]) / fine, order=1) > 0.5
        return float((inside & truth).sum() / (inside | truth).sum())

    scale, best = float(np.median(np.log((high - low) / mesh.extents))), 0.0
    for sense in (1, -1):
        middle = mesh.bounds.mean(0) * (sense, sense, 1)
        first = [*(high + low) / 2 - np.exp(scale) * middle, scale, 0.9 * (1 - sense)]
        simplex = np.vstack([first, first + 0.03 * np.eye(5)])
        options = {"initial_simplex": simplex, "maxfev": 120}
        found = minimize(lambda c: -iou(c), first, method="Nelder-Mead", options=options)
        best = max(best, -found.fun)
    return best


def true_views(words: argparse.Namespace, index: int, truth: tuple) -> tuple[Reconstruction, float]:
    """Mesh and seconds from views of the renderer."""
    azimuths = np.arange(words.views) * 360 / words.views
    if words.pose_eval or words.cameras == "run":
        path = words.pose_eval or words.loaded.folder / "poses/pose_eval.json"
        poses = json.loads(path.read_text())["poses"]
        azimuths = np.array([pose["mean_azimuth_deg"] for pose in poses])
    count = len(azimuths)
    first = index * count
    indices = range(first, first + count) if words.mixed else [index] * count
    images, masks = crops(words.kind, indices, azimuths, words.size)
    if words.run and not words.true_masks:
        masks = words.loaded.masks(images) / 255
    started = time.process_time()
    if words.cameras == "run":
        cameras = read_cameras(words.loaded.folder / CAMERAS, range(count))
        made = PhotoMesh.of(images, masks, cameras, not words.unrefined)
    else:
        made = reconstruct(images, masks, _cameras(words, masks, azimuths, truth))
    return made, time.process_time() - started


def generated_views(words: argparse.Namespace, index: int) -> tuple[Reconstruction, float]:
    """Mesh and seconds from views that the run makes of a photo."""
    azimuth = float(np.random.default_rng([3, index]).uniform(0, 360))
    photo = cars.render(SEED, index, cars.DEMO_FAMILIES, 2 * words.size, azimuth=azimuth)
    views = words.loaded.novel_views(photo.image)
    started = time.process_time()
    cameras = read_cameras(words.loaded.folder / CAMERAS, views.poses)
    made = PhotoMesh.of(views.views, views.masks / 255, cameras, not words.unrefined)
    return made, time.process_time() - started


def scores(words: argparse.Namespace, index: int, truths: list, made: Reconstruction) -> list:
    """IoU of the volume, that to the next object, color errors, overlap, seen share, handles."""
    azimuths = np.array([camera.azimuth_deg for camera in made.cameras])
    images, masks = crops(words.kind, [index] * len(azimuths), azimuths, words.size)
    errors, overlaps, true_errors = [], [], []
    for number, camera in enumerate(made.cameras):
        picture, outline = rendered(made.mesh, camera, words.size)
        picture, own = picture.astype(float), made.masks[number] > 0.5
        overlaps.append((own & outline).sum() / (own | outline).sum())
        for found, mask, view in (
            (errors, own, made.views[number]),
            (true_errors, masks[number] > 0.5, images[number]),
        ):
            found.append(np.abs(picture - view)[mask & outline].mean())
    solid = trimesh.Trimesh(made.mesh.vertices, made.mesh.faces)
    solid.merge_vertices()
    ious = [volume_iou(solid, truths[index + step][0]) for step in (0, 1)]
    handles = solid.body_count - solid.euler_number / 2
    return [*ious, *map(np.mean, (errors, true_errors, overlaps)), made.mesh.seen, handles]


def _cameras(
    words: argparse.Namespace, masks: np.ndarray, azimuths: np.ndarray, truth: tuple
) -> list[Camera]:
    _, elevation, perspective = truth
    plane = PLANE[words.kind]  # a fit takes azimuth 0 to be in it
    first = start(masks, azimuths - plane, elevation if words.cameras == "true" else 12.0)
    if words.cameras == "orthographic":
        free = {"azimuth": False, "perspective": False}
    elif words.cameras == "true":
        first = [replace(one, perspective=perspective) for one in first]
        free = {"azimuth": False, "perspective": False, "elevation": False}
    else:
        first = [replace(one, perspective=PERSPECTIVE) for one in first]
        free = {"azimuth": words.cameras == "found"}
    found = fit(masks, first, **free).cameras
    return [replace(one, azimuth_deg=one.azimuth_deg + plane) for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    choices = ["true", "perspective", "orthographic", "found", "run"]
    parser.add_argument("--cameras", choices=choices, default="perspective")
    parser.add_argument("--run")
    parser.add_argument("--generated", action="store_true")
    parser.add_argument("--true-masks", action="store_true")
    parser.add_argument("--unrefined", action="store_true")
    parser.add_argument("--pose-eval", type=Path)
    parser.add_argument("--kind", choices=list(RENDERERS), default="cars")
    parser.add_argument("--mixed", action="store_true")
    words = parser.parse_args()
    if not words.run and (words.generated or words.cameras == "run"):
        parser.error("--generated and --cameras run need --run")
    words.loaded = Run.load(words.run, device="cpu") if words.run else None
    truths = [true_mesh(words.kind, index) for index in range(words.objects + 1)]
    rows = []
    for index in range(words.objects):
        made, seconds = (
            generated_views(words, index)
            if words.generated
            else true_views(words, index, truths[index])
        )
        rows.append([*scores(words, index, truths, made), seconds])
        print(index, *(f"{value:.3f}" for value in rows[-1]), *made.warnings, flush=True)
    print("mean", *(f"{value:.3f}" for value in np.mean(rows, 0)))


if __name__ == "__main__":
    main()
