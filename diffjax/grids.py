"""Grids: which noise levels a sampler visits. Host float64 throughout, never traced.

A grid of N steps holds N+1 levels. On a discrete schedule the steps start at chosen timesteps and
the last level is the data itself (``alpha = 1, sigma = 0``); on a continuous one it ends at the
clean side of the span, or at the data with ``final="clean"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import betaincinv

from diffjax.schedules import logsnr
from diffjax.types import Grid, Level, Schedule, build, choose


def from_times(schedule: Schedule, times: Any, *, final: str = "clean") -> Grid:
    """Grid that visits ``times`` (N,), noisiest first.

    Args:
        final: ``clean`` ends at the data, ``first`` at the schedule's cleanest level, ``last``
            makes the last of ``times`` the end (N-1 steps).

    Raises:
        ValueError: the times do not fall strictly, or lie outside the schedule's table.
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 1 or not (np.diff(times) < 0).all():
        raise ValueError(f"times must be one falling sequence, got {times[:8].tolist()}")
    low, high = schedule.span
    if schedule.steps is not None and not (low <= times[-1] and times[0] <= high):
        raise ValueError(
            f"timesteps must lie in {low:g} .. {high:g}, got {times[-1]} .. {times[0]}"
        )
    alpha, sigma = (np.asarray(v, np.float64) for v in schedule.at(times))
    if final == "clean":
        end = (low if schedule.steps is None else -1.0, 1.0, 0.0)
    elif final == "first":
        cleanest = schedule.at(np.float64(low))
        end = (low, float(cleanest[0]), float(cleanest[1]))
    if final in ("clean", "first"):
        times, alpha, sigma = map(np.append, (times, alpha, sigma), end)
    elif final != "last" or len(times) < 2:
        raise ValueError(
            f"final must be 'clean', 'first' or 'last' (with two times), got {final!r}"
        )
    return of_levels(schedule, times, alpha, sigma)


def of_levels(schedule: Schedule, times: Any, alpha: Any, sigma: Any) -> Grid:
    """Grid of given levels (N+1,), which need not lie on the schedule."""
    levels = Level(times, alpha, sigma, np.arange(len(times)))

    def at_time(t: Any) -> Level:
        return Level(t, *schedule.at(np.asarray(t, np.float64)))

    # Prior: N(0, alpha^2 * 1 + sigma^2) is 1 when variance preserving and sigma_max when exploding.
    init_std = 1.0 if alpha[0] ** 2 + sigma[0] ** 2 < 1 + 1e-6 else float(sigma[0])
    return Grid(levels, lambda lam: at_time(schedule.t_of(lam)), at_time, init_std, len(times) - 1)


def full(schedule: Schedule) -> Grid:
    """Every timestep of a discrete schedule."""
    return from_times(schedule, np.arange(_table(schedule, "full"))[::-1])


def _table(schedule: Schedule, name: str) -> int:
    if schedule.steps is None:
        raise ValueError(f"grid {name!r} needs a discrete schedule; use uniform, logsnr or karras")
    return schedule.steps


def _steps(steps: int, most: int | None = None) -> int:
    if not (1 <= steps and (most is None or steps <= most)):
        raise ValueError(f"steps must lie in 1 .. {most or 'any'}, got {steps}")
    return steps


def leading(schedule: Schedule, steps: int, *, offset: int = 0, final: str = "clean") -> Grid:
    """Timesteps ``offset + range(0, T, T // S)``, the first S of them (Song et al. 2020, D.2).

    LDM's and Stable Diffusion's DDIM have offset 1 and end at the first timestep
    (``final="first"``) instead of the data.
    """
    total = _table(schedule, "leading")
    stride = total // _steps(steps, total)
    return from_times(schedule, (np.arange(steps) * stride + offset)[::-1], final=final)


