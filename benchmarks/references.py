"""Do views vary less between seeds, the more of the object the reference shows? (Appendix B)

    python benchmarks/references.py --run results/demo [--objects 6] [--seeds 3]

For every pose some generated references, of the same objects for all poses, and for each of them
all other poses from several initial noises, which read the same reference; with the run's sampler.
Variation is the distance between the views of one pose, in the features of the evidence step (color
inside the mask, and a network that took no part in finding poses), as a share of that between real
images of unrelated objects in that pose: 0 equal, 1 as if there was no reference.

What a reference shows is measured on real images of its pose, without labels: the effective number
of parts, which is exp of the entropy of an image's foreground tokens over 32 clusters of the
tokens of all images; and the share of the crop that is foreground. Prints a row for each pose and
the rank correlation over poses, which the paper's claim expects to be negative.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import pdist
from scipy.stats import entropy, spearmanr
from sklearn.cluster import KMeans
from tqdm import tqdm

from mirage_steps.files.h5 import open_h5
from mirage_steps.files.tables import read_labels
from mirage_steps.judge import Judge
from mirage_steps.method.device import autocast
from mirage_steps.method.diffusion import SOLVERS, keyed_noise, sampling_timesteps, to_pixels
from mirage_steps.method.evidence import mean_interval
from mirage_steps.method.foreground import TokenBatch
from mirage_steps.method.multiview import sample_all_poses, single_denoiser
from mirage_steps.run import Run
from mirage_steps.settings import WEIGHTS, Evidence

_PARTS = 32
_SEED = 91  # not of the sets and sheets
_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--objects", type=int, default=6, help="at least 2")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS))
    words = parser.parse_args()
    if min(words.objects, words.seeds) < 2:
        parser.error("--objects and --seeds must be at least 2")

    run, evidence = Run.load(words.run), Evidence()
    crops, poses = words.run / "crops/crops.h5", words.run / "poses/poses.csv"
    judge = Judge.load(run, evidence, words.weights).calibrated(crops, poses, evidence)
    parts, share = shown(run, crops, poses, evidence.real_images)
    scale, sampling = unrelated(judge), run.sampling
    varied = np.stack([
        variation(judge, scale, pose, words.objects, words.seeds)
        for pose in tqdm(range(len(parts)), desc="references", unit="pose")
    ])  # fmt: skip
    how = f"{sampling.views.steps} steps of {sampling.views.solver}, {sampling.guidance}"
    print(f"{words.run}: {words.objects} objects, {words.seeds} seeds, {how}")
    print("| reference pose | parts | foreground | variation between seeds |\n|---|---|---|---|")
    for pose, values in enumerate(varied):
        print(f"| {pose} | {parts[pose]:.1f} | {share[pose]:.2f} | {mean_interval(values)} |")
    for name, measure in (("parts", parts), ("foreground", share)):
        found = spearmanr(measure, varied.mean(1))
        print(f"rank correlation of variation with {name}: {found.statistic:.2f} "
              f"(p = {found.pvalue:.2f}, {len(measure)} poses)")  # fmt: skip


def shown(run: Run, crops: Path, poses: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Effective number of parts, and share of foreground, of the real images of each pose (k,).

    Args:
        run: whose backbone and foreground are used.
        crops: crops.h5.
        poses: poses.csv of these crops.
        count: images of each pose.
    """
    labels = read_labels(poses, crops)
    k = run.model.config.poses
    rows = np.sort(np.concatenate([np.flatnonzero(labels == pose)[:count] for pose in range(k)]))
    tokens, masks = [], []
    with open_h5(crops, "images") as file:
        for some in np.array_split(rows, -(-len(rows) // _BATCH)):
            images = np.stack([file["images"][int(row)] for row in some])
            whole = np.tile(np.array([0, 0, 1, 1], np.float32), (len(images), 1))
            batch = TokenBatch(slice(0, len(images)), *run.backbone.half_tokens(images), whole)
            masks.append(run.estimator.shown(batch))
            tokens.append(batch.tokens.astype(np.float32))
    tokens, masks = np.concatenate(tokens), np.concatenate(masks)
    part = np.full(masks.shape, -1)
    part[masks] = KMeans(_PARTS, n_init=1, random_state=0).fit_predict(tokens[masks])
    counts = np.stack([(part == number).sum(1) for number in range(_PARTS)], axis=1)
    seen = counts.sum(1) > 0
    number = np.where(seen, np.exp(entropy(counts + 1e-9, axis=1)), 0.0)
    mean = [[values[labels[rows] == pose].mean() for pose in range(k)]
            for values in (number, masks.mean(1))]  # fmt: skip
    return np.array(mean[0]), np.array(mean[1])


def unrelated(judge: Judge) -> dict[str, np.ndarray]:
    """Mean distance between real images of one pose, (k,), by the kind of features."""
    of_pose = [judge.labels == pose for pose in range(judge.run.model.config.poses)]
    return {
        kind: np.array([pdist(features[rows]).mean() for rows in of_pose])
        for kind, features in judge.real.features.items()
    }


@torch.inference_mode()
def variation(
    judge: Judge, scale: dict[str, np.ndarray], pose: int, objects: int, seeds: int
) -> np.ndarray:
    """Distance between the views of the same references from several noises, (objects,).

    Args:
        judge: with the real images.
        scale: of :func:`unrelated`.
        pose: of the references.
        objects: number of references.
        seeds: initial noises of the views of each.
    """
    model, device, sampling = judge.run.model, judge.run.backbone.device, judge.run.sampling
    solver, shape = SOLVERS[sampling.views.solver], (3, *[model.config.image_size] * 2)
    timesteps = sampling_timesteps(sampling.views)
    siblings = model.config.siblings(pose)
    others = [one for one in siblings if one != pose]
    denoise = single_denoiser(model, torch.tensor([pose], device=device), timesteps)
    found = np.zeros(objects)
    for number in range(objects):
        trajectory: list[torch.Tensor] = []

        def recorded(x: torch.Tensor, t: int, alpha: float) -> torch.Tensor:
            trajectory.append(x)  # noqa: B023
            return denoise(x, t, alpha)

        solver.sample(recorded, keyed_noise(_SEED, [number], shape).to(device), timesteps)
        reference, views = torch.stack(trajectory), []
        for seed in range(seeds):
            noise = keyed_noise(_SEED + 1 + seed, [number], shape).to(device)
            with autocast(device, sampling.views.precision):
                made = sample_all_poses(
                    model, noise, pose, timesteps, sampling.guidance, _BATCH, reference,
                    sampling.views.solver,
                )  # fmt: skip
            views.append(to_pixels(made)[[siblings.index(one) for one in others]])
        seen = judge.see_views(np.stack(views, axis=1))  # a row for each pose, a column a seed
        found[number] = np.mean([
            [pdist(of_pose).mean() for of_pose in seen.features[kind]] / apart[others]
            for kind, apart in scale.items()
        ])  # fmt: skip
    return found


if __name__ == "__main__":
    main()
