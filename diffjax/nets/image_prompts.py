"""IP-Adapters: pictures as tokens that a UNet attends to beside its text (Ye et al. 2023).

A CLIP encoder embeds the picture, a projection makes tokens of the embedding, and every attention
to the text gets keys and values of its own for them (eq. 5):

    softmax(Q K^T / sqrt(d)) V + scale softmax(Q K_i^T / sqrt(d)) V_i

The projection and the new layers are all that is trained. Their names are those of the published
files: ``image_proj.`` for the projection, ``to_k_ip`` and ``to_v_ip`` for the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.attention import attend
from diffjax.nets.layers import default_init
from diffjax.nets.vision import CLIPVision, clip_input
from diffjax.types import DType, Params, expand

Array = jax.Array
_BLOCKS, _ATTENTION = "transformer_blocks", "attn2"


def _make_norm(name: str, dtype: DType) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, dtype=dtype, use_fast_variance=False, name=name)


def _make_dense(features: int, name: str, dtype: DType, bias: bool = True) -> nn.Dense:
    return nn.Dense(features, bias, dtype=dtype, kernel_init=default_init, name=name)


class ImageProjection(nn.Module):
    """One embedding (B, P) as tokens (B, tokens, width): ``norm(W x)`` (section 3.2.1).

    Attributes:
        width: of the tokens, that of the network's context.
        tokens: how many there are.
        dtype: type to compute in; parameters stay float32.
    """

    width: int = 768
    tokens: int = 4
    dtype: DType = None
    reads_hidden: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the tokens of embeddings of images."""
        x = _make_dense(self.tokens * self.width, "proj", self.dtype)(x)
        return _make_norm("norm", self.dtype)(x.reshape(len(x), self.tokens, self.width))


class FullProjection(nn.Module):
    """Every token of the encoder (B, N, P) through one MLP (B, N, width), of "full face" adapters.

    Attributes:
        width: of the tokens, that of the network's context.
        dtype: type to compute in; parameters stay float32.
    """

    width: int = 768
    dtype: DType = None
    reads_hidden: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return a token for each token of the encoder."""
        h = nn.gelu(_make_dense(x.shape[-1], "proj.0", self.dtype)(x), approximate=False)
        return _make_norm("proj.3", self.dtype)(_make_dense(self.width, "proj.2", self.dtype)(h))


class Resampler(nn.Module):
    """Learned queries that attend to the tokens of the encoder, of the "plus" adapters.

    (B, N, P) becomes (B, tokens, width). It is the perceiver of Flamingo (Alayrac et al. 2022,
    section 3.1): in each layer keys and values are those of the encoder and of the queries.

    Attributes:
        width: of the tokens, that of the network's context.
        tokens: how many there are.
        features: width of the queries.
        heads, head_channels: attention heads and the width of each.
        layers: how many.
        dtype: type to compute in; parameters stay float32.
    """

    width: int = 768
    tokens: int = 16
    features: int = 768
    heads: int = 12
    head_channels: int = 64
    layers: int = 4
    dtype: DType = None
    reads_hidden: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the tokens of the encoder's tokens."""
        init = nn.initializers.normal(self.features**-0.5)
        queries = self.param("latents", init, (1, self.tokens, self.features))
        h = jnp.broadcast_to(jnp.asarray(queries, x.dtype), (len(x), *queries.shape[1:]))
        x = _make_dense(self.features, "proj_in", self.dtype)(x)
        for k in range(self.layers):
            h = h + self._attend(f"layers.{k}.0", x, h)
            y = _make_norm(f"layers.{k}.1.0", self.dtype)(h)
            y = _make_dense(4 * self.features, f"layers.{k}.1.1", self.dtype, False)(y)
            y = nn.gelu(y, approximate=False)
            h = h + _make_dense(self.features, f"layers.{k}.1.3", self.dtype, False)(y)
        h = _make_dense(self.width, "proj_out", self.dtype)(h)
        return _make_norm("norm_out", self.dtype)(h)

    @nn.nowrap
    def _attend(self, name: str, x: Array, h: Array) -> Array:
        """Attend from the queries h to the encoder's tokens x and to themselves."""
        x, h = (_make_norm(f"{name}.norm{i}", self.dtype)(v) for i, v in ((1, x), (2, h)))
        width = self.heads * self.head_channels

        def project(layer: str, value: Array, times: int = 1) -> list[Array]:
            out = _make_dense(times * width, f"{name}.{layer}", self.dtype, False)(value)
            parts = jnp.split(out, times, axis=-1)
            return [p.reshape(*p.shape[:2], self.heads, self.head_channels) for p in parts]

        (q,), (k, v) = project("to_q", h), project("to_kv", jnp.concatenate([x, h], axis=1), 2)
        out = attend(q, k, v).reshape(*h.shape[:2], width)
        return _make_dense(self.features, f"{name}.to_out", self.dtype, False)(out)


PROJECTIONS: dict[str, Callable[..., Any]] = {
    "base": ImageProjection,
    "plus": Resampler,
    "full": FullProjection,
}


def embed_images(
    encoder: CLIPVision,
    projection: Any,
    encoder_params: Params,
    params: Params,
    images: Array,
    seen: Array,
) -> Array:
    """Embed images as tokens (B, T, width) for the attentions of a UNet.

    Args:
        encoder: CLIP's image encoder.
        projection: one of `PROJECTIONS`.
        encoder_params, params: of both.
        images: (B, H, W, 3) in [-1, 1], of any size.
        seen: (B,) 1, or 0 where no picture is to be seen: then the embedding is zero, or for
            projections that read all tokens the pixels that the encoder reads.
    """
    x = clip_input(images, encoder.size)
    hidden = projection.reads_hidden
    x = x * expand(seen, x) if hidden else x
    found: Any = encoder.apply({"params": encoder_params}, x, hidden)
    found = found if hidden else found * expand(seen, found)
    return jnp.asarray(projection.apply({"params": params}, found))


# ---- the layers in the attentions of a UNet -----------------------------------------------------


def copy_layers(base: Params) -> Params:
    """Return the layers of one image prompt with the values of those of the text.

    Training begins with them, as the released code does. Shapes in place of arrays give shapes.

    Args:
        base: parameters of a UNet.

    Raises:
        ValueError: the UNet attends to no context.
    """
    out: dict[str, Any] = {}
    for name, module in base.items():
        if not isinstance(module, Mapping) or _BLOCKS not in module:
            continue
        text = module[_BLOCKS][_ATTENTION]
        layers = {f"processor.to_{n}_ip.0": {"kernel": text[f"to_{n}"]["kernel"]} for n in "kv"}
        out[name] = {_BLOCKS: {_ATTENTION: layers}}
    if not out:
        raise ValueError("an IP-Adapter needs a UNet that attends to a text; this one does not")
    return out


def join_layers(base: Params, *adapters: Params) -> Params:
    """Join the layers of image prompts, as `copy_layers` has them, to the parameters of a UNet.

    The k-th of them reads the k-th of ``cond["image_prompts"]``.
    """
    out = dict(base)
    for k, layers in enumerate(adapters):
        for name, module in layers.items():
            added = {
                f"{layer.rpartition('.')[0]}.{k}": leaf
                for layer, leaf in module[_BLOCKS][_ATTENTION].items()
            }
            blocks = out[name][_BLOCKS]
            attention = {**blocks[_ATTENTION], **added}
            out[name] = {**out[name], _BLOCKS: {**blocks, _ATTENTION: attention}}
    return out
