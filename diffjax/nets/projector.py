"""The projection that compares a transformer's tokens with features (REPA, Yu et al. 2024)."""

from __future__ import annotations

import flax.linen as nn
import jax

from diffjax.nets.layers import default_init
from diffjax.types import DType


class Projector(nn.Module):
    """MLP of three layers with SiLU between, ``tokens (B, N, D) -> (B, N, features)``.

    Its layers have the released names.

    Attributes:
        features: size of the output.
        width: hidden channels.
        dtype: type to compute in; parameters stay float32.
    """

    features: int
    width: int = 2048
    dtype: DType = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for place, size in ((0, self.width), (2, self.width), (4, self.features)):
            x = nn.silu(x) if place else x
            x = nn.Dense(size, dtype=self.dtype, kernel_init=default_init, name=str(place))(x)
        return x
