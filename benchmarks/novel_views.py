"""Quality of novel views of held-out rendered cars, and warnings on images without cars.

    python benchmarks/novel_views.py --run results/demo [--photos 64] [--views 64] [--paper 16]

Poses against the true azimuths; reconstruction by plain and by refined inversion with their network
evaluations; paint and pose of the other views, with the paper's initial noise and with ours; rates
of true and false warnings; and the time of the command, with and without start-up. All measures use
the run's networks; those of the demo are embedded stand-ins.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from mirage_steps import settings
from mirage_steps.demo.renderer import cars, chairs
from mirage_steps.files.atomic import read_csv
from mirage_steps.masks import segment
from mirage_steps.method.circle import circular_distance, circular_mean
from mirage_steps.method.diffusion import from_pixels, sampling_timesteps, to_pixels
from mirage_steps.method.foreground import find_objects
from mirage_steps.method.inversion import invert, reconstruct
from mirage_steps.method.metrics import psnr
from mirage_steps.networks.sam import load_sam
from mirage_steps.run import Run
from mirage_steps.settings import Masks, NovelViews

_SEED = 77
_SIZE = 96
_BATCH = 16
_DDIM = settings.Views(solver="ddim", steps=50, last_timestep=0)
_DPM = settings.Views(solver="dpm-solver++", steps=15)
# Sampler, None for the run's, and iterations.
_INVERSIONS = [(_DDIM, 1), (_DDIM, 2), (_DDIM, 3), (_DPM, 1), (None, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--sam", default="weights/stand-in-sam-cars")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--views", type=int, default=64, help="photos with default settings")
    parser.add_argument("--paper", type=int, default=16, help="photos from the paper's noise")
    words = parser.parse_args()

    run = Run.load(words.run)
    made = [
        cars.render(_SEED, number, cars.DEMO_FAMILIES, _SIZE, 1.0) for number in range(words.photos)
    ]
    print(f"{words.photos} cars that {words.run} never saw, {run.backbone.name}")
    located = [run.locate(one.image) for one in made]
    poses(run, located, np.array([one.azimuth_deg for one in made]))
    inversion(run, located)
    warnings(run, located, made)
    paint = Paint(run, words.sam, [one.crop for one in located])
    paper = NovelViews(phase_cutoff="none")
    for count, chosen in ((words.views, NovelViews()), (words.paper, paper)):
        novel_views(run, made[:count], paint, chosen)
    command(words.run, made[0].image)


def poses(run: Run, located: list, azimuths: np.ndarray) -> None:
    """Share of photos in the pose nearest to their azimuth, or in an adjacent one."""
    truth = {
        row["image"]: float(row["azimuth_deg"]) for row in read_csv(run.folder / "manifest.csv")
    }
    rows = read_csv(run.folder / "poses/poses.csv")
    k = run.estimator.k
    means = np.array(
        [circular_mean([truth[r["image"]] for r in rows if int(r["pose"]) == p]) for p in range(k)]
    )
    nearest = circular_distance(azimuths[:, None], means[None]).argmin(1)
    found = np.array([one.pose for one in located])
    off = np.minimum((found - nearest) % k, (nearest - found) % k)
    print(f"pose nearest to the true azimuth: {(off == 0).mean():.1%}, that or an adjacent one: "
          f"{(off <= 1).mean():.1%}")  # fmt: skip


def inversion(run: Run, located: list) -> None:
    """Reconstruction by plain and refined inversion, in float32."""
    for given, iterations in _INVERSIONS:
        views = given or run.sampling.views
        timesteps, solver, ratios = sampling_timesteps(views), views.solver, []
        for start in range(0, len(located), _BATCH):
            part = located[start : start + _BATCH]
            crops = np.stack([one.crop for one in part])
            own = torch.tensor([one.pose for one in part])
            found = invert(run.model, from_pixels(crops), own, timesteps, iterations, solver)
            back = to_pixels(reconstruct(run.model, found, own, timesteps, solver))
            ratios += [min(psnr(*pair), 99.0) for pair in zip(crops, back, strict=True)]
        name = f"{solver} from {timesteps[0]} to {timesteps[-1]}, {iterations} iterations"
        print(f"{name}: {len(timesteps) * iterations} evaluations, reconstruction "
              f"{np.median(ratios):.1f} dB in the median, {np.mean(ratios):.1f} mean, "
              f"{min(ratios):.1f} min")  # fmt: skip


def warnings(run: Run, located: list, made: list) -> None:
    """How often a warning of the object or its pose comes up."""
    rng = np.random.default_rng(_SEED)
    groups = {
        "cars": located,
        "chairs": [run.locate(chairs.render(_SEED, n, _SIZE, 1.0).image) for n in range(64)],
        "cars taken out": [run.locate(_without(one)) for one in made],
        "noise": [run.locate(rng.integers(0, 256, (_SIZE, _SIZE, 3), np.uint8)) for _ in range(16)],
    }
    for name, group in groups.items():
        share = np.mean([bool(one.warnings) for one in group])
        print(f"warned of {share:.1%} of {len(group)} {name}")


def _without(made) -> np.ndarray:
    """A picture whose car is filled up with what lies nearest to it."""
    mask = ndimage.binary_dilation(made.mask > 0.02, iterations=3)
    nearest = ndimage.distance_transform_edt(mask, return_indices=True)[1]
    return made.image[tuple(nearest)]


class Paint:
    """Mean color of the object in images, inside the masks of SAM."""

    def __init__(self, run: Run, sam: str, photos: list[np.ndarray]):
        self.run, self.sam = run, load_sam(sam, next(run.model.parameters()).device)
        self.photos = self.colors(np.stack(photos))
        gaps = np.linalg.norm(self.photos[:, None] - self.photos[None], axis=2)
        self.unrelated = gaps[np.triu_indices(len(gaps), 1)].mean()

    def colors(self, images: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 to (n, 3) in 0..255."""
        tokens = self.run.backbone.tokens(images)[0].cpu().numpy()
        model = self.run.estimator.foreground
        regions = find_objects(model.scores(tokens), model.threshold)
        masks, _ = segment(self.sam, images, regions, Masks(sam_batch_size=_BATCH))
        masks = [mask if mask.any() else np.ones_like(mask) for mask in masks.astype(bool)]
        return np.stack([image[mask].mean(0) for image, mask in zip(images, masks, strict=True)])


