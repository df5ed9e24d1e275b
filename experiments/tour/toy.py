"""Data in the plane whose exact denoiser is known, so that a chapter needs no network.

The points come from a mixture of Gaussians of one width. What a perfectly trained network would
return is then a formula.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import samplers
from diffjax.types import Array, Denoiser, Grid, Level, Prediction, Sampler, expand


class Mixture(NamedTuple):
    """Equal parts of Gaussians ``N(mean_k, std^2 I)``.

    Attributes:
        means: (K, D).
        std: width of each part.
    """

    means: np.ndarray
    std: float

    def draw(self, num: int, seed: int = 0) -> np.ndarray:
        """Draw ``num`` points (num, D)."""
        rng = np.random.default_rng(seed)
        part = rng.integers(len(self.means), size=num)
        return self.means[part] + self.std * rng.standard_normal((num, self.means.shape[1]))

    def denoise(self, z: Array, level: Level) -> Prediction:
        """Return the expected x and eps of noisy points ``z`` (B, D).

        Given z, part k has the weight ``softmax_k(-|z - alpha m_k|^2 / 2v)``, with
        ``v = alpha^2 std^2 + sigma^2``, and within it the expected x is affine in z.
        """
        a, s = expand(jnp.asarray(level.alpha), z), expand(jnp.asarray(level.sigma), z)
        means, var = jnp.asarray(self.means), a**2 * self.std**2 + s**2
        gap = z[:, None] - a[..., None] * means
        weight = jax.nn.softmax(-(gap**2).sum(-1) / (2 * var), axis=-1)[..., None]
        x = (weight * (means + a[..., None] * self.std**2 / var[..., None] * gap)).sum(1)
        return Prediction(x, (weight * gap).sum(1) * s / var)


def make_ring(parts: int = 8, radius: float = 1.0, std: float = 0.1) -> Mixture:
    """Make a mixture whose parts stand on a circle."""
    angle = 2 * np.pi * np.arange(parts) / parts
    return Mixture(radius * np.stack([np.cos(angle), np.sin(angle)], -1), std)


def draw_paths(
    denoise: Denoiser, sampler: Sampler, grid: Grid, num: int, *, seed: int = 0, size: int = 2
) -> np.ndarray:
    """Draw points and keep the way of each: (rows + 1, num, size), first the noise.

    Args:
        denoise: such as `Mixture.denoise`, with or without guidance.
        sampler, grid: how to step, and between which levels.
        num: number of points. Point k depends on ``(seed, k)`` alone.
        size: dimensions D.
    """
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(seed), k))(jnp.arange(num))
    noise, rows = samplers.image_noise(keys, (size,)), sampler.plan(grid)
    start = samplers.prior(noise, rows, sampler)
    run = jax.jit(lambda z, rows: samplers.trajectory(noise, denoise, sampler, z, rows))
    return np.concatenate([np.asarray(start)[None], np.asarray(run(start, rows)[0])])


def compare(points: np.ndarray, real: np.ndarray, seed: int = 0) -> float:
    """Return the sliced Wasserstein distance of two sets of points (N, D) of equal size.

    It is the mean over 64 random directions of the mean distance between sorted projections.
    """
    directions = np.random.default_rng(seed).standard_normal((real.shape[1], 64))
    directions /= np.linalg.norm(directions, axis=0)
    a, b = np.sort(points @ directions, axis=0), np.sort(real @ directions, axis=0)
    return float(np.abs(a - b).mean())
