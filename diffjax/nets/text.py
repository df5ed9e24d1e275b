"""Text encoders: CLIP, with the names of transformers' CLIPTextModel, and a plain transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.attention import Attention, attend
from diffjax.nets.layers import default_init
from diffjax.types import DType, Params, choose

Array = jax.Array

embedding_init = nn.initializers.normal(0.02)


def quick_gelu(x: Array) -> Array:
    """Return ``x sigmoid(1.702 x)``, OpenAI's approximation of GELU."""
    return x * nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """Return ``x Phi(x)`` with the exact normal distribution function (Hendrycks & Gimpel 2016)."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class TextFeatures(NamedTuple):
    """What a text encoder computes from token ids (B, M).

    Attributes:
        last: output (B, M, D) of the last layer, normalised.
        hidden: (L+1, B, M, D), the embeddings and the output of every layer, not normalised.
        pooled: (B, D) of ``last`` at the end token, or (B, P) with a projection.
    """

    last: Array
    hidden: Array
    pooled: Array


class TextLayer(nn.Module):
    """Pre-norm transformer layer of CLIP; the body of a scan, so that it returns its output twice.

    Attributes:
        heads: attention heads.
        width: hidden channels of the MLP.
        activation: a key of `ACTIVATIONS`.
        eps: of the layer norms.
        attention: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    heads: int
    width: int
    activation: str = "quick_gelu"
    eps: float = 1e-5
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """Return (x, x) of tokens x (B, M, D).

        Args:
            x: tokens.
            mask: bool, broadcasts against (B, heads, M, M); None lets every token see every other.
        """
        h = _make_norm("layer_norm1", self.eps, self.dtype)(x)
        x = x + self._apply_attention(h, mask)
        h = _make_norm("layer_norm2", self.eps, self.dtype)(x)
        h = choose("activation", self.activation, ACTIVATIONS)(
            self._make_dense(self.width, "mlp.fc1")(h)
        )
        x = x + self._make_dense(x.shape[-1], "mlp.fc2")(h)
        return x, x

    def _make_dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=default_init, name=name)

    def _apply_attention(self, x: Array, mask: Array | None) -> Array:
        def project(name: str) -> Array:
            out = self._make_dense(x.shape[-1], f"self_attn.{name}")(x)
            return out.reshape(*x.shape[:2], self.heads, -1)

        out = attend(
            project("q_proj"), project("k_proj"), project("v_proj"), mask=mask, kind=self.attention
        )
        return self._make_dense(x.shape[-1], "self_attn.out_proj")(out.reshape(x.shape))


class ClipFields(Protocol):
    """The fields that both halves of CLIP have; see `CLIPText`."""

    layers: int
    heads: int
    width: int
    activation: str
    eps: float
    attention: str
    dtype: DType


def make_layer_stack(
    net: ClipFields, name: str
) -> Callable[[Array, Array | None], tuple[Array, Array]]:
    """Make the scanned layers of a CLIP encoder, as a submodule of the current module.

    Args:
        net: the encoder, whose fields describe the layers.
        name: of the submodule.

    Returns:
        ``(x, mask) -> (x, hidden)`` with x (B, M, D), a mask (1, 1, M, M) or None, and the output
        of every layer as hidden (L, B, M, D).
    """
    stack = nn.scan(
        TextLayer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=net.layers,
    )
    options = (net.heads, net.width, net.activation, net.eps, net.attention, net.dtype)
    return stack(*options, name=name)


def _make_norm(name: str, eps: float, dtype: DType) -> nn.LayerNorm:
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


