"""How well views show what was asked for: pose control, consistency, truth, coverage.

The paper judges views by FID, which looks at single images: it sees neither whether a view has the
requested pose nor whether the views of a row show the same object. All arrays have a row
for each object and a column for each pose, so that intervals resample objects: views of one object
are not independent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts, which take most of a second, on their first use

from mirage_steps.method.metrics import psnr

_RESAMPLES = 2000
_LEVEL = 0.95
_NEIGHBORS = 5  # of Naeem et al. (2020)
_ROWS = 256  # whose distances are taken at once


@dataclass(frozen=True)
class Interval:
    """A mean over objects with its bootstrap interval.

    Attributes:
        value: the mean.
        low, high: the 95 % interval (percentiles of the means of resampled objects, expanded).
        n: number of objects, or of images where these are what is resampled.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def differs(self) -> bool:
        """For a difference: whether it is larger than chance, its interval without zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of the values (n,) of independent objects.

    Raises:
        ValueError: fewer than two values, from which no interval follows.
    """
    return _bootstrap(len(values), lambda rows: values[rows].mean(-1), seed)


def share_interval(values: np.ndarray) -> Interval:
    """As :func:`mean_interval`, of values in [0, 1], which their interval does not leave."""
    return _bootstrap(len(values), lambda rows: values[rows].mean(-1), 0, (0.0, 1.0))


def paired_difference(
    one: np.ndarray, other: np.ndarray, seed: int = 0, comparisons: int = 1
) -> Interval:
    """Mean of ``one`` less that of ``other``, both (n,) of the same objects: a paired bootstrap.

    With several ``comparisons`` that decide one question, the interval of each is wider, so that
    they hold together in 95 % of the cases (Bonferroni).
    """
    differences = one - other
    level = 1 - (1 - _LEVEL) / comparisons
    return _bootstrap(len(differences), lambda rows: differences[rows].mean(-1), seed, level=level)


def _bootstrap(
    count: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    level: float = _LEVEL,
) -> Interval:
    """A statistic of rows (resamples, n) or (n,) with its expanded percentile interval.

    Percentiles of few objects are too close together: their variance is divided by n, and they are
    those of a normal distribution. Expanding them by both makes the interval of a mean as wide as
    Student's (Hesterberg 2015, section 5.2).
    """
    if count < 2:
        raise ValueError(f"an interval needs two objects, got {count}")
    rng = np.random.default_rng([seed, count])
    drawn = statistic(rng.integers(count, size=(_RESAMPLES, count)))
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    upper, value = (1 + level) / 2, statistic(np.arange(count))
    t, norm = scipy.stats.t, scipy.stats.norm
    wider = t.ppf(upper, count - 1) / norm.ppf(upper) * (count / (count - 1)) ** 0.5
    values = (value, *(value + wider * (ends - value)))
    value, low, high = np.clip(values, *bounds).tolist()
    return Interval(value, low, high, count)


# --- pose control -----------------------------------------------------------------------------


