"""Autoencoders of latent diffusion, with the state-dict names of diffusers.

Rombach et al. 2022, section 3.1 and appendix G: `AutoencoderKL` has a Gaussian posterior,
`VQModel` a codebook. Both shrink an image by ``f = 2^(levels - 1)`` on a side, so that latents of
(B, H, W, C) images are (B, H/f, W/f, channels). A diffusion model sees latents times the scaling
factor, which brings their standard deviation to about 1 (section D.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffjax.nets.attention import AttentionBlock
from diffjax.nets.layers import Downsample, GroupNorm, ResBlock, Upsample, conv, rematerialise
from diffjax.types import ArrayLike, DType

Array = jax.Array
LOGVAR = (-30.0, 20.0)  # bounds of the posterior's log-variance


class Posterior(NamedTuple):
    """The distribution ``q(z|x) = N(mean, exp(logvar))`` of a latent.

    Attributes:
        mean: (B, h, w, C).
        logvar: natural logarithm of the variance (B, h, w, C).
    """

    mean: Array
    logvar: Array

    def sample(self, key: jax.Array) -> Array:
        """Draw ``z = mean + std eps`` (B, h, w, C)."""
        return self.with_noise(jax.random.normal(key, self.mean.shape))

    def with_noise(self, eps: Array) -> Array:
        """Return ``mean + std eps`` for given standard noise eps (B, h, w, C)."""
        return self.mean + jnp.exp(0.5 * self.logvar) * eps

    def kl(self) -> Array:
        """Return ``KL(q(z|x) || N(0, I))`` (B,), in nats, summed over the latent."""
        value = 0.5 * (self.mean**2 + jnp.exp(self.logvar) - 1 - self.logvar)
        return value.sum(axis=(1, 2, 3))


class Quantized(NamedTuple):
    """Latents replaced by their nearest codes (van den Oord et al. 2017, eq. 3).

    Attributes:
        z: codes (B, h, w, D); the gradient passes straight through to the encoder.
        indices: which code (B, h, w), int32.
        codebook: ``|e - sg[z]|^2`` (B,), mean over the latent; its gradient moves the codes. sg
            stops the gradient.
        commitment: ``|sg[e] - z|^2`` (B,), mean over the latent; its gradient moves the encoder.
        anchors: (K, D), for every code the latent of the batch that is nearest to it.
    """

    z: Array
    indices: Array
    codebook: Array
    commitment: Array
    anchors: Array


class _Coder(nn.Module):
    """The blocks that encoder and decoder share; its fields are those of `AutoencoderKL`."""

    channels: int
    multipliers: tuple[float, ...]
    blocks: int
    attention_levels: tuple[int, ...]
    out_channels: int
    norm_groups: int
    middle_attention: bool
    attention: str
    remat: str | bool
    dtype: DType

    @nn.nowrap
    def _make_res_block(self, features: int, name: str) -> Callable[[Array], Array]:
        kind = rematerialise(ResBlock, self.remat, static_argnums=(3,))
        block = kind(features, groups=self.norm_groups, dtype=self.dtype, name=name)
        return lambda h: block(h, None, False)

    @nn.nowrap
    def _make_attention(self, name: str) -> AttentionBlock:
        return AttentionBlock(1, self.norm_groups, dtype=self.dtype, kind=self.attention, name=name)

    @nn.nowrap
    def _apply_middle(self, h: Array) -> Array:
        """Apply the two residual blocks at the coarsest level, with attention between them."""
        h = self._make_res_block(h.shape[-1], "mid_block.resnets.0")(h)
        if self.middle_attention:
            h = self._make_attention("mid_block.attentions.0")(h)
        return self._make_res_block(h.shape[-1], "mid_block.resnets.1")(h)

    @nn.nowrap
    def _apply_out(self, h: Array) -> Array:
        h = nn.silu(GroupNorm(self.norm_groups, dtype=self.dtype, name="conv_norm_out")(h))
        return conv(self.out_channels, name="conv_out", dtype=jnp.float32)(h)


CoderT = TypeVar("CoderT", bound=_Coder)


class Encoder(_Coder):
    """The network ``(B, H, W, C) -> (B, H/f, W/f, out_channels)``."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the features of images; the last convolution computes in float32."""
        h = conv(self.channels, name="conv_in", dtype=self.dtype)(x)
        for i, multiplier in enumerate(self.multipliers):
            for j in range(self.blocks):
                h = self._make_res_block(
                    int(self.channels * multiplier), f"down_blocks.{i}.resnets.{j}"
                )(h)
                if i in self.attention_levels:
                    h = self._make_attention(f"down_blocks.{i}.attentions.{j}")(h)
            if i < len(self.multipliers) - 1:
                h = Downsample(0, self.dtype, name=f"down_blocks.{i}.downsamplers.0")(h)
        return self._apply_out(self._apply_middle(h))


