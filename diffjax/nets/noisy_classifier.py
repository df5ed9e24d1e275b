"""The classifier of classifier guidance: it reads a noisy image and the time.

Dhariwal & Nichol 2021, section 4: the way down of their UNet with the attention pooling of CLIP
(Radford et al. 2021) in place of the way up.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.nets.layers import GroupNorm
from diffjax.nets.unet import UNet, embed, encode
from diffjax.types import choose

Array = jax.Array


class NoisyClassifier(nn.Module):
    """The network ``(z, t) -> logits`` (B, classes), float32, of noisy images z (B, H, W, C).

    Attributes:
        base: the UNet whose encoder and middle are used; without classes and conditions.
        classes: number of logits.
        head_channels: channels of each head of the pooling.
        head: what follows the pooling: ``direct``, its own projection gives the logits (Dhariwal &
            Nichol 2021, released code), or ``dense``, another layer after it.
    """

    base: UNet
    classes: int
    head_channels: int = 64
    head: str = "dense"

    @nn.compact
    def __call__(self, z: Array, t: Array, train: bool = False) -> Array:
        """Return the logits.

        Args:
            z: noisy images.
            t: times (B,), as the UNet reads them.
            train: whether dropout is active.

        Raises:
            ValueError: the UNet takes a label or a context.
        """
        base = self.base
        if base.num_classes or base.context_dim:
            raise ValueError(
                "the UNet of a noisy classifier must not read a label or a context: it "
                "predicts the label"
            )
        h, _ = encode(base, z, embed(base, z, t, {}), {}, train)
        h = nn.silu(GroupNorm(base.norm_groups, base.norm_eps, base.dtype, name="norm_out")(h))
        tokens = h.reshape(h.shape[0], -1, h.shape[-1])
        return self._pool(tokens).astype(jnp.float32)

    def _pool(self, tokens: Array) -> Array:
        """Pool tokens (B, N, D) by attention: their mean is the query, and also a key."""
        width = tokens.shape[-1]
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        scale = nn.initializers.normal(width**-0.5)
        tokens = tokens + self.param("positions", scale, tokens.shape[1:]).astype(tokens.dtype)
        direct = choose("head", self.head, {"dense": False, "direct": True})
        pooled = nn.MultiHeadDotProductAttention(
            max(1, width // self.head_channels),
            out_features=self.classes if direct else None,
            dtype=self.base.dtype,
            name="attention",
        )(tokens[:, :1], tokens)
        if direct:
            return pooled[:, 0]
        return nn.Dense(self.classes, dtype=jnp.float32, name="head")(pooled[:, 0])
