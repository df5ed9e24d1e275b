"""Distances between what a network says and what it should say, image by image."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffjax.types import Array


def per_image(values: Array) -> Array:
    """Average values (B, ...) over all axes but the first, (B,)."""
    return values.reshape(values.shape[0], -1).mean(axis=1)


def squared_error(raw: Array, target: Array) -> Array:
    """Return the mean squared error of each image (B,), in float32."""
    return per_image(jnp.square(raw.astype(jnp.float32) - target.astype(jnp.float32)))


def absolute_error(raw: Array, target: Array) -> Array:
    """Return the mean absolute error of each image (B,), in float32."""
    return per_image(jnp.abs(raw.astype(jnp.float32) - target.astype(jnp.float32)))


ERRORS = {"l1": absolute_error, "l2": squared_error}

# Numbers in an image -> what its mean error is multiplied by. Gradients that are clipped at a norm
# differ, and so does Adam where its eps counts. Song & Ermon 2019 and Song et al. 2021 take half.
REDUCTIONS: dict[str, Callable[[int], float]] = {
    "mean": lambda size: 1.0,
    "sum": lambda size: float(size),
    "half_sum": lambda size: size / 2,
}

LOG2 = float(np.log(2.0))
