"""From the tokens of an image to the object's box, category and pose (paper, section 3.1).

Fitted on a data set in stages: the foreground on whole images; categories (if several), pose space
and poses on the crops. It then applies to any new photo.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mirage_steps.errors import UserError
from mirage_steps.method.boxes import Box, centered, from_letterbox, rounded, square_window
from mirage_steps.method.categories import CategoryModel
from mirage_steps.method.foreground import (
    ForegroundModel,
    Region,
    TokenBatch,
    find_objects,
    largest_part,
)
from mirage_steps.method.pca import Moments, PatchMeans, Pca
from mirage_steps.method.poses import PoseModel, object_maps
from mirage_steps.settings import Poses, PoseSpace

FAR = 0.99  # quantile of the training images' distances to their poses


@dataclass(frozen=True)
class Detection:
    """The object in an image.

    Args:
        box: in pixels of the image, to 1/1000; None where no object was found.
        window: the square crop to train on, likewise.
        region: largest connected part of the foreground; None where there is no foreground.
        scores: (g, g) float32 of the letterbox, NaN on padding.
    """

    box: Box | None
    window: Box | None
    region: Region | None
    scores: np.ndarray

    @property
    def centered(self) -> Box:
        """The crop whose pose is estimated: the window with the box in its middle."""
        return centered(self.window, self.box)


class Estimate(NamedTuple):
    """Category, pose (numbered over all categories) and distance to it, each (n,), of n crops.

    ``shown`` is bool (n, T), the patches that show the object.
    """

    categories: np.ndarray
    poses: np.ndarray
    distances: np.ndarray
    shown: np.ndarray

    @property
    def seen_poses(self) -> np.ndarray:
        """The poses (n,), -1 where no patch shows an object: nothing is in any pose."""
        return np.where(self.shown.any(1), self.poses, -1)


@dataclass(frozen=True)
class PoseEstimator:
    """Box, category and pose of objects, as fitted on a data set; None for stages not fitted yet.

    Args:
        backbone: of the tokens: ``model`` as configured, ``resolution`` in pixels, ``weights``, the
            folder of fetched networks, and ``sha256`` of the weight files by name.
        foreground: PCA 1, cut.
        margin: share of a crop left free on each side of the object.
        categories: tells the categories apart, where there are several.
        pcas: PCA 2 of each category.
        mask_background: whether maps are zero off the object.
        normalize: whether maps have Euclidean length 1.
        whole: whether objects fill their photos, so that there is nothing to find.
        centers: (T, c) of each category, the mean of its maps before they are scaled; None where it
            is not subtracted.
        poses: of each category, equally many.
        far: distance to the nearest pose beyond which hardly any training image is.
    """

    backbone: dict[str, Any]
    foreground: ForegroundModel
    margin: float
    categories: CategoryModel | None = None
    pcas: tuple[Pca, ...] | None = None
    mask_background: bool = True
    normalize: bool = True
    whole: bool = False
    centers: tuple[np.ndarray, ...] | None = None
    poses: tuple[PoseModel, ...] | None = None
    far: float | None = None

    @property
    def k(self) -> int:
        """Number of poses of each category."""
        return self.poses[0].k

    @property
    def number_of_poses(self) -> int:
        """Number of poses of all categories together."""
        return self.k * len(self.poses)

    def shown(self, batch: TokenBatch) -> np.ndarray:
        """Patches that show the object, bool (n, T).

        At least half of each is on the given mask; without one, the foreground's largest
        connected part.
        """
        shown = (self.foreground.scores(batch.tokens) > self.foreground.threshold) & batch.valid
        shown = np.stack([largest_part(one).ravel() for one in shown])
        if batch.masks is None:
            return shown
        given = (batch.masks >= 0.5) & batch.valid.reshape(shown.shape)
        return np.where(np.isnan(batch.masks), shown, given)

    def locate(
        self,
        batch: TokenBatch,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Box | None] | None = None,
    ) -> list[Detection]:
        """The object in each of several whole images.

        Args:
            batch: tokens of the letterboxed images.
            sizes: width and height of each image in pixels.
            boxes: given boxes in pixels, None for those to find, or the whole photos.
        """
        scores = self.foreground.scores(batch.tokens)
        regions = find_objects(scores, self.foreground.threshold, batch.valid)
        scores, found = np.where(batch.valid, scores, np.nan), []
        boxes = boxes or [None] * len(sizes)
        if self.whole:
            boxes = [box or (0.0, 0.0, *size) for box, size in zip(boxes, sizes, strict=True)]
        for box, size, region, seen in zip(boxes, sizes, regions, scores, strict=True):
            window = None
            if box is None and region is not None:
                box = from_letterbox(region.box, *size)
            if box is not None:
                # The window is that of the box as it is, not as it is rounded.
                window, box = rounded(square_window(box, *size, self.margin)), rounded(box)
            found.append(Detection(box, window, region, seen))
        return found

    def features(self, batch: TokenBatch, token: str) -> np.ndarray:
        """The feature of each crop that categories are clustered by, (n, dim) float32.

        With ``mean-patch`` the mean over the object's patches, zero where none shows it, else the
        CLS token.
        """
        if token == "cls":
            return batch.cls_tokens.astype(np.float32)
        weights = self.shown(batch)[..., None].astype(np.float32)
        sums = (batch.tokens.astype(np.float32) * weights).sum(1)
        return sums / np.maximum(weights.sum(1), 1)

    def maps(
        self, batch: TokenBatch, categories: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Crops, of categories (n,), in pose space.

        Returns:
            (n, T, c) float32 maps; bool (n, T) patches that are not padding; bool (n, T) patches
            that show the object.
        """
        shown, valid = self.shown(batch), batch.valid.reshape(len(batch.tokens), -1)
        kept = shown if self.mask_background else valid
        maps = np.empty((*shown.shape, len(self.pcas[0].components)), np.float32)
        for category in np.unique(categories):
            own = categories == category
            values = self.pcas[category].project(batch.tokens[own])
            center = self.centers[category] if self.centers else 0.0
            maps[own] = object_maps(values, kept[own], self.normalize, center)
        return maps, valid, shown

    def assign(
        self, maps: np.ndarray, valid: np.ndarray, categories: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest pose of each map among those of its category.

        Args:
            maps: as :meth:`maps` returns them.
            valid: as :meth:`maps` returns them.
            categories: (n,).

        Returns:
            (n,) int pose, numbered over all categories; (n,) Euclidean distance to the nearest mean
            map of a cluster of that pose.
        """
        poses, distances = np.empty(len(maps), np.int64), np.empty(len(maps))
        for category in np.unique(categories):
            # With one category no copy of all maps is made.
            own = categories == category if len(self.poses) > 1 else slice(None)
            nearest, distances[own] = self.poses[category].nearest(maps[own], valid[own])
            poses[own] = nearest + category * self.k
        return poses, distances

    @property
    def raw(self) -> "PoseEstimator":
        """This with maps neither centered nor scaled."""
        return replace(self, centers=None, normalize=False)

    def recentered(self, batches: Iterable[TokenBatch]) -> "PoseEstimator":
        """This with maps centered on the mean of other images, if it centers them at all.

        Generated and small images are less sharp than the photos, which shifts all their maps by
        more than poses differ; the shift is in their mean. All poses should be equally frequent.

        Args:
            batches: tokens of all these images.
        """
        if self.centers is None:
            return self
        raw, means = self.raw, [PatchMeans() for _ in self.pcas]
        for batch in batches:
            categories = self._categories_of(batch)
            maps, valid, shown = raw.maps(batch, categories)
            kept = shown if self.mask_background else valid
            for category, mean in enumerate(means):
                own = categories == category
                mean.add(maps[own], kept[own])
        centers = zip(means, self.centers, strict=True)
        return replace(self, centers=tuple(mean.mean(former) for mean, former in centers))

    def _categories_of(self, batch: TokenBatch) -> np.ndarray:
        if self.categories is None:
            return np.zeros(len(batch.tokens), np.int64)
        return self.categories.assign(self.features(batch, self.categories.token))[0]

    def estimate(self, batch: TokenBatch) -> Estimate:
        """Category and pose of each crop of a batch."""
        categories = self._categories_of(batch)
        maps, valid, shown = self.maps(batch, categories)
        return Estimate(categories, *self.assign(maps, valid, categories), shown)

    def fit_pose_space(
        self, batches: Iterable[TokenBatch], categories: np.ndarray, settings: PoseSpace
    ) -> "PoseEstimator":
        """This with PCA 2 of each category (n,), fitted on the crops' tokens that show the object.

        Raises:
            UserError: the crops of a category show too little.
        """
        count, components = int(categories.max()) + 1, settings.components
        moments, means = [Moments() for _ in range(count)], [PatchMeans() for _ in range(count)]
        for batch in batches:
            shown, values = self.shown(batch), batch.tokens.astype(np.float32)
            kept = shown if settings.mask_background else batch.valid.reshape(shown.shape)
            for category, (seen, mean) in enumerate(zip(moments, means, strict=True)):
                own = categories[batch.rows] == category
                seen.add(values[shown & own[:, None]])
                if settings.center:
                    mean.add(values[own], kept[own])
        for category, seen in enumerate(moments):
            if seen.count <= components:
                raise UserError(
                    f"only {seen.count} foreground tokens in all crops of category {category}; "
                    "look at foreground.png and try foreground.threshold: zero"
                )
        dim = len(moments[0].mean)
        if components > dim:
            raise UserError(
                f"pose_space.components {components}: the backbone's tokens have length {dim}"
            )
        pcas = tuple(Pca.fit(seen, components) for seen in moments)
        centers = None
        if settings.center:
            # A projection is affine, so that of the mean is the mean of the projections.
            pairs = zip(pcas, means, strict=True)
            centers = tuple(pca.project(mean.mean(pca.mean)) for pca, mean in pairs)
        chosen = {key: getattr(settings, key) for key in ("mask_background", "normalize")}
        return replace(self, pcas=pcas, centers=centers, **chosen)

    def fit_poses(
        self, maps: np.ndarray, valid: np.ndarray, categories: np.ndarray, settings: Poses
    ) -> "PoseEstimator":
        """This with the poses of each category, and how far training images are from them.

        Args:
            maps: as :meth:`maps` returns them; their padding is set to means.
            valid: as :meth:`maps` returns them.
            categories: (n,), from 0.
            settings: number of poses, starts and seed.

        Raises:
            UserError: a category has fewer images, or fewer distinct ones, than poses.
        """
        models, count = [], int(categories.max()) + 1
        for category in range(count):
            # With one category no copy of all maps is made.
            own = categories == category if count > 1 else slice(None)
            mine = maps[own]
            if len(mine) < settings.k:
                where = f" of category {category}" if count > 1 else ""
                raise UserError(
                    f"poses.k = {settings.k}, but an object{where} was found in only {len(mine)} "
                    "images; lower poses.k or add images"
                )
            words = settings.model_dump(exclude={"edits", "fitted_images"})
            models.append(PoseModel.fit(mine, valid[own], **words, normalized=self.normalize))
        used = min(model.k for model in models)
        fitted = replace(self, poses=tuple(models))
        if used == settings.k:
            labels, distances = fitted.assign(maps, valid, categories)
            images = np.bincount(labels, minlength=fitted.number_of_poses).reshape(count, -1)
            used = int((images > 0).sum(1).min())
        if used < settings.k:
            raise UserError(
                f"poses.k = {settings.k}, but there are only {used} distinct maps to cluster: too "
                f"many images are equal; lower poses.k to at most {used} or add other images"
                + (", or set poses.method: kmeans" if settings.method == "spectral" else "")
            )
        return replace(fitted, far=float(np.quantile(distances, FAR)))

    def edited(self, into: np.ndarray) -> "PoseEstimator":
        """This with poses merged and dropped, the others numbered anew in their order.

        Whatever was nearest to a dropped pose goes to the nearest that is left. What counts as far
        stays, so that such images are told.

        Args:
            into: (number of poses,) of each pose itself, the pose that it joins, or -1 for none; in
                each category equally many stay.
        """
        parts = into.reshape(len(self.poses), -1)
        poses = tuple(model.edited(part) for model, part in zip(self.poses, parts, strict=True))
        return replace(self, poses=poses)
