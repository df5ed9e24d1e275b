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

    Each of vertical flip, isotropic scale (2^(0.2 w)), rotation (U(-pi, pi)), anisotropic scale
    (2^(0.2 w), along a direction r that is random with probability 1/2, else the axes) and
    translation (w / 8 of the height and width) happens with probability ``rate``, the horizontal
    flip with 1/2; every w is drawn from N(0, 1). Labels are, as released, both flips, w of the
    scale, cos and sin of the angle (the former less 1), ``w (cos r, sin r)`` of the anisotropy, and
    w of the translation in x and y. The translation is in pixels of the new image. Pixels are
    interpolated linearly and mirrored beyond the border, where the release filters with wavelets.

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
    u = jax.random.uniform(uniform, (5,))
    n = jax.random.normal(normal, (4,))
    x_flip = (u[0] < 0.5) * float(flip)
    y_flip = (u[1] < 0.5) * happens[1]
    scale, aniso = n[0] * happens[2], n[1] * happens[4]
    angle = jnp.pi * (2 * u[2] - 1) * happens[3]
    direction = jnp.pi * (2 * u[3] - 1) * (u[4] < 0.5)
    shift = n[2:] * happens[5]  # in x and y

    def make_rotation(a: Array) -> Array:
        return jnp.array([[jnp.cos(a), jnp.sin(a)], [-jnp.sin(a), jnp.cos(a)]])

    sides = jnp.diag(2.0 ** (0.2 * jnp.stack([aniso, -aniso])))
    stretch = make_rotation(-direction) @ sides @ make_rotation(direction)
    flips = jnp.diag(jnp.stack([1 - 2 * y_flip, 1 - 2 * x_flip]))
    matrix = flips @ make_rotation(angle) @ stretch * 2.0 ** (-0.2 * scale)  # to the old image
    labels = jnp.stack([
        *(x_flip, y_flip, scale),
        *((jnp.cos(angle) - 1), jnp.sin(angle)),
        *(aniso * jnp.cos(direction), aniso * jnp.sin(direction)),
        *shift,
    ])  # fmt: skip
    # An unmoved image keeps its bits: rounding of the matrix would blur it.
    return jnp.where(jnp.any(labels != 0), _warp(image, matrix, shift[::-1] / 8), image), labels


def _warp(image: Array, matrix: Array, shift: Array) -> Array:
    """Warp an image by a matrix (2, 2) about its middle and a shift (2,) in shares of its sides.

    Pixels are read at ``matrix (p - middle - shift) + middle``, by linear interpolation.
    """
    height, width, _ = image.shape
    size = jnp.array([height, width], jnp.float32)
    middle = (size - 1) / 2
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(s) for s in (height, width)), indexing="ij"), -1)
    offset = grid - middle - shift * size
    source = offset @ matrix.T + middle
    return jax.vmap(
        lambda plane: map_coordinates(plane, [source[..., 0], source[..., 1]], 1, "mirror"),
        in_axes=-1,
        out_axes=-1,
    )(image)