def in_pose(asked: np.ndarray, shown: np.ndarray, k: int, within: int = 0) -> np.ndarray:
    """Whether views show the requested pose, or one of its ``within`` neighbors on each side.

    Args:
        asked: int poses of any shape, numbered over all categories, k of each.
        shown: of the same shape, assigned by the pose estimator.
        k: number of poses of a category.
        within: steps around the circle that are allowed.
    """
    steps = (asked - shown) % k
    return (asked // k == shown // k) & (np.minimum(steps, k - steps) <= within)


def pose_strength(
    maps: np.ndarray,
    poses: np.ndarray,
    counted: np.ndarray,
    shown: np.ndarray,
    real: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray | None:
    """How strongly the views of each object show their poses, (n,): 1 as real images, 0 not at all.

    The slope of the regression of an object's maps, less their mean, on the mean maps of real
    images in the requested poses, less theirs. An assignment to the nearest pose counts a faint
    difference between views as much as a clear one; this does not.

    Args:
        maps: (n, v, d) in pose space, neither centered nor scaled.
        poses: int (n, v) that were asked for.
        counted: bool (n, v), views that count.
        shown: bool (n, v), views that show an object; others count as showing no pose.
        real: (m, d) maps of real images.
        labels: (m,) their poses; those with fewer than two images do not count.

    Returns:
        None where real images differ no more between poses than their means do by chance.
    """
    count = max(int(poses.max()), int(labels.max())) + 1
    means, noise = np.zeros((count, real.shape[1])), np.full(count, np.nan)
    for pose in range(count):
        group = real[labels == pose].astype(np.float64)
        if len(group) > 1:
            means[pose] = group.mean(0)
            noise[pose] = group.var(0, ddof=1).sum() / len(group)  # of this mean
    counted = counted & ~np.isnan(noise[poses])
    number = np.maximum(counted.sum(1), 1)
    expected = _centered(means[poses], counted)
    products = (_centered(maps.astype(np.float64), counted & shown) * expected).sum((1, 2))
    # Means of few images are farther apart than those of many, by their noise.
    noisy = np.where(counted, noise[poses], 0).sum(1) * (1 - 1 / number)
    squares = np.square(expected).sum((1, 2)) - noisy
    return products / squares.mean() if squares.mean() > noisy.mean() else None


def _centered(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Values (n, v, d) less their mean over the views that count, bool (n, v); others are zero."""
    weights = counted[..., None]
    means = (values * weights).sum(1, keepdims=True) / np.maximum(weights.sum(1), 1)[:, None]
    return (values - means) * weights


def reference_scores(
    asked: np.ndarray, shown: np.ndarray, distances: np.ndarray, far: float, k: int
) -> np.ndarray:
    """How doubtful generated references are, (n,), from what is known at inference; 0 is best.

    The paper's failure case is a reference that is no valid object (Figure 11). Its distance from
    the nearest pose in units of ``far``, and one more where it shows neither the requested pose
    nor a neighbor.

    Args:
        asked: (n,) poses.
        shown: (n,) poses.
        distances: (n,) to the nearest mean map of the pose shown.
        far: distance within which 99 % of the training images are.
        k: number of poses of a category.
    """
    return distances / far + ~in_pose(asked, shown, k, 1)


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Spearman's correlation of (n,) and (n,), with the interval of resampled pairs.

    Raises:
        ValueError: fewer than two pairs.
    """

    def correlation(rows: np.ndarray) -> np.ndarray:
        a, b = (scipy.stats.rankdata(values[rows], axis=-1) for values in (x, y))
        a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
        scale = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
        return (a * b).sum(-1) / np.maximum(scale, 1e-12)  # equal ranks correlate with nothing

    return _bootstrap(len(x), correlation, seed, (-1.0, 1.0))


# --- consistency ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consistency:
    """A scale of how similar the views of one object are, in one kind of features.

    What the pose does to the features is taken out first: every pose has the mean of its real
    images subtracted. The scale's zero is the distance between real images of unrelated objects
    in the same two poses. Its one is the ceiling, real views of one object, where these are known.
    A view that does not show its pose counts as one of an unrelated object: copies of one image
    are similar, but they are not views of it.

    Attributes:
        means: (p, d) of the real images of each pose, of all categories; NaN where there are fewer
            than two.
        floor: (p, p) mean distance of centered real images of unrelated objects in two different
            poses; NaN on the diagonal and where there are too few.
        ceiling: (m,) similarity of real objects, None where no object was seen from all sides.
    """

    means: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray | None = None

    @classmethod
    def fit(cls, features: np.ndarray, poses: np.ndarray, count: int) -> "Consistency":
        """The scale of real images without a ceiling; poses with fewer than two are left out of it.

        Args:
            features: (n, d) of images of different objects.
            poses: (n,) their poses, of 0..count-1.
            count: number of poses.
        """
        means, residuals = np.full((count, features.shape[1]), np.nan), {}
        for pose in range(count):
            group = features[poses == pose].astype(np.float64)
            n = len(group)
            if n > 1:
                means[pose] = group.mean(0)
                # Images are closer to their own mean than others will be, by this factor.
                residuals[pose] = (group - means[pose]) * ((n + 1) / (n - 1)) ** 0.5
        floor = np.full((count, count), np.nan)
        for one, a in residuals.items():
            for other, b in residuals.items():
                if one != other:
                    floor[one, other] = scipy.spatial.distance.cdist(a, b).mean()
        return cls(means, floor)

    def similarity(self, features: np.ndarray, poses: np.ndarray, shows: np.ndarray) -> np.ndarray:
        """How much closer the views of each object are than those of unrelated objects, as a share.

        Args:
            features: (n, v, d) of v views of each object.
            poses: int (n, v) that were asked for, different ones for an object.
            shows: bool (n, v), whether the view shows its pose.

        Returns:
            (n,), 0 for unrelated objects and 1 for equal features; negative for worse than chance.
            Pairs of poses without a floor do not count.
        """
        centered = features.astype(np.float64) - self.means[poses]
        one, other = np.triu_indices(poses.shape[1], 1)
        apart = np.linalg.norm(centered[:, one] - centered[:, other], axis=2)  # (n, pairs)
        floor = self.floor[poses[:, one], poses[:, other]]
        apart = np.where(shows[:, one] & shows[:, other], apart, floor)
        known = ~np.isnan(floor)
        return 1 - apart.sum(1, where=known) / floor.sum(1, where=known)

    def position(self, similarity: np.ndarray, seed: int = 0) -> Interval:
        """Place between floor (0) and ceiling (1, the cap) of similarity (n,).

        Without a ceiling the similarity itself. The ceiling's own scatter widens the interval.
        """
        if self.ceiling is None:
            return mean_interval(similarity, seed)
        scale = self.ceiling
        again = np.random.default_rng([seed, len(scale), 1])

        def ratio(rows: np.ndarray) -> np.ndarray:
            top = scale.mean()
            if rows.ndim > 1:
                top = scale[again.integers(len(scale), size=(len(rows), len(scale)))].mean(-1)
            return similarity[rows].mean(-1) / top

        return _bootstrap(len(similarity), ratio, seed, (-np.inf, 1.0))


# --- truth ------------------------------------------------------------------------------------


def masked_psnr(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, at most 99, inside a mask (S, S) of uint8 (S, S, 3)."""
    return min(psnr(x[mask], y[mask]), 99.0)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of bool masks of one shape; 1 where both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


# --- coverage ---------------------------------------------------------------------------------


def coverage(real: np.ndarray, generated: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, density and coverage, each as the values whose mean it is.

    Precision and recall (Kynkaanniemi et al. 2019): the share of generated images inside the
    union of balls around the real ones up to their 5th neighbor, and the reverse. Density and
    coverage (Naeem et al. 2020): how many such balls hold a generated image, by 5, and the share
    of real balls that hold any. Distances are taken in blocks of rows.

    Args:
        real: (n, d) features.
        generated: (m, d).

    Returns:
        ``precision`` and ``density`` (m,), ``recall`` and ``coverage`` (n,).

    Raises:
        ValueError: too few rows.
    """
    if min(len(real), len(generated)) <= _NEIGHBORS:
        raise ValueError(f"needs more than {_NEIGHBORS} images a side")
    around_real, around_generated = _radii(real), _radii(generated)
    inside = np.zeros(len(generated))
    recall, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, apart in _blocks(real, generated):
        near = apart <= around_real[rows, None]
        inside += near.sum(0)
        covered[rows] = near.any(1)
        recall[rows] = (apart <= around_generated).any(1)
    return {
        "precision": (inside > 0).astype(float),
        "recall": recall.astype(float),
        "density": inside / _NEIGHBORS,
        "coverage": covered.astype(float),
    }


def nn_distance(real: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How far images are from the real ones, (m,): 1 as far as real images are from each other.

    The mean distance to the 5 nearest real images, by the mean of that of real images.

    Args:
        real: (n, d) features, at least two.
        x: (m, d).
    """

    def nearest(a: np.ndarray, first: int) -> np.ndarray:
        last = first + min(_NEIGHBORS, len(real) - 1)
        found = [np.partition(apart, last - 1, axis=1)[:, :last] for _, apart in _blocks(a, real)]
        return np.sqrt(np.sort(np.concatenate(found), axis=1)[:, first:]).mean(1)

    return nearest(x, 0) / nearest(real, 1).mean()


def _radii(x: np.ndarray) -> np.ndarray:
    """Squared distance (n,) of each row of x (n, d) to its 5th neighbor."""
    found = [np.partition(apart, _NEIGHBORS, axis=1)[:, _NEIGHBORS] for _, apart in _blocks(x, x)]
    return np.concatenate(found)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances (block, m) of some rows of a to all of b, block by block.

    As products, which are many times faster than differences for long rows.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    a, b = a - b.mean(0), b - b.mean(0)  # small numbers lose less
    lengths = np.square(b).sum(1)
    for start in range(0, len(a), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = np.square(a[rows]).sum(1)[:, None] + lengths - 2 * a[rows] @ b.T
        yield rows, np.maximum(apart, 0)
