"""Transformer over patches: DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024).

State-dict names are those of diffusers' DiTTransformer2DModel, but for the embedding of time and
class: it is stored once, as in the released models, and not in every block.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.nets.attention import Attention
from diffjax.nets.layers import (
    TimestepMLP,
    check_added,
    check_context,
    default_init,
    embed_added,
    embed_label,
    rematerialise,
    timestep_embedding,
)
from diffjax.nets.resampling import depth_to_space
from diffjax.types import Cond, CondEntries, ConfigError, DType

Array = jax.Array

WAVES = 256  # size of the sinusoidal embedding of the time
_zeros, _small = nn.initializers.zeros, nn.initializers.normal(0.02)
# Xavier-uniform of the patch as one vector; a convolution's would count its pixels as outputs too.
_patch_init = nn.initializers.variance_scaling(
    1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3
)


def position_embedding(height: int, width: int, dim: int) -> np.ndarray:
    """Return the fixed sine-cosine embedding (height * width, dim) of the places of patches.

    With ``w_k = 10000^(-k / (dim/4))`` for k = 0 .. dim/4 - 1, row ``y * width + x`` is
    ``[sin(x w), cos(x w), sin(y w), cos(y w)]`` (Peebles & Xie 2023, released code).

    Args:
        height, width: patches on the sides.
        dim: size of the embedding.

    Raises:
        ConfigError: 4 does not divide dim.
    """
    if dim % 4:
        raise ConfigError(f"network.channels of a transformer must be a multiple of 4, got {dim}")
    freqs = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    y, x = np.divmod(np.arange(height * width), width)
    angles = [x[:, None] * freqs, y[:, None] * freqs]
    waves = [wave for angle in angles for wave in (np.sin(angle), np.cos(angle))]
    return np.concatenate(waves, axis=-1).astype(np.float32)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Return ``x (1 + scale) + shift``, with x (B, N, D), and shift and scale (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def _norm(eps: float, name: str, dtype: DType) -> nn.LayerNorm:
    """Make a layer norm without parameters; its mean and variance are in float32."""
    return nn.LayerNorm(
        eps, dtype=dtype, use_bias=False, use_scale=False, use_fast_variance=False, name=name
    )


class GELUFeedForward(nn.Module):
    """Feed-forward ``W_2 gelu(W_1 x)``, four times as wide inside, with the tanh form of GELU."""

    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        h = nn.Dense(4 * width, dtype=self.dtype, kernel_init=default_init, name="net.0.proj")(x)
        h = nn.gelu(h, approximate=True)
        return nn.Dense(width, dtype=self.dtype, kernel_init=default_init, name="net.2")(h)


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero (Peebles & Xie 2023, section 3.2).

    ``x + g_1 attention(norm(x) (1 + s_1) + b_1)``, then the same with the feed-forward. Shifts b,
    scales s and gates g are a linear function of SiLU(c), which is zero at initialisation: the
    block begins as the identity. With a context, tokens also attend to it in between, without a
    norm, as in PixArt-alpha (Chen et al. 2023, section 2.3).

    It is the body of a scan, so that it returns ``(x, None)``.

    Attributes:
        heads: attention heads.
        eps: of the norm before the feed-forward.
        kind: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    heads: int
    eps: float = 1e-6
    kind: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(
        self, x: Array, c: Array, context: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, None]:
        """Return tokens of the shape of x.

        Args:
            x: tokens (B, N, D).
            c: embedding of the condition (B, D).
            context: (B, M, K), or None.
            mask: (B, M) bool; False leaves a token of the context out.
        """
        dense = nn.Dense(6 * x.shape[-1], dtype=self.dtype, kernel_init=_zeros, name="norm1.linear")
        b1, s1, g1, b2, s2, g2 = jnp.split(dense(nn.silu(c)), 6, axis=-1)
        attention = Attention(
            self.heads, dtype=self.dtype, kind=self.kind, out_init=default_init, name="attn1"
        )
        h = modulate(_norm(1e-6, "norm1", self.dtype)(x), b1, s1)
        x = x + g1[:, None] * attention(h)
        if context is not None:
            cross = Attention(self.heads, dtype=self.dtype, kind=self.kind, name="attn2")
            x = x + cross(x, context, mask)
        h = modulate(_norm(self.eps, "norm3", self.dtype)(x), b2, s2)
        return x + g2[:, None] * GELUFeedForward(self.dtype, name="ff")(h), None


class DiT(nn.Module):
    """``(z, t, cond) -> raw``: transformer over patches (Peebles & Xie 2023, section 3.2).

    SiT (Ma et al. 2024) is the same network with another schedule and target. ``cond["concat"]``
    (B, H, W, C) joins the channels of z. The output is 0 at initialisation.

    Attributes:
        channels: width D of the tokens, a multiple of 4.
        blocks: number of blocks.
        heads, head_channels: number of heads, or channels of each (which wins if given).
        patch: side of a patch, which is one token.
        out_channels: channels of the output; twice the data's with a learned variance.
        num_classes: rows of the class embedding, 0 for none; ``cond["label"]`` (B,) int.
        context_dim: width K of the tokens ``cond["context"]`` (B, M, K) that every block attends
            to, 0 for none. ``cond["mask"]`` (B, M) bool, if given, leaves tokens out.
        freq_shift: spacing of the timestep embedding, see `timestep_embedding`: 0 in the released
            models, 1 in diffusers.
        time_scale, time_shift: factor on t, and what is added then.
        added_dim: numbers in the embedding of ``cond["added"]``, see `UNet`; 0 for none. Its
            "time_ids" are embedded as the time is, such as the length of a step (MeanFlow).
        added_time_dim: size of the embedding of each of them.
        norm_eps: added to the variance in the norm before the feed-forward; others add 1e-6.
        attention: see `diffjax.nets.attention.attend`.
        remat: what the backward pass computes again, see `diffjax.nets.layers.REMAT`.
        dtype: computation type; parameters stay float32.
    """

    channels: int = 384
    blocks: int = 12
    heads: int = 1
    head_channels: int | None = None
    patch: int = 2
    out_channels: int = 3
    num_classes: int = 0
    context_dim: int = 0
    freq_shift: float = 0.0
    time_scale: float = 1.0
    time_shift: float = 0.0
    added_dim: int = 0
    added_time_dim: int = WAVES
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str | bool = False
    dtype: DType = None

    @property
    def divisor(self) -> int:
        """The number that height and width must be multiples of."""
        return self.patch

    @nn.compact
    def __call__(
        self, z: Array, t: Array, cond: Cond = None, train: bool = False, keep: int = 0
    ) -> Array | tuple[Array, Array]:
        """Return the raw output (B, H, W, out_channels), in float32.

        Args:
            z: noisy data (B, H, W, C).
            t: times, () or (B,).
            cond: entries of the condition, see the class.
            train: without effect: there is no dropout.
            keep: number k of blocks, to return ``(output, tokens)`` with the tokens (B, N, D) after
                block k; 0 returns the output alone.

        Raises:
            ConfigError: the width does not fit the heads or the position embedding.
            ValueError: shapes do not fit the network, or a condition that it needs is absent.
        """
        cond = cond or {}
        heads = self._count_heads()
        _check(self, z, cond)
        concat = cond.get("concat")
        z = z if concat is None else jnp.concatenate([z, concat], axis=-1)
        x = nn.Conv(
            self.channels,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=_patch_init,
            name="pos_embed.proj",
        )(z)
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d) + position_embedding(h, w, d).astype(x.dtype)
        c = self._embed(t, b, cond)
        context = cond["context"] if self.context_dim else None
        if not keep:
            x, _ = self._make_blocks(heads)(x, c, context, cond.get("mask"))
            return self._project(x, c, (b, h, w))
        x, tokens = self._keep_tokens(heads, keep, x, (c, context, cond.get("mask")))
        return self._project(x, c, (b, h, w)), tokens

    def _count_heads(self) -> int:
        """Return the number of heads, or raise a ConfigError if they do not divide the width."""
        heads = self.channels // self.head_channels if self.head_channels else self.heads
        name, value = (
            ("head_channels", self.head_channels) if self.head_channels else ("heads", heads)
        )
        if not isinstance(heads, int) or heads < 1 or self.channels % heads:
            raise ConfigError(
                f"network.{name}={value} does not divide network.channels={self.channels}; a "
                "transformer has one number of heads, which must divide its width"
            )
        return heads

    def _embed(self, t: Array, batch: int, cond: CondEntries) -> Array:
        """Return the embedding (B, D) of time, added numbers and label."""

        def embed(values: Array, dim: int) -> Array:
            shift = self.freq_shift
            return timestep_embedding(values, dim, flip_sin_to_cos=True, freq_shift=shift)

        t = jnp.full((batch,), t, jnp.float32) * self.time_scale + self.time_shift
        mlp = TimestepMLP(self.channels, self.dtype, _small, name="timestep_embedder")
        c = mlp(embed(t, WAVES))
        if self.added_dim:
            waves = partial(embed, dim=self.added_time_dim)
            mlp = TimestepMLP(self.channels, self.dtype, _small, name="added_embedder")
            c = c + mlp(embed_added(cond["added"], waves, self.added_dim))
        if not self.num_classes:
            return c
        table = nn.Embed(
            self.num_classes,
            self.channels,
            embedding_init=_small,
            name="class_embedder.embedding_table",
        )
        return c + embed_label(table, cond.get("label")).astype(c.dtype)

    def _make_blocks(self, heads: int) -> nn.Module:
        """Make the scan over the blocks, whose parameters are stacked."""
        stack = nn.scan(
            rematerialise(DiTBlock, self.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.blocks,
        )
        return stack(heads, self.norm_eps, self.attention, self.dtype, name="transformer_blocks")

    def _keep_tokens(
        self, heads: int, keep: int, x: Array, given: tuple[Array | None, ...]
    ) -> tuple[Array, Array]:
        """Scan over the same blocks, and return their output and the tokens after ``keep`` of them.

        The tokens are carried beside x, so that those of the other blocks are not stored.
        """
        block = rematerialise(DiTBlock, self.remat, prevent_cse=False)

        def step(block: nn.Module, carry: tuple[Array, Array], place: Array) -> Any:
            x, _ = block(carry[0], *given)
            return (x, jnp.where(place == keep - 1, x, carry[1])), None

        scan = nn.scan(
            step, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.blocks
        )
        made = block(heads, self.norm_eps, self.attention, self.dtype, name="transformer_blocks")
        carry, _ = scan(made, (x, x), jnp.arange(self.blocks))
        return carry[0], carry[1]

    def _project(self, x: Array, c: Array, shape: tuple[int, int, int]) -> Array:
        """Return the image (B, H, W, out_channels) of tokens, with a last adaptive norm.

        The output, and all sampler arithmetic after it, stays float32 under bf16 networks.
        """
        dense = nn.Dense(2 * x.shape[-1], dtype=self.dtype, kernel_init=_zeros, name="proj_out_1")
        shift, scale = jnp.split(dense(nn.silu(c)), 2, axis=-1)
        x = modulate(_norm(1e-6, "norm_out", self.dtype)(x), shift, scale)
        width = self.patch**2 * self.out_channels
        x = nn.Dense(width, dtype=jnp.float32, kernel_init=_zeros, name="proj_out_2")(x)
        return depth_to_space(x.reshape(*shape, width), self.patch)


def _check(net: DiT, z: Array, cond: CondEntries) -> None:
    """Raise a ValueError if z or the condition does not have the shapes that the network needs."""
    if z.ndim != 4 or z.shape[1] % net.patch or z.shape[2] % net.patch:
        raise ValueError(
            f"images must be (B, H, W, C) with H and W multiples of {net.patch}, got {z.shape}"
        )
    if net.added_dim:
        check_added(cond)
    for name in ("control", "adapter", "augment", *(() if net.added_dim else ("added",))):
        if name in cond:
            raise ValueError(f"a transformer (network.name=dit) does not read cond[{name!r}]")
    check_context(cond, net.context_dim)
