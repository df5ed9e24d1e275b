"""Layers that preserve magnitudes (Karras et al. 2024, arXiv:2312.02696, sections 2.3 to 2.5).

The magnitude of features is the root of the mean of their squares. Each layer here gives features
of magnitude 1 if its inputs have magnitude 1 and do not depend on each other, whatever was learned:
training can turn weights, but neither weights nor activations can grow. There are no biases and no
norms over groups. Features are (..., C); parameters stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.types import DType

Array = jax.Array
EPS = 1e-4
_SILU = 0.596  # magnitude of SiLU of standard normal numbers


def normalise(x: Array, axis: int | Sequence[int] = -1) -> Array:
    """Divide by the magnitude over some axes, in float32: ``x / (EPS + |x| / sqrt(n))``.

    Args:
        x: features or weights.
        axis: over which the squares are averaged; -1 is the pixel norm (eq. 30).
    """
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True)
    size = jnp.sqrt(jnp.maximum(square, 1e-30))  # the root has no gradient at 0
    return x / (EPS + size).astype(x.dtype)


def normalise_kernel(kernel: Array) -> Array:
    """Bring the weights of each output to magnitude 1 (eq. 47); outputs are the last axis."""
    return normalise(kernel, tuple(range(kernel.ndim - 1)))


def mp_silu(x: Array) -> Array:
    """Return ``SiLU(x) / 0.596`` (eq. 81)."""
    return nn.silu(x) / _SILU


def mp_sum(a: Array, b: Array, share: float = 0.5) -> Array:
    """Return ``((1 - s) a + s b) / sqrt((1 - s)^2 + s^2)`` (eq. 88).

    Args:
        share: s, of b.
    """
    return ((1 - share) * a + share * b) / ((1 - share) ** 2 + share**2) ** 0.5


def mp_concat(a: Array, b: Array, share: float = 0.5) -> Array:
    """Join channels so that both have a share in the magnitude (eq. 103).

    ``[(1 - s) / sqrt(N_a) a, s / sqrt(N_b) b]`` times ``sqrt((N_a + N_b) / ((1 - s)^2 + s^2))``.

    Args:
        share: s, of b.
    """
    n, m = a.shape[-1], b.shape[-1]
    whole = ((n + m) / ((1 - share) ** 2 + share**2)) ** 0.5
    return jnp.concatenate([whole * (1 - share) / n**0.5 * a, whole * share / m**0.5 * b], axis=-1)


def _draw_kernel(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
) -> Array:
    """Draw from N(0, 1), and bring the weights of each output to magnitude 1."""
    return normalise_kernel(jax.random.normal(key, tuple(shape), dtype))


class MPConv(nn.Module):
    """Linear layer ``x W g / sqrt(fan_in)`` with weights W of magnitude 1 (eq. 47 and 66).

    W is the kernel divided by its magnitude for each output, so that the kernel's own size has no
    effect. Its gradient is at right angles to the kernel, which makes the kernel grow in training
    and the learning rate fall in effect; ``optim.unit_kernels`` sets it back after every step.

    Attributes:
        features: outputs.
        size: side of the kernel, odd; 0 for a dense layer of (..., C), without pixels.
        dtype: type to compute in; the kernel stays float32.
    """

    features: int
    size: int = 0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        """Return features (..., features).

        Args:
            x: (..., C), of an image (B, H, W, C) if the layer has a size.
            gain: g, 1 to preserve magnitudes.
        """
        shape = (*(self.size,) * (2 if self.size else 0), x.shape[-1], self.features)
        kernel = self.param("kernel", _draw_kernel, shape)
        fan_in = kernel.size // self.features
        dtype = self.dtype or x.dtype
        weight = (normalise_kernel(kernel) * (gain / fan_in**0.5)).astype(dtype)
        x = x.astype(dtype)
        if not self.size:
            return x @ weight
        return jax.lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class MPEmbed(nn.Module):
    """Rows (B, features) of a table, each column of which has magnitude 1; beyond the last are 0.

    It is `MPConv` of one-hot vectors of magnitude 1.

    Attributes:
        rows: number of classes.
        features: size of the embedding.
    """

    rows: int
    features: int

    @nn.compact
    def __call__(self, label: Array) -> Array:
        kernel = self.param("kernel", _draw_kernel, (self.rows, self.features))
        found = normalise_kernel(kernel)[jnp.minimum(label, self.rows - 1)]
        return jnp.where(label[:, None] < self.rows, found, 0)


class MPFourier(nn.Module):
    """Fourier features ``sqrt(2) cos(2 pi (f t + p))`` (B, dim) of times (B,) (eq. 75).

    Frequencies ``f ~ N(0, 1)`` and phases ``p ~ U[0, 1)`` are drawn once and not trained.

    Attributes:
        dim: number of features.
    """

    dim: int

    @nn.compact
    def __call__(self, t: Array) -> Array:
        shape = (self.dim,)
        freqs = self.param("freqs", nn.initializers.normal(1.0), shape)
        phases = self.param("phases", nn.initializers.uniform(1.0), shape)
        freqs, phases = jax.lax.stop_gradient((freqs, phases))
        turns = t.astype(jnp.float32)[:, None] * freqs + phases
        return 2**0.5 * jnp.cos(2 * jnp.pi * turns)


class Uncertainty(nn.Module):
    """Log-variance ``u(c)`` (B,) of the loss at noise levels c (B,) (Karras et al. 2024, eq. 21).

    One layer on Fourier features of ``c = log(sigma / alpha) / 4``.

    Attributes:
        dim: number of features.
    """

    dim: int = 128

    @nn.compact
    def __call__(self, c: Array) -> Array:
        return MPConv(1, name="linear")(MPFourier(self.dim, name="fourier")(c))[:, 0]
