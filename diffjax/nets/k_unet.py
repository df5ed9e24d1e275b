"""The UNet of the latent upscaler, with diffusers' state-dict names.

It is the network of k-diffusion for images (Crowson 2022) as `UNet2DConditionModel` of diffusers
has it with the blocks ``KDownBlock2D``, ``KCrossAttnDownBlock2D`` and their counterparts.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.attention import Attention
from diffjax.nets.layers import (
    FourierEmbedding,
    TimestepMLP,
    check_context,
    conv,
    default_init,
    normalise_groups,
    rematerialise,
    zero_init,
)
from diffjax.nets.levels import take_level
from diffjax.nets.resampling import fir_downsample2, fir_upsample2
from diffjax.nets.text import gelu
from diffjax.types import Cond, CondEntries, DType

Array = jax.Array
GROUP = 32  # channels of a group, in every norm


class AdaptiveGroupNorm(nn.Module):
    """``norm(x) (1 + scale) + shift``, where scale and shift are linear in an embedding.

    Attributes:
        eps: added to the variance.
        dtype: type to compute in.
    """

    eps: float = 1e-5
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, temb: Array) -> Array:
        """Normalise x (B, H, W, C), as an embedding (B, D) says."""
        channels = x.shape[-1]
        proj = nn.Dense(2 * channels, dtype=self.dtype, kernel_init=default_init, name="linear")(
            temb
        )
        scale, shift = jnp.split(proj[:, None, None, :], 2, axis=-1)
        y = normalise_groups(x, max(1, channels // GROUP), self.eps).astype(self.dtype or x.dtype)
        return y * (1 + scale) + shift


class KResBlock(nn.Module):
    """Residual block: adaptive norm, GELU and convolution, twice.

    Attributes:
        middle: channels between the convolutions.
        features: output channels.
        dropout: rate when training.
        eps: of the norms.
        dtype: type to compute in.
    """

    middle: int
    features: int
    dropout: float = 0.0
    eps: float = 1e-5
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, temb: Array, train: bool = False) -> Array:
        """Return features (B, H, W, features) of x (B, H, W, C) and an embedding (B, D)."""

        def norm(h: Array, name: str) -> Array:
            return gelu(AdaptiveGroupNorm(self.eps, self.dtype, name=name)(h, temb))

        h = conv(self.middle, name="conv1", dtype=self.dtype)(norm(x, "norm1"))
        h = nn.Dropout(self.dropout, deterministic=not train)(norm(h, "norm2"))
        h = conv(self.features, name="conv2", dtype=self.dtype, init=zero_init)(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(
                self.features,
                (1, 1),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=default_init,
                name="conv_shortcut",
            )(x)
        return x + h


class KAttention(nn.Module):
    """Residual attention: to the pixels if ``itself``, then to the tokens of a context.

    Attributes:
        head_channels: width of a head.
        itself: whether there is self-attention.
        dtype: type to compute in.
        kind: see `diffjax.nets.attention.attend`.
    """

    head_channels: int = 64
    itself: bool = False
    dtype: DType = None
    kind: str = "auto"

    @nn.compact
    def __call__(self, x: Array, temb: Array, context: Array, mask: Array | None = None) -> Array:
        """Return features of the shape of x.

        Args:
            x: (B, H, W, C).
            temb: embedding (B, D).
            context: tokens (B, M, T).
            mask: (B, M) bool; False leaves a token out.
        """
        attention = partial(
            Attention, x.shape[-1] // self.head_channels, dtype=self.dtype, kind=self.kind
        )

        def norm(value: Array, name: str) -> Array:
            y = AdaptiveGroupNorm(dtype=self.dtype, name=name)(value, temb)
            return y.reshape(len(y), -1, y.shape[-1])

        if self.itself:
            x = x + attention(name="attn1")(norm(x, "norm1")).reshape(x.shape)
        seen = attention(norm_context=True, name="attn2")(norm(x, "norm2"), context, mask)
        return x + seen.reshape(x.shape)


class KUNet(nn.Module):
    """``(z, t, cond) -> raw``: the UNet of the latent upscaler.

    It differs from `diffjax.nets.unet.UNet`: norms are adaptive, levels are resampled by a fixed
    filter, there is one skip for each level but the coarsest, and there is no middle. The coarsest
    level alone has self-attention. ``cond`` has ``context`` (B, M, D), which attentions read,
    ``vector`` (B, V), which is added to the embedding of t, and maybe ``concat`` (B, H, W, C),
    which joins the channels of z, and ``mask`` (B, M) bool, which leaves tokens out.

    Attributes:
        widths: channels of each level; each halves the resolution.
        blocks: residual blocks per level: one number, or one per level.
        attention_levels: indices of the levels that have attention, the coarsest among them.
        head_channels: width of a head.
        out_channels: channels of the output: one more than the data's, of a variance.
        context_dim: D, width of the tokens.
        vector_dim: V, size of ``cond["vector"]``.
        flip_sin_to_cos: order [cos, sin] of the Fourier features of t.
        dropout: rate inside residual blocks when ``train``.
        norm_eps: of the norms of residual blocks.
        remat: what the backward pass computes again, see `diffjax.nets.layers.REMAT`.
        attention: see `diffjax.nets.attention.attend`.
        dtype: computation type; parameters stay float32.
    """

    widths: tuple[int, ...] = (384, 384, 768, 768)
    blocks: int | tuple[int, ...] = 2
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_channels: int = 64
    out_channels: int = 5
    context_dim: int = 768
    vector_dim: int = 896
    flip_sin_to_cos: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-5
    remat: str | bool = False
    attention: str = "auto"
    dtype: DType = None

    # What `diffjax.nets.unet.UNet` may read besides, and this network never does.
    added_dim = 0
    guidance_dim = 0

    @property
    def divisor(self) -> int:
        """The number that height and width must be multiples of."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def token_dim(self) -> int:
        """Width of ``cond["context"]``."""
        return self.context_dim

    @nn.compact
    def __call__(self, z: Array, t: Array, cond: Cond = None, train: bool = False) -> Array:
        """Return the raw output (B, H, W, out_channels), in float32.

        Args:
            z: noisy data (B, H, W, C).
            t: times, () or (B,): ``ln(sigma / alpha) / 4``.
            cond: entries of the condition, see the class.
            train: whether dropout is active.

        Raises:
            ValueError: shapes do not fit the network, or a condition that it needs is absent.
        """
        cond = cond or {}
        self._check(z, cond)
        if "concat" in cond:
            z = jnp.concatenate([z, cond["concat"]], axis=-1)
        temb = self._embed(jnp.full(z.shape[:1], t, jnp.float32), cond["vector"])
        h = conv(self.widths[0], name="conv_in", size=1, padding=0, dtype=self.dtype)(z)
        last = len(self.widths) - 1
        skips = []
        for i, width in enumerate(self.widths):
            h = self._apply_level(h, temb, cond, train, f"down_blocks.{i}", i, width)
            if i != last:
                skips.append(h)
                h = fir_downsample2(h, reflect=True)
        for k, i in enumerate(range(last, -1, -1)):
            if i != last:
                h = jnp.concatenate([fir_upsample2(h, reflect=True), skips.pop()], axis=-1)
            width = self.widths[max(i - 1, 0)]
            h = self._apply_level(h, temb, cond, train, f"up_blocks.{k}", i, width)
        # The output, and all sampler arithmetic after it, stays float32 under bf16 networks.
        return conv(
            self.out_channels,
            name="conv_out",
            size=1,
            padding=0,
            dtype=jnp.float32,
            init=zero_init,
        )(h)

    def _embed(self, t: Array, vector: Array) -> Array:
        """Return the embedding (B, 2 widths[0]) of times (B,) and of a vector (B, V)."""
        size = 2 * self.widths[0]
        waves = FourierEmbedding(size, 1.0, self.flip_sin_to_cos, name="time_proj")(t)
        mlp = TimestepMLP(
            size, self.dtype, activation=gelu, activate_last=True, name="time_embedding"
        )
        return mlp(waves, vector)

    def _apply_level(
        self,
        h: Array,
        temb: Array,
        cond: CondEntries,
        train: bool,
        name: str,
        level: int,
        features: int,
    ) -> Array:
        """Apply the blocks of a level, of which the last returns ``features`` channels."""
        block = rematerialise(KResBlock, self.remat, static_argnums=(3,))
        attend = rematerialise(KAttention, self.remat)
        count, width = take_level("blocks", self.blocks, level), self.widths[level]
        attends, coarsest = level in self.attention_levels, level == len(self.widths) - 1
        for j in range(count):
            out = features if j == count - 1 else width
            # Levels without attention narrow by the first convolution of a block, others by the
            # second.
            middle = width if attends else out
            h = block(
                middle,
                out,
                self.dropout,
                self.norm_eps,
                self.dtype,
                name=f"{name}.resnets.{j}",
            )(h, temb, train)
            if attends:
                module = attend(
                    self.head_channels,
                    coarsest,
                    self.dtype,
                    self.attention,
                    name=f"{name}.attentions.{j}",
                )
                h = module(h, temb, cond["context"], cond.get("mask"))
        return h

    def _check(self, z: Array, cond: CondEntries) -> None:
        """Raise a ValueError if z or the condition does not have the shapes that are needed."""
        if z.ndim != 4 or z.shape[1] % self.divisor or z.shape[2] % self.divisor:
            raise ValueError(
                f"images must be (B, H, W, C) with H and W multiples of {self.divisor}, got "
                f"{z.shape}"
            )
        check_context(cond, self.context_dim)
        found = getattr(cond.get("vector"), "shape", None)
        if found is None or found[-1] != self.vector_dim:
            raise ValueError(
                f"this network needs cond['vector'] (B, {self.vector_dim}), got {found}"
            )
