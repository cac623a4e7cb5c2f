"""Pose of views, and similarity of the views of one object.

Poses are assigned by the run's own estimator. Objects are compared by two kinds of features: the
mean color inside the object's mask, and the features of ``evidence.judge`` with everything but the
object painted gray. The scale between unrelated objects and one object comes from real images
(:class:`mirage_steps.method.evidence.Consistency`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mirage_steps import settings
from mirage_steps.errors import UserError, rerun
from mirage_steps.files.command import log
from mirage_steps.files.h5 import open_h5, slices
from mirage_steps.files.tables import read_labels
from mirage_steps.files.terminal import progress
from mirage_steps.method.boxes import crop
from mirage_steps.method.evidence import (
    Consistency,
    in_pose,
    mean_interval,
    pose_strength,
    reference_scores,
)
from mirage_steps.method.foreground import TokenBatch
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.networks.backbone import Backbone
from mirage_steps.run import Run

_BATCH = 64
_GRAY = 124  # about ImageNet's mean
COLOR = "color"


@dataclass(frozen=True)
class Views:
    """Objects in all poses.

    Attributes:
        images: (n, k, S, S, 3) uint8.
        poses: (n, k) int that were asked for.
        given: (n,) the column of the reference or photo, for which no pose was asked.
    """

    images: np.ndarray
    poses: np.ndarray
    given: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean (n,) of values (n, k) over the views of an object that were not given."""
        made = np.arange(self.poses.shape[1]) != self.given[:, None]
        return (values * made).sum(1) / made.sum(1)


@dataclass(frozen=True)
class Turntables:
    """Crops of real objects, with what is known of them.

    Attributes:
        photos: (n, S, S, 3) uint8, from one side.
        poses: (n,) of the photos, by the run.
        views: (n, k, S, S, 3) uint8, from the sides of all poses.
        masks: bool (n, k, S, S), the objects in them.
    """

    photos: np.ndarray
    poses: np.ndarray
    views: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Seen:
    """What the judge sees in m images.

    Attributes:
        poses: (m,) int, assigned by the run's estimator; -1 where it finds no object.
        distances: (m,) from the mean maps of these poses.
        masks: bool (m, S, S), the object by the run's foreground component.
        maps: (m, T * c) float32 in pose space, neither centered nor scaled.
        features: by their kind, (m, d) float32.
    """

    poses: np.ndarray
    distances: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    features: dict[str, np.ndarray]

    def __getitem__(self, rows: Any) -> "Seen":
        features = {kind: values[rows] for kind, values in self.features.items()}
        return Seen(
            self.poses[rows], self.distances[rows], self.masks[rows], self.maps[rows], features
        )