def strided(schedule: Schedule, steps: int, *, offset: int = 0, final: str = "clean") -> Grid:
    """All timesteps ``offset + range(0, T, T // S)``, as the code of DDIM and of LDM takes them.

    Where S does not divide T these are more than S: 500 for 400 of 1000. See `leading`.
    """
    total = _table(schedule, "strided")
    times = np.arange(0, total, total // _steps(steps, total)) + offset
    return from_times(schedule, times[::-1], final=final)


def trailing(schedule: Schedule, steps: int) -> Grid:
    """Timesteps ``round(T - k T/S) - 1``, so the noisiest is always visited (Lin et al. 2023)."""
    total = _table(schedule, "trailing")
    _steps(steps, total)
    return from_times(schedule, np.round(total - np.arange(steps) * total / steps) - 1)


def linspace(schedule: Schedule, steps: int) -> Grid:
    """S timesteps evenly from T-1 to 0, rounded (Nichol & Dhariwal 2021, section 4)."""
    total = _table(schedule, "linspace")
    return from_times(schedule, np.round(np.linspace(total - 1, 0, _steps(steps, total))))


def quadratic(schedule: Schedule, steps: int, *, fraction: float = 0.8) -> Grid:
    """Timesteps ``int(linspace(0, sqrt(0.8 T), S)^2)`` (Song et al. 2020, D.2).

    From about 30 of 1000 on some coincide; each is visited once, so the grid has fewer steps.
    """
    total = _table(schedule, "quadratic")
    times = (np.linspace(0, np.sqrt(fraction * total), _steps(steps, total)) ** 2).astype(int)
    return from_times(schedule, np.unique(times)[::-1])


def uniform(
    schedule: Schedule, steps: int, *, final: str = "last", t_end: float | None = None
) -> Grid:
    """N steps at equal distances in t over the span of a continuous schedule, or down to ``t_end``.

    Raises:
        ValueError: ``t_end`` lies outside of the span.
    """
    low, high = schedule.span
    if t_end is not None and not low <= t_end < high:
        raise ValueError(f"t_end must lie in {low:g} .. {high:g}, got {t_end:g}")
    low = low if t_end is None else t_end
    count = _steps(steps) + (final == "last")
    return from_times(schedule, np.linspace(high, low, count), final=final)


def _of_logsnr(schedule: Schedule, lams: np.ndarray, final: str) -> Grid:
    return from_times(schedule, schedule.t_of(lams), final=final)


def _ends(schedule: Schedule) -> tuple[float, float]:
    """Log-SNR of the noisiest and the cleanest level."""
    low, high = (float(logsnr(*schedule.at(np.float64(t)))) for t in schedule.span)
    if not np.isfinite([low, high]).all():
        raise ValueError(
            "this schedule ends at zero or infinite log-SNR; use a grid in t (trailing, uniform)"
        )
    return high, low


def uniform_logsnr(schedule: Schedule, steps: int, *, final: str = "clean") -> Grid:
    """N levels at equal distances in log-SNR (Lu et al. 2022, section 3.4)."""
    count = _steps(steps) + (final == "last")
    return _of_logsnr(schedule, np.linspace(*_ends(schedule), count), final)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "clean",
) -> Grid:
    """``(smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho`` in ``sigma / alpha``.

    Karras et al. 2022, eq. 5.
    """
    first, last = (np.exp(-0.5 * lam) for lam in _ends(schedule))
    top, bottom = (sigma_max or first) ** (1 / rho), (sigma_min or last) ** (1 / rho)
    ratio = np.linspace(top, bottom, _steps(steps) + (final == "last")) ** rho
    return _of_logsnr(schedule, -2 * np.log(ratio), final)


def beta(
    schedule: Schedule, steps: int, *, a: float = 0.6, b: float = 0.6, final: str = "clean"
) -> Grid:
    """Ratios ``sigma / alpha`` at quantiles of Beta(a, b): more steps near both ends.

    Lee et al. 2024 (beta sampling), with the parametrisation of diffusers.
    """
    high, low = (np.exp(-0.5 * lam) for lam in _ends(schedule))
    count = _steps(steps) + (final == "last")
    quantiles = betaincinv(a, b, 1 - np.linspace(0, 1, count))
    return _of_logsnr(schedule, -2 * np.log(low + quantiles * (high - low)), final)


