"""CLIP image encoders, with the state-dict names of transformers' CLIPVisionModelWithProjection."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.layers import default_init
from diffjax.nets.text import make_layer_stack
from diffjax.types import DType

Array = jax.Array

# Channel means and deviations that all CLIP models were trained with, of pixels in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class _ClassToken(nn.Module):
    """The learned token (features,) whose output is the embedding of the image."""

    features: int

    @nn.compact
    def __call__(self) -> Array:
        init = nn.initializers.normal(0.02)
        return jnp.asarray(self.param("class_embedding", init, (self.features,)))


class CLIPVision(nn.Module):
    """CLIP's image encoder, ``x (B, size, size, 3) -> embeddings (B, P)`` (Radford et al. 2021).

    It is a vision transformer. The layers are those of the text half without its mask, and scanned
    as there.

    Attributes:
        size: pixels on a side.
        patch: pixels on a side of a patch.
        features: width of the residual stream.
        width: width of the MLPs.
        layers, heads: depth and attention heads.
        projection: size P of the joint space.
        activation: ``quick_gelu`` (OpenAI) or ``gelu`` (OpenCLIP).
        eps: of the layer norms.
        attention: see `diffjax.nets.attention.attend`.
        dtype: type to compute in; parameters stay float32.
    """

    size: int = 224
    patch: int = 32
    features: int = 768
    width: int = 3072
    layers: int = 12
    heads: int = 12
    projection: int = 512
    activation: str = "quick_gelu"
    eps: float = 1e-5
    attention: str = "auto"
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, hidden: bool = False) -> Array:
        """Embed images that `clip_input` has made; embeddings are not normalised.

        Args:
            x: (B, size, size, 3).
            hidden: whether to return the tokens (B, 1 + patches, features) before the last layer
                in place of the embeddings (B, P).

        Raises:
            ValueError: images of another size.
        """
        if x.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"this encoder takes images of {self.size} pixels, got {x.shape}")
        x = self._embed_patches(x)
        x = self._make_norm("pre_layrnorm")(x)  # every published file has this spelling
        before = x
        x, layers = make_layer_stack(self, "vision_model.encoder.layers")(x, None)
        if hidden:
            return layers[-2] if self.layers > 1 else before
        pooled = self._make_norm("post_layernorm")(x[:, 0])
        return nn.Dense(
            self.projection,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=default_init,
            name="visual_projection",
        )(pooled)

    @nn.nowrap
    def _make_norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(
            self.eps, dtype=self.dtype, use_fast_variance=False, name=f"vision_model.{name}"
        )

    @nn.nowrap
    def _embed_patches(self, x: Array) -> Array:
        """Return class token and patches with their positions, (B, 1 + patches, features)."""
        patches = nn.Conv(
            self.features,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=default_init,
            name="vision_model.embeddings.patch_embedding",
        )(x)
        patches = patches.reshape(len(x), -1, self.features)
        token = _ClassToken(self.features, name="vision_model.embeddings")()
        token = jnp.broadcast_to(token.astype(patches.dtype), (len(x), 1, self.features))
        positions = nn.Embed(
            patches.shape[1] + 1,
            self.features,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="vision_model.embeddings.position_embedding",
        )(jnp.arange(patches.shape[1] + 1))
        return jnp.concatenate([token, patches], 1) + positions


def clip_input(images: Array, size: int = 224) -> Array:
    """Resize, crop and scale images as CLIP reads them, (B, size, size, 3).

    The shorter side becomes ``size`` by PIL's bicubic filter (a = -0.5, anti-aliased), and the
    longer one is rounded down, as transformers and OpenAI's CLIP do. The central square is kept.

    Args:
        images: (B, H, W, 3) in [-1, 1].
        size: of the encoder, in pixels.
    """
    height, width = images.shape[1:3]
    # Integers are used because 110 * (224 / 55) is a little less than 448.
    shape = (len(images), *(size * side // min(height, width) for side in (height, width)), 3)
    x = jax.image.resize((images + 1) / 2, shape, "bicubic", antialias=True)
    top, left = (shape[1] - size) // 2, (shape[2] - size) // 2
    x = jnp.clip(x[:, top : top + size, left : left + size], 0, 1)
    return (x - jnp.asarray(MEAN)) / jnp.asarray(STD)
