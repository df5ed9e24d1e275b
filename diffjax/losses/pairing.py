"""Optimal transport between the images and the noise of a batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.types import Array


class _Search(NamedTuple):
    """A shortest augmenting path from one row; column 0 stands for no column, row 0 for no row.

    Attributes:
        column: where the path ends so far, ().
        used: columns that are reached (n + 1,).
        least: reduced cost of the cheapest way to each column (n + 1,).
        way: the column before each column on that way (n + 1,).
        rows, columns: dual prices (n + 1,).
    """

    column: jax.Array
    used: jax.Array
    least: jax.Array
    way: jax.Array
    rows: jax.Array
    columns: jax.Array


# The row that owns each column, and the dual prices of rows and columns, (n + 1,) each.
_Prices = tuple[jax.Array, jax.Array, jax.Array]


def assign(cost: Array) -> jax.Array:
    """Assign each row a column of its own, with the least sum of costs.

    Successive shortest augmenting paths with dual prices (Kuhn 1955; Jonker & Volgenant 1987), in
    O(n^3) on the device.

    Args:
        cost: (n, n), finite.

    Returns:
        The column of each row (n,), int32.
    """
    size = len(cost)
    padded = jnp.pad(cost.astype(jnp.float32), ((1, 0), (1, 0)))
    zeros, none = jnp.zeros(size + 1), jnp.zeros(size + 1, jnp.int32)

    def add_row(row: jax.Array, carry: _Prices) -> _Prices:
        owner, rows, columns = carry
        owner = owner.at[0].set(row)

        def extend(s: _Search) -> _Search:
            used = s.used.at[s.column].set(True)
            at = owner[s.column]
            reduced = padded[at] - s.rows[at] - s.columns
            shorter = ~used & (reduced < s.least)
            least, way = jnp.where(shorter, reduced, s.least), jnp.where(shorter, s.column, s.way)
            nearest = jnp.argmin(jnp.where(used, jnp.inf, least))
            delta = least[nearest]
            rows = s.rows.at[owner].add(jnp.where(used, delta, 0.0))
            columns = s.columns - jnp.where(used, delta, 0.0)
            return _Search(nearest, used, jnp.where(used, least, least - delta), way, rows, columns)

        start = _Search(
            jnp.zeros((), jnp.int32),
            jnp.zeros(size + 1, bool),
            jnp.full(size + 1, jnp.inf).at[0].set(0.0),
            none,
            rows,
            columns,
        )
        # The path ends at the first column that no row owns.
        found = jax.lax.while_loop(
            lambda s: owner[s.column] != 0, extend, start._replace(column=start.column)
        )

        def flip(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            column, owner = carry
            before = found.way[column]
            return before, owner.at[column].set(owner[before])

        _, owner = jax.lax.while_loop(lambda c: c[0] != 0, flip, (found.column, owner))
        return owner, found.rows, found.columns

    owner, _, _ = jax.lax.fori_loop(1, size + 1, add_row, (none, zeros, zeros))
    return jnp.zeros(size, jnp.int32).at[owner[1:] - 1].set(jnp.arange(size, dtype=jnp.int32))


def pair_optimally(x: Array, noise: Array) -> jax.Array:
    """Return the order of noise in which the sum of ``|x - noise|^2`` over a batch is least.

    Minibatch optimal transport (Pooladian et al. 2023; Tong et al. 2023): paths of a flow cross
    less. The noise stays N(0, I) over all batches, but no longer given the condition of an image.

    Args:
        x, noise: (B, ...).

    Returns:
        (B,) int32: ``noise[order]`` belongs to x.
    """
    a, b = (jax.lax.stop_gradient(v).reshape(len(x), -1) for v in (x, noise))
    # The squares of both are the same for every assignment.
    return assign(-2 * jnp.matmul(a, b.T, precision="highest"))
