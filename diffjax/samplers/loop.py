"""The one sampling loop, and the noise it draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, Denoiser, Noise, Rows, Sampler


def image_noise(keys: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Noise:
    """Noise from one key per image, so that an image does not depend on its batch.

    Args:
        keys: typed keys (B,).
        shape: shape of one image.

    Returns:
        ``(i, k=0) -> N(0, I)`` of shape (B, *shape); i is the evaluation index, k a draw within it.
    """

    def noise(i: Any, k: int = 0) -> Array:
        def one(key: jax.Array) -> jax.Array:
            return jax.random.normal(
                jax.random.fold_in(jax.random.fold_in(key, i), k), shape, dtype
            )

        return jax.vmap(one)(keys)

    return noise


def prior(noise: Noise, rows: Rows) -> Array:
    """Initial ``z``: N(0, 1) where the first level preserves variance, else N(0, sigma^2).

    Drawn as draw 1 of evaluation 0, which no row uses.
    """
    alpha, sigma = rows.level.alpha[0], rows.level.sigma[0]
    return jnp.where(alpha**2 + sigma**2 < 1 + 1e-5, 1.0, sigma) * noise(0, 1)


def pad(rows: Rows, size: int) -> Rows:
    """Repeat the last row up to ``size`` rows; `sample` with ``n`` never runs the padding.

    Raises:
        ValueError: there are more rows than ``size``.
    """
    count = len(rows.level.t)
    if count > size:
        raise ValueError(f"cannot pad {count} rows to {size}")
    index = np.minimum(np.arange(size), count - 1)
    return jax.tree.map(lambda leaf: leaf[index], rows)


def sample(
    noise: Noise,
    denoise: Denoiser,
    sampler: Sampler,
    z: Array,
    rows: Rows,
    *,
    n: Any = None,
) -> Array:
    """Run a sampler from ``z`` over its rows; one ``fori_loop``, traceable.

    Args:
        n: rows to run (traced); None for all. With padded rows, plans of different lengths share
            one compilation.
    """
    rows = jax.tree.map(jnp.asarray, rows)

    def body(k: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        row = jax.tree.map(lambda leaf: leaf[k], rows)
        return sampler.step(noise, denoise, *carry, row)

    count = rows.level.t.shape[0] if n is None else n
    return jax.lax.fori_loop(0, count, body, (z, sampler.init(z, rows)))[0]
