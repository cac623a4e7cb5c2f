"""Azimuths of poses found without labels, on even and uneven subsets of a run's images.

    python benchmarks/cameras.py RUN [--images 700] [--k 12] [--peak 60] [--strength 0.9]
    python benchmarks/cameras.py DIR --elevation 25 35 [--rising] [--images 400]

RUN is the folder of a finished run with known azimuths, such as results/demo. With `--elevation`
cars are rendered into a new DIR, whose elevations are even between the two, or rise from the first
at the front to the second at the rear, and the pipeline's steps run up to `pose_space`.

An image is drawn with a chance in proportion to 1 + strength cos(azimuth - peak); poses are fitted
to the subset anew. Then masks are made worse, with their maps: `--noise` is the share of patches
that are inverted; `--grow` pixels of 64 are added around each mask, or removed from it if negative;
`--holes` is the share of images that lose a disc, a quarter of the frame wide. Prints the median
error of the poses' azimuths after the best start and sense, that of equal spacing, the error of the
start itself, elevation, and seconds.
"""

import argparse
import time
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from mirage_steps import crops, features, foreground, pose_space, settings
from mirage_steps.cameras import errors
from mirage_steps.demo.renderer import cars, rendering
from mirage_steps.files.estimator import ESTIMATOR
from mirage_steps.files.h5 import open_h5, read_names
from mirage_steps.files.manifest import Entry, read_manifest, write_manifest
from mirage_steps.files.tiles import save_image
from mirage_steps.method.camera_fit import find
from mirage_steps.method.circle import circular_distance, circular_mean
from mirage_steps.method.poses import PoseModel

BACKBONE = settings.Backbone(model="weights/stand-in-dinov2-cars", resolution=64, batch_size=64)
_FINE = 64  # pixels along a mask that is changed
_HOLE = 8  # radius of a disc, in these
SEED = 1_000_020  # of no data set


class _Elevated:
    """A random generator whose first uniform number is the camera's elevation."""

    def __init__(self, rng: np.random.Generator, elevation: float):
        self.rng, self.first = rng, [elevation]

    def uniform(self, *bounds: object) -> object:
        return self.first.pop() if self.first else self.rng.uniform(*bounds)


def make(folder: Path, count: int, low: float, high: float, rising: bool) -> None:
    """Render cars whose elevations in degrees are given, and find their maps in pose space."""
    draw, elevations, entries = rendering.draw_camera, [], []

    def elevated(azimuth: float, *rest: object) -> rendering.Camera:
        share = (1 - np.cos(np.radians(azimuth))) / 2 if rising else rest[-1].uniform()
        elevations.append(low + share * (high - low))
        return draw(azimuth, *rest[:-1], _Elevated(rest[-1], elevations[-1]))

    with mock.patch.object(rendering, "draw_camera", elevated):
        for index in range(count):
            made = cars.render(SEED, index, cars.DEMO_FAMILIES)
            name = f"images/{index:06d}.png"
            save_image(folder / name, made.image)
            entries.append(Entry(name, folder / name, 96, 96, made.azimuth_deg))
    np.save(folder / "elevations.npy", elevations)
    manifest, windows = folder / "manifest.csv", folder / "foreground/foreground.csv"
    write_manifest(manifest, entries)
    tokens = folder / "features/tokens.h5"
    features.main(manifest=manifest, out=tokens.parent, backbone=BACKBONE)
    foreground.main(manifest=manifest, tokens=tokens, out=windows.parent)
    crops.main(manifest=manifest, windows=windows, out=folder / "crops")
    tokens = folder / "tokens/tokens.h5"
    features.main(manifest=manifest, windows=windows, out=tokens.parent, backbone=BACKBONE)
    estimator = windows.parent / ESTIMATOR
    pose_space.main(tokens=tokens, estimator=estimator, out=folder / "pose_space")


