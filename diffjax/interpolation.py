"""How pixels are interpolated when an image is resized, as matrices of one axis."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=64)
def make_resize_matrix(old: int, new: int, name: str, shrinks: bool) -> np.ndarray:
    """Make the matrix (new, old) that resizes one axis of an image, of rows that sum to 1.

    Args:
        old, new: numbers of pixels.
        name: linear, cubic and area are OpenCV's, and cubic is torch's bicubic too: the former two
            do not widen their filters where an image shrinks. matlab is MATLAB's bicubic filter,
            which does.
        shrinks: whether no axis of the image grows; area depends on it.
    """
    scale, pixels = old / new, np.arange(new)
    if name == "area" and shrinks:
        edges = np.arange(old + 1)
        inside = np.clip(edges, pixels[:, None] * scale, (pixels[:, None] + 1) * scale)
        return np.diff(inside, axis=1) / scale
    middles = (pixels + 0.5) * scale - 0.5
    if name == "area":  # OpenCV's for what grows: a pixel is mixed where two share it
        first = np.floor(pixels * scale)
        share = np.maximum(pixels + 1 - (first + 1) / scale, 0)
        middles = first + share - np.floor(share)
    wide = max(scale, 1.0) if name == "matlab" else 1.0
    reach = int(np.ceil(2 * wide)) + 1
    taps = np.floor(middles)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(taps - middles[:, None]) / wide
    if name in ("cubic", "matlab"):
        weights = _cubic(distance, -0.75 if name == "cubic" else -0.5)
    else:
        weights = np.maximum(0, 1 - distance)
    weights /= weights.sum(1, keepdims=True)
    if name == "matlab":  # mirrored with the outermost pixels
        taps = np.abs(taps + 0.5) - 0.5
        taps = old - 0.5 - np.abs(old - 0.5 - taps)
    taps = np.clip(taps, 0, old - 1).astype(int)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (pixels[:, None], taps), weights)
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of distances >= 0 (Keys 1981), with the slope a at 1."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
