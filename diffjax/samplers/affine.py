"""The shared affine step: ``stack' = M_i @ [stack, x, eps, noise]``.

Most solvers are linear in the state, the prediction and the noise, so that a solver is a table of
small matrices formed on the host in float64. Formed in float32 inside jit, the same coefficients
lose up to two digits at a thousand steps.

The stack holds z in slot 0 and what the solver remembers in the other slots, for example the
network's earlier outputs. A table is written as mappings (`Update`), which `matrices` makes dense.
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
ROW_DTYPE = np.float32  # type of everything that enters the compiled loop


def to_rows(grid: Grid, places: Sequence[int | Level], coef: Coefficients) -> Rows:
    """Make rows that evaluate the network at places of a grid; everything becomes float32.

    Args:
        grid: whose last level ends the last row.
        places: one per row: an index of ``grid.levels``, or a level that need not be one of them.
        coef: the solver's coefficients, leaves (rows, ...).
    """
    levels = [at(grid, place) for place in (*places, -1)]

    def stack(chosen: Sequence[Level]) -> Level:
        t, alpha, sigma = (np.asarray([level[k] for level in chosen], ROW_DTYPE) for k in range(3))
        return Level(t, alpha, sigma, np.arange(len(chosen), dtype=np.int32))

    return Rows(stack(levels[:-1]), stack(levels[1:]), jax.tree.map(ROW_DTYPE, coef))


def at(grid: Grid, place: int | Level) -> Level:
    """Return one level of a grid by its index; a level stands for itself."""
    if isinstance(place, Level):
        return place
    return Level(*(np.asarray(leaf)[place] for leaf in grid.levels))


def matrices(entries: Sequence[Entry]) -> np.ndarray:
    """Return the matrices of a table, (rows, K, K + 3), where K is 1 + the largest slot.

    Entry (row, slot, column) multiplies the slot of that column, or x, eps and noise in the last
    three columns.
    """
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
    """Return the memory before the first row: K - 1 slots of zeros, (K - 1, B, H, W, C)."""
    return jnp.zeros((cast(Array, rows.coef).shape[1] - 1, *z.shape), z.dtype)


def _step(
    noise: Noise, denoise: Denoiser, z: Array, memory: Memory, row: Rows
) -> tuple[Array, Memory]:
    """Take one row: evaluate the network, and multiply the stack by the row's matrix."""
    prediction = denoise(z, row.level)
    drawn = noise(row.level.i)
    outputs = jnp.stack([prediction.x, prediction.eps, drawn])
    stack = jnp.concatenate([z[None], cast(Array, memory), outputs])
    stack = jnp.tensordot(cast(Array, row.coef), stack, 1, precision="highest")
    return stack[0], stack[1:]


def affine(table: Table) -> Sampler:
    """Make the sampler of a table of affine updates.

    Solvers with memories of equal size share one compilation, because their tables are arguments.

    Args:
        table: ``Grid -> entries``, one for each network evaluation.
    """

    def plan(grid: Grid) -> Rows:
        entries = table(grid)
        return to_rows(grid, [index for index, _ in entries], matrices(entries))

    return Sampler(plan, _init, _step)
