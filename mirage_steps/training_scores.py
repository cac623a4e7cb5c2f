"""Scores of a model during training, from few objects.

Pose control and color consistency are computed as in the evidence step (:mod:`mirage_steps.judge`),
but on fewer objects, unguided, in fewer steps, and not divided by the ceiling of real objects, so 1
means views of one color. Scores of different numbers of objects are not comparable.
"""

from pathlib import Path

import numpy as np

from mirage_steps import settings
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.h5 import slices
from mirage_steps.judge import COLOR, Judge, Views, real_images
from mirage_steps.method.device import choose_device
from mirage_steps.method.metrics import kernel_distance
from mirage_steps.method.unet import UNet
from mirage_steps.networks.backbone import Backbone, load_backbone
from mirage_steps.run import Run, generated_object

_GUIDANCE = settings.Guidance(gamma=1.0)
_REAL, _STEPS, _BATCH = settings.Evidence(), 12, 32


class TrainingScores:
    """Judges objects of a model, the same noise and references each time.

    Args:
        model: the EMA network, which is read at each call.
        estimator: the run's pose_estimator.safetensors.
        crops, poses: crops.h5 and poses.csv, for the scale.
        training: number of objects, precision, and the seed of the objects.
        device: of the backbone.

    Raises:
        UserError: the backbone of the run is not there, or two poses do not have two images each.
    """

    def __init__(
        self,
        model: UNet,
        estimator: Path,
        crops: Path,
        poses: Path,
        training: settings.Training,
        device: str,
    ):
        folder, found = estimator.parents[1], load_estimator(estimator, "poses")
        backbone = load_backbone(folder, found.backbone, None, choose_device(device))
        run = Run(folder, model, backbone, found, {}, ())
        self._judge = Judge(run, None, {}).calibrated(crops, poses, _REAL)
        images, _ = real_images(crops, poses, model.config.poses, _REAL)
        self._real = _features(backbone, images)
        self._objects = training.scored_objects
        how = {"solver": "dpm-solver++", "steps": _STEPS, "batch_size": _BATCH}
        self._views = settings.Views(precision=training.precision, seed=training.seed, **how)

    def __call__(self) -> dict[str, float]:
        """By name, for ``metrics.jsonl``.

        ``objects`` and ``views``, the numbers behind the figures; ``in_pose`` and ``near``, shares
        of views that show the requested pose, or it or a neighbor; ``color``, consistency from 0
        (unrelated objects) up to 1; ``kd``, kernel distance to real crops, mean patch token of the
        run's backbone, which is unbiased for few images.
        """
        judge, model, seed = self._judge, self._judge.run.model, self._views.seed
        numbers = range(self._objects)
        made = [generated_object(model, n, seed, self._views, _GUIDANCE) for n in numbers]
        views = Views(*map(np.array, zip(*made, strict=True)))
        seen = judge.see_views(views.images)
        exact, near = (views.mean(judge.shows(seen, views.poses, within)) for within in (0, 1))
        color = judge.similarity(seen, views.poses, views.given)[COLOR]
        flat = views.images.reshape(-1, *views.images.shape[2:])
        distance = kernel_distance(_features(judge.run.backbone, flat), self._real)
        figures = {"in_pose": exact.mean(), "near": near.mean(), "color": color.mean()}
        return {
            "objects": len(made),
            "views": len(flat) - len(made),
            **{name: round(float(value), 4) for name, value in figures.items()},
            "kd": round(distance, 6),
        }


def _features(backbone: Backbone, images: np.ndarray) -> np.ndarray:
    """Mean patch tokens (n, dim) of images (n, S, S, 3), a few at a time."""
    parts = [backbone.feature(images[rows], "mean-patch") for rows in slices(len(images), _BATCH)]
    return np.concatenate(parts)
