"""Large images in overlapping tiles, which are blended where they meet."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def apply_tiled(
    apply: Callable[[Array], Array], x: Array, *, tile: int, overlap: float = 0.25
) -> Array:
    """Call ``apply`` on overlapping square tiles and blend them linearly, to save memory.

    The result is not that of the whole image: norms and attention see one tile at a time. Every
    tile is one call, so pass a compiled function.

    Args:
        apply: (B, h, w, C) -> (B, h s, w s, C'); an encoder has ``s < 1``.
        x: the whole (B, H, W, C).
        tile: side of a tile of ``x`` in pixels.
        overlap: share of a tile that the next one covers again, in [0, 1).

    Returns:
        (B, H s, W s, C').

    Raises:
        ValueError: the overlap leaves no step between tiles.
    """
    step = int(tile * (1 - overlap))
    if not 0 < step <= tile:
        raise ValueError(f"overlap={overlap} of tiles of {tile} must lie in [0, 1)")
    if max(x.shape[1:3]) <= tile:
        return apply(x)
    tops, lefts = (range(0, size, step) for size in x.shape[1:3])
    rows = [[apply(x[:, i : i + tile, j : j + tile]) for j in lefts] for i in tops]
    side = rows[0][0].shape[1]
    kept = side * step // tile
    for i, row in enumerate(rows):
        for j in range(len(row)):
            if i:
                row[j] = _blend(rows[i - 1][j], row[j], side - kept, axis=1)
            if j:
                row[j] = _blend(row[j - 1], row[j], side - kept, axis=2)
    joined = [jnp.concatenate([part[:, :kept, :kept] for part in row], axis=2) for row in rows]
    return jnp.concatenate(joined, axis=1)


def _blend(before: Array, after: Array, extent: int, *, axis: int) -> Array:
    """Return ``after`` with its first ``extent`` lines faded in from the last of ``before``."""
    n = min(before.shape[axis], after.shape[axis], extent)
    if not n:
        return after
    shape = [1] * after.ndim
    shape[axis] = n
    rate = (jnp.arange(n) / n).reshape(shape)
    old = jax.lax.slice_in_dim(before, before.shape[axis] - n, before.shape[axis], axis=axis)
    new, rest = jnp.split(after, [n], axis=axis)
    return jnp.concatenate([old * (1 - rate) + new * rate, rest], axis=axis)
