"""What pose control and consistency say of views that are known to be right or wrong.

    python benchmarks/control_sets.py --run results/demo [--objects 16]

Cars that the run never saw, from the mean azimuth of every pose: as they are, swapped, copied,
noisy, replaced by look-alikes or by the mean image of each pose. Poses and masks are by the run's
networks; those of the demo are embedded stand-ins.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.demo.renderer import cars
from mirage_steps.judge import COLOR, Judge
from mirage_steps.run import Run

_SEEDS = 991, 5  # of the cars that set the ceiling, and of those that are judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/demo"))
    parser.add_argument("--objects", type=int, default=16)
    words = parser.parse_args()

    run, evidence = Run.load(words.run), settings.Evidence()
    scores = json.loads((words.run / "poses/pose_eval.json").read_text())
    azimuths = [one["mean_azimuth_deg"] for one in scores["poses"]]
    ceiling, views = (rendered(run, words.objects, azimuths, seed) for seed in _SEEDS)
    poses = np.tile(np.arange(len(azimuths)), (words.objects, 1))
    judge = Judge.load(run, evidence, Path(settings.WEIGHTS))
    files = words.run / "crops/crops.h5", words.run / "poses/poses.csv"
    judge = judge.calibrated(*files, evidence, (judge.see_views(ceiling), poses))
    print(
        f"{words.objects} cars in {len(azimuths)} poses; {run.backbone.name}, {judge.network.name}"
    )
    print("| views | pose or a neighbor | " + " | ".join(judge.kinds) + " |\n|---|---|---|---|")
    for name, made in control_sets(judge, views).items():
        seen = judge.see_views(made)
        similar = judge.similarity(seen, poses)
        cells = [str(scale.position(similar[kind])) for kind, scale in judge.scales.items()]
        near = judge.shows(seen, poses).mean()
        print(f"| {name} | {near:.2f} | " + " | ".join(cells) + " |")


def rendered(run: Run, objects: int, azimuths: list[float], seed: int) -> np.ndarray:
    """Crops (objects, k, S, S, 3) of cars from these azimuths, by the run's estimator."""
    return np.array(
        [
            [
                run.locate(
                    cars.render(seed, number, cars.DEMO_FAMILIES, azimuth=azimuth).image
                ).crop
                for azimuth in azimuths
            ]
            for number in range(objects)
        ]
    )


def control_sets(judge: Judge, views: np.ndarray) -> dict[str, np.ndarray]:
    """Right and wrong views by their names, each of the shape of ``views``."""
    rng = np.random.default_rng(0)
    count, k = views.shape[:2]
    other = np.roll(views, 1, axis=0)

    def mixed(swapped: np.ndarray, by: np.ndarray) -> np.ndarray:
        return np.where(swapped[..., None, None, None], by, views)

    colors = judge.see_views(views).features[COLOR].mean(1)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    nearest = (apart + np.diag(np.full(count, np.inf))).argmin(1)
    noise = rng.normal(0, 40, views.shape)
    every_other = np.broadcast_to(np.arange(k) % 2 == 1, (count, k))
    return {
        "real cars from all sides": views,
        "a quarter of the views swapped": mixed(rng.random((count, k)) < 0.25, other),
        "half of them swapped": mixed(rng.random((count, k)) < 0.5, other),
        "every other view of the car of the nearest paint": mixed(every_other, views[nearest]),
        "copies of one view": np.repeat(views[:, :1], k, axis=1),
        "noise added (standard deviation 40)": np.clip(views + noise, 0, 255).astype(np.uint8),
        "the mean image of each pose": np.repeat(judge.means[None], count, axis=0),
    }


if __name__ == "__main__":
    main()
