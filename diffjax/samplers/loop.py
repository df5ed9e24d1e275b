"""The one sampling loop, and the noise it draws.

`sample` runs a plan in one compiled loop. `steps` runs the same compiled loop a row at a time, for
hosts that look, edit or stop in between. `trajectory` returns every state of the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffjax.types import (
    Array,
    ArrayLike,
    Denoiser,
    Level,
    Memory,
    Noise,
    Prediction,
    Rows,
    Sampler,
)

# The number of a row: a Python integer, or a traced one.
Index: TypeAlias = int | Array


def image_noise(keys: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Noise:
    """Make noise from one key per image, so that an image does not depend on its batch.

    Args:
        keys: typed keys (B,), as from ``jax.random.key``.
        shape: shape of one image, (H, W, C).
        dtype: floating-point type of the noise.

    Returns:
        ``(i, k=0) -> N(0, I)`` of shape (B, H, W, C); i is the evaluation index, k a draw within
        it.
    """

    def noise(i: Index, k: int = 0) -> Array:
        def one(key: jax.Array) -> jax.Array:
            return jax.random.normal(
                jax.random.fold_in(jax.random.fold_in(key, i), k), shape, dtype
            )

        return jax.vmap(one)(keys)

    return noise


def replay_noise(*draws: Array) -> Noise:
    """Make noise of draws that were made beforehand; ``draws[k][i]`` is draw k of evaluation i.

    Args:
        draws: arrays (rows, B, H, W, C), one for each draw that a row makes.

    Raises:
        ValueError: (when called) a row makes more draws than there are.
    """

    def noise(i: Index, k: int = 0) -> Array:
        if k >= len(draws):
            raise ValueError(
                f"a row asks for draw {k}, but the noise has {len(draws)} draws, counted from 0"
            )
        return jnp.asarray(draws[k])[i]

    return noise


def prior(noise: Noise, rows: Rows, sampler: Sampler | None = None) -> Array:
    """Draw the initial ``z`` (B, H, W, C).

    It is N(0, 1) where the first level preserves variance, and N(0, sigma^2) elsewhere. The noise
    is draw 1 of evaluation 0, which no row uses. A ``sampler`` may make its start of it itself.
    """
    if sampler is not None and sampler.start is not None:
        return sampler.start(noise(0, 1))
    alpha, sigma = rows.level.alpha[0], rows.level.sigma[0]
    return jnp.where(alpha**2 + sigma**2 < 1 + 1e-5, 1.0, sigma) * noise(0, 1)


def pad(rows: Rows, size: int) -> Rows:
    """Repeat the last row until there are ``size`` rows.

    With `sample`'s ``n``, which never runs the padding, plans of different lengths then share one
    compilation.

    Raises:
        ValueError: there are more rows than ``size``.
    """
    count = len(rows.level.t)
    if count > size:
        raise ValueError(f"cannot pad {count} rows to {size}")
    index = np.minimum(np.arange(size), count - 1)
    return jax.tree.map(lambda leaf: leaf[index], rows)


class Run(NamedTuple):
    """What the loop carries from row to row.

    Attributes:
        z: the state (B, H, W, C).
        state: the solver's memory.
        x: the last prediction of the data, of the shape of z; None if it is not kept.
    """

    z: Array
    state: Memory
    x: Array | None = None


# ``(z, row) -> z``, traced: changes the state after a row.
OnStep: TypeAlias = Callable[[Array, Rows], Array]
# Called on the host with the index of a row that is done.
OnRow: TypeAlias = Callable[..., None]


def begin(sampler: Sampler, z: Array, rows: Rows, *, watch: bool = False) -> Run:
    """Start a run from ``z``.

    Args:
        sampler: the solver.
        z: the state at the first level.
        rows: the sampler's plan.
        watch: whether the run keeps the predictions of x.
    """
    return Run(z, sampler.init(z, rows), jnp.zeros_like(z) if watch else None)


def advance(
    noise: Noise,
    denoise: Denoiser,
    sampler: Sampler,
    run: Run,
    rows: Rows,
    first: Index,
    last: Index,
    *,
    on_step: OnStep | None = None,
    progress: OnRow | None = None,
) -> Run:
    """Run rows ``first`` to ``last - 1``; traceable, and both ends may be traced.

    Args:
        noise: the draws, see `image_noise`.
        denoise: the model.
        sampler: the solver.
        run: the state at ``first``.
        rows: the sampler's plan.
        first, last: indices of rows.
        on_step: ``(z, row) -> z``, traced; changes the state after each row, which is then at
            ``row.next`` (blending in the known part of an image, for instance).
        progress: called on the host with the index of each row that is done, in order. Without
            it the compiled loop holds no callback.
    """
    rows = jax.tree.map(jnp.asarray, rows)

    def body(k: jax.Array, run: Run) -> Run:
        row = jax.tree.map(lambda leaf: leaf[k], rows)
        seen: list[Array] = []

        def watched(z: Array, level: Level) -> Prediction:
            prediction = denoise(z, level)
            seen.append(prediction.x)
            return prediction

        z, state = sampler.step(noise, denoise if run.x is None else watched, *run[:2], row)
        if on_step is not None:
            z = on_step(z, row)
        if progress is not None:
            jax.debug.callback(progress, k, ordered=True)
        return Run(z, state, None if run.x is None else seen[-1])

    return jax.lax.fori_loop(first, last, body, run)


def sample(
    noise: Noise,
    denoise: Denoiser,
    sampler: Sampler,
    z: Array,
    rows: Rows,
    *,
    n: Index | None = None,
    on_step: OnStep | None = None,
    progress: OnRow | None = None,
) -> Array:
    """Run a sampler from ``z`` over its rows; one ``fori_loop``, traceable.

    Args:
        noise: the draws, see `image_noise`.
        denoise: the model.
        sampler: the solver.
        z: the state at the first level, such as from `prior`.
        rows: the sampler's plan.
        n: rows to run (traced); None for all. With padded rows, plans of different lengths share
            one compilation.
        on_step, progress: see `advance`.

    Returns:
        The state after the last row, of the shape of z.
    """
    last = len(rows.level.t) if n is None else n
    run = begin(sampler, z, rows)
    return advance(
        noise, denoise, sampler, run, rows, 0, last, on_step=on_step, progress=progress
    ).z


def trajectory(
    noise: Noise,
    denoise: Denoiser,
    sampler: Sampler,
    z: Array,
    rows: Rows,
    *,
    n: Index | None = None,
    at: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Return the state after every row, or after some, and the x predicted in it; traceable.

    A state between the evaluations of a two-stage solver is what the next evaluation sees. Other
    arguments are those of `sample`.

    Args:
        n: number of states to compute (traced); the others are zero. None for all.
        at: (F,) numbers of rows, in increasing order, after which the state is kept; after 0 rows
            it is z, and the prediction is 0. None for ``1 .. rows``.

    Returns:
        Two arrays (F, B, H, W, C).
    """
    return follow(noise, denoise, sampler, z, rows, n=n, at=at)[1:]


