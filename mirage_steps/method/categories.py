"""Object categories in one data set, found before any pose (the paper's future work, section 5).

The paper proposes to cluster the CLS tokens first. But pose, size and color vary too, and K-Means
on raw features splits along the direction of largest variance, which need not be the category. Only
categories form clusters, though. So the features are whitened, which equalizes the variances, and
a Gaussian mixture finds the clusters.
"""

from dataclasses import dataclass

import numpy as np

from mirage_steps.method.pca import Moments, Pca

DIMENSIONS = 16  # of the whitened features
_STARTS = 10
# Added to the variances, which whitening makes 1: clusters thinner than this are noise.
_FLOOR = 1e-2


@dataclass(frozen=True)
class CategoryModel:
    """Categories, the most frequent first.

    Args:
        pca: of the features.
        weights: (c,) share of each category.
        means: (c, d) in whitened coordinates.
        precisions: (c, d, d) Cholesky factors of the inverse covariances.
        token: the feature of a crop: ``cls``, or ``mean-patch`` for the object's mean token.
    """

    pca: Pca
    weights: np.ndarray
    means: np.ndarray
    precisions: np.ndarray
    token: str = "cls"

    @classmethod
    def fit(
        cls, features: np.ndarray, count: int, seed: int, token: str = "cls"
    ) -> "CategoryModel":
        """Find ``count`` categories in the images' features (n, dim), which are of ``token``."""
        from sklearn.mixture import GaussianMixture  # takes a second to import

        moments = Moments()
        moments.add(features)
        # A covariance of many dimensions needs many images.
        dimensions = min(DIMENSIONS, features.shape[1], max(2, len(features) // 16))
        pca = Pca.fit(moments, dimensions)
        mixture = GaussianMixture(count, n_init=_STARTS, reg_covar=_FLOOR, random_state=seed)
        mixture.fit(_whitened(pca, features))
        order = np.argsort(-mixture.weights_, kind="stable")
        parts = mixture.weights_, mixture.means_, mixture.precisions_cholesky_
        weights, means, precisions = (part[order] for part in parts)
        return cls(pca, weights, means, precisions, token)

    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Most likely category (n,) of features (n, dim), and its probability (n,) in [0, 1]."""
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(len(self.weights))
        mixture.weights_, mixture.means_ = self.weights, self.means
        mixture.precisions_cholesky_ = self.precisions
        probabilities = mixture.predict_proba(_whitened(self.pca, features))
        return probabilities.argmax(1), probabilities.max(1)


def _whitened(pca: Pca, features: np.ndarray) -> np.ndarray:
    """Coordinates (n, d) float64 of unit variance along the components."""
    deviation = np.sqrt(np.maximum(pca.variance, np.finfo(float).tiny))
    return pca.project(features).astype(np.float64) / deviation
