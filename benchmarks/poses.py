"""Accuracy of pose discovery for choices that the paper leaves open.

    python benchmarks/poses.py [--scratch DIR] [--sets plain border] [--k 12 25] [--quick]

Renders held-out cars of known azimuth, runs the pipeline's steps on them with the embedded
backbone, and prints tables in Markdown: the default at several numbers of poses, then every choice
changed separately. A cell has the median azimuth error in degrees, the percentage of images within
30 degrees of their pose's mean, and the errors of the circular order.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from mirage_steps import crops, features, foreground, pose_names, pose_space, poses
from mirage_steps.demo.renderer.cars import DEMO_FAMILIES, SPAN, render
from mirage_steps.demo.stand_ins.evaluation import iou, patch_masks
from mirage_steps.files.atomic import read_csv, write_csv
from mirage_steps.files.estimator import ESTIMATOR, load_estimator
from mirage_steps.files.h5 import open_h5
from mirage_steps.files.manifest import BOX, Entry, read_manifest, write_manifest
from mirage_steps.files.tables import read_windows
from mirage_steps.files.tokens import open_tokens
from mirage_steps.method.circle import shortest_cycle
from mirage_steps.method.foreground import TokenBatch
from mirage_steps.method.pca import Moments, Pca
from mirage_steps.method.pose_scores import score_azimuths
from mirage_steps.method.poses import fill_padding
from mirage_steps.settings import Backbone, Foreground, Poses

WEIGHTS = Path(__file__).parents[1] / "weights" / "stand-in-dinov2-cars"
BACKBONE = Backbone(model=str(WEIGHTS), resolution=64, batch_size=64)
SIZE = 96  # pixels, as the demo's images


@dataclass(frozen=True)
class Cars:
    """A set of rendered cars.

    Attributes:
        seed: of the renderer.
        images: how many.
        span: bounds of the share of the frame that the car fills.
        overhang: bounds of the share of the car beyond the frame's edge, below 0 short of it; None
            where the renderer places the car.
    """

    seed: int
    images: int = 2000
    span: tuple[float, float] = SPAN
    overhang: tuple[float, float] | None = None


SETS = {
    "plain": Cars(3100),
    "border": Cars(3200, overhang=(0.0, 0.1)),
    "small": Cars(3300, span=(0.25, 0.40), overhang=(-1.0, 0.0)),
    "few": Cars(3400, images=500),
}


def render_set(folder: Path, cars: Cars) -> None:
    """Render images, true masks and ``manifest.csv`` into ``folder``, if they are not there."""
    if (folder / "manifest.csv").exists():
        return
    entries, masks = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(cars.images):
        overhang = None
        if cars.overhang is not None:
            overhang = np.random.default_rng([index, cars.seed]).uniform(*cars.overhang)
        car = render(cars.seed, index, DEMO_FAMILIES, SIZE, span=cars.span, overhang=overhang)
        name = f"images/{index:06d}.png"
        Image.fromarray(car.image).save(folder / name)
        masks.append(car.mask)
        entries.append(Entry(name, folder / name, SIZE, SIZE, car.azimuth_deg))
    np.save(folder / "true_masks.npy", masks)
    write_manifest(folder / "manifest.csv", entries)


@dataclass(frozen=True)
class Crops:
    """What the steps up to the pose space found in a set.

    Attributes:
        azimuths: (n,) degrees, of the images in which an object was found.
        missing: images in which none was.
        iou: mean IoU of the found foreground with the true mask, at patch resolution.
        tokens: (n, T, dim) float16, of the crops.
        scores: (n, T) PCA 1 of the crops, above 0 on the foreground.
        shown: bool (n, T), patches on the image that show the object.
        valid: bool (n, T), False on padding.
        maps: (n, T, 3) float32, as the pipeline makes them.
    """

    azimuths: np.ndarray
    missing: int
    iou: float
    tokens: np.ndarray
    scores: np.ndarray
    shown: np.ndarray
    valid: np.ndarray
    maps: np.ndarray


def find_crops(folder: Path, out: Path, settings: Foreground, shifted: bool) -> Crops:
    """Run the steps foreground, features of crops and pose space.

    Args:
        folder: the set, with the tokens of its whole images.
        out: folder of what the steps write.
        settings: of the foreground step.
        shifted: look at the windows that training uses, which stay inside the image if they can.
    """
    manifest, tokens = folder / "manifest.csv", folder / "features" / "tokens.h5"
    foreground.main(manifest=manifest, tokens=tokens, out=out, foreground=settings)
    estimator = load_estimator(out / ESTIMATOR)
    regions = []
    with open_tokens(tokens) as whole:
        for batch in whole:
            sizes = [(SIZE, SIZE)] * len(batch.tokens)
            regions += [one.region for one in estimator.locate(batch, sizes)]
    true = patch_masks(np.load(folder / "true_masks.npy"), BACKBONE.resolution // 4)
    masks = [np.zeros_like(true[0]) if region is None else region.mask for region in regions]
    windows = out / "foreground.csv"
    if shifted:
        # The features step centers a window on its object's box: let the box be the window.
        rows = read_csv(windows)
        rows = [{**row, **{key: row[f"window_{key}"] for key in BOX}} for row in rows]
        windows = out / "shifted.csv"
        write_csv(windows, rows[0], (row.values() for row in rows))
    features.main(manifest=manifest, windows=windows, out=out, backbone=BACKBONE)
    pose_space.main(tokens=out / "tokens.h5", estimator=out / ESTIMATOR, out=out / "space")
    found = read_windows(windows, read_manifest(manifest))
    with open_h5(out / "tokens.h5") as file, open_h5(out / "space/maps.h5") as space:
        arrays = (file[key][:] for key in ("patch_tokens", "cls_token", "content"))
        batch = TokenBatch(slice(None), *arrays)
        values = batch.tokens
        scores = estimator.foreground.scores(values).reshape(len(values), -1)
        return Crops(
            azimuths=np.array([entry.azimuth_deg for entry, _ in found]),
            missing=sum(region is None for region in regions),
            iou=float(iou(np.stack(masks), true).mean()),
            tokens=values,
            scores=(scores - estimator.foreground.threshold).astype(np.float32),
            shown=estimator.shown(batch),
            valid=space["valid"][:],
            maps=space["maps"][:],
        )


# Maps in other ways than the pipeline's: each takes Crops and gives (n, T, c) float32.


def all_tokens(crops: Crops, components: int = 3, fit_all: bool = False) -> np.ndarray:
    """All tokens projected, as in the paper, from the mean of the foreground."""
    moments = Moments()
    fitted = crops.valid if fit_all else crops.shown
    for tokens, chosen in zip(crops.tokens, fitted, strict=True):
        moments.add(tokens[chosen].astype(np.float32))
    pca = Pca.fit(moments, components)
    maps = np.stack([pca.project(tokens) for tokens in crops.tokens])
    return maps - maps[crops.shown].mean(0)


def object_tokens(crops: Crops, **words) -> np.ndarray:
    """The object's tokens projected, the others zero: the pipeline's way."""
    return np.where(crops.shown[..., None], all_tokens(crops, **words), 0)


def background_by_position(crops: Crops) -> np.ndarray:
    maps = all_tokens(crops)
    fill_padding(maps, crops.shown)
    return maps


def background_alike(crops: Crops) -> np.ndarray:
    maps = all_tokens(crops)
    return np.where(crops.shown[..., None], maps, maps[crops.valid & ~crops.shown].mean(0))


def with_scores(crops: Crops, maps: Callable[[Crops], np.ndarray]) -> np.ndarray:
    return np.concatenate([maps(crops), crops.scores[..., None]], axis=2)


def whitened(crops: Crops) -> np.ndarray:
    maps = object_tokens(crops)
    return maps / maps[crops.shown].std(0)


def own_mean_removed(crops: Crops) -> np.ndarray:
    maps, shown = object_tokens(crops), crops.shown[..., None]
    means = maps.sum(1) / np.maximum(shown.sum(1), 1)
    return np.where(shown, maps - means[:, None], 0)


def centered(crops: Crops, background: bool = False, components: int = 3) -> np.ndarray:
    """The mean at each patch subtracted, of the object's tokens or of all on the image."""
    maps = all_tokens(crops, components=components)
    kept = (crops.valid if background else crops.shown)[..., None]
    means = maps.sum(0, where=kept) / np.maximum(kept.sum(0), 1)
    return np.where(kept, maps - means, 0)


