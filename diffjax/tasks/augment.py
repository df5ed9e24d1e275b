"""Non-leaking geometric augmentation with a label for the network (Karras et al. 2022, F.2).

The network is told how each image was moved, so that samples with the label zero are not moved.
Images are moved at twice their resolution: a wavelet's low pass takes them up before and down
after, which undo one another where nothing moves.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from diffjax.types import Array

UNTURNED = (0, 2, 5, 6, 7, 8)  # of the labels, without those of turns
LABELS = 9  # flips 2, scale 1, rotation 2, anisotropic scale 2, translation 2
# The low pass of the wavelet sym6 (Daubechies 1992, table 6.3), of unit norm.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_EDGE = len(SYM6) // 4  # pixels around the new image that its filter reaches


def augment(
    key: jax.Array, images: Array, rate: float, *, flip: bool = True, turns: bool = True
) -> tuple[Array, Array]:
    """Images moved at random, and labels (B, 9) that say how; a zero label is the image itself.

    Each of vertical flip, isotropic scale (2^(0.2 w)), rotation (U(-pi, pi)), anisotropic scale
    (2^(0.2 w), along a direction r that is random with probability 1/2, else the axes) and
    translation (w / 8 of the height and width) happens with probability ``rate``, the horizontal
    flip with 1/2; every w is drawn from N(0, 1). Labels are, as released, both flips, w of the
    scale, cos and sin of the angle (the former less 1), ``w (cos r, sin r)`` of the anisotropy, and
    w of the translation in x and y. The translation is in pixels of the new image, and comes before
    the others. Flips exchange pixels; the rest is `warp`.

    Args:
        images: (B, H, W, C).
        flip: whether left and right may be exchanged; never for directional pictures.
        turns: whether images may be turned and set upside down; without, labels are (B, 6), as in
            the released MeanFlow.

    Raises:
        ValueError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the augmentation rate must lie in [0, 1], got {rate}")
    keys = jax.random.split(key, images.shape[0])
    matrices, labels = jax.vmap(lambda k: _draw_one(k, rate, flip, turns))(keys)
    told = labels if turns else labels[:, np.asarray(UNTURNED)]
    x_flip, y_flip = (labels[:, k, None, None, None] != 0 for k in (0, 1))
    images = jnp.where(x_flip, images[:, :, ::-1], images)
    images = jnp.where(y_flip, images[:, ::-1], images)
    if rate == 0:
        return images, told
    # An unmoved image keeps its bits.
    moves = jnp.any(labels[:, 2:] != 0, axis=1)[:, None, None, None]
    return jnp.where(moves, warp(images, matrices, labels[:, :-3:-1] / 8), images), told


def _draw_one(key: jax.Array, rate: float, flip: bool, turns: bool) -> tuple[Array, Array]:
    """Draw how one image moves: the matrix (2, 2) of `warp` and the label (9,)."""
    chance, uniform, normal = jax.random.split(key, 3)
    happens = (jax.random.uniform(chance, (6,)) < rate).astype(jnp.float32)
    u = jax.random.uniform(uniform, (5,))
    n = jax.random.normal(normal, (4,))
    x_flip = (u[0] < 0.5) * float(flip)
    y_flip = (u[1] < 0.5) * happens[1] * float(turns)
    scale, aniso = n[0] * happens[2], n[1] * happens[4]
    angle = jnp.pi * (2 * u[2] - 1) * happens[3] * float(turns)
    direction = jnp.pi * (2 * u[3] - 1) * (u[4] < 0.5)
    labels = jnp.stack([
        *(x_flip, y_flip, scale),
        *((jnp.cos(angle) - 1), jnp.sin(angle)),
        *(aniso * jnp.cos(direction), aniso * jnp.sin(direction)),
        *(n[2:] * happens[5]),  # in x and y
    ])  # fmt: skip
    return make_matrix(scale, angle, aniso, direction), labels


def make_matrix(scale: Array, angle: Array, aniso: Array, direction: Array) -> Array:
    """Make the matrix (2, 2) in (y, x) from offsets in the new image to those in the old one.

    ``2^(-0.2 scale) R(angle) R(-direction) diag(1 / s, s) R(direction)``, where s is
    2^(0.2 aniso). The diagonal and the rotations R are in (x, y).
    """

    def make_rotation(a: Array) -> Array:
        return jnp.array([[jnp.cos(a), jnp.sin(a)], [-jnp.sin(a), jnp.cos(a)]])

    sides = jnp.diag(2.0 ** (0.2 * jnp.stack([aniso, -aniso])))
    stretch = make_rotation(-direction) @ sides @ make_rotation(direction)
    return make_rotation(angle) @ stretch * 2.0 ** (-0.2 * scale)


def warp(images: Array, matrices: Array, shifts: Array) -> Array:
    """Warp images (B, H, W, C) about their middles, at twice their resolution.

    The pixel p is read at ``matrix (p - middle - shift) + middle``. Images are mirrored as far as
    they go beyond the border, without their outermost pixels; there is 0 behind that.

    Args:
        matrices: (B, 2, 2), in (y, x).
        shifts: (B, 2), in shares of height and width.
    """
    _, height, width, _ = images.shape
    sides = np.array([height, width])
    up, down = zip(*(_make_filters(side) for side in (height, width)), strict=True)
    large = jnp.einsum("uh,vw,bhwc->buvc", *up, images)
    # Offsets from the middle in half pixels. The filters' own middles lie half of one aside.
    axes = [np.arange(2 * (side + 2 * _EDGE)) + 1 - (side + 2 * _EDGE) for side in sides]
    grid = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij")), jnp.float32)
    offsets = grid[None] - 2 * (shifts * sides)[..., None, None]
    source = jnp.einsum("bij,bjuv->biuv", matrices, offsets, precision="highest")
    source += (3 * sides - 3)[:, None, None]

    def read(planes: Array, at: Array) -> Array:
        return jax.vmap(lambda plane: map_coordinates(plane, [*at], 1), -1, -1)(planes)

    return jnp.einsum("hu,wv,buvc->bhwc", *down, jax.vmap(read)(large, source))


@functools.cache
def _make_filters(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the matrices of one axis: image -> mirrored, twice as large; moved -> new image.

    Returns:
        Up (2 (3 side - 2), side) and down (side, 2 side + 4 _EDGE), float32.
    """
    taps = np.asarray(SYM6)
    padded = np.pad(np.eye(side), ((side - 1, side - 1), (0, 0)), mode="reflect")
    count = len(padded)
    tap = np.arange(2 * count)[:, None] - 2 * np.arange(count) + 2 * _EDGE - 1
    inside = (tap >= 0) & (tap < len(taps))
    up = np.where(inside, taps[np.clip(tap, 0, len(taps) - 1)], 0) @ padded
    down = np.zeros((side, 2 * side + 4 * _EDGE))
    for row in range(side):
        down[row, 2 * row + 1 : 2 * row + 1 + len(taps)] = taps
    return up.astype("f4"), down.astype("f4")
