"""Fidelity and diversity from nearest neighbours: precision, recall, density, coverage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffjax.metrics.statistics import as_features
from diffjax.types import Array

BLOCK = 1000  # rows per block of distances: 80 MB against 10,000 others
_CANCELS = 1e-6  # below this part of |a|^2 + |b|^2, a squared distance is formed from differences
_TIE = 1 + 1e-9  # distances of other pairs carry 1e-16 / _CANCELS of rounding


class PrecisionRecall(NamedTuple):
    """How two sets of features overlap; see `precision_recall`.

    Attributes:
        precision: share of fakes inside some real ball, in [0, 1].
        recall: share of reals inside some fake ball, in [0, 1].
        density: mean number of real balls around a fake over k; it may exceed 1.
        coverage: share of real balls that hold a fake, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def _iterate_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of squared distances of ``a`` to ``b``, by ``|a|^2 + |b|^2 - 2 a b``.

    Where that cancels, differences are squared instead: equal points are at distance 0.
    """
    centre = b.mean(axis=0)
    others = b - centre
    norms = np.square(others).sum(axis=1)
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        points = a[rows] - centre
        scale = np.square(points).sum(axis=1)[:, None] + norms
        squared = scale - 2 * points @ others.T
        for i, close in enumerate(squared <= _CANCELS * scale):
            if close.any():
                squared[i, close] = np.square(b[close] - a[start + i]).sum(axis=1)
        yield rows, squared


def _compute_radii(points: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance of each point to its k-th nearest other point."""
    # The point itself, at distance 0, is the smallest entry of its row.
    return np.concatenate(
        [np.partition(d, k, axis=1)[:, k] for _, d in _iterate_distances(points, points)]
    )


def precision_recall(real: Array, fake: Array, *, k: int = 3) -> PrecisionRecall:
    """Compare two sets of features by the balls that reach each point's k-th neighbour.

    - precision: fraction of fakes inside some real ball; recall: fraction of reals inside some
      fake ball (Kynkäänniemi et al. 2019).
    - density: mean over fakes of (number of real balls around it) / k; coverage: fraction of
      real balls that hold a fake (Naeem et al. 2020).

    All depend on the sizes of the sets: compare only results of equal sizes.

    Args:
        real: features (N, F).
        fake: features (M, F). Distances are formed blockwise; memory is linear in N and M.
        k: neighbour that sets the radius, the point itself not counted.

    Raises:
        ValueError: a set has not more than ``k`` points, feature sizes differ, or a value is
            not finite.
    """
    real, fake = as_features(real, "real"), as_features(fake, "fake")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"feature sizes differ: {real.shape[1]} and {fake.shape[1]}")
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"k must be at least 1 and less than the set sizes {len(real)} and {len(fake)}, got {k}"
        )
    real_radii, fake_radii = _compute_radii(real, k) * _TIE, _compute_radii(fake, k) * _TIE
    hits = np.zeros(len(fake))  # real balls around each fake
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for rows, d in _iterate_distances(real, fake):
        inside = d <= real_radii[rows, None]
        hits += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (d <= fake_radii).any(axis=1)
    return PrecisionRecall(
        precision=float((hits > 0).mean()),
        recall=float(recalled.mean()),
        density=float(hits.mean() / k),
        coverage=float(covered.mean()),
    )