@dataclass(frozen=True)
class Choice:
    """One way to find poses; the defaults are the pipeline's.

    Attributes:
        foreground: settings of the foreground step.
        shifted: crops shifted into the image, not centered on the object.
        maps: makes the maps.
        unit: divide each map by its own length.
        starts: of K-Means.
        init: of K-Means.
    """

    foreground: Foreground = Foreground()
    shifted: bool = False
    maps: Callable[[Crops], np.ndarray] = lambda crops: crops.maps
    unit: bool = True
    starts: int = Poses().starts
    init: str = "k-means++"


PAPER = Foreground(rule="first-component", threshold="zero")
CHOICES = {
    "default": Choice(),
    "background: not masked, as in the paper": Choice(maps=all_tokens),
    "background: mean of the foreground at its position": Choice(maps=background_by_position),
    "background: mean of all background": Choice(maps=background_alike),
    "background: not masked, PCA 1 appended": Choice(maps=partial(with_scores, maps=all_tokens)),
    "background: masked, PCA 1 appended": Choice(maps=partial(with_scores, maps=object_tokens)),
    "scale: maps not normalized, as in the paper": Choice(maps=object_tokens, unit=False),
    "scale: each component by its standard deviation": Choice(maps=whitened),
    "center: each patch": Choice(maps=centered),
    "center: each patch, 32 components": Choice(maps=partial(centered, components=32)),
    "center: each patch, background not masked": Choice(maps=partial(centered, background=True)),
    "scale: each map less its own mean": Choice(maps=own_mean_removed),
    "PCA 2: 2 components": Choice(maps=partial(object_tokens, components=2)),
    "PCA 2: 4 components": Choice(maps=partial(object_tokens, components=4)),
    "PCA 2: 6 components": Choice(maps=partial(object_tokens, components=6)),
    "PCA 2: fitted on all tokens": Choice(maps=partial(object_tokens, fit_all=True)),
    "K-Means: 1 start": Choice(starts=1),
    "K-Means: 3 starts": Choice(starts=3),
    "K-Means: 30 starts": Choice(starts=30),
    "K-Means: random starts": Choice(init="random"),
    "crop: shifted into the image, not centered": Choice(shifted=True),
    "crop: margin 0": Choice(Foreground(margin=0)),
    "crop: margin 0.12": Choice(Foreground(margin=0.12)),
    "foreground: the first component, as in the paper": Choice(Foreground(rule="first-component")),
    "foreground: cut at zero, as in the paper": Choice(Foreground(threshold="zero")),
    "foreground, background, scale: as in the paper": Choice(PAPER, maps=all_tokens, unit=False),
}


