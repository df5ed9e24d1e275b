"""Wrappers ``Denoiser -> Denoiser`` that bound the predicted data; they go outside guidance."""

from __future__ import annotations

import jax.numpy as jnp

from diffjax.types import Array, Denoiser, Level, Prediction, expand


def _replace_x(p: Prediction, x: Array, z: Array, level: Level, rederive_eps: bool) -> Prediction:
    if not rederive_eps:
        return p._replace(x=x)
    return p._replace(x=x, eps=(z - expand(level.alpha, z) * x) / expand(level.sigma, z))


def clip(denoise: Denoiser, *, limit: float = 1.0, rederive_eps: bool = True) -> Denoiser:
    """Clip x to [-limit, limit] (Ho et al. 2020, released code).

    Args:
        rederive_eps: make eps consistent with the clipped x, as DDPM does; diffusers' DDIM keeps
            the network's.
    """

    def wrapped(z: Array, level: Level) -> Prediction:
        p = denoise(z, level)
        return _replace_x(p, jnp.clip(p.x, -limit, limit), z, level, rederive_eps)

    return wrapped


def dynamic_threshold(
    denoise: Denoiser, *, quantile: float = 0.995, maximum: float = 1.0, rederive_eps: bool = True
) -> Denoiser:
    """Clip x to [-s, s] and divide by s, s the per-image quantile of |x| clamped to [1, maximum].

    Saharia et al. 2022, section 2.3, with the clamp of diffusers.

    Raises:
        ValueError: quantile outside (0, 1] or maximum below 1.
    """
    if not 0 < quantile <= 1 or maximum < 1:
        raise ValueError(f"need 0 < quantile <= 1 <= maximum, got {quantile} and {maximum}")

    def wrapped(z: Array, level: Level) -> Prediction:
        p = denoise(z, level)
        size = jnp.quantile(jnp.abs(p.x.reshape(p.x.shape[0], -1)), quantile, axis=1)
        s = expand(jnp.clip(size, 1.0, maximum), z)
        return _replace_x(p, jnp.clip(p.x, -s, s) / s, z, level, rederive_eps)

    return wrapped
