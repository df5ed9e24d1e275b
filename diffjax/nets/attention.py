"""Attention over the pixels of a feature map."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from diffjax.nets.layers import GroupNorm, default_init, zero_init

Array = jax.Array


class Attention(nn.Module):
    """Multi-head attention ``softmax(Q K^T / sqrt(d)) V``.

    Keys and values come from ``context`` (B, M, D) if it is given.

    Attributes:
        heads: number of heads.
        width: total width of the heads; the input's channels if None.
        bias: biases on the q, k, v projections.
    """

    heads: int = 1
    width: int | None = None
    bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        width = self.width or x.shape[-1]
        source = x if context is None else context

        def project(name: str, value: Array) -> Array:
            out = nn.Dense(width, self.bias, dtype=self.dtype, kernel_init=default_init, name=name)(
                value
            )
            return out.reshape(*out.shape[:2], self.heads, width // self.heads)

        q, k, v = project("to_q", x), project("to_k", source), project("to_v", source)
        out = jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], width)
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=zero_init, name="to_out.0")(out)


class AttentionBlock(nn.Module):
    """Residual self-attention of DDPM: ``x + attention(norm(x))`` over all pixels."""

    heads: int = 1
    groups: int = 32
    eps: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, self.eps, self.dtype, name="group_norm")(x)
        attention = Attention(self.heads, dtype=self.dtype)
        nn.share_scope(self, attention)  # to_q, ... sit beside group_norm, as in diffusers
        return x + attention(y.reshape(b, h * w, c)).reshape(b, h, w, c)
