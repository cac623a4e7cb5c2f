"""Which side of which component is the object, and where in the image it is (section 3.1)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from mirage_steps.method.pca import Moments, Pca

# Below this standardised difference between border and inside the sign is a coin toss: Cohen's
# "small effect" is 0.2.
DECIDABLE = 0.2
# Scores are enlarged by this factor before they are cut, so that a box is finer than a patch.
UPSAMPLE = 4


@dataclass(frozen=True)
class Choice:
    """How the foreground component was found.

    Args:
        component: index of the principal component.
        sign: +1 or -1, by which the component is multiplied so that the object is positive.
        contrast: Cohen's d between inside and border along the component, before the sign.
        decided: whether the border decided the sign, or the fallback had to.
    """

    component: int
    sign: int
    contrast: float
    decided: bool


def border_patches(valid: np.ndarray) -> np.ndarray:
    """Patches that touch the edge of the image's own content, never padding.

    Args:
        valid: bool (n, g, g), patches that lie on the image.

    Returns:
        bool (n, g, g): valid patches with a neighbour outside.
    """
    cross = ndimage.generate_binary_structure(2, 1)[None]
    return valid & ~ndimage.binary_erosion(valid, cross)


def contrast(pca: Pca, border: Moments, inside: Moments) -> np.ndarray:
    """Cohen's d between inside and border patches along each component, (c,).

    Zero where either is empty, as with images as thin as a patch: then the border says nothing.
    """
    if not border.count or not inside.count:
        return np.zeros(len(pca.components))
    difference = pca.components @ (inside.mean - border.mean)
    pooled = (border.scatter + inside.scatter) / max(border.count + inside.count - 2, 1)
    spread = np.einsum("cd,de,ce->c", pca.components, pooled, pca.components)
    return difference / np.sqrt(np.maximum(spread, np.finfo(float).tiny))


def choose(contrasts: np.ndarray, rule: str, fallback_sign: int) -> Choice:
    """Pick the component and its sign from the border's contrast.

    Args:
        contrasts: (c,) from :func:`contrast`.
        rule: ``first-component`` (paper) or ``border-contrast`` (the largest magnitude).
        fallback_sign: the sign where the contrast is below ``DECIDABLE``.
    """
    component = 0 if rule == "first-component" else int(np.abs(contrasts).argmax())
    value = float(contrasts[component])
    decided = abs(value) >= DECIDABLE
    sign = (1 if value > 0 else -1) if decided else fallback_sign
    return Choice(component, sign, value, decided)


def otsu_threshold(counts: np.ndarray, edges: np.ndarray) -> float:
    """Otsu's threshold of a histogram (Otsu 1979): the cut with most variance between classes.

    Args:
        counts: (bins,).
        edges: (bins + 1,).

    Returns:
        The upper edge of the last bin of the lower class.
    """
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centres)[:-1]
    sum_above = (counts * centres).sum() - sum_below
    usable = (below > 0) & (above > 0)
    if not usable.any():
        return float(edges[-1])
    means = sum_above[usable] / above[usable] - sum_below[usable] / below[usable]
    between = np.zeros(len(below))
    between[usable] = below[usable] * above[usable] * means**2
    # A valley without samples gives a plateau of equal cuts: take its middle.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def separation(scores: np.ndarray, threshold: float) -> float:
    """How clearly scores fall into two classes: Otsu's eta, the share of variance between them.

    Args:
        scores: (n,).
        threshold: that divides them.

    Returns:
        In [0, 1]; 0 where one class is empty.
    """
    above = scores > threshold
    if above.all() or not above.any():
        return 0.0
    share = above.mean()
    gap = scores[above].mean(dtype=np.float64) - scores[~above].mean(dtype=np.float64)
    return float(share * (1 - share) * gap**2 / scores.var(dtype=np.float64))


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
        """Signed coordinate along the chosen component.

        Args:
            tokens: (n, T, dim) patch tokens of square grids.

        Returns:
            (n, g, g) float32, g = sqrt(T).
        """
        grid = round(tokens.shape[1] ** 0.5)
        row = self.pca.components[self.component]
        values = tokens.astype(np.float32) @ row.astype(np.float32) - np.float32(
            row @ self.pca.mean
        )
        return (self.sign * values).reshape(len(tokens), grid, grid)

    def save(self, path: Path) -> None:
        """Write the model as an ``.npz`` file of plain arrays."""
        np.savez(
            path,
            **self.pca.arrays(),
            component=self.component,
            sign=self.sign,
            threshold=self.threshold,
        )

    @classmethod
    def load(cls, path: Path) -> "ForegroundModel":
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            pca = Pca(
                *(arrays[key] for key in ("mean", "components", "variance", "variance_ratio"))
            )
            return cls(
                pca, int(arrays["component"]), int(arrays["sign"]), float(arrays["threshold"])
            )


def object_maps(
    values: np.ndarray, shown: np.ndarray, mask_background: bool = True, normalize: bool = True
) -> np.ndarray:
    """Maps by which poses are compared (section 3.1).

    Zero is the mean of all objects. Where the background keeps its own far-off values, as in the
    paper, outlines weigh more than what they enclose. Where lengths are not normalized, as in the
    paper, maps that show little of their object lie together near zero, whatever its pose.

    Args:
        values: (n, T, c) tokens projected by PCA 2.
        shown: bool (n, T), patches on the image that show the object.
        mask_background: set all other patches to zero.
        normalize: scale each map to Euclidean length 1; one that shows nothing stays zero.

    Returns:
        (n, T, c) float32.
    """
    maps = np.where(shown[..., None], values, 0) if mask_background else values
    maps = maps.astype(np.float32)
    if not normalize:
        return maps
    lengths = np.linalg.norm(maps, axis=(1, 2), keepdims=True)
    return maps / np.maximum(lengths, np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Region:
    """An object found in an image.

    Args:
        box: (x0, y0, x1, y1) in fractions of the image's sides.
        mask: bool (g, g), patches of the object.
    """

    box: tuple[float, float, float, float]
    mask: np.ndarray


def find_objects(
    scores: np.ndarray, threshold: float, valid: np.ndarray | None = None
) -> list[Region | None]:
    """The largest connected part above the threshold in each image.

    Args:
        scores: (n, g, g).
        threshold: scores above it are foreground.
        valid: bool (n, g, g); other patches are padding and never foreground.

    Returns:
        A region for each image, None where nothing lies above the threshold.
    """
    if valid is None:
        valid = np.ones(scores.shape, bool)
    return [_find(s, threshold, v) for s, v in zip(scores, valid, strict=True)]


def _find(scores: np.ndarray, threshold: float, valid: np.ndarray) -> Region | None:
    grid = len(scores)
    # Padding takes the nearest real score, so that interpolation does not pull the edge down.
    if not valid.any():
        return None
    if not valid.all():
        nearest = ndimage.distance_transform_edt(~valid, return_indices=True)[1]
        scores = scores[tuple(nearest)]
    fine = ndimage.zoom(scores, UPSAMPLE, order=1, mode="nearest", grid_mode=True)
    fine_valid = valid.repeat(UPSAMPLE, 0).repeat(UPSAMPLE, 1)
    labels, count = ndimage.label((fine > threshold) & fine_valid, np.ones((3, 3)))
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    part = labels == sizes.argmax()
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    side = grid * UPSAMPLE
    box = (columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side)
    share = part.reshape(grid, UPSAMPLE, grid, UPSAMPLE).mean((1, 3))
    mask = share >= 0.5
    # A sliver thinner than half a patch still needs one patch to prompt and to fit with.
    return Region(tuple(map(float, box)), mask if mask.any() else share == share.max())
