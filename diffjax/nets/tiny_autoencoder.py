"""The tiny autoencoder of latents (TAESD), with the state-dict names of diffusers.

Plain residual convolutions with ReLU and without norms. It was trained to agree with the latents of
`AutoencoderKL` as a diffusion model sees them, so that its latents have the scale 1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.autoencoder import LatentScale, Posterior
from diffjax.nets.layers import conv
from diffjax.nets.resampling import upsample2

Array = jax.Array
_BOUND = 3.0  # latents are bounded by ``3 tanh(z / 3)`` before they are decoded


class TinyBlock(nn.Module):
    """``relu(x + conv(relu(conv(relu(conv(x))))))``."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for k in (0, 2, 4):
            h = nn.relu(h) if k else h
            h = conv(x.shape[-1], name=f"conv.{k}", dtype=self.dtype)(h)
        return nn.relu(h + x)


class _TinyCoder(nn.Module):
    """Convolutions and blocks in one row, which are numbered as the published network's are.

    Attributes:
        widths, blocks: of each level, in the order of the row.
        out_channels: of the last convolution.
        decodes: double the resolution between levels in place of halving it.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    out_channels: int
    decodes: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        number, last = 0, len(self.widths) - 1

        def layer(features: int, h: Array, stride: int = 1, bias: bool = True) -> Array:
            made = nn.Conv(
                features,
                (3, 3),
                strides=stride,
                padding=[(1, 1)] * 2,
                use_bias=bias,
                dtype=self.dtype,
                name=f"layers.{number}",
            )
            return made(h)

        if self.decodes:
            h, number = nn.relu(layer(self.widths[0], h)), 2
        for i, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if not self.decodes:
                h = layer(width, h, 1 + (i > 0), i == 0)
                number += 1
            for _ in range(count):
                h = TinyBlock(self.dtype, name=f"layers.{number}")(h)
                number += 1
            if self.decodes and i < last:
                h, number = upsample2(h), number + 1
                h, number = layer(width, h, bias=False), number + 1
        return layer(self.out_channels, h).astype(jnp.float32)


class AutoencoderTiny(LatentScale, nn.Module):
    """``x -> z -> x_hat``, without a posterior: latents are what the encoder says.

    Attributes:
        encoder_widths, decoder_widths: channels of each level, from the image and to the image.
        encoder_blocks, decoder_blocks: blocks of each level.
        latent_channels, out_channels: of latents and images.
        scaling_factor, shift_factor: see `LatentScale`.
        dtype: computation type; outputs stay float32.
    """

    encoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    out_channels: int = 3
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: Any = None

    def setup(self) -> None:
        self.encoder = _TinyCoder(
            self.encoder_widths, self.encoder_blocks, self.latent_channels, False, self.dtype
        )
        self.decoder = _TinyCoder(
            self.decoder_widths, self.decoder_blocks, self.out_channels, True, self.dtype
        )

    @property
    def factor(self) -> int:
        """How many pixels of the image lie along one side of a pixel of the latent."""
        return 2 ** (len(self.encoder_widths) - 1)

    @property
    def embed_channels(self) -> int:
        """Channels of the latent."""
        return self.latent_channels

    def encode(self, x: Array) -> Posterior:
        """The latents of images (B, H, W, C) in [-1, 1], as a posterior without variance."""
        mean = self.encoder((x + 1) / 2)
        return Posterior(mean, jnp.full_like(mean, -jnp.inf))

    def decode(self, z: Array) -> Array:
        """Images of latents (B, h, w, C)."""
        return 2 * self.decoder(_BOUND * jnp.tanh(z / _BOUND)) - 1

    def __call__(self, x: Array) -> tuple[Array, Posterior]:
        """Reconstruction and latents."""
        posterior = self.encode(x)
        return self.decode(posterior.mean), posterior