def from_sigmas(schedule: Schedule, sigmas: Any, *, final: str = "clean") -> Grid:
    """Grid that visits given ratios ``sigma / alpha``, noisiest first; a last 0 is the data.

    Raises:
        ValueError: a ratio is not positive, or they do not fall.
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim == 1 and len(sigmas) > 1 and sigmas[-1] == 0:
        sigmas = sigmas[:-1]
    if sigmas.ndim != 1 or not (sigmas > 0).all():
        raise ValueError(f"sigmas must be one sequence of positive numbers, got {sigmas}")
    return _of_logsnr(schedule, -2 * np.log(sigmas), final)


def lcm(schedule: Schedule, steps: int, *, original_steps: int = 50) -> Grid:
    """S of the timesteps ``k T/original_steps - 1`` a consistency model was distilled on.

    Luo et al. 2023, section 4.3: ``floor(linspace(0, original_steps, S, endpoint=False))`` of them,
    noisiest first.
    """
    total = _table(schedule, "lcm")
    origin = np.arange(1, original_steps + 1)[::-1] * (total // original_steps) - 1
    index = np.linspace(0, original_steps, _steps(steps, original_steps), endpoint=False)
    return from_times(schedule, origin[np.floor(index).astype(int)])


def truncate(grid: Grid, *, strength: float = 1.0) -> Grid:
    """The last ``min(int(steps strength), steps)`` steps, for starting from a noised image.

    Raises:
        ValueError: strength outside (0, 1], or so small that no step is left.
    """
    count = min(int(grid.steps * strength), grid.steps)
    if not 0 < strength <= 1 or count < 1:
        raise ValueError(
            f"strength must lie in (0, 1] and leave a step of {grid.steps}, got {strength}"
        )
    return _slice(grid, grid.steps - count, len(grid.levels.t))


def window(grid: Grid, *, start: float = 0.0, end: float = 1.0, total: int = 1000) -> Grid:
    """The part of a discrete grid between two fractions of the denoising.

    A cut at fraction f is the timestep ``round(T - f T)``: steps from timesteps at or above the
    cut of ``end`` belong to the first model, those below that of ``start`` to the next (SDXL's base
    and refiner).

    Raises:
        ValueError: not 0 <= start < end <= 1, or no step is left.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"need 0 <= start < end <= 1, got {start} and {end}")
    t = np.asarray(grid.levels.t)[:-1]
    first = 0 if start == 0 else int((t >= round(total - start * total)).sum())
    last = len(t) if end == 1 else int((t >= round(total - end * total)).sum())
    if last <= first:
        raise ValueError(f"no step of this grid lies between {start} and {end}")
    return _slice(grid, first, last + 1)


def skip(grid: Grid, count: int) -> Grid:
    """The grid without its first ``count`` levels."""
    return _slice(grid, count, len(grid.levels.t)) if count else grid


def _slice(grid: Grid, first: int, last: int) -> Grid:
    t, alpha, sigma = (leaf[first:last] for leaf in grid.levels[:3])
    init_std = 1.0 if alpha[0] ** 2 + sigma[0] ** 2 < 1 + 1e-6 else float(sigma[0])
    return grid._replace(
        levels=Level(t, alpha, sigma, np.arange(len(t))),
        init_std=init_std,
        first=grid.first + first,
    )


def flow_shift(
    tokens: int,
    *,
    base: float = 0.5,
    maximum: float = 1.15,
    fewest: int = 256,
    most: int = 4096,
) -> float:
    """Shift ``exp(mu)`` of the flow schedule for a number of image tokens (Esser et al. 2024).

    mu is linear in the tokens, ``base`` at ``fewest`` and ``maximum`` at ``most``, as in Flux.
    """
    return float(np.exp(base + (maximum - base) * (tokens - fewest) / (most - fewest)))


GRIDS: dict[str, Callable[..., Grid]] = {
    "leading": leading,
    "strided": strided,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "uniform": uniform,
    "logsnr": uniform_logsnr,
    "exponential": uniform_logsnr,  # equal steps in log sigma / alpha: the same levels
    "karras": karras,
    "beta": beta,
    "lcm": lcm,
    "full": lambda schedule, steps: full(schedule),  # whatever the number of steps
}


def make(name: str, schedule: Schedule, steps: int | None = None, options: Any = None) -> Grid:
    """The named grid with ``steps`` steps (None: all timesteps of a discrete schedule).

    Raises:
        ValueError: unknown name or option, or a grid the schedule does not have.
    """
    if steps is None:
        choose("grid", name, GRIDS)
        if schedule.steps is None:
            raise ValueError("a continuous schedule needs a number of steps")
        return full(schedule)
    return build("grid", name, GRIDS, {"schedule": schedule, "steps": steps, **dict(options or {})})