class CLIPText(nn.Module):
    """CLIP's text encoder, ``ids (B, M) int -> TextFeatures`` (Radford et al. 2021).

    The layers are scanned: their parameters are stacked and compile time does not grow with depth.

    Attributes:
        vocabulary: rows of the token embedding.
        positions: longest sequence.
        features: width D of the residual stream.
        width: width of the MLPs.
        layers, heads: depth and attention heads.
        projection: size P of the projected pooled output, 0 for none.
        activation: ``quick_gelu`` (OpenAI) or ``gelu`` (OpenCLIP).
        eps: of the layer norms.
        end: id of the end token, whose first place is pooled. 2 stands for the largest id of the
            text, as in the configurations of older models, where 2 is not the true id.
        attention: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    vocabulary: int = 49408
    positions: int = 77
    features: int = 768
    width: int = 3072
    layers: int = 12
    heads: int = 12
    projection: int = 0
    activation: str = "quick_gelu"
    eps: float = 1e-5
    end: int = 2
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, ids: Array) -> TextFeatures:
        """Encode token ids.

        Raises:
            ValueError: there are more tokens than positions.
        """
        length = ids.shape[-1]
        if length > self.positions:
            raise ValueError(
                f"the text has {length} tokens, but this encoder takes {self.positions} at most"
            )
        x = self._embed("token_embedding", self.vocabulary)(ids)
        x = x + self._embed("position_embedding", self.positions)(jnp.arange(length))
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        stack = make_layer_stack(self, "text_model.encoder.layers")
        out, hidden = stack(x, mask)
        last = _make_norm("text_model.final_layer_norm", self.eps, self.dtype)(out)
        hidden = jnp.concatenate([x[None], hidden])
        return TextFeatures(last, hidden, self._pool(ids, last))

    @nn.nowrap
    def _embed(self, name: str, rows: int) -> nn.Embed:
        return nn.Embed(
            rows,
            self.features,
            dtype=self.dtype,
            embedding_init=embedding_init,
            name=f"text_model.embeddings.{name}",
        )

    def _pool(self, ids: Array, last: Array) -> Array:
        """Return the features at the end token (B, D), projected to (B, P) if the model does so."""
        where = ids if self.end == 2 else ids == self.end
        pooled = last[jnp.arange(len(ids)), where.argmax(-1)]
        if not self.projection:
            return pooled
        return nn.Dense(
            self.projection,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=default_init,
            name="text_projection",
        )(pooled)

    @nn.nowrap
    def normalise(self, params: Params, hidden: Array) -> Array:
        """Apply the final norm to a layer of ``hidden`` (B, M, D), for CLIP skip.

        Args:
            params: of this encoder.
            hidden: the output of a layer.
        """
        norm = nn.LayerNorm(self.eps, dtype=self.dtype, use_fast_variance=False, parent=None)
        return jnp.asarray(norm.apply({"params": params["text_model.final_layer_norm"]}, hidden))


class TransformerLayer(nn.Module):
    """Pre-norm layer in which every token sees every other.

    It is the body of a scan, so that it returns ``(x, None)``.
    """

    heads: int
    head_channels: int
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        width = self.heads * self.head_channels
        attention = Attention(self.heads, width, False, self.dtype, self.attention, name="attn")
        x = x + attention(_make_norm("norm1", 1e-5, self.dtype)(x))
        h = self._make_dense(4 * x.shape[-1], "fc1")(_make_norm("norm2", 1e-5, self.dtype)(x))
        return x + self._make_dense(x.shape[-1], "fc2")(gelu(h)), None

    def _make_dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=default_init, name=name)


class TextTransformer(nn.Module):
    """A text encoder ``ids (B, M) int -> (B, M, D)`` that is trained with the diffusion model.

    It is the tau_theta of Rombach et al. 2022, appendix E.2.1, in the style of BERT. The defaults
    are those of the 1.45B model.

    Attributes:
        vocabulary: rows of the token embedding.
        positions: longest sequence.
        features: width D.
        layers, heads, head_channels: depth, attention heads and width of each.
        attention: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    vocabulary: int = 30522
    positions: int = 77
    features: int = 1280
    layers: int = 32
    heads: int = 8
    head_channels: int = 64
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        """Encode token ids.

        Raises:
            ValueError: there are more tokens than positions.
        """
        length = ids.shape[-1]
        if length > self.positions:
            raise ValueError(
                f"the text has {length} tokens, but this encoder takes {self.positions} at most"
            )
        x = self._embed("token_embedding", self.vocabulary)(ids)
        x = x + self._embed("position_embedding", self.positions)(jnp.arange(length))
        stack = nn.scan(
            TransformerLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )(self.heads, self.head_channels, self.attention, self.dtype, name="encoder.layers")
        return _make_norm("final_norm", 1e-5, self.dtype)(stack(x)[0])

    @nn.nowrap
    def _embed(self, name: str, rows: int) -> nn.Embed:
        init = embedding_init
        return nn.Embed(rows, self.features, dtype=self.dtype, embedding_init=init, name=name)
