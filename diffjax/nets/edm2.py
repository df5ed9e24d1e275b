"""The UNet of EDM2, which preserves magnitudes (Karras et al. 2024, arXiv:2312.02696, figure 21).

Submodules carry the names of the released models, with the index of a level in place of its
resolution, so that ``enc.0_block1.conv_res0`` is their ``enc.64x64_block1.conv_res0``.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.attention import attend
from diffjax.nets.layers import rematerialise
from diffjax.nets.magnitude import (
    MPConv,
    MPEmbed,
    MPFourier,
    mp_concat,
    mp_silu,
    mp_sum,
    normalise,
)
from diffjax.nets.resampling import downsample2, upsample2
from diffjax.types import Cond, CondEntries, ConfigError, DType

Array = jax.Array
_zero = nn.initializers.zeros


class MPBlock(nn.Module):
    """Residual block ``mp_sum(x, W_1 silu(W_0 silu(x) * (1 + g W_c c)))``, then attention.

    An encoder's block brings every pixel of x to magnitude 1 first; a decoder's does not. The gain
    g begins at 0. Activations are cut at +-`clip`.

    Attributes:
        features: channels of the output.
        decoder: whether it is a decoder's.
        resample: none, down or up, which comes first.
        heads: of self-attention after the residual branch; 0 for none.
        dropout: probability of dropping an activation in training.
        residual_balance, attention_balance: share of the branch in the sum.
        clip: largest activation.
        kind: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    features: int
    decoder: bool = False
    resample: str = "none"
    heads: int = 0
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float = 256.0
    kind: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool = False) -> Array:
        """Return features (B, H, W, features), of half or twice the sides if it resamples.

        Args:
            x: features (B, H, W, C).
            emb: embedding of time and class (B, D).
            train: whether to drop activations.
        """
        x = {"none": lambda h: h, "down": downsample2, "up": upsample2}[self.resample](x)
        skip = MPConv(self.features, 1, self.dtype, name="conv_skip")
        if not self.decoder:
            x = normalise(skip(x) if x.shape[-1] != self.features else x)
        y = MPConv(self.features, 3, self.dtype, name="conv_res0")(mp_silu(x))
        gain = self.param("emb_gain", _zero, ())
        scale = 1 + MPConv(self.features, 0, self.dtype, name="emb_linear")(emb, gain)
        y = mp_silu(y * scale[:, None, None].astype(y.dtype))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = MPConv(self.features, 3, self.dtype, name="conv_res1")(y)
        if self.decoder and x.shape[-1] != self.features:
            x = skip(x)
        x = mp_sum(x, y, self.residual_balance)
        if self.heads:
            x = mp_sum(x, self._attend(x), self.attention_balance)
        return jnp.clip(x, -self.clip, self.clip)

    def _attend(self, x: Array) -> Array:
        """Attend over all pixels, with queries, keys and values of magnitude 1 in each head."""
        b, h, w, c = x.shape
        joined = MPConv(3 * c, 1, self.dtype, name="attn_qkv")(x)
        parts = normalise(joined.reshape(b, h * w, self.heads, c // self.heads, 3), axis=-2)
        q, k, v = (parts[..., i] for i in range(3))
        y = attend(q, k, v, kind=self.kind).reshape(b, h, w, c)
        return MPConv(c, 1, self.dtype, name="attn_proj")(y)


class EDM2UNet(nn.Module):
    """``(z, t, cond) -> raw``: the UNet of EDM2 (Karras et al. 2024, config G).

    Its input has to have magnitude 1, as with the parameterization ``edm``, and its time is
    ``log(sigma) / 4``, that of the schedule ``edm``. ``cond["concat"]`` (B, H, W, C) joins the
    channels of z. The output is 0 at initialisation, as the last gain is.

    Attributes:
        channels: width of the finest level.
        multipliers: width of each level over ``channels``; each level halves the sides.
        blocks: blocks of a level of the encoder; the decoder has one more.
        attention_levels: indices of the levels with attention, beside one block in the middle.
        head_channels: channels of each head.
        out_channels: channels of the output.
        num_classes: rows of the class embedding, 0 for none; ``cond["label"]`` (B,) int.
        dropout: probability of dropping an activation in training.
        label_balance: share of the class in its sum with the time.
        concat_balance: share of the skip where it joins the decoder.
        residual_balance, attention_balance: share of the branches of a block.
        clip: largest activation after a block.
        attention: see `diffjax.nets.attention.attend`.
        remat: what the backward pass computes again, see `diffjax.nets.layers.REMAT`.
        dtype: computation type; parameters stay float32.
    """

    channels: int = 192
    multipliers: tuple[float, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    head_channels: int = 64
    out_channels: int = 3
    num_classes: int = 0
    dropout: float = 0.0
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float = 256.0
    attention: str = "auto"
    remat: str | bool = False
    dtype: DType = None

    @property
    def divisor(self) -> int:
        """The number that height and width must be multiples of."""
        return 2 ** (len(self.multipliers) - 1)

    @nn.compact
    def __call__(self, z: Array, t: Array, cond: Cond = None, train: bool = False) -> Array:
        """Return the raw output (B, H, W, out_channels), in float32.

        Args:
            z: noisy data (B, H, W, C), of magnitude 1.
            t: times ``log(sigma) / 4``, () or (B,).
            cond: entries of the condition, see the class.
            train: whether to drop activations.

        Raises:
            ConfigError: the heads do not divide a width.
            ValueError: shapes do not fit the network, or a condition that it needs is absent.
        """
        cond = cond or {}
        widths = self._find_widths()
        _check(self, z, cond)
        emb = self._embed(t, z.shape[0], cond, widths)
        concat = cond.get("concat")
        x = z if concat is None else jnp.concatenate([z, concat], axis=-1)
        # The constant channel takes the place of biases.
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        x = MPConv(widths[0], 3, self.dtype, name="enc.0_conv")(x)
        skips = [x]
        for level, width in enumerate(widths):
            if level:
                down = self._make_block(f"enc.{level}_down", x.shape[-1], resample="down")
                x = down(x, emb, train)
                skips.append(x)
            for k in range(self.blocks):
                attentive = level in self.attention_levels
                block = self._make_block(f"enc.{level}_block{k}", width, attentive=attentive)
                x = block(x, emb, train)
                skips.append(x)
        x = self._decode(x, skips, emb, widths, train)
        gain = self.param("out_gain", _zero, ())
        # The output, and all sampler arithmetic after it, stays float32 under bf16 networks.
        return MPConv(self.out_channels, 3, jnp.float32, name="out_conv")(x, gain)

    def _decode(
        self, x: Array, skips: list[Array], emb: Array, widths: list[int], train: bool
    ) -> Array:
        """Return the features of the finest level; takes the skips from the end of their list."""
        last = len(widths) - 1
        for level in reversed(range(len(widths))):
            if level == last:
                for k in range(2):
                    name = f"dec.{level}_in{k}"
                    block = self._make_block(name, x.shape[-1], decoder=True, attentive=k == 0)
                    x = block(x, emb, train)
            else:
                name = f"dec.{level}_up"
                block = self._make_block(name, x.shape[-1], decoder=True, resample="up")
                x = block(x, emb, train)
            for k in range(self.blocks + 1):
                x = mp_concat(x, skips.pop(), self.concat_balance)
                attentive = level in self.attention_levels
                name = f"dec.{level}_block{k}"
                block = self._make_block(name, widths[level], decoder=True, attentive=attentive)
                x = block(x, emb, train)
        return x

    def _find_widths(self) -> list[int]:
        """Return the width of every level, or raise a ConfigError if heads do not divide it."""
        widths = [int(self.channels * factor) for factor in self.multipliers]
        for level in {*self.attention_levels, len(widths) - 1} & set(range(len(widths))):
            if widths[level] % self.head_channels:
                raise ConfigError(
                    f"network.head_channels={self.head_channels} does not divide the "
                    f"{widths[level]} channels of level {level}, which has attention"
                )
        return widths

    def _embed(self, t: Array, batch: int, cond: CondEntries, widths: list[int]) -> Array:
        """Return the embedding (B, D) of time and label, D the largest width."""
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,))
        size = max(widths)
        waves = MPFourier(widths[0], name="emb_fourier")(t)
        emb = MPConv(size, 0, self.dtype, name="emb_noise")(waves)
        if self.num_classes:
            label = MPEmbed(self.num_classes, size, name="emb_label")(cond["label"])
            emb = mp_sum(emb, label.astype(emb.dtype), self.label_balance)
        return mp_silu(emb)

    def _make_block(
        self,
        name: str,
        width: int,
        *,
        decoder: bool = False,
        resample: str = "none",
        attentive: bool = False,
    ) -> MPBlock:
        """Make a block with the options of the network."""
        kind = rematerialise(MPBlock, self.remat, static_argnums=(3,))
        return kind(
            width,
            decoder,
            resample,
            width // self.head_channels if attentive else 0,
            self.dropout,
            self.residual_balance,
            self.attention_balance,
            self.clip,
            self.attention,
            self.dtype,
            name=name,
        )


def _check(net: EDM2UNet, z: Array, cond: CondEntries) -> None:
    """Raise a ValueError if z or the condition does not have the shapes that the network needs."""
    if z.ndim != 4 or z.shape[1] % net.divisor or z.shape[2] % net.divisor:
        raise ValueError(
            f"images must be (B, H, W, C) with H and W multiples of {net.divisor}, got {z.shape}"
        )
    for name in ("control", "adapter", "added", "augment", "context"):
        if name in cond:
            raise ValueError(f"the network edm2 does not read cond[{name!r}]")
    if net.num_classes and cond.get("label") is None:
        raise ValueError(f"this network needs cond['label'] in 0 .. {net.num_classes - 1}")
