"""Features that see noise and texture, and the noise of the background.

A classifier is trained to look past noise, and so are distances of its features. These features are
energies of fixed 3x3 filters, which have no weights and need no training.
"""

from __future__ import annotations

import numpy as np

from diffjax.metrics.frechet import frechet_distance
from diffjax.metrics.statistics import moments
from diffjax.types import Array

VERSION = "dct3-v1"
# The orthonormal DCT-II basis of three samples, by increasing frequency.
_BASIS = np.asarray([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_LEVELS = 127.5  # 8-bit levels in a unit of images in [-1, 1]
_BLOCK = 1000  # images that are filtered at a time
_SHARE = 0.9  # of real images that must agree on a pixel of the background


def texture_features(images: Array) -> np.ndarray:
    """Compute the energy of every band of 3x3 patches, at full size and at half the size.

    For each product of two basis functions of the DCT of three samples, except the constant one,
    the feature is the root mean square of the responses at all places and channels. The filters
    have norm 1, so white noise of standard deviation s alone gives s in all bands of the full size
    and s / 2 in those of 2x2 means.

    Args:
        images: (N, H, W, C) in [-1, 1], H and W at least 3.

    Returns:
        (N, 16) in 8-bit levels, float64; (N, 8) if H or W is below 6.

    Raises:
        ValueError: no such images.
    """
    x = np.asarray(images)
    if x.ndim != 4 or not len(x) or min(x.shape[1:3]) < 3:
        raise ValueError(f"texture needs images (N, H, W, C) of at least 3x3 pixels, got {x.shape}")
    parts = [_compute_energies(x[k : k + _BLOCK]) for k in range(0, len(x), _BLOCK)]
    return np.concatenate(parts)


def _compute_energies(x: np.ndarray) -> np.ndarray:
    """Compute the features of a block of images, see `texture_features`."""
    x = x.astype(np.float64) * _LEVELS
    sizes = [x]
    if min(x.shape[1:3]) >= 6:
        height, width = (side // 2 * 2 for side in x.shape[1:3])
        even = x[:, :height, :width]
        sizes.append((even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2]
                      + even[:, 1::2, 1::2]) / 4)  # fmt: skip
    columns = []
    for one in sizes:
        rows = [a * one[:, :-2] + b * one[:, 1:-1] + c * one[:, 2:] for a, b, c in _BASIS]
        bands = [
            a * row[:, :, :-2] + b * row[:, :, 1:-1] + c * row[:, :, 2:]
            for row in rows
            for a, b, c in _BASIS
        ]
        # The first band is the mean of the patch, which is brightness and no texture.
        columns += [np.sqrt(np.mean(band**2, (1, 2, 3))) for band in bands[1:]]
    return np.stack(columns, 1)


def texture_distance(images: Array, real: Array) -> float:
    """Compute the Fréchet distance between the texture features of two sets of images.

    The number is not FID. White noise of standard deviation s (in 8-bit levels) on flat images
    costs about ``10 s^2``.

    Args:
        images, real: (N, H, W, C) in [-1, 1], of the same size, at least 2 of each.

    Returns:
        The distance, in squared 8-bit levels.

    Raises:
        ValueError: see `texture_features` and `frechet_distance`.
    """
    return frechet_distance(moments(texture_features(images)), moments(texture_features(real)))


def background_rms(images: Array, real: Array) -> float | None:
    """Compute the root mean square by which images miss a background that real ones agree on.

    The background is the pixels that have the same 8-bit level, their median, in at least nine
    tenths of the real images. The median over images is returned, so that the few objects which
    reach into the background do not count.

    Args:
        images, real: (N, H, W, C) in [-1, 1], of the same size.

    Returns:
        The root mean square in 8-bit levels; None if real images have no such pixels.

    Raises:
        ValueError: the sizes differ.
    """
    x, r = np.asarray(images), np.asarray(real)
    if x.shape[1:] != r.shape[1:]:
        raise ValueError(f"images and real ones differ in size: {x.shape[1:]} and {r.shape[1:]}")
    level = np.median(r, 0)
    agreed = (np.abs(r - level) * _LEVELS < 0.5).mean(0) >= _SHARE
    if not agreed.any():
        return None
    missed = (x[:, agreed].astype(np.float64) - level[agreed]) * _LEVELS
    return float(np.median(np.sqrt(np.mean(missed**2, 1))))
