"""Closed-form denoisers and distributions: what an exact network would return."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Denoiser, Level, Prediction, expand


def gaussian(mean: float, std: float) -> Denoiser:
    """Exact denoiser of N(mean, std^2) data: ``E[x|z]`` is affine in z."""

    def denoise(z: jax.Array, level: Level) -> Prediction:
        a, s = expand(jnp.asarray(level.alpha), z), expand(jnp.asarray(level.sigma), z)
        x = mean + a * std**2 / (a**2 * std**2 + s**2) * (z - a * mean)
        # eps in closed form: (z - a x) / s would cancel where s is small.
        return Prediction(x, s * (z - a * mean) / (a**2 * std**2 + s**2))

    return denoise


def mixture(means: np.ndarray, std: float) -> Denoiser:
    """Exact denoiser of an equal mixture of N(mean_k, std^2)."""
    centres = jnp.asarray(means)

    def denoise(z: jax.Array, level: Level) -> Prediction:
        a, s = expand(jnp.asarray(level.alpha), z), expand(jnp.asarray(level.sigma), z)
        var = a**2 * std**2 + s**2
        gap = z[..., None] - a[..., None] * centres
        weight = jax.nn.softmax(-(gap**2) / (2 * var[..., None]), axis=-1)
        x = (weight * (centres + a[..., None] * std**2 / var[..., None] * gap)).sum(-1)
        return Prediction(x, (weight * gap).sum(-1) * s / var)

    return denoise


def gaussian_moments(rows, init: tuple[float, float], mean: float, std: float):
    """(mean, std) of the state after an affine sampler's rows, by scalar recursion in float64.

    Holds for samplers without memory: ``z' = a_zz z + a_x x + a_e eps + a_n noise`` with x and eps
    affine in z for Gaussian data.
    """
    m, var = init[0], init[1] ** 2
    for k in range(len(rows.level.t)):
        a, s = float(rows.level.alpha[k]), float(rows.level.sigma[k])
        zz, zx, ze, zn = (float(c) for c in rows.coef[k, 0])
        total = a**2 * std**2 + s**2
        gain = zz + zx * a * std**2 / total + ze * s / total
        shift = zx * (mean - a**2 * std**2 / total * mean) - ze * s * a * mean / total
        m, var = gain * m + shift, gain**2 * var + zn**2
    return m, np.sqrt(var)


def check_mixture(out: np.ndarray, means: np.ndarray, distance: float, least: float = 0.03):
    """Samples lie near the means, ``distance`` away on average, and every mean has its share."""
    gap = np.abs(np.asarray(out)[..., None] - means)
    assert np.isfinite(out).all()
    assert gap.min(-1).mean() < distance
    shares = np.bincount(gap.argmin(-1).ravel(), minlength=len(means)) / np.size(out)
    assert shares.min() > least, shares