def follow(
    noise: Noise,
    denoise: Denoiser,
    sampler: Sampler,
    z: Array,
    rows: Rows,
    *,
    n: Index | None = None,
    at: ArrayLike | None = None,
    shown: int | None = None,
) -> tuple[Run, Array, Array]:
    """Run a sampler, and keep the way of the first images; traceable.

    Other arguments are those of `trajectory`.

    Args:
        shown: number of images whose way is kept; None for all.

    Returns:
        The run at its end, and two arrays (F, shown, H, W, C) as of `trajectory`.
    """
    counts = jnp.arange(1, len(rows.level.t) + 1) if at is None else jnp.asarray(at)

    def body(
        k: jax.Array, carry: tuple[Run, jax.Array, jax.Array]
    ) -> tuple[Run, jax.Array, jax.Array]:
        run, states, predictions = carry
        before = jnp.where(k == 0, 0, counts[k - 1])
        run = advance(noise, denoise, sampler, run, rows, before, counts[k])
        x = cast(jax.Array, run.x)  # which a run that is watched has
        return run, states.at[k].set(run.z[:shown]), predictions.at[k].set(x[:shown])

    empty = jnp.zeros((len(counts), *z[:shown].shape), z.dtype)
    start = begin(sampler, z, rows, watch=True)
    last = len(counts) if n is None else n
    return jax.lax.fori_loop(0, last, body, (start, empty, empty))


@dataclasses.dataclass
class Step:
    """What `steps` yields after each row; assigning ``run`` or calling `edit` changes what follows.

    Attributes:
        i: index of the row that is done.
        count: number of rows of the whole run.
        run: state, solver memory and (if it is kept) the prediction of x.
    """

    i: int
    count: int
    run: Run

    def edit(self, z: Array) -> None:
        """Continue from ``z``; the solver keeps its memory."""
        self.run = self.run._replace(z=z)


def steps(
    advance: Callable[[Run, Rows, Index, Index], Run], run: Run, rows: Rows, *, n: int | None = None
) -> Iterator[Step]:
    """Run row by row and yield after each, so that the host can look, edit or stop.

    ::

        go = jax.jit(lambda run, rows, first, last: advance(noise, denoise, sampler, run, ...))
        for step in steps(go, begin(sampler, z, rows), rows):
            step.edit(better(step.run.z))

    Args:
        advance: `advance` compiled, with all but its last four arguments bound. Large parameters
            should be arguments of the compiled function, bound with `functools.partial`. Since
            the ends of the range are arguments, ``advance(run, rows, 0, n)`` is the same
            program, and both give the same bits.
        run: where to begin; the ``run`` of an earlier step resumes together with sliced rows.
        rows: the sampler's plan.
        n: rows to run, None for all.
    """
    count = len(rows.level.t) if n is None else n
    rows = jax.tree.map(jnp.asarray, rows)
    for k in range(count):
        step = Step(k, count, advance(run, rows, k, k + 1))
        yield step
        run = step.run
