"""Transformer blocks that let the pixels of a UNet attend to a text.

Rombach et al. 2022, appendix E.2.1, with the state-dict names of diffusers' Transformer2DModel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from diffjax.nets.attention import Attention
from diffjax.nets.layers import GroupNorm, conv, default_init, rematerialise, zero_init
from diffjax.types import DType

Array = jax.Array
# Pictures that stand beside the text, see `diffjax.nets.attention.Attention`.
Prompts = Sequence[Mapping[str, Array]]


class GEGLU(nn.Module):
    """Feed-forward ``W_2 (h * gelu(g))`` with ``[h, g] = W_1 x`` (Shazeer 2020), exact GELU."""

    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        h = nn.Dense(8 * width, dtype=self.dtype, kernel_init=default_init, name="net.0.proj")(x)
        h, gate = jnp.split(h, 2, axis=-1)
        h = h * nn.gelu(gate, approximate=False)
        return nn.Dense(width, dtype=self.dtype, kernel_init=default_init, name="net.2")(h)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each ``x + f(norm(x))``.

    It is the body of a scan, so that it returns ``(x, None)``.

    Attributes:
        heads: attention heads.
        kind: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    heads: int
    kind: str = "auto"
    dtype: DType = None
    identity: bool = False
    only_cross: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None,
        mask: Array | None = None,
        prompts: Prompts = (),
    ) -> tuple[Array, None]:
        """Return tokens of the shape of x.

        Args:
            x: pixels as tokens (B, N, C).
            context: (B, M, D); None attends to x itself.
            mask: (B, M) bool; False leaves a token of the context out.
            prompts: pictures that the second attention also reads, see `Attention`.
        """

        def norm(name: str, value: Array) -> Array:
            return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)(value)

        def attention(name: str, identity: bool = False) -> Attention:
            return Attention(self.heads, None, False, self.dtype, self.kind, identity, name=name)

        first = (context, mask) if self.only_cross else ()
        x = x + attention("attn1", self.identity)(norm("norm1", x), *first)
        x = x + attention("attn2")(norm("norm2", x), context, mask, prompts)
        x = x + GEGLU(self.dtype, name="ff")(norm("norm3", x))
        return x, None


class SpatialTransformer(nn.Module):
    """Transformer blocks over all pixels, ``x + proj_out(blocks(proj_in(norm(x))))``.

    The blocks are scanned even if there is one: their parameters are stacked, and compile time
    does not grow with depth.

    Attributes:
        heads: attention heads.
        depth: number of blocks.
        linear: dense projections (SD 2, XL) instead of 1x1 convolutions.
        groups: of the group norm.
        kind: see `diffjax.nets.attention.attend`.
        remat: see `diffjax.nets.layers.REMAT`.
        dtype: type to compute in; parameters stay float32.
        identity: of the self-attention, see `Attention`.
        only_cross: the first attention of each block reads the context, too.
    """

    heads: int = 1
    depth: int = 1
    linear: bool = False
    groups: int = 32
    kind: str = "auto"
    remat: str | bool = False
    dtype: DType = None
    identity: bool = False
    only_cross: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None,
        mask: Array | None = None,
        prompts: Prompts = (),
    ) -> Array:
        """Return features of the shape of x (B, H, W, C); arguments as in `TransformerBlock`."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        y = self._project(y, "proj_in", default_init).reshape(b, h * w, c)
        y, _ = self._make_blocks()(y, context, mask, prompts)
        return x + self._project(y.reshape(b, h, w, c), "proj_out", zero_init)

    def _make_blocks(self) -> nn.Module:
        """Make the scan over the blocks."""
        block = rematerialise(TransformerBlock, self.remat, prevent_cse=False)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        return stack(
            self.heads,
            self.kind,
            self.dtype,
            self.identity,
            self.only_cross,
            name="transformer_blocks",
        )

    def _project(self, x: Array, name: str, init: Initializer) -> Array:
        c = x.shape[-1]
        if self.linear:
            return nn.Dense(c, dtype=self.dtype, kernel_init=init, name=name)(x)
        return conv(c, name=name, size=1, padding=0, dtype=self.dtype, init=init)(x)