class Decoder(_Coder):
    """The network ``(B, h, w, C) -> (B, h f, w f, out_channels)``."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Return images of latents; the last convolution computes in float32."""
        return self.apply_blocks(z)

    @nn.nowrap
    def apply_blocks(
        self, z: Array, change: Callable[[Array, int], Array] = lambda h, level: h
    ) -> Array:
        """Apply all blocks, as submodules of the current module.

        Args:
            z: latents.
            change: what becomes of the features before each level, and after the last.
        """
        levels = len(self.multipliers)
        width = int(self.channels * self.multipliers[-1])
        h = self._apply_middle(conv(width, name="conv_in", dtype=self.dtype)(z))
        for k, i in enumerate(reversed(range(levels))):
            h = change(h, k)
            for j in range(self.blocks + 1):
                h = self._make_res_block(
                    int(self.channels * self.multipliers[i]), f"up_blocks.{k}.resnets.{j}"
                )(h)
                if i in self.attention_levels:
                    h = self._make_attention(f"up_blocks.{k}.attentions.{j}")(h)
            if i:
                h = Upsample(self.dtype, name=f"up_blocks.{k}.upsamplers.0")(h)
        return self._apply_out(change(h, levels))


class LatentScale:
    """What a diffusion model sees of latents z: ``(z - shift) * scale``.

    Both are one number or one per channel: a config of an autoencoder has ``scaling_factor`` and
    ``shift_factor``, or also the mean and the standard deviation of its latents by channel, where
    ``shift = mean`` and ``scale = scaling_factor / std``.
    """

    scaling_factor: float
    shift_factor: float
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @property
    def latent_scale(self) -> np.ndarray:
        """The scale, () or (C,), float32."""
        std = 1.0 if self.latents_std is None else np.asarray(self.latents_std)
        return np.asarray(self.scaling_factor / std, np.float32)

    @property
    def latent_shift(self) -> np.ndarray:
        """The shift, () or (C,), float32."""
        mean = self.shift_factor if self.latents_mean is None else self.latents_mean
        return np.asarray(mean, np.float32)

    def scale_latents(self, z: ArrayLike, scale: ArrayLike | None = None) -> Array:
        """Return what a diffusion model sees of latents (..., C) of the autoencoder.

        Args:
            scale: in place of the config's, () or (C,): one that was measured.
        """
        return (jnp.asarray(z) - self.latent_shift) * (
            self.latent_scale if scale is None else scale
        )

    def unscale_latents(self, x: ArrayLike, scale: ArrayLike | None = None) -> Array:
        """Return the latents (..., C) of the autoencoder: the inverse of `scale_latents`."""
        return jnp.asarray(x) / (self.latent_scale if scale is None else scale) + self.latent_shift


class Autoencoder(LatentScale, nn.Module):
    """Fields and parts that `AutoencoderKL` and `VQModel` share.

    Attributes:
        channels: width of the finest level.
        multipliers: width of each level over ``channels``; the shrinking is ``2^(levels - 1)``.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: indices of the levels with attention beside the middle.
        latent_channels: channels of the encoder's output.
        out_channels: channels of the image.
        scaling_factor, shift_factor, latents_mean, latents_std: see `LatentScale`; kept here,
            applied by whoever joins autoencoder and diffusion model.
        attention: see `diffjax.nets.attention.attend`.
        remat: see `diffjax.nets.layers.REMAT`.
        dtype: computation type; parameters and outputs stay float32.
        initialisation: a name in `diffjax.nets.initialisation`.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    latent_channels: int = 4
    out_channels: int = 3
    norm_groups: int = 32
    middle_attention: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    attention: str = "auto"
    remat: str | bool = False
    dtype: DType = None
    initialisation: str = "ddpm"
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @property
    def factor(self) -> int:
        """Pixels of the image along one side of a pixel of the latent, f."""
        return 2 ** (len(self.multipliers) - 1)

    @nn.nowrap
    def _make_coder(self, kind: type[CoderT], out_channels: int) -> CoderT:
        """Make the encoder or the decoder with the fields of this network."""
        return kind(
            self.channels,
            self.multipliers,
            self.blocks,
            self.attention_levels,
            out_channels,
            self.norm_groups,
            self.middle_attention,
            self.attention,
            self.remat,
            self.dtype,
        )

    @nn.nowrap
    def _check(self, x: Array) -> None:
        """Raise a ValueError if images do not fit the network."""
        f = self.factor
        if x.ndim != 4 or x.shape[1] % f or x.shape[2] % f or x.shape[3] != self.out_channels:
            raise ValueError(
                f"images must be (B, H, W, {self.out_channels}) with H and W multiples of {f}, "
                f"got {x.shape}"
            )


def make_pointwise(features: int, name: str) -> nn.Conv:
    """Make a 1x1 convolution."""
    return conv(features, name=name, size=1, padding=0)


class AutoencoderKL(Autoencoder):
    """The autoencoder ``x -> q(z|x) -> x_hat`` with a slight pull of q towards N(0, I).

    Attributes:
        quant_conv, post_quant_conv: whether there are 1x1 convolutions after the encoder and before
            the decoder.
        unit_range: give the encoder pixels in [0, 1], and read such from the decoder, as EDM2 does
            with weights that were trained on [-1, 1]; images are in [-1, 1] in any case.
    """

    quant_conv: bool = True
    post_quant_conv: bool = True
    unit_range: bool = False

    def setup(self) -> None:
        c = self.latent_channels
        self.encoder = self._make_coder(Encoder, 2 * c)
        self.decoder = self._make_coder(Decoder, self.out_channels)
        self._after = make_pointwise(2 * c, "quant_conv") if self.quant_conv else None
        self._before = make_pointwise(c, "post_quant_conv") if self.post_quant_conv else None

    @property
    def embed_channels(self) -> int:
        """Channels of the latent."""
        return self.latent_channels

    def encode(self, x: Array) -> Posterior:
        """Return the posterior of images (B, H, W, C) in [-1, 1].

        Raises:
            ValueError: H or W is no multiple of f, or the channels are others.
        """
        self._check(x)
        h = self.encoder((x + 1) / 2 if self.unit_range else x)
        mean, logvar = jnp.split(h if self._after is None else self._after(h), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR))

    def decode(self, z: Array) -> Array:
        """Return images (B, h f, w f, C) of latents (B, h, w, C)."""
        x = self.decoder(z if self._before is None else self._before(z))
        return 2 * x - 1 if self.unit_range else x

    def __call__(self, x: Array, eps: Array | None = None) -> tuple[Array, Posterior]:
        """Return the reconstruction of x and its posterior.

        Args:
            x: images (B, H, W, C) in [-1, 1].
            eps: standard noise (B, h, w, C) of the latent that is decoded; None decodes the mean.
        """
        posterior = self.encode(x)
        z = posterior.mean if eps is None else posterior.with_noise(eps)
        return self.decode(z), posterior


def _init_codes(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw codes uniformly in ±1/K for K codes, as the released code of the paper does."""
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


