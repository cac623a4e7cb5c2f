"""Generated references without the worst of them (``views.reject``; the paper's Figure 11).

A reference is scored by what is known at inference alone: how far its features are from the poses
of the training images, and whether it shows the requested pose.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mirage_steps.errors import UserError
from mirage_steps.files.estimator import load_estimator
from mirage_steps.files.h5 import slices
from mirage_steps.method.device import autocast
from mirage_steps.method.diffusion import keyed_noise, sampling_timesteps, to_pixels
from mirage_steps.method.evidence import reference_scores
from mirage_steps.method.foreground import TokenBatch
from mirage_steps.method.multiview import sample_single
from mirage_steps.method.pose_estimator import PoseEstimator
from mirage_steps.method.unet import UNet
from mirage_steps.networks.backbone import Backbone, load_backbone
from mirage_steps.settings import Views

BLOCK = 16  # objects that are kept of one choice, so that shards choose alike
_CENTERING = 64  # references, at least, whose mean replaces that of the training images


@dataclass(frozen=True)
class References:
    """Chooses the objects whose references are best.

    Attributes:
        model: the diffusion model.
        views: sampler, and the share that is left out.
        estimator, backbone: the run's, None where nothing is left out.
    """

    model: UNet
    views: Views
    estimator: PoseEstimator | None = None
    backbone: Backbone | None = None

    @classmethod
    def load(cls, model: UNet, views: Views, estimator: Path | None) -> "References":
        """With the pose estimator that scoring needs.

        Raises:
            UserError: it is not given, or is another run's.
        """
        if not views.reject:
            return cls(model, views)
        if estimator is None:
            raise UserError(f"views.reject {views.reject}: give --estimator, which scores them")
        loaded = load_estimator(estimator, "poses")
        device = next(model.parameters()).device
        backbone = load_backbone(estimator.parents[1], loaded.backbone, None, device)
        return cls(model, views, loaded, backbone)

    def chosen(self, objects: range, seed: int, reference: Callable[[int], int]) -> list[int]:
        """Numbers of the objects to make in the place of these, all of them unless some are bad.

        Every block of 16 objects is the best of so many more that ``views.reject`` of them are
        left out; batches and shards that begin at a block choose alike.

        Args:
            objects: places of the objects.
            seed: of their noise.
            reference: pose of the reference of the object with a number.
        """
        if not self.views.reject:
            return list(objects)
        chooser = self._recentered()
        several, found = math.ceil(BLOCK / (1 - self.views.reject)), []
        for block in range(objects.start // BLOCK, -(-objects.stop // BLOCK)):
            numbers = list(range(block * several, (block + 1) * several))
            scores = chooser._scores(seed, numbers, [reference(number) for number in numbers])
            best = np.sort(np.argsort(scores, kind="stable")[:BLOCK])
            found += [numbers[place] for place in best]
        skipped = objects.start % BLOCK
        return found[skipped : skipped + len(objects)]

    def _recentered(self) -> "References":
        """This with maps centered on references in all poses, if they are centered at all."""
        if self.estimator is None or self.estimator.centers is None:
            return self
        poses = np.arange(self.model.config.poses)
        poses = np.tile(poses, -(-_CENTERING // len(poses)))
        batches = (batch for _, batch in self._tokens(self.views.seed, range(len(poses)), poses))
        return replace(self, estimator=self.estimator.recentered(batches))

    def _scores(self, seed: int, numbers: Sequence[int], poses: Sequence[int]) -> np.ndarray:
        """Scores (n,) of the references of objects, 0 is best.

        Args:
            seed: of their noise.
            numbers: (n,) of the objects.
            poses: (n,) of their references.
        """
        found, far, k = [], self.estimator.far, self.estimator.k
        for asked, batch in self._tokens(seed, numbers, np.array(poses)):
            seen = self.estimator.estimate(batch)
            found.append(reference_scores(asked, seen.seen_poses, seen.distances, far, k))
        return np.concatenate(found)

    def _tokens(
        self, seed: int, numbers: Sequence[int], poses: np.ndarray
    ) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        """Poses and tokens of each batch of the references; arguments as for :meth:`_scores`."""
        side, device = self.model.config.image_size, next(self.model.parameters()).device
        for rows in slices(len(numbers), self.views.batch_size):
            noise = keyed_noise(seed, list(numbers[rows]), (3, side, side)).to(device)
            with autocast(device, self.views.precision):
                images = sample_single(
                    self.model,
                    noise,
                    torch.from_numpy(poses[rows]).to(device),
                    sampling_timesteps(self.views),
                    self.views.solver,
                )
            tokens = self.backbone.half_tokens(to_pixels(images))
            yield poses[rows], TokenBatch.of_crops(*tokens)
