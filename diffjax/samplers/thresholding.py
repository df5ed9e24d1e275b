"""Wrappers ``Denoiser -> Denoiser`` that bound the predicted data; they go outside guidance."""

from __future__ import annotations

import jax.numpy as jnp

from diffjax.types import Array, Denoiser, Level, Prediction, expand


def _replace_x(p: Prediction, x: Array, z: Array, level: Level, rederive_eps: bool) -> Prediction:
    """Replace x of a prediction, and if asked derive ``eps = (z - alpha x) / sigma``."""
    if not rederive_eps:
        return p._replace(x=x)
    return p._replace(x=x, eps=(z - expand(level.alpha, z) * x) / expand(level.sigma, z))


def clip(denoise: Denoiser, *, limit: float = 1.0, rederive_eps: bool = True) -> Denoiser:
    """Clip x to [-limit, limit] (Ho et al. 2020, released code).

    Args:
        denoise: the model, with its guidance.
        limit: bound of the data.
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
    """Clip x to [-s, s] and divide it by s (Saharia et al. 2022, section 2.3).

    s is the quantile of ``|x|`` per image, clamped to [1, maximum] as in diffusers.

    Args:
        denoise: the model, with its guidance.
        quantile: share of the pixels that are not clipped, in (0, 1].
        maximum: the largest s, at least 1.
        rederive_eps: see `clip`.

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
