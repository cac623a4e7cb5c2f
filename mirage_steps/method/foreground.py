"""Foreground component, its sign and threshold, and the object's region (section 3.1)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy  # loads `ndimage`, which takes a third of a second, on its first use

from mirage_steps.method.boxes import valid_patches
from mirage_steps.method.pca import Moments, Pca
from mirage_steps.settings import Foreground

COMPONENTS = 3
# Below this standardized difference between border and center the sign is a coin toss: Cohen's
# "small effect" is 0.2.
DECIDABLE = 0.2
# Scores are enlarged by this factor before they are cut, so that a box is finer than a patch.
UPSAMPLE = 4
_BINS = 1024


class TokenBatch(NamedTuple):
    """Tokens of consecutive images.

    Attributes:
        rows: their place in the data set.
        tokens: (n, T, dim) patch tokens of square grids, float16.
        cls_tokens: (n, dim) float16.
        content: (n, 4) box of the square that is image, not padding, in fractions.
        masks: (n, T) share of each patch that shows the given mask, NaN for images without one;
            None where no image has one.
    """

    rows: slice
    tokens: np.ndarray
    cls_tokens: np.ndarray
    content: np.ndarray
    masks: np.ndarray | None = None

    @classmethod
    def of_crops(cls, tokens: np.ndarray, cls_tokens: np.ndarray) -> "TokenBatch":
        """Tokens of crops without padding, (n, T, dim) and (n, dim)."""
        content = np.tile(np.array([0, 0, 1, 1], np.float32), (len(tokens), 1))
        return cls(slice(0, len(tokens)), tokens, cls_tokens, content)

    @property
    def valid(self) -> np.ndarray:
        """Bool (n, g, g), patches that are not padding."""
        return valid_patches(self.content, round(self.tokens.shape[1] ** 0.5))


@dataclass(frozen=True)
class ForegroundModel:
    """PCA 1 with the component, sign and threshold that make it a segmentation.

    Args:
        pca: fitted on the tokens of whole images.
        component: index of the component that separates.
        sign: +1 or -1; signed scores are larger on the object.
        threshold: signed scores above it are foreground.
    """

    pca: Pca
    component: int
    sign: int
    threshold: float

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """Signed coordinates (n, g, g) float32 of (n, T, dim) tokens along the component."""
        grid = round(tokens.shape[1] ** 0.5)
        row = self.pca.components[self.component]
        values = tokens.astype(np.float32) @ row.astype(np.float32)
        values = self.sign * (values - np.float32(row @ self.pca.mean))
        return values.reshape(len(tokens), grid, grid)


def fit_foreground(
    batches: Iterable[TokenBatch], settings: Foreground
) -> tuple[ForegroundModel, np.ndarray]:
    """PCA 1 with its component, sign and threshold, and the components' :func:`contrast`.

    Args:
        batches: of whole images; iterated twice.
        settings: the rule, where to cut, and the sign where the border does not decide.
    """
    everything, border, center = token_moments(batches)
    pca = Pca.fit(everything, COMPONENTS)
    contrasts = contrast(pca, border, center)
    component, sign = choose(contrasts, settings)
    model = ForegroundModel(pca, component, sign, 0.0)
    if settings.threshold == "otsu":
        row = pca.components[component]
        reach = 6 * float(np.sqrt(row @ everything.covariance @ row))
        edges, counts = np.linspace(-reach, reach, _BINS + 1), np.zeros(_BINS)
        for batch in batches:
            scores = model.scores(batch.tokens)[batch.valid]
            counts += np.histogram(np.clip(scores, -reach, reach), edges)[0]
        model = replace(model, threshold=otsu_threshold(counts, edges))
    return model, contrasts


def token_moments(batches: Iterable[TokenBatch]) -> tuple[Moments, Moments, Moments]:
    """Moments of all valid patch tokens, of those at the border, and of those in the center."""
    everything, border, center = Moments(), Moments(), Moments()
    for batch in batches:
        tokens, valid = batch.tokens.astype(np.float32), batch.valid
        edge = border_patches(valid)
        middle = valid & ~edge & center_patches(batch.content, valid.shape[1])
        for moments, shown in ((everything, valid), (border, edge), (center, middle)):
            moments.add(tokens[shown.reshape(tokens.shape[:2])])
    return everything, border, center


def center_patches(content: np.ndarray, grid: int) -> np.ndarray:
    """Patches around the center of the image, up to a quarter of its sides, bool (n, grid, grid).

    Between there and the border a network may answer to the frame rather than to the object:
    features of EfficientNet have components that separate a frame two patches wide.

    Args:
        content: (n, 4) box of the image in fractions of the grid.
        grid: patches a side.
    """
    middle, sides = (content[:, :2] + content[:, 2:]) / 2, content[:, 2:] - content[:, :2]
    places = (np.arange(grid) + 0.5) / grid
    x, y = ((places - middle[:, [axis]]) / sides[:, [axis]] for axis in (0, 1))
    return x[:, None] ** 2 + y[:, :, None] ** 2 < 0.25**2


def border_patches(valid: np.ndarray) -> np.ndarray:
    """Valid patches with a neighbor that is not, or outside the grid; both bool (n, g, g)."""
    cross = scipy.ndimage.generate_binary_structure(2, 1)[None]
    return valid & ~scipy.ndimage.binary_erosion(valid, cross)


def contrast(pca: Pca, border: Moments, center: Moments) -> np.ndarray:
    """Cohen's d between center and border patches along each component, (c,).

    Zero where either is empty, as with images as thin as a patch: then the border says nothing.
    """
    if not border.count or not center.count:
        return np.zeros(len(pca.components))
    difference = pca.components @ (center.mean - border.mean)
    pooled = (border.scatter + center.scatter) / max(border.count + center.count - 2, 1)
    spread = np.einsum("cd,de,ce->c", pca.components, pooled, pca.components)
    return difference / np.sqrt(np.maximum(spread, np.finfo(float).tiny))


def choose(contrasts: np.ndarray, settings: Foreground) -> tuple[int, int]:
    """Index and sign of the component that separates.

    Args:
        contrasts: (c,) from :func:`contrast`.
        settings: the component, or the rule by which it is chosen: ``first-component`` (paper) or
            ``border-contrast`` (the largest magnitude).
    """
    if settings.component != "auto":
        component = abs(settings.component) - 1
        side = 1 if settings.component > 0 else -1
        return component, side * side_of(contrasts[component], settings.fallback_sign)
    first = settings.rule == "first-component"
    component = 0 if first else int(np.abs(contrasts).argmax())
    return component, side_of(contrasts[component], settings.fallback_sign)


def side_of(contrast: float, fallback_sign: int) -> int:
    """Sign of a component that the border is not: its contrast's, where that is decidable."""
    return int(np.sign(contrast)) if abs(contrast) >= DECIDABLE else fallback_sign


