"""Attention over the pixels of a feature map, and from pixels to the tokens of a context."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from diffjax.nets.fused_attention import choose_fused, splash
from diffjax.nets.layers import GroupNorm, default_init, zero_init
from diffjax.types import DType, choose, expand

Array = jax.Array
CHUNK = 1024  # queries that chunked attention computes at a time


def plain(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Compute ``softmax(Q K^T / sqrt(d)) V`` as it is written, with the softmax in float32.

    Shapes are those of `attend`.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores / q.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(v.dtype), v)


def chunked(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Compute `plain` for `CHUNK` queries at a time.

    The scores take (B, heads, CHUNK, M) instead of N rows. The backward pass computes them again
    instead of keeping them. Shapes are those of `attend`.
    """
    b, n, heads, d = q.shape
    if n <= CHUNK:
        return plain(q, k, v, mask)
    count = -(-n // CHUNK)
    extra = count * CHUNK - n

    def split(value: Array, axis: int) -> Array:
        pads = [(0, extra if i == axis else 0) for i in range(value.ndim)]
        shape = (*value.shape[:axis], count, CHUNK, *value.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(value, pads).reshape(shape), axis, 0)

    if mask is None or mask.shape[2] == 1:
        some = jax.checkpoint(lambda part: plain(part, k, v, mask))
        out = jax.lax.map(some, split(q, 1))
    else:
        some = jax.checkpoint(lambda part: plain(part[0], k, v, part[1]))
        out = jax.lax.map(some, (split(q, 1), split(mask, 2)))
    return jnp.moveaxis(out, 0, 1).reshape(b, n + extra, heads, d)[:, :n]


def auto(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Compute attention by the fused kernel of the device, or by ``xla`` where none takes it.

    Shapes are those of `attend`. On CPUs this is ``xla``.
    """
    return ATTENTIONS[choose_fused(q, k, mask) or "xla"](q, k, v, mask=mask)


ATTENTIONS: dict[str, Callable[..., Array]] = {
    "auto": auto,
    "xla": jax.nn.dot_product_attention,
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
    "splash": splash,
    "plain": plain,
    "chunked": chunked,
}


def attend(q: Array, k: Array, v: Array, *, mask: Array | None = None, kind: str = "auto") -> Array:
    """Compute attention ``softmax(Q K^T / sqrt(d)) V`` per head (Vaswani et al. 2017, eq. 1).

    Args:
        q: queries (B, N, heads, d).
        k, v: keys and values (B, M, heads, d).
        mask: bool, broadcasts against (B, heads, N, M); False leaves a key out.
        kind: ``auto`` (the fused kernel of the device if it takes the shapes, or else ``xla``),
            ``xla`` (`jax.nn.dot_product_attention`), ``cudnn`` (the same fused, on GPUs in half
            precision), ``splash`` (fused, on TPUs), ``plain`` (softmax in float32) or ``chunked``
            (plain in less memory).

    Returns:
        (B, N, heads, d).

    Raises:
        ValueError: the kind is unknown, or does not take the shapes or the mask.
    """
    return choose("attention", kind, ATTENTIONS)(q, k, v, mask=mask)


class Attention(nn.Module):
    """Multi-head attention ``softmax(Q K^T / sqrt(d)) V`` (Vaswani et al. 2017, section 3.2).

    Attributes:
        heads: number of heads.
        width: total width of the heads; the input's channels if None.
        bias: whether the q, k and v projections have biases.
        dtype: type to compute in; parameters stay float32.
        kind: see `attend`.
        identity: leave the softmax out, ``A = I``: every pixel keeps its own V (Ahn et al. 2024).
        out_init: initialiser of the output projection.
        norm_context: a layer norm of the context before its projections.
    """

    heads: int = 1
    width: int | None = None
    bias: bool = True
    dtype: DType = None
    kind: str = "auto"
    identity: bool = False
    out_init: Initializer = zero_init
    norm_context: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        mask: Array | None = None,
        prompts: Sequence[Mapping[str, Array]] = (),
    ) -> Array:
        """Attend from x (B, N, C) to itself, or to a context; returns (B, N, C).

        Args:
            x: where queries come from.
            context: (B, M, D), where keys and values come from; None for x.
            mask: (B, M) bool; False leaves a token out.
            prompts: pictures as tokens, each with keys and values of its own (Ye et al. 2023, eq.
                5): ``softmax(Q K^T) V + sum_k scale_k softmax(Q K_k^T) V_k``, with the entries
                ``tokens`` (B, T, D) and ``scale`` (B,).
        """
        width = self.width or x.shape[-1]
        source = x if context is None else context
        if self.norm_context:
            norm = nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name="norm_cross")
            source = norm(source)

        def project(name: str, value: Array, bias: bool = self.bias) -> Array:
            out = nn.Dense(width, bias, dtype=self.dtype, kernel_init=default_init, name=name)(
                value
            )
            return out.reshape(*out.shape[:2], self.heads, width // self.heads)

        if self.identity:
            out = project("to_v", x)
        else:
            q, k, v = project("to_q", x), project("to_k", source), project("to_v", source)
            kept = None if mask is None else mask[:, None, None, :]
            out = attend(q, k, v, mask=kept, kind=self.kind)
            for i, prompt in enumerate(prompts):
                k, v = (
                    project(f"processor.to_{name}_ip.{i}", prompt["tokens"], False) for name in "kv"
                )
                seen = attend(q, k, v, kind=self.kind)
                out = out + expand(prompt["scale"], out).astype(out.dtype) * seen
        out = out.reshape(*x.shape[:2], width)
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.out_init, name="to_out.0")(
            out
        )


class AttentionBlock(nn.Module):
    """Residual self-attention over all pixels, ``x + attention(norm(x))`` (Ho et al. 2020, B).

    Attributes:
        heads: number of heads.
        groups, eps: of the group norm.
        dtype: type to compute in; parameters stay float32.
        kind: see `attend`.
        rescale: divide the sum by sqrt(2), as the networks of Song et al. 2021 do.
    """

    heads: int = 1
    groups: int = 32
    eps: float = 1e-6
    dtype: DType = None
    kind: str = "auto"
    rescale: bool = False  # divide the sum by sqrt(2)
    identity: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return features of the shape of x, (B, H, W, C)."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, self.eps, self.dtype, name="group_norm")(x)
        attention = Attention(self.heads, dtype=self.dtype, kind=self.kind, identity=self.identity)
        nn.share_scope(self, attention)  # to_q, ... sit beside group_norm, as in diffusers
        out = x + attention(y.reshape(b, h * w, c)).reshape(b, h, w, c)
        return out * 2**-0.5 if self.rescale else out
