"""Cubic interpolation of images as torch's ``bicubic`` computes it, without a low-pass filter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array


def resize_bicubic(images: Array, sides: tuple[int, int]) -> jax.Array:
    """Resize images by cubic convolution with a = -0.75 (Keys 1981, eq. 4), (N, h, w, ...).

    It is taken at the centres of pixels, and the edges are repeated.

    Args:
        images: (N, H, W, ...).
        sides: h and w.
    """
    out = jnp.asarray(images)
    for axis, side in ((1, sides[0]), (2, sides[1])):
        if out.shape[axis] != side:
            matrix = jnp.asarray(_make_cubic(out.shape[axis], side), out.dtype)
            out = jnp.tensordot(out, matrix, (axis, 1), precision=jax.lax.Precision.HIGHEST)
            out = jnp.moveaxis(out, -1, axis)
    return out


def _make_cubic(source: int, target: int, a: float = -0.75) -> np.ndarray:
    """Make the interpolation matrix (target, source); a row has at most 4 entries, of sum 1."""
    centre = (np.arange(target) + 0.5) * source / target - 0.5
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    d = np.abs(centre[:, None] - taps)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
    out = np.zeros((target, source))
    np.add.at(out, (np.arange(target)[:, None], np.clip(taps, 0, source - 1)), weights)
    return out
