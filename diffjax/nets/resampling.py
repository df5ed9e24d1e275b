"""Images (B, H, W, C) at twice or half the size, by repeating, averaging, filtering or folding."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def upsample2(x: Array) -> Array:
    """Repeat every pixel twice in both directions: (B, H, W, C) -> (B, 2H, 2W, C)."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample2(x: Array) -> Array:
    """Average squares of 2x2 pixels: (B, H, W, C) -> (B, H/2, W/2, C)."""
    return nn.avg_pool(x, (2, 2), (2, 2))


FIR = (1.0, 3.0, 3.0, 1.0)  # binomial filter of StyleGAN 2 and NCSN++


def filter_fir(x: Array, *, gain: float, **convolution: Any) -> Array:
    """Filter every channel with the separable filter `FIR`.

    Args:
        x: features.
        gain: sum of the filter.
        convolution: arguments of `jax.lax.conv_general_dilated`, such as strides and padding.
    """
    taps = jnp.asarray(FIR, x.dtype) / sum(FIR)
    kernel = jnp.broadcast_to(
        (gain * jnp.outer(taps, taps))[:, :, None, None], (4, 4, 1, x.shape[-1])
    )
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        **{"window_strides": (1, 1), **convolution},
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def fir_downsample2(x: Array, *, reflect: bool = False) -> Array:
    """Filter by `FIR`, then keep every second pixel (Song et al. 2021, appendix H).

    Beyond the edges there are zeros, or the image reflected (k-diffusion).
    """
    x, pad = (_reflect_edges(x), 0) if reflect else (x, 1)
    return filter_fir(x, gain=1.0, window_strides=(2, 2), padding=[(pad, pad)] * 2)


def fir_upsample2(x: Array, *, reflect: bool = False) -> Array:
    """Put zeros between the pixels, then filter by `FIR` with gain 4 (Song et al. 2021, H).

    Beyond the edges as `fir_downsample2`.
    """
    x, pad = (_reflect_edges(x), 0) if reflect else (x, 2)
    return filter_fir(x, gain=4.0, lhs_dilation=(2, 2), padding=[(pad, pad)] * 2)


def _reflect_edges(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")


def space_to_depth(x: Array, block: int) -> Array:
    """Fold squares of pixels into channels: (B, H, W, C) -> (B, H/block, W/block, block^2 C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Array, block: int) -> Array:
    """Unfold channels into squares of pixels, the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * block, w * block, c // block**2)
