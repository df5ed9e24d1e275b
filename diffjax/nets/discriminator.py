"""PatchGAN: a discriminator that judges overlapping patches (Isola et al. 2017)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from diffjax.types import DType

Array = jax.Array


def _init_scale(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw the scale of a batch norm from N(1, 0.02^2), as pix2pix does."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class PatchGAN(nn.Module):
    """The network ``images (B, H, W, C) -> logits (B, h, w, 1)``, one per patch.

    Parameters have pix2pix's names. It has convolutions of 4x4, ``layers`` of stride 2 and two of
    stride 1, with batch norms between them.

    Attributes:
        channels: width of the first convolution; the next are 2, 4, 8, 8, ... times as wide.
        layers: convolutions of stride 2; a patch is 34, 70, 142 pixels wide for 2, 3, 4.
        dtype: type to compute in; parameters and logits stay float32.
    """

    channels: int = 64
    layers: int = 3
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Return logits, above 0 for patches that look real.

        Args:
            x: images in [-1, 1].
            train: use the statistics of the batch, and update the running ones.

        Raises:
            ValueError: the image is so small that nothing is left of it.
        """
        if min(x.shape[1:3]) >> self.layers < 3:
            raise ValueError(
                f"a discriminator of {self.layers} layers needs images of at least "
                f"{3 << self.layers} pixels, got {x.shape[1:3]}; set loss.disc_layers"
            )
        h = nn.leaky_relu(self._make_conv(self.channels, 2, 0)(x), 0.2)
        for i in range(1, self.layers + 1):
            width, index = self.channels * min(2**i, 8), 3 * i - 1
            h = self._make_conv(width, 2 if i < self.layers else 1, index, bias=False)(h)
            norm = nn.BatchNorm(
                not train, momentum=0.9, epsilon=1e-5, scale_init=_init_scale,
                name=f"main.{index + 1}",
            )  # fmt: skip
            h = nn.leaky_relu(norm(h), 0.2)
        return self._make_conv(1, 1, 3 * self.layers + 2)(h).astype(jnp.float32)

    def _make_conv(self, features: int, stride: int, index: int, *, bias: bool = True) -> nn.Conv:
        """Make a 4x4 convolution with weights from N(0, 0.02^2), as pix2pix does."""
        return nn.Conv(
            features,
            (4, 4),
            strides=stride,
            padding=[(1, 1)] * 2,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            name=f"main.{index}",
        )
