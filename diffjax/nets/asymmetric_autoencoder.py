"""The autoencoder whose decoder is wider than its encoder, and sees what an image keeps.

Zhu et al. 2023, "Designing a better asymmetric VQGAN for Stable Diffusion", with the state-dict
names of diffusers' AsymmetricAutoencoderKL. Its latents are those of Stable Diffusion 1. With an
image and a mask the decoder reads the pixels outside of the mask, which then do not change.
"""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.autoencoder import AutoencoderKL, Decoder, Encoder, make_pointwise
from diffjax.nets.layers import conv
from diffjax.types import DType

Array = jax.Array
LEVELS = 4  # of every decoder with an image: the widths of its second encoder assume it


class KeptEncoder(nn.Module):
    """Features of what an image keeps, one for each level of the decoder, the coarsest first.

    Attributes:
        width: of the finest level of the decoder.
        widest: of its coarsest level.
        dtype: type to compute in; parameters stay float32.
    """

    width: int
    widest: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """Return features of images (B, H, W, C) for sides of H/8, H/4, H/2, H and H."""
        widths = [min(self.width * 2**k, self.widest) for k in range(LEVELS)]
        found = []
        for k, features in enumerate([*widths, self.widest]):
            name = f"layers.{k}"
            if k < 2:
                x = conv(features, name=name, dtype=self.dtype)(x)
            else:
                x = nn.Conv(
                    features, (4, 4), strides=2, padding=((1, 1), (1, 1)), dtype=self.dtype,
                    name=name,
                )(x)  # fmt: skip
            found.append(x)
            x = nn.relu(x)
        return found[::-1]


class MaskedDecoder(Decoder):
    """A decoder that takes what lies outside of a mask from an image."""

    @nn.compact
    def __call__(self, z: Array, image: Array | None = None, mask: Array | None = None) -> Array:
        """Return images of latents (B, h, w, C); see `AsymmetricAutoencoderKL.decode`."""
        width, widest = (int(self.channels * self.multipliers[k]) for k in (0, -1))
        kept = KeptEncoder(width, widest, self.dtype, name="condition_encoder")
        if image is None or mask is None:
            if self.is_initializing():  # its parameters are there, whether there is an image or not
                kept(jnp.zeros((1, 16, 16, self.out_channels)))
            return self.apply_blocks(z)
        if (levels := len(self.multipliers)) != LEVELS:
            raise ValueError(f"only decoders of {LEVELS} levels take an image, not of {levels}")
        whole, features = mask, kept((1 - mask) * image)

        def paste(h: Array, k: int) -> Array:
            step = whole.shape[1] // h.shape[1]
            inside = whole[:, ::step, ::step].astype(h.dtype)
            return h * inside + features[k] * (1 - inside)

        return self.apply_blocks(z, paste)


class AsymmetricAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` with other widths and numbers of blocks in its decoder.

    Attributes:
        decoder_channels, decoder_multipliers, decoder_blocks: of the decoder; ``channels``,
            ``multipliers`` and ``blocks`` are of the encoder. The decoder has one more block in
            each level.
    """

    decoder_channels: int = 192
    decoder_multipliers: tuple[float, ...] = (1, 2, 4, 4)
    decoder_blocks: int = 2

    def setup(self) -> None:
        c = self.latent_channels
        self.encoder = self._make_coder(Encoder, 2 * c)
        self.decoder = MaskedDecoder(
            self.decoder_channels,
            self.decoder_multipliers,
            self.decoder_blocks,
            self.attention_levels,
            self.out_channels,
            self.norm_groups,
            self.middle_attention,
            self.attention,
            self.remat,
            self.dtype,
        )
        self._after = make_pointwise(2 * c, "quant_conv")
        self._before = make_pointwise(c, "post_quant_conv")

    def decode(self, z: Array, image: Array | None = None, mask: Array | None = None) -> Array:
        """Return images (B, h f, w f, C) of latents (B, h, w, C).

        Args:
            z: latents.
            image: (1 or B, h f, w f, C) in [-1, 1], of which the pixels outside of the mask are
                kept; None if nothing is.
            mask: (1 or B, h f, w f, 1), 1 where the latents are decoded.

        Raises:
            ValueError: an image for a decoder of another number of levels than 4.
        """
        before, decoder = cast(nn.Conv, self._before), cast(MaskedDecoder, self.decoder)
        return decoder(before(z), image, mask)
