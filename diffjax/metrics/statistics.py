"""Mean and covariance of a stream of feature vectors, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffjax.types import Array

BLOCK = 4096  # rows that are converted to float64 at a time


class Gaussian(NamedTuple):
    """A mean and a covariance, as published statistics state them.

    Attributes:
        mean: (F,), float64.
        covariance: (F, F), float64.
    """

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True, eq=False)  # a tuple has a method `count`
class Moments:
    """Sufficient statistics of a stream of vectors.

    Attributes:
        count: number of vectors ``n``.
        mean: their mean, (F,), float64.
        scatter: ``sum_i (x_i - mean)(x_i - mean)^T``, (F, F), float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance ``scatter / (n - 1)``, (F, F).

        Raises:
            ValueError: fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def empty(dim: int) -> Moments:
    """Return the moments of no vectors of size ``dim``, the neutral element of `merge`."""
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def as_features(features: Array, name: str = "features") -> np.ndarray:
    """Return ``features`` as a float64 matrix (N, F).

    Args:
        features: the matrix.
        name: how messages call it.

    Raises:
        ValueError: not a matrix, or some value is not finite.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2:
        raise ValueError(f"{name} must have shape (N, F), got {values.shape}")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name} must be finite: {bad.sum()} of {len(values)} rows are not, "
            f"the first is row {bad.argmax()}"
        )
    return values


def moments(features: Array) -> Moments:
    """Return the moments of the rows of ``features`` (N, F), computed block by block.

    ``features`` may be a memory map: only `BLOCK` rows are in memory at a time. The sums depend on
    the rows only, not on how they were collected.

    Raises:
        ValueError: not a matrix, or some value is not finite.
    """
    shape = np.shape(features)
    if len(shape) != 2:
        raise ValueError(f"features must have shape (N, F), got {shape}")
    state = empty(shape[1])
    for start in range(0, shape[0], BLOCK):
        values = as_features(features[start : start + BLOCK])
        mean = values.mean(axis=0)
        centred = values - mean
        state = merge(state, Moments(len(values), mean, centred.T @ centred))
    return state


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the union of two disjoint streams (Chan, Golub & LeVeque 1983).

    ``scatter = S_a + S_b + (n_a n_b / n) d d^T`` with ``d = mean_b - mean_a``. Nothing cancels,
    unlike in ``E[x x^T] - mean mean^T``.

    Raises:
        ValueError: the vectors have different sizes.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature sizes differ: {a.mean.shape[0]} and {b.mean.shape[0]}")
    count = a.count + b.count
    if not a.count or not b.count:
        return a if a.count else b
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.count * b.count / count)
    return Moments(count, a.mean + delta * (b.count / count), scatter)


def update(state: Moments, features: Array) -> Moments:
    """Return ``state`` with the rows of ``features`` (N, F) added."""
    return merge(state, moments(features))