def novel_views(run: Run, made: list, paint: Paint, chosen: NovelViews) -> None:
    """Paint and pose of the views of photos."""
    gaps, right, count, warned, seconds = [], 0, 0, 0, 0.0
    for number, one in enumerate(tqdm(made, unit="photo", mininterval=5.0)):
        result = run.novel_views(one.image, novel_views=chosen)
        warned += any("another color" in warning.reason for warning in result.warnings)
        seconds += result.seconds["sample"]
        k = len(result.poses)
        for pose, view in zip(result.poses, result.views, strict=True):
            if pose == result.pose:
                continue
            found = run.locate(view).pose
            right += min((found - pose) % k, (pose - found) % k) <= 1
            count += 1
        others = np.delete(result.views, result.poses.index(result.pose), axis=0)
        gaps.append(np.linalg.norm(paint.colors(others) - paint.photos[number], axis=1).mean())
    cutoff = chosen.phase_cutoff
    name = f"random phases above {cutoff} cycles"
    name = "the paper's noise" if cutoff == "none" else name
    print(
        f"{name}: {count} views of {len(made)} photos; mean color differs "
        f"from the photo's by {np.mean(gaps):.1f}, between unrelated cars by "
        f"{paint.unrelated:.1f}: ratio {np.mean(gaps) / paint.unrelated:.2f}; "
        f"{right / count:.1%} in the requested or an adjacent pose; "
        f"{warned} photos with a color warning; {seconds / len(made):.1f} s each"
    )


def command(run: Path, photo: np.ndarray) -> None:
    """Seconds of the command for one photo, by wall clock."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo.png")
        Image.fromarray(photo).save(path)
        words = ["--run", str(run), "--out", f"{folder}/out", str(path)]
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "mirage_steps.novel_views", *words],
                check=True,
                capture_output=True,
            )
            whole = time.perf_counter() - started
            seconds = json.loads(Path(folder, "out/photo.json").read_text())["seconds"]
            work = sum(seconds.values())
            print(f"the command: {whole:.1f} s, of it {work:.1f} s work and {whole - work:.1f} s "
                  "start-up and writing")  # fmt: skip


if __name__ == "__main__":
    main()