class Codebook(nn.Module):
    """The nearest code of every latent pixel (van den Oord et al. 2017, eq. 1-3).

    Attributes:
        codes: number K of codes.
        features: channels D of a code.
    """

    codes: int
    features: int

    def setup(self) -> None:
        self.embedding = nn.Embed(self.codes, self.features, embedding_init=_init_codes)

    def __call__(self, z: Array) -> Quantized:
        """Quantise latents (B, h, w, D); see `Quantized`."""
        table = self.embedding.embedding
        flat = z.reshape(-1, self.features)
        distance = (table**2).sum(-1) - 2 * flat @ table.T  # + |z|^2, the same for all codes
        index = distance.argmin(-1).reshape(z.shape[:3]).astype(jnp.int32)
        near = (distance + (flat**2).sum(-1, keepdims=True)).argmin(0)
        e = self.embedding(index)
        stop = jax.lax.stop_gradient
        return Quantized(
            z + stop(e - z),
            index,
            ((e - stop(z)) ** 2).mean((1, 2, 3)),
            ((stop(e) - z) ** 2).mean((1, 2, 3)),
            stop(flat[near]),
        )


class VQModel(Autoencoder):
    """The autoencoder ``x -> nearest codes -> x_hat`` (van den Oord et al. 2017).

    Attributes:
        codes: size K of the codebook.
        code_channels: channels D of a code; those of the encoder's output if 0.
    """

    latent_channels: int = 3
    codes: int = 256
    code_channels: int = 0

    def setup(self) -> None:
        self.encoder = self._make_coder(Encoder, self.latent_channels)
        self.decoder = self._make_coder(Decoder, self.out_channels)
        self._after = make_pointwise(self.embed_channels, "quant_conv")
        self.quantize = Codebook(self.codes, self.embed_channels)
        self._before = make_pointwise(self.latent_channels, "post_quant_conv")

    @property
    def embed_channels(self) -> int:
        """Channels of the latent."""
        return self.code_channels or self.latent_channels

    def encode(self, x: Array) -> Array:
        """Return latents (B, h, w, D) of images in [-1, 1], not yet quantised.

        Raises:
            ValueError: H or W is no multiple of f, or the channels are others.
        """
        self._check(x)
        return self._after(self.encoder(x))

    def decode(self, z: Array, *, quantize: bool = True) -> Array:
        """Return images of latents (B, h, w, D).

        Args:
            z: latents.
            quantize: replace each pixel by its nearest code first.
        """
        z = self.quantize(z).z if quantize else z
        return self.decoder(self._before(z))

    def __call__(self, x: Array) -> tuple[Array, Quantized]:
        """Return the reconstruction of images (B, H, W, C), and their `Quantized` latents."""
        quantized = self.quantize(self.encode(x))
        return self.decode(quantized.z, quantize=False), quantized
