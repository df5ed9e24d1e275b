"""The shared affine step: ``stack' = M_i @ [stack, x, eps, noise]``.

Most solvers are linear in the state, the prediction and the noise, so a solver is a table of small
matrices formed on the host in float64. Formed in float32 inside jit, the same coefficients lose up
to two digits at a thousand steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import (
    Array,
    ArrayLike,
    Coefficients,
    Denoiser,
    Grid,
    Level,
    Memory,
    Noise,
    Rows,
    Sampler,
)

# What a term of a row multiplies: the slot of that number, or "x", "eps" or "noise".
Source: TypeAlias = int | str
# A linear combination: coefficients by what they multiply.
Terms: TypeAlias = Mapping[Source, ArrayLike]
# The new content of each slot. Slot 0 is z, the others are the solver's memory. A slot that is not
# listed becomes 0.
Update: TypeAlias = Mapping[int, Terms]
# One row of a table: where the network is evaluated (an index of the grid's levels, or a level that
# need not be one of them), and what the row does with the output.
Entry: TypeAlias = tuple[int | Level, Update]
Table: TypeAlias = Callable[[Grid], Sequence[Entry]]
ROW_DTYPE = np.float32  # of everything that enters the compiled loop


def to_rows(grid: Grid, places: Sequence[int | Level], coef: Coefficients) -> Rows:
    """Rows that evaluate the network at places: indices of ``grid.levels``, or levels; float32."""
    levels = [at(grid, place) for place in (*places, -1)]

    def stack(chosen: Sequence[Level]) -> Level:
        t, alpha, sigma = (np.asarray([level[k] for level in chosen], ROW_DTYPE) for k in range(3))
        return Level(t, alpha, sigma, np.arange(len(chosen), dtype=np.int32))

    return Rows(stack(levels[:-1]), stack(levels[1:]), jax.tree.map(ROW_DTYPE, coef))


def at(grid: Grid, place: int | Level) -> Level:
    """One level of a grid; a level stands for itself."""
    if isinstance(place, Level):
        return place
    return Level(*(np.asarray(leaf)[place] for leaf in grid.levels))


def matrices(entries: Sequence[Entry]) -> np.ndarray:
    """Dense (rows, K, K + 3) matrices of a table, K = 1 + the largest slot."""
    size = 1 + max(slot for _, update in entries for slot in update)
    column = {"x": size, "eps": size + 1, "noise": size + 2}
    out = np.zeros((len(entries), size, size + 3))
    for row, (_, update) in enumerate(entries):
        for slot, terms in update.items():
            for source, value in terms.items():
                where = source if isinstance(source, int) else column[source]
                out[row, slot, where] += value
    return out


def _init(z: Array, rows: Rows) -> Array:
    return jnp.zeros((cast(Array, rows.coef).shape[1] - 1, *z.shape), z.dtype)


def _step(
    noise: Noise, denoise: Denoiser, z: Array, memory: Memory, row: Rows
) -> tuple[Array, Memory]:
    prediction = denoise(z, row.level)
    drawn = noise(row.level.i)
    outputs = jnp.stack([prediction.x, prediction.eps, drawn])
    stack = jnp.concatenate([z[None], cast(Array, memory), outputs])
    stack = jnp.tensordot(cast(Array, row.coef), stack, 1, precision="highest")
    return stack[0], stack[1:]


def affine(table: Table) -> Sampler:
    """Sampler of a table of affine updates; solvers of equal memory share one compilation."""

    def plan(grid: Grid) -> Rows:
        entries = table(grid)
        return to_rows(grid, [index for index, _ in entries], matrices(entries))

    return Sampler(plan, _init, _step)