def worse(
    shown: np.ndarray, noise: float, grow: int, holes: float, rng: np.random.Generator
) -> np.ndarray:
    """Masks (n, s, s) in [0, 1] of patches, from bool ones."""
    shown = shown ^ (rng.random(shown.shape) < noise)
    scale = _FINE // shown.shape[1]
    fine = shown.repeat(scale, 1).repeat(scale, 2)
    if grow:
        change = binary_dilation if grow > 0 else binary_erosion
        fine = change(fine, np.ones((1, 3, 3)), iterations=abs(grow))
    y, x = np.indices(fine.shape[1:])
    for mask in fine:
        if rng.random() < holes and mask.any():
            row, column = rng.choice(np.argwhere(mask))
            mask[np.hypot(y - row, x - column) < _HOLE] = False
    return fine.reshape(len(fine), -1, scale, shown.shape[2], scale).mean((2, 4))


def subset(words: argparse.Namespace) -> tuple:
    """Azimuths, maps and validity of the images that are drawn, their rows, and the generator."""
    truth = {one.image: one.azimuth_deg for one in read_manifest(words.run / "manifest.csv")}
    with open_h5(words.run / "pose_space/maps.h5", "maps", "valid") as file:
        azimuths = np.array([truth[name] for name in read_names(file)])
        rng = np.random.default_rng(words.seed)
        chance = 1 + words.strength * np.cos(np.radians(azimuths - words.peak))
        order = rng.permutation(len(azimuths))
        kept = order[rng.random(len(order)) < (chance / chance.max())[order]][: words.images]
        kept = np.sort(kept)
        maps, valid = file["maps"][:][kept], file["valid"][:][kept]
    return azimuths[kept], maps, valid, kept, rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--peak", type=float, default=60)
    parser.add_argument("--strength", type=float, default=0)
    parser.add_argument("--noise", type=float, default=0)
    parser.add_argument("--grow", type=int, default=0)
    parser.add_argument("--holes", type=float, default=0)
    parser.add_argument("--elevation", type=float, nargs=2)
    parser.add_argument("--rising", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    if words.elevation and not (words.run / "pose_space").exists():
        make(words.run, words.images, *words.elevation, words.rising)
    azimuths, maps, valid, kept, rng = subset(words)
    model = PoseModel.fit(maps, valid, k=words.k, starts=4, seed=0)
    poses = model.nearest(maps, valid)[0]
    side = round(maps.shape[1] ** 0.5)
    maps = maps.reshape(len(maps), side, side, -1)
    shown = worse((maps != 0).any(-1), words.noise, words.grow, words.holes, rng)
    maps = maps * shown[..., None]
    members = [np.flatnonzero(poses == pose) for pose in range(words.k)]
    means = [np.stack([of[row].mean(0) for row in members]) for of in (shown, maps)]
    true = np.array([circular_mean(azimuths[row]) for row in members])
    started = time.process_time()
    found, _ = find(*means)
    seconds = time.process_time() - started
    angles = np.array([camera.azimuth_deg for camera in found.cameras])
    ahead = [circular_distance(angles + half, true) for half in (0, 180)]
    scores = errors(angles, true)
    about = f"{len(kept)} images"
    for key in ("k", "strength", "noise", "grow", "holes", "elevation", "rising"):
        if (value := getattr(words, key)) != parser.get_default(key):
            about += f", {key} {value}"
    print(
        f"{about}: median error {scores['median_error_deg']:.1f}, equal spacing "
        f"{scores['equal_spacing_error_deg']:.1f}, with its own start (front or rear) and sense "
        f"{min(np.median(one) for one in ahead):.1f}, elevation "
        f"{found.cameras[0].elevation_deg:.1f}, {seconds:.0f} s",
        flush=True,
    )
    if words.elevation:
        elevations = np.load(words.run / "elevations.npy")[kept]
        means = np.array([elevations[row].mean() for row in members])
        gaps = [np.abs(one - means).mean() for one in (found.cameras[0].elevation_deg, 12)]
        print(f"true elevations {means.min():.1f} to {means.max():.1f}, mean error {gaps[0]:.1f}, "
              f"of a constant 12 {gaps[1]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
