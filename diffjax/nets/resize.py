"""Cubic interpolation of images as torch's ``bicubic`` computes it, without a low-pass filter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffjax.interpolation import make_resize_matrix
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
            made = make_resize_matrix(out.shape[axis], side, "cubic", False)
            matrix = jnp.asarray(made, out.dtype)
            out = jnp.tensordot(out, matrix, (axis, 1), precision=jax.lax.Precision.HIGHEST)
            out = jnp.moveaxis(out, -1, axis)
    return out