@dataclass(frozen=True)
class Judge:
    """The run's estimator, the network for feature consistency, and scales of consistency.

    Attributes:
        run: whose views are judged.
        network: of the second kind of features; None for color alone.
        scales: by the kind of features; empty before :meth:`calibrated`.
        real: what the judge sees in the real images of the scale, in the order of their poses.
        labels: (m,) the poses of these images by the run's table.
        means: (k, S, S, 3) uint8, the mean image of each pose.
    """

    run: Run
    network: Backbone | None
    scales: dict[str, Consistency]
    real: Seen | None = None
    labels: np.ndarray | None = None
    means: np.ndarray | None = None

    @classmethod
    def load(cls, run: Run, evidence: settings.Evidence, weights: Path) -> "Judge":
        """The judge of a run, without scales.

        Raises:
            UserError: the network cannot be loaded.
        """
        chosen = settings.Backbone(model=evidence.judge, resolution=evidence.judge_resolution)
        network = Backbone.load(chosen, run.backbone.device, weights, "evidence.judge")
        judge = cls(run, network, {})
        if judge.found_poses:
            log.warning(
                "evidence.judge %s found the poses itself; another network would judge them better",
                evidence.judge,
            )
        return judge

    @property
    def found_poses(self) -> bool:
        """Whether the network is the one that the run's poses were found with."""
        return self.network.sha256 == self.run.backbone.sha256

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of features: mean color in the mask; the network's, of the object alone."""
        return (COLOR,) if self.network is None else (COLOR, self.network.name)

    @property
    def k(self) -> int:
        """Number of poses of a category."""
        return self.run.estimator.k

    @property
    def about(self) -> dict[str, object]:
        """By which networks and how many real images it judges."""
        return {
            "real_images": len(self.labels),
            "pose_estimator": self.run.backbone.name,
            "network": f"{self.network.name} at {self.network.resolution} pixels",
            "network_found_poses": self.found_poses,
        }

    def see(self, images: np.ndarray) -> Seen:
        """What is in images (m, S, S, 3) uint8, of all poses about equally often."""
        estimator = self.run.estimator.recentered(batch for _, batch in self._tokens(images))
        parts = list(self._seen(images, estimator))
        features = {
            kind: np.concatenate([part.features[kind] for part in parts]) for kind in self.kinds
        }
        keys = ("poses", "distances", "masks", "maps")
        arrays = {key: np.concatenate([getattr(part, key) for part in parts]) for key in keys}
        return Seen(**arrays, features=features)

    def see_views(self, views: np.ndarray) -> Seen:
        """What is in objects in all poses (n, k, S, S, 3); arrays come out as (n, k, ...)."""
        flat = self.see(views.reshape(-1, *views.shape[2:]))
        return flat[np.arange(len(flat.poses)).reshape(views.shape[:2])]

    def _tokens(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        """Images of each batch, and their tokens."""
        for rows in slices(len(images), _BATCH):
            pixels = images[rows]
            yield pixels, TokenBatch.of_crops(*self.run.backbone.half_tokens(pixels))

    def _seen(self, images: np.ndarray, estimator: PoseEstimator) -> Iterator[Seen]:
        side, network = images.shape[1], self.network
        for pixels, batch in self._tokens(images):
            found = estimator.estimate(batch)
            maps = estimator.raw.maps(batch, found.categories)[0]
            masks = np.stack([_enlarged(shown, side) for shown in found.shown])
            # Where no object is seen, the whole image stands for it.
            masks[~masks.any((1, 2))] = True
            colors = np.stack([one[mask].mean(0) for one, mask in zip(pixels, masks, strict=True)])
            features = {COLOR: colors.astype(np.float32)}
            if network is not None:
                bare = np.where(masks[..., None], pixels, _GRAY).astype(np.uint8)
                features[network.name] = network.feature(bare, "cls")
            yield Seen(
                found.seen_poses, found.distances, masks, maps.reshape(len(maps), -1), features
            )

    def calibrated(
        self,
        crops: Path,
        poses: Path,
        evidence: settings.Evidence,
        turntables: tuple[Seen, np.ndarray] | None = None,
    ) -> "Judge":
        """This with scales from real images of every pose, and from real objects where known.

        Args:
            crops: crops.h5.
            poses: poses.csv.
            evidence: how many images of each pose.
            turntables: what is seen in real objects from all sides, and the poses (n, v) of these
                views; None where no object was seen so.

        Raises:
            UserError: no two poses have two images each.
        """
        images, labels = real_images(crops, poses, self.run.model.config.poses, evidence)
        count, real = self.run.model.config.poses, self.see(images)
        if absent := int((real.poses < 0).sum()):
            log.warning("%s: no object is found in %d of %d images", crops, absent, len(labels))
        few = np.flatnonzero(np.bincount(labels, minlength=count) < 2)
        if len(few) > count - 2:
            raise UserError(f"{poses}: needs two poses with two images each; add images")
        if len(few):
            log.warning("poses with fewer than two images do not count for consistency: %s", few)
        means = np.stack([images[labels == pose].mean(0) for pose in range(count)])
        scales = {kind: Consistency.fit(real.features[kind], labels, count) for kind in self.kinds}
        means = means.round().astype(np.uint8)
        judge = replace(self, scales=scales, real=real, labels=labels, means=means)
        if turntables is None:
            return judge
        for kind, ceiling in judge.similarity(*turntables).items():
            if mean_interval(ceiling).low > 0:
                scales[kind] = replace(scales[kind], ceiling=ceiling)
            else:
                log.warning(
                    "%s: real views of an object are as far apart as unrelated ones: no ceiling",
                    kind,
                )
        return replace(judge, scales=scales)

    def shows(self, seen: Seen, poses: np.ndarray, within: int = 1) -> np.ndarray:
        """Whether views show the requested poses (n, v) or adjacent ones, bool (n, v)."""
        return in_pose(poses, seen.poses, self.k, within)

    def strength(self, seen: Seen, views: Views) -> np.ndarray | None:
        """How strongly the views of each object show their poses, (n,), as real images do: 1.

        None where it is unknown (:func:`.pose_strength`).
        """
        made = np.arange(views.poses.shape[1]) != views.given[:, None]
        shown = seen.poses // self.k == views.poses // self.k  # the category, and an object at all
        return pose_strength(seen.maps, views.poses, made, shown, self.real.maps, self.labels)

    def reference_scores(self, seen: Seen, views: Views) -> np.ndarray:
        """Scores (n,) of the references of generated objects, 0 is best."""
        own = np.arange(len(views.given)), views.given
        far = self.run.estimator.far
        return reference_scores(views.poses[own], seen.poses[own], seen.distances[own], far, self.k)

    def similarity(
        self, seen: Seen, poses: np.ndarray, given: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """How similar the views of each object are, (n,) up to 1, by the kind of features.

        Args:
            seen: arrays (n, v, ...).
            poses: (n, v) that were asked for.
            given: (n,) column of the reference or photo, which counts as in its pose.
        """
        shows = self.shows(seen, poses)
        if given is not None:
            shows[np.arange(len(given)), given] = True
        return {
            kind: scale.similarity(seen.features[kind], poses, shows)
            for kind, scale in self.scales.items()
        }


def calibrated_judge(
    run: Run,
    evidence: settings.Evidence,
    crops: Path,
    poses: Path,
    turntables: Path | None,
    weights: Path,
) -> tuple[Judge, Turntables | None, tuple[Seen, np.ndarray] | None]:
    """The judge of a run with its scales; the real objects, and what it sees in them, if known.

    Args:
        run: whose views are judged.
        evidence: the judge's network and numbers.
        crops, poses: of the data set, for the scale.
        turntables: turntables.h5, for the ceiling.
        weights: folder of fetched networks.
    """
    judge, truth, real = Judge.load(run, evidence, weights), None, None
    if turntables is not None:
        truth = read_turntables(turntables, run, evidence.judged_objects)
        real = judge.see_views(truth.views), np.tile(np.arange(judge.k), (len(truth.views), 1))
    return judge.calibrated(crops, poses, evidence, real), truth, real


def read_turntables(path: Path, loaded: Run, most: int) -> Turntables:
    """Crops of at most so many real objects by the run's estimator, and of their masks."""
    side, k = loaded.model.config.image_size, loaded.estimator.k
    with open_h5(path, "images", "masks") as file:
        images, masks = file["images"], file["masks"]
        count = min(most, len(images))
        if images.shape[1] != 1 + k:
            raise UserError(
                f"{path}: objects from {images.shape[1] - 1} sides, the run has {k} poses; run "
                "snakemake with --forcerun turntables"
            )
        views = np.empty((count, 1 + k, side, side, 3), np.uint8)
        cropped = np.empty(views.shape[:-1], bool)
        own = []
        for number in progress(range(count), desc="real objects", unit="object"):
            for column in range(1 + k):
                located = loaded.locate(images[number, column])
                views[number, column] = located.crop
                mask = np.repeat(masks[number, column][..., None], 3, axis=2)
                mask = np.asarray(crop(Image.fromarray(mask), located.window, side))[..., 0]
                cropped[number, column] = mask > 127
                if not cropped[number, column].any():
                    raise UserError(f"{path}: object {number} is not seen from side {column}")
                if column == 0:
                    own.append(located.pose)
    return Turntables(views[:, 0], np.array(own), views[:, 1:], cropped[:, 1:])


def real_images(
    crops: Path, poses: Path, count: int, evidence: settings.Evidence
) -> tuple[np.ndarray, np.ndarray]:
    """Some crops (m, S, S, 3) of each of ``count`` poses, and their poses (m,)."""
    labels = read_labels(poses, crops)
    rng = np.random.default_rng(4)
    chosen = []
    for pose in range(count):
        members = np.flatnonzero(labels == pose)
        chosen.append(rng.permutation(members)[: evidence.real_images])
    if empty := [pose for pose in range(count) if not len(chosen[pose])]:
        raise UserError(f"{poses}: pose {empty[0]} has no image; {rerun('poses')}")
    rows = np.sort(np.concatenate(chosen))
    with open_h5(crops, "images") as file:
        return np.stack([file["images"][int(row)] for row in rows]), labels[rows]


def _enlarged(shown: np.ndarray, side: int) -> np.ndarray:
    """Patches (T,) of a square grid as a bool mask (side, side)."""
    grid = round(len(shown) ** 0.5)
    picture = Image.fromarray(shown.reshape(grid, grid).astype(np.uint8) * 255)
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) > 127