def step_scores(folder: Path, k: int) -> np.ndarray:
    """Scores of the poses step itself, (3,); its tables and pictures stay in ``folder``."""
    out = folder / f"poses-{k}"
    poses.main(
        maps=folder / "space/maps.h5",
        estimator=folder / "space" / ESTIMATOR,
        out=out,
        poses=Poses(k=k),
    )
    pose_names.main(
        poses=out / "poses.csv",
        crops=folder / "crops.h5",
        estimator=out / ESTIMATOR,
        out=out,
    )
    azimuths = {e.image: e.azimuth_deg for e in read_manifest(folder.parent / "manifest.csv")}
    rows = read_csv(out / "poses.csv")
    labels = np.array([int(row["pose"]) for row in rows])
    return as_row(score_azimuths(labels, np.array([azimuths[row["image"]] for row in rows]), k))


def score(maps: np.ndarray, crops: Crops, choice: Choice, k: int, seed: int) -> np.ndarray:
    """Scores of K-Means over maps (n, T, c) with the choice's starts, (3,)."""
    maps = maps.astype(np.float32)
    if choice.unit:
        inside = maps * crops.valid[..., None]
        maps /= np.linalg.norm(inside, axis=(1, 2), keepdims=True) + np.finfo(np.float32).tiny
    fill_padding(maps, crops.valid)
    kmeans = KMeans(k, init=choice.init, n_init=choice.starts, random_state=seed)
    labels = kmeans.fit_predict(maps.reshape(len(maps), -1))
    centroids = kmeans.cluster_centers_
    rank = np.argsort(shortest_cycle(cdist(centroids, centroids)))
    return as_row(score_azimuths(rank[labels], crops.azimuths, k))


