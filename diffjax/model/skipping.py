"""Networks whose blocks are left out, as the weak half of skip-layer guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, ConfigError, Level, Params

_STACK = "transformer_blocks"


def skip_blocks(params: Params, blocks: Sequence[int]) -> Params:
    """Return the parameters of a transformer (`diffjax.nets.dit.DiT`) without some of its blocks.

    The gates of these blocks, and what attention to a context adds, become 0, so that they are the
    identity. Nothing else changes, and the network is compiled once for any blocks.

    Args:
        params: of the network.
        blocks: numbers of blocks, from 0.

    Raises:
        ConfigError: it is no transformer, or has no such block.
    """
    if _STACK not in params:
        raise ConfigError(
            "skip-layer guidance leaves out blocks of a transformer, and this network has none: "
            "set sample.skip_blocks=() or network.name=dit"
        )
    stack: dict[str, Any] = dict(params[_STACK])
    count = len(stack["norm1.linear"]["bias"])
    if wrong := [k for k in blocks if not 0 <= k < count]:
        raise ConfigError(f"sample.skip_blocks={wrong[0]} must lie in 0 .. {count - 1}")
    kept = np.ones(count)
    kept[list(blocks)] = 0
    gates = np.ones((count, 6))
    gates[:, [2, 5]] = kept[:, None]

    def shut(leaf: Array) -> Array:
        factor = np.repeat(gates, leaf.shape[-1] // 6, axis=1)
        return leaf * jnp.asarray(factor.reshape(count, *(1,) * (leaf.ndim - 2), -1), leaf.dtype)

    stack["norm1.linear"] = {k: shut(v) for k, v in stack["norm1.linear"].items()}
    if "attn2" in stack:
        out = {
            k: v * jnp.asarray(kept.reshape(count, *(1,) * (v.ndim - 1)), v.dtype)
            for k, v in stack["attn2"]["to_out.0"].items()
        }
        stack["attn2"] = {**stack["attn2"], "to_out.0": out}
    return {**params, _STACK: stack}


def limit_scale(scale: float, limits: tuple[float, float]) -> Callable[[Level], Array]:
    """Make a scale that is 0 where ``sigma / alpha`` is outside of (smallest, largest)."""
    low, high = limits

    def at(level: Level) -> Array:
        ratio = jnp.asarray(level.sigma) / jnp.asarray(level.alpha)
        return jnp.where((ratio >= low) & (ratio <= high), scale, 0.0)

    return at
