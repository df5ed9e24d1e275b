"""Fréchet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

import numpy as np
from absl import logging

from diffjax.metrics.statistics import Gaussian, Moments


def _factorise(covariance: np.ndarray) -> np.ndarray:
    """Return ``A`` (F, rank) with ``A A^T = covariance``; rounding's eigenvalues are left out."""
    values, vectors = np.linalg.eigh(covariance)
    tiny = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, values > tiny] * np.sqrt(values[values > tiny])


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982).

    ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})``

    This is the formula of FID (Heusel et al. 2017), which applies it to Inception features; on
    any other features the number is not an FID. With factors ``C_a = A A^T`` and ``C_b = B B^T``
    by eigh, ``tr (C_a C_b)^{1/2}`` is the sum of the singular values of ``A^T B``. No square root
    of a rounded eigenvalue is formed, so that singular covariances lose no digits.

    The estimate is biased upwards by about ``1/count``, and more when ``count`` is not larger
    than the number of features: compare only sets of equal size, beside their floor.

    Args:
        a, b: moments of two sets of features, or published Gaussians.

    Raises:
        ValueError: fewer than two samples, different feature sizes, or non-finite moments.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature sizes differ: {a.mean.shape[0]} and {b.mean.shape[0]}")
    cov_a, cov_b = _find_covariance(a, "first"), _find_covariance(b, "second")
    few = min((s.count for s in (a, b) if isinstance(s, Moments)), default=len(a.mean) + 1)
    if few <= len(a.mean):
        logging.warning(
            "%d images do not determine the covariance of %d features: the distance is biased "
            "upwards",
            *(few, len(a.mean)),
        )
    delta = a.mean - b.mean
    cross = np.linalg.svd(_factorise(cov_a).T @ _factorise(cov_b), compute_uv=False).sum()
    distance = delta @ delta + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave -1e-15 for equal sets


def _find_covariance(a: Moments | Gaussian, name: str) -> np.ndarray:
    """Return the covariance of moments or of a Gaussian.

    Raises:
        ValueError: there are fewer than two samples, or values that are not finite.
    """
    if isinstance(a, Moments) and a.count < 2:
        raise ValueError(
            f"the {name} set has {a.count} samples; a Fréchet distance needs at least 2"
        )
    if not (np.isfinite(a.mean).all() and np.isfinite(a.covariance).all()):
        raise ValueError(f"the moments of the {name} set are not finite")
    return a.covariance