def otsu_threshold(counts: np.ndarray, edges: np.ndarray) -> float:
    """The cut of a histogram with most variance between the classes (Otsu 1979).

    Args:
        counts: (bins,).
        edges: (bins + 1,), of which one is returned; the last where a class would be empty.
    """
    centers = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centers)[:-1]
    above, others = counts.sum() - below, (counts * centers).sum() - sums
    usable = (below > 0) & (above > 0)
    if not usable.any():
        return float(edges[-1])
    gap = others / np.where(usable, above, 1) - sums / np.where(usable, below, 1)
    between = np.where(usable, below * above * gap**2, 0)
    # A valley without samples gives a plateau of equal cuts: take its middle.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def separation(scores: np.ndarray, threshold: float) -> float:
    """Otsu's eta: the share of the variance of scores (n,) that lies between their two classes.

    Returns:
        In [0, 1]; 0 where the threshold leaves one class empty.
    """
    above = scores > threshold
    if above.all() or not above.any():
        return 0.0
    share = above.mean()
    gap = scores[above].mean(dtype=np.float64) - scores[~above].mean(dtype=np.float64)
    return float(share * (1 - share) * gap**2 / scores.var(dtype=np.float64))


@dataclass(frozen=True)
class Region:
    """An object found in an image: its box in fractions of the sides, its patches bool (g, g)."""

    box: tuple[float, float, float, float]
    mask: np.ndarray


def find_objects(
    scores: np.ndarray, threshold: float, valid: np.ndarray | None = None
) -> list[Region | None]:
    """The largest connected part above the threshold in each image, None where nothing is.

    Args:
        scores: (n, g, g).
        threshold: scores above it are foreground.
        valid: bool (n, g, g); other patches are padding and never foreground.
    """
    valid = np.ones(scores.shape, bool) if valid is None else valid
    return [_find(*image, threshold) for image in zip(scores, valid, strict=True)]


def _find(scores: np.ndarray, valid: np.ndarray, threshold: float) -> Region | None:
    if not valid.any():
        return None
    # Padding takes the nearest real score, so that interpolation does not pull the edge down.
    nearest = scipy.ndimage.distance_transform_edt(~valid, return_indices=True)[1]
    near = scores[tuple(nearest)]
    fine = scipy.ndimage.zoom(near, UPSAMPLE, order=1, mode="nearest", grid_mode=True)
    fine_valid = valid.repeat(UPSAMPLE, 0).repeat(UPSAMPLE, 1)
    part = largest_part((fine > threshold) & fine_valid)
    if not part.any():
        return None
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(part)
    share = part.reshape(len(scores), UPSAMPLE, len(scores), UPSAMPLE).mean((1, 3))
    mask = share >= 0.5
    # A sliver thinner than half a patch still needs one patch to prompt and to fit with.
    return Region(tuple(box.tolist()), mask if mask.any() else share == share.max())


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, neighbors at corners included, bool (h, w)."""
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    return labels == np.bincount(labels[labels > 0]).argmax()
