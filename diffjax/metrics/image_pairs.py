"""How close images are to their originals, pair by pair: PSNR and SSIM; and how far apart."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array

WINDOW = 11  # pixels of SSIM's window
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def _check(x: Array, y: Array) -> None:
    """Raise a ValueError if two batches are not images of one shape."""
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"pairs of images (N, H, W, C) are needed, got {x.shape} and {y.shape}")


def psnr(x: Array, y: Array, *, span: float = 2.0) -> jax.Array:
    """Return the peak signal-to-noise ratio ``10 log10(span^2 / mean (x - y)^2)`` in dB, (N,).

    It is infinite for equal images.

    Args:
        x: images (N, H, W, C).
        y: images of the same shape.
        span: difference between white and black: 2 for [-1, 1], 255 for levels.

    Raises:
        ValueError: shapes differ.
    """
    _check(x, y)
    error = jnp.square(_to_float(x) - _to_float(y)).mean((1, 2, 3))
    return 10 * jnp.log10(span**2 / error)


def ssim(x: Array, y: Array, *, span: float = 2.0) -> jax.Array:
    """Return the structural similarity, averaged over windows and channels, (N,).

    Wang et al. 2004: ``(2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2))``
    with Gaussian windows of 11 pixels (sigma 1.5) that lie inside the image, ``c1 = (.01 span)^2``
    and ``c2 = (.03 span)^2``.

    Args:
        x: images (N, H, W, C).
        y: images of the same shape.
        span: difference between white and black: 2 for [-1, 1], 255 for levels.

    Raises:
        ValueError: shapes differ, or an image is smaller than a window.
    """
    _check(x, y)
    if min(x.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of {WINDOW} pixels and more, got {x.shape[1:3]}")
    x, y = _to_float(x), _to_float(y)
    mx, my = _blur(x), _blur(y)
    xx, yy, xy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    light = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return jnp.mean(light * (2 * xy + c2) / (xx + yy + c2), (1, 2, 3))


def _to_float(x: Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _blur(x: jax.Array) -> jax.Array:
    """Return the Gaussian mean over every window that lies inside the image."""
    at = np.arange(WINDOW) - WINDOW // 2
    taps = np.exp(-(at**2) / (2 * _SIGMA**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (1, 2):
        size = x.shape[axis] - WINDOW + 1
        parts = [jax.lax.slice_in_dim(x, k, k + size, axis=axis) for k in range(WINDOW)]
        x = sum((tap * part for tap, part in zip(taps, parts, strict=True)), jnp.zeros(()))
    return x


def diversity(
    distance: Callable[[Array, Array], Array],
    images: Array,
    *,
    pairs: int = 1000,
    seed: int = 0,
    batch_size: int = 50,
) -> tuple[float, float]:
    """Return mean and standard error of a distance between random pairs of different images.

    With LPIPS as the distance, this is the diversity of Zhu et al. 2017 and of papers on control:
    it is high where samples of one condition differ.

    Args:
        distance: two batches (B, H, W, C) -> (B,).
        images: (N, H, W, C).
        pairs: how many, drawn with replacement.
        seed: of the pairs.
        batch_size: pairs at a time.

    Raises:
        ValueError: fewer than 2 images or pairs.
    """
    if min(len(images), pairs) < 2:
        raise ValueError(f"{pairs} pairs of {len(images)} images: at least 2 of each are needed")
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(images), pairs)
    # The two images of a pair always differ.
    second = (first + rng.integers(1, len(images), pairs)) % len(images)
    parts = [
        np.asarray(distance(images[first[i : i + batch_size]], images[second[i : i + batch_size]]))
        for i in range(0, pairs, batch_size)
    ]
    values = np.concatenate(parts).astype(np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
