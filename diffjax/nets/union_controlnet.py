"""A ControlNet that reads several kinds of hints, and several at once (xinsir's union for XL).

Each kind has a learned vector. Blocks of a transformer read the mean of each encoded hint, with the
vector of its kind, and what they make of it is added to all pixels of the hint. Hints are added up:

    x_i = transformer(s_i (mean(c_i) + e_(k_i)))
    h + sum_i s_i (c_i + W x_i)

with s_i = 1 for a single hint, whose scale is that of the residuals. A vector that has a 1 for each
kind that is there joins the embedding of the time. State-dict names are those of diffusers'
ControlNetUnionModel.

The published code and diffusers give their attention the axes (images, hints), where torch expects
(tokens, images): a hint attends to the same hint of the other images of the batch, and never to
other hints. If all images have the same hint, the weights of that attention change nothing and its
values are its output. So it is here for every batch, since an image must not depend on others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.controlnet import ControlNet
from diffjax.nets.layers import TimestepMLP, timestep_embedding
from diffjax.nets.levels import find_first_width
from diffjax.nets.text import quick_gelu
from diffjax.types import DType

Array = jax.Array


class JoinedAttention(nn.Module):
    """Self-attention of single tokens (B, N, C), each of which reads its own value alone.

    Queries, keys and values are one layer, named as torch's; queries and keys change nothing.

    Attributes:
        dtype: type to compute in; parameters stay float32.
    """

    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the projected values."""
        width = x.shape[-1]
        init = nn.initializers.xavier_uniform(in_axis=1, out_axis=0)
        weight = self.param("in_proj_weight", init, (3 * width, width))[2 * width :]
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * width,))[2 * width :]
        x, weight, bias = nn.dtypes.promote_dtype(x, weight, bias, dtype=self.dtype)
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(x @ weight.T + bias)


class UnionControlNet(ControlNet):
    """The network ``(z, t, cond) -> (residuals of the skips, residual of the middle)``.

    ``cond["hint"]`` is a dict of ``images`` (B, N, f H, f W, C) in [0, 1], their ``kinds`` (B, N)
    int, and ``scales`` (B, N), which count where N is above 1.

    Attributes:
        kinds: number of kinds of hints.
        heads, layers: of the transformer; the heads change nothing, and are written to configs.
    """

    kinds: int = 6
    heads: int = 8
    layers: int = 1

    @nn.nowrap
    def _encode_hint(self, hint: Any) -> Callable[[Array], Array]:
        """Return what makes the first features of the features before: hints are read once."""
        base, encoder = self.base, self._make_hint_encoder()
        width = find_first_width(base.channels, base.multipliers)
        images = hint["images"]
        encoded = encoder(images.reshape(-1, *images.shape[2:]))
        encoded = encoded.reshape(*images.shape[:2], *encoded.shape[1:])
        scales = hint["scales"][:, :, None].astype(encoded.dtype)
        scales = jnp.ones_like(scales) if images.shape[1] == 1 else scales
        init = nn.initializers.normal(width**0.5)
        kinds = self.param("task_embedding", init, (self.kinds, width))[hint["kinds"]]

        x = (encoded.mean((2, 3)) + kinds.astype(encoded.dtype)) * scales
        for k in range(self.layers):
            x = self._transform(f"transformer_layes.{k}", x)  # the spelling of the published files
        zeros, dtype = nn.initializers.zeros, self.base.dtype
        shifts = nn.Dense(width, dtype=dtype, kernel_init=zeros, name="spatial_ch_projs")(x)
        maps = (encoded + shifts[:, :, None, None]) * scales[..., None, None]
        return lambda h: h + maps.sum(1)

    @nn.nowrap
    def _embed_kinds(self, hint: Any) -> Array:
        """Return the embedding (B, 4 channels) of the kinds that are there."""
        base = self.base
        there = jax.nn.one_hot(hint["kinds"], self.kinds).max(1)
        waves = timestep_embedding(
            there.reshape(-1),
            base.added_time_dim,
            flip_sin_to_cos=base.flip_sin_to_cos,
            freq_shift=base.freq_shift,
        )
        mlp = TimestepMLP(4 * base.channels, base.dtype, name="control_add_embedding")
        return mlp(waves.reshape(len(there), -1))

    @nn.nowrap
    def _transform(self, name: str, x: Array) -> Array:
        """Apply a block of the transformer."""
        dtype, width = self.base.dtype, x.shape[-1]

        def norm(k: int, x: Array) -> Array:
            layer = nn.LayerNorm(1e-5, dtype=dtype, use_fast_variance=False, name=f"{name}.ln_{k}")
            return layer(x)

        x = x + JoinedAttention(dtype, name=f"{name}.attn")(norm(1, x))
        h = nn.Dense(4 * width, dtype=dtype, name=f"{name}.mlp.c_fc")(norm(2, x))
        return x + nn.Dense(width, dtype=dtype, name=f"{name}.mlp.c_proj")(quick_gelu(h))

    @nn.nowrap
    def _find_hint_shape(self, hint: Any) -> tuple[int, ...] | None:
        """Return the shape of a hint of which there may be several."""
        shape = getattr(hint["images"], "shape", None) if isinstance(hint, dict) else None
        return shape and (shape[0], *shape[2:])
