"""Kernel distance: the maximum mean discrepancy of features under a polynomial kernel."""

from __future__ import annotations

import numpy as np

from diffjax.metrics.statistics import as_features
from diffjax.types import Array


def squared_mmd(real: np.ndarray, fake: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets.

    ``E k(x,x') + E k(y,y') - 2 E k(x,y)`` with ``k(x, y) = (x.y / F + 1)^3`` (Binkowski et al.
    2018, eq. 4); pairs of a sample with itself are left out.

    Args:
        real: features (N, F), float64.
        fake: features (M, F), float64.
    """

    def mean(x: np.ndarray, y: np.ndarray, *, same: bool = False) -> float:
        values = x @ y.T / x.shape[1] + 1
        values *= values * values  # this is ten times faster than a power
        total = values.sum() - (np.trace(values) if same else 0)
        return float(total / (values.size - same * len(x)))

    return mean(real, real, same=True) + mean(fake, fake, same=True) - 2 * mean(real, fake)


def kernel_distance(
    real: Array, fake: Array, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation of `squared_mmd` over random subsets of both sets.

    On Inception features this is KID. The mean is unbiased whatever the number of images, and
    may be slightly negative for equal distributions.

    Args:
        real: features (N, F).
        fake: features (M, F).
        subsets: how many pairs of subsets; where these are the whole of both sets, 1 is enough.
        size: of a subset, at most N and M.
        seed: of the choice.

    Raises:
        ValueError: a subset is larger than a set or smaller than 2, or feature sizes differ.
    """
    if np.shape(real)[1:] != np.shape(fake)[1:]:
        raise ValueError(f"feature shapes differ: {np.shape(real)} and {np.shape(fake)}")
    if subsets < 1 or not 2 <= size <= min(len(real), len(fake)):
        raise ValueError(
            f"{subsets} subsets of {size}: a subset needs at least 2 and at most the "
            f"{len(real)} and {len(fake)} images there are"
        )
    if size == len(real) == len(fake):
        subsets = 1
    rng = np.random.default_rng(seed)

    def choose_rows(features: Array, name: str) -> np.ndarray:
        # Sorted, because the rows may be on disk.
        rows = np.sort(rng.choice(len(features), size, replace=False))
        return as_features(features[rows], name)

    values = [
        squared_mmd(choose_rows(real, "real"), choose_rows(fake, "fake")) for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))