def as_row(scores: dict) -> np.ndarray:
    """Median error in degrees, percentage within 30 degrees, and order errors, (3,)."""
    return np.array(
        [scores["median_error_deg"], 100 * scores["share_within_30_deg"], scores["order_errors"]]
    )


def perfect_bins(k: int) -> str:
    """The cell of K equal ranges of azimuth, for comparison."""
    azimuths = np.arange(0, 360, 0.01)
    return cell(as_row(score_azimuths((azimuths * k / 360).astype(int), azimuths, k)))


def cell(row: np.ndarray, mark: bool = False) -> str:
    text = f"{row[0]:.1f}° / {row[1]:.1f} / {row[2]:.2g}"
    return f"**{text}**" if mark else text


def print_table(header: list[str], rows: list[list[str]]) -> None:
    lines = [header, ["---"] * len(header), *rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), "\n", flush=True)


def measure(
    folder: Path,
    cars: Cars,
    choices: dict[str, Choice],
    default_k: list[int],
    choice_k: list[int],
    seeds: int,
) -> tuple[list[str], dict[tuple[int, str], np.ndarray]]:
    """Measure one set.

    Returns:
        Cells of the default's table, and scores of the choices by K and name, each (3,), the mean
        over the seeds of K-Means.
    """
    render_set(folder, cars)
    features.main(manifest=folder / "manifest.csv", out=folder / "features", backbone=BACKBONE)
    cells, scores = [], {}
    for (settings, shifted), group in groupby(
        choices.items(), lambda item: (item[1].foreground, item[1].shifted)
    ):
        # The first is the default, whose tables and pictures are kept.
        out = folder / ("other" if cells else "default")
        found = find_crops(folder, out, settings, shifted)
        if not cells:
            crops.main(manifest=folder / "manifest.csv", windows=out / "foreground.csv", out=out)
            cells = [str(cars.images), str(found.missing), f"{found.iou:.3f}"]
            cells += [cell(step_scores(out, k)) for k in default_k]
        for name, choice in group:
            maps = choice.maps(found)
            for k in choice_k:
                each = [score(maps, found, choice, k, seed) for seed in range(seeds)]
                scores[k, name] = np.mean(each, axis=0)
                print(folder.name, k, name, cell(scores[k, name]), file=sys.stderr, flush=True)
    return cells, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="folder of everything; renderings are reused")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--k", nargs="+", type=int, default=[12, 25], help="K of the choices")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of K-Means for each choice")
    parser.add_argument("--quick", action="store_true", help="60 images, one seed, small K")
    words = parser.parse_args()
    torch.set_num_threads(1)
    sets, choices = SETS, CHOICES
    default_k, choice_k, seeds = [8, 12, 25], words.k, words.seeds
    if words.quick:
        sets = {name: replace(cars, images=60) for name, cars in SETS.items()}
        choices = {n: choice for n, choice in CHOICES.items() if choice.foreground == Foreground()}
        default_k, choice_k, seeds = [6], [6], 1
    cells, scores = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in words.sets:
            folder = (words.scratch or Path(temporary)) / f"{name}-{sets[name].images}"
            cells[name], scores[name] = measure(
                folder, sets[name], choices, default_k, choice_k, seeds
            )
    print("The default, by the steps themselves: median error / % within 30° / order errors\n")
    print_table(
        ["set", "images", "no object", "foreground IoU", *(f"K = {k}" for k in default_k)],
        [
            *([name, *row] for name, row in cells.items()),
            ["perfect bins of 360°/K", "", "", "", *map(perfect_bins, default_k)],
        ],
    )
    for k in choice_k:
        print(f"One choice changed, K = {k}, mean of {seeds} seeds of K-Means, best median bold\n")
        table = {choice: [scores[name][k, choice] for name in scores] for choice in choices}
        best = np.min([[row[0] for row in rows] for rows in table.values()], axis=0)
        print_table(
            ["choice", *scores],
            [
                [choice, *(cell(row, row[0] == b) for row, b in zip(rows, best, strict=True))]
                for choice, rows in table.items()
            ],
        )


if __name__ == "__main__":
    main()
