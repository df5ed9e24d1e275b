"""Non-leaking geometric augmentation with a label for the network (Karras et al. 2022, F.2).

The network is told how each image was moved, so that samples with the label zero are not moved.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from diffjax.types import Array

LABELS = 9  # flips 2, scale 1, rotation 2, anisotropic scale 2, translation 2


def augment(
    key: jax.Array, images: Array, rate: float, *, flip: bool = True
) -> tuple[Array, Array]:
    """Images moved at random, and labels (B, 9) that say how; a zero label is the image itself.

    Each of vertical flip, isotropic scale (2^(0.2 N)), rotation (U(-pi, pi)), anisotropic scale
    (2^(0.2 N) along a random direction) and translation (N(0, 1/8) of the width) happens with
    probability ``rate``, the horizontal flip with 1/2. Pixels are interpolated linearly and
    mirrored beyond the border, where the paper filters with wavelets.

    Args:
        images: (B, H, W, C).
        flip: whether left and right may be exchanged; never for directional pictures.

    Raises:
        ValueError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the augmentation rate must lie in [0, 1], got {rate}")
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(lambda k, image: _augment_one(k, image, rate, flip))(keys, images)


def _augment_one(key: jax.Array, image: Array, rate: float, flip: bool) -> tuple[Array, Array]:
    """Augment one image (H, W, C) with its own key; returns the image and its label (9,)."""
    chance, uniform, normal = jax.random.split(key, 3)
    happens = (jax.random.uniform(chance, (6,)) < rate).astype(jnp.float32)
    u = jax.random.uniform(uniform, (4,))
    n = jax.random.normal(normal, (4,))
    x_flip = (u[0] < 0.5) * float(flip)
    y_flip = (u[1] < 0.5) * happens[1]
    scale, aniso = 0.2 * n[0] * happens[2], 0.2 * n[1] * happens[4]
    angle = jnp.pi * (2 * u[2] - 1) * happens[3]
    direction = jnp.pi * (2 * u[3] - 1)
    shift = 0.125 * n[2:] * happens[5]

    def make_rotation(a: Array) -> Array:
        return jnp.array([[jnp.cos(a), jnp.sin(a)], [-jnp.sin(a), jnp.cos(a)]])

    stretch = (
        make_rotation(direction)
        @ jnp.diag(2.0 ** jnp.stack([aniso, -aniso]))
        @ make_rotation(-direction)
    )
    flips = jnp.diag(jnp.stack([1 - 2 * y_flip, 1 - 2 * x_flip]))
    matrix = flips @ make_rotation(angle) @ stretch * 2.0**-scale  # from the new image to the old
    labels = jnp.stack([
        *(x_flip, y_flip, scale),
        *((jnp.cos(angle) - 1), jnp.sin(angle)),
        *(aniso * jnp.cos(2 * direction), aniso * jnp.sin(2 * direction)),
        *shift,
    ])  # fmt: skip
    # An unmoved image keeps its bits: rounding of the matrix would blur it.
    return jnp.where(jnp.any(labels != 0), _warp(image, matrix, shift), image), labels


def _warp(image: Array, matrix: Array, shift: Array) -> Array:
    """Warp an image by a matrix (2, 2) about its middle and a shift (2,) in shares of its sides.

    Pixels are read at ``matrix (p - middle) - shift + middle``, by linear interpolation.
    """
    height, width, _ = image.shape
    size = jnp.array([height, width], jnp.float32)
    middle = (size - 1) / 2
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(s) for s in (height, width)), indexing="ij"), -1)
    offset = grid - middle
    source = offset @ matrix.T - shift * size + middle
    return jax.vmap(
        lambda plane: map_coordinates(plane, [source[..., 0], source[..., 1]], 1, "mirror"),
        in_axes=-1,
        out_axes=-1,
    )(image)
