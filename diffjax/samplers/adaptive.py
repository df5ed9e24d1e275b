r"""The probability flow by an adaptive Runge-Kutta method, in the compiled loop.

The papers call SciPy's ``solve_ivp(method="RK45")`` from the host: every evaluation carries the
images to the host and back, in float64, and all images of a batch share their steps. Here the same
method (Dormand & Prince 1980, with SciPy's first step and step control) is a ``while_loop`` in XLA,
and every image has steps of its own, so that it does not depend on its batch. Diffrax has the
method too, but this is all that is needed of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.samplers.affine import to_rows
from diffjax.types import Array, Denoiser, Grid, Level, Memory, Noise, Rows, Sampler, expand

ATTEMPTS = 2000  # steps taken or refused; images that need more become NaN
_CELLS = 1024  # of the table of alpha and sigma
_NEAR = 1e-3  # share of the time near its end in which the cells are about equal

# Dormand & Prince 1980, table 2: rows of the stages, the last of which is the fifth-order result,
# and the difference of the weights of both orders.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
# The same as a matrix, and the share of the step at each stage.
_WEIGHTS = np.asarray([row + (0.0,) * (len(_ERROR) - len(row)) for row in _STAGES], np.float32)
_SHARES = np.asarray([math.fsum(row) for row in _STAGES], np.float32)

Field = Callable[[Array, Array], Array]  # (z (B, ...), time (B,)) -> dz/dt


def rk45(*, rtol: float = 1e-5, atol: float = 1e-5) -> Sampler:
    """Make an adaptive solver of ``dz/dt = alpha' x + sigma' eps``.

    It runs from the first time of a grid to the last one, in one row. A grid that ends at the data
    ends with the prediction of x at the last time before. How many times lie between does not
    count.

    Args:
        rtol, atol: the error of a step is at most ``atol + rtol |z|``, root mean square over an
            image.

    Raises:
        ValueError: a tolerance is not positive.
    """
    if min(rtol, atol) <= 0:
        raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}")

    def step(
        noise: Noise, denoise: Denoiser, z: Array, memory: Memory, row: Rows
    ) -> tuple[Array, Memory]:
        table = _Table(**cast(Mapping[str, Any], row.coef))

        def field(z: Array, passed: Array) -> Array:
            level, slope = _look_up(table, table.first - passed, row.level.i)
            found = denoise(z, level)
            return -(expand(slope[0], z) * found.x + expand(slope[1], z) * found.eps)

        z, _ = integrate(field, z, table.first - table.last, rtol=rtol, atol=atol)
        here, _ = _look_up(table, jnp.full(z.shape[:1], table.last), row.level.i)
        return jax.lax.cond(table.clean, lambda z: denoise(z, here).x, lambda z: z, z), memory

    return Sampler(_plan, lambda z, rows: (), step)


class _Table(NamedTuple):
    """alpha and sigma as cubics of ``log(1 + (t - last) / near)``.

    Attributes:
        first, last: times.
        near: time in which the cells are about equal.
        cubics: (cells, 2, 4), coefficients of the powers 0 to 3 of the share of a cell.
        clean: whether the prediction of x is the result.
    """

    first: Any
    last: Any
    near: Any
    cubics: Any
    clean: Any


def _plan(grid: Grid) -> Rows:
    t, sigma = np.asarray(grid.levels.t), np.asarray(grid.levels.sigma)
    on_schedule = np.isclose(sigma[-1], np.asarray(grid.at_time(max(t[-1], 0.0)).sigma))
    clean = sigma[-1] == 0 and not (on_schedule and t[-1] >= 0)
    last = t[-2] if clean else t[-1]
    if not last < t[0]:
        raise ValueError("rk45 needs a grid of two different times: give it two steps or more")
    near = _NEAR * (t[0] - last)
    u = np.linspace(0, 1, _CELLS + 1)
    times = last + near * np.expm1(u * np.log1p((t[0] - last) / near))
    level = grid.at_time(np.clip(times, last, t[0]))
    pair = np.stack([np.asarray(level.alpha), np.asarray(level.sigma)], axis=-1)
    from scipy.interpolate import CubicSpline  # slow to import, and few samplers need it

    powers = CubicSpline(u, pair).c[::-1] * (1 / _CELLS) ** np.arange(4)[:, None, None]
    cubics = np.moveaxis(powers, 0, -1)
    first, end, width = (np.asarray([v]) for v in (t[0], last, near))
    coef = _Table(first, end, width, cubics[None], np.asarray([clean]))
    return to_rows(grid, [0], coef._asdict())


def _look_up(table: _Table, t: Array, i: Any) -> tuple[Level, tuple[Array, Array]]:
    """Return levels at times (B,), and the slopes of alpha and sigma there."""
    length = jnp.log1p((table.first - table.last) / table.near)
    passed = jnp.maximum(t - table.last, 0.0)
    place = jnp.clip(jnp.log1p(passed / table.near) / length, 0.0, 1.0) * _CELLS
    cell = jnp.minimum(place.astype(jnp.int32), _CELLS - 1)
    share = (place - cell)[:, None, None]
    cubic = jnp.asarray(table.cubics)[cell]
    value = (cubic * share ** jnp.arange(4)).sum(-1)
    turn = (cubic[..., 1:] * share ** jnp.arange(3) * jnp.arange(1, 4)).sum(-1)
    slope = turn * (_CELLS / (length * (passed + table.near)))[:, None]
    return Level(t, value[:, 0], value[:, 1], i), (slope[:, 0], slope[:, 1])


def _rms(value: Array) -> Any:
    return jnp.sqrt(jnp.square(value.reshape(value.shape[0], -1)).mean(1))


class _Run(NamedTuple):
    """What the loop carries; of each image its time, step, slope and evaluations."""

    z: Any
    slope: Any
    time: Any
    step: Any
    refused: Any
    evaluations: Any
    attempts: Any


def integrate(
    field: Field, z: Array, end: Any, *, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[Array, Array]:
    """Integrate ``dz/dt = field(z, t)`` from t = 0 on, as SciPy's RK45 does.

    An error below 1 in units of ``atol + rtol |z|`` lets a step pass. The next step is ``0.9
    error^(-1/5)`` times as long, between 0.2 and 10 times, and not longer after a refusal.

    Args:
        field: ``(z, times (B,)) -> dz/dt``.
        z: (B, ...), where it begins.
        end: the last time.
        rtol, atol: tolerances.

    Returns:
        (z at the end, number of evaluations (B,)).
    """
    start = jnp.zeros(z.shape[0])
    slope = field(z, start)
    first = _choose_first_step(field, z, slope, end, rtol, atol)
    run = _Run(
        z,
        slope,
        start,
        first,
        jnp.zeros(start.shape, bool),
        jnp.full(start.shape, 2),
        jnp.zeros((), int),
    )

    def going(run: _Run) -> Any:
        return (run.time < end).any() & (run.attempts < ATTEMPTS)

    run = jax.lax.while_loop(going, lambda run: _attempt(field, run, end, rtol, atol), run)
    return jnp.where(expand(run.time < end, z), jnp.nan, run.z), run.evaluations


def _choose_first_step(
    field: Field, z: Array, slope: Array, end: Any, rtol: float, atol: float
) -> Array:
    """Choose a first step (B,) that an explicit Euler step changes little in.

    Hairer et al. 1993, section II.4.
    """
    scale = atol + rtol * jnp.abs(z)
    size, rate = _rms(z / scale), _rms(slope / scale)
    tiny = (size < 1e-5) | (rate < 1e-5)
    guess = jnp.minimum(jnp.where(tiny, 1e-6, 0.01 * size / rate), end)
    after = field(z + expand(guess, z) * slope, guess)
    bend = _rms((after - slope) / scale) / guess
    flat = (rate <= 1e-15) & (bend <= 1e-15)
    other = jnp.where(
        flat, jnp.maximum(1e-6, 1e-3 * guess), (0.01 / jnp.maximum(rate, bend)) ** (1 / 5)
    )
    return jnp.minimum(jnp.minimum(100 * guess, other), end)


def _attempt(field: Field, run: _Run, end: Any, rtol: float, atol: float) -> _Run:
    """Try one step of every image that is not done, taken or refused."""
    goal = jnp.minimum(run.time + run.step, end)
    step = goal - run.time
    h = expand(step, run.z)

    def combine(weights: Array, slopes: Array) -> Array:
        return h * (weights.reshape(-1, *[1] * run.z.ndim) * slopes).sum(0)

    def add_stage(k: Array, carry: tuple[jax.Array, Array]) -> tuple[jax.Array, Array]:
        slopes, _ = carry
        z = run.z + combine(jnp.asarray(_WEIGHTS)[k], slopes)
        time = jnp.where(k >= 4, goal, run.time + jnp.asarray(_SHARES)[k] * step)
        return slopes.at[k + 1].set(field(z, time)), z

    # A loop, so that the network is compiled once for all stages.
    begun = jnp.zeros((len(_STAGES) + 1, *run.z.shape), run.z.dtype).at[0].set(run.slope)
    slopes, z = jax.lax.fori_loop(0, len(_STAGES), add_stage, (begun, run.z))
    wrong = combine(jnp.asarray(_ERROR), slopes)
    error = _rms(wrong / (atol + rtol * jnp.maximum(jnp.abs(run.z), jnp.abs(z))))
    active, passed = run.time < end, error < 1
    factor = 0.9 * jnp.maximum(error, 1e-10) ** (-1 / 5)
    longer = jnp.minimum(factor, jnp.where(run.refused, 1.0, 10.0))
    changed = step * jnp.where(passed, longer, jnp.maximum(0.2, factor))
    moves = active & passed

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(expand(moves, old), new, old)

    return _Run(
        choose(z, run.z),
        choose(slopes[-1], run.slope),
        choose(goal, run.time),
        jnp.where(active, changed, run.step),
        active & ~passed,
        run.evaluations + 6 * active,
        run.attempts + 1,
    )
