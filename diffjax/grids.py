"""Grids: which noise levels a sampler visits, in float64 on the host, never traced.

A grid of N steps holds N + 1 levels. On a discrete schedule the steps start at chosen timesteps
and the last level is the data itself (``alpha = 1, sigma = 0``); on a continuous one it ends at the
clean side of the span, or at the data with ``final="clean"``.

Functions that make grids take a schedule and a number of steps, and return a `Grid`. Their argument
``final`` is that of `from_times`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from diffjax.schedules import logsnr
from diffjax.types import ArrayLike, Grid, Level, Options, Schedule, build, choose


def from_times(schedule: Schedule, times: npt.ArrayLike, *, final: str = "clean") -> Grid:
    """Make the grid that visits the given times.

    Args:
        times: (N,), noisiest first; whole timesteps of a discrete schedule, or fractional ones.
        final: ``clean`` appends the data as the last level, ``first`` appends the schedule's
            cleanest level, and ``last`` makes the last of ``times`` the end (N - 1 steps).

    Raises:
        ValueError: the times do not fall strictly, lie outside the schedule's table, or are too
            few; or ``final`` is unknown.
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 1 or not (np.diff(times) < 0).all():
        raise ValueError(f"times must be one falling sequence, got {times[:8].tolist()}")
    low, high = schedule.span
    if schedule.steps is not None:
        slack = 1e-9 * schedule.steps  # times that were computed from levels are rounded
        if not (low - slack <= times[-1] and times[0] <= high + slack):
            raise ValueError(
                f"timesteps must lie in {low:g} .. {high:g}, got {times[-1]} .. {times[0]}"
            )
        times = np.asarray(np.clip(times, low, high))
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
    return from_levels(schedule, times, alpha, sigma)


def from_levels(
    schedule: Schedule, times: np.ndarray, alpha: np.ndarray, sigma: np.ndarray
) -> Grid:
    """Make the grid of given levels, which need not lie on the schedule.

    Args:
        schedule: for evaluations between the levels.
        times, alpha, sigma: (N + 1,), noisiest first.
    """
    levels = Level(times, alpha, sigma, np.arange(len(times)))

    def at_time(t: ArrayLike) -> Level:
        times = np.asarray(t, np.float64)
        return Level(times, *schedule.at(times))

    # Prior: N(0, alpha^2 * 1 + sigma^2) is 1 when variance preserving and sigma_max when exploding.
    init_std = 1.0 if alpha[0] ** 2 + sigma[0] ** 2 < 1 + 1e-6 else float(sigma[0])
    return Grid(levels, lambda lam: at_time(schedule.t_of(lam)), at_time, init_std, len(times) - 1)


def full(schedule: Schedule) -> Grid:
    """Make the grid of every timestep of a discrete schedule, T - 1 .. 0, and the data.

    Raises:
        ValueError: the schedule is continuous.
    """
    return from_times(schedule, np.arange(_table(schedule, "full"))[::-1])


def _table(schedule: Schedule, name: str) -> int:
    """Return the number of timesteps of a discrete schedule.

    Raises:
        ValueError: the schedule is continuous; the message names the grid.
    """
    if schedule.steps is None:
        raise ValueError(f"grid {name!r} needs a discrete schedule; use uniform, logsnr or karras")
    return schedule.steps


def _steps(steps: int, most: int | None = None) -> int:
    """Return a number of steps that lies in 1 .. ``most``.

    Raises:
        ValueError: it does not.
    """
    if not (1 <= steps and (most is None or steps <= most)):
        raise ValueError(f"steps must lie in 1 .. {most or 'any'}, got {steps}")
    return steps


def leading(schedule: Schedule, steps: int, *, offset: int = 0, final: str = "clean") -> Grid:
    """Make a grid of timesteps ``offset + range(0, T, T // S)``, the first S of them.

    Song et al. 2020, appendix D.2. The noisiest timestep is not visited. DDIM as LDM and Stable
    Diffusion have it uses offset 1 and ends at the first timestep (``final="first"``).

    Raises:
        ValueError: the schedule is continuous, or steps are outside 1 .. T.
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
    """Make a grid of timesteps ``round(T - k T/S) - 1``, which always visits the noisiest.

    Lin et al. 2023, section 3.3.

    Raises:
        ValueError: the schedule is continuous, or steps are outside 1 .. T.
    """
    total = _table(schedule, "trailing")
    _steps(steps, total)
    return from_times(schedule, np.round(total - np.arange(steps) * total / steps) - 1)


def linspace(schedule: Schedule, steps: int) -> Grid:
    """Make a grid of S timesteps evenly from T - 1 to 0, rounded.

    Nichol & Dhariwal 2021, section 4.

    Raises:
        ValueError: the schedule is continuous, or steps are outside 1 .. T.
    """
    total = _table(schedule, "linspace")
    return from_times(schedule, np.round(np.linspace(total - 1, 0, _steps(steps, total))))


def quadratic(schedule: Schedule, steps: int, *, fraction: float = 0.8) -> Grid:
    """Make a grid of timesteps ``int(linspace(0, sqrt(f T), S)^2)`` (Song et al. 2020, D.2).

    From about 30 steps of 1000 on some timesteps coincide. Each is visited once, so that the grid
    has fewer steps than were asked for.

    Args:
        fraction: f, the share of the timesteps that the grid spans; 0.8 in the paper.

    Raises:
        ValueError: the schedule is continuous, or steps are outside 1 .. T.
    """
    total = _table(schedule, "quadratic")
    times = (np.linspace(0, np.sqrt(fraction * total), _steps(steps, total)) ** 2).astype(int)
    return from_times(schedule, np.unique(times)[::-1])


def uniform(
    schedule: Schedule, steps: int, *, final: str = "last", t_end: float | None = None
) -> Grid:
    """Make a grid of N steps at equal distances in t over the span of a continuous schedule.

    Args:
        t_end: the last time, in place of the cleanest of the span.

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
    """Make the grid of levels with these log-SNRs, in rising order."""
    return from_times(schedule, schedule.t_of(lams), final=final)


def _ends(schedule: Schedule) -> tuple[float, float]:
    """Return the log-SNR of the noisiest and of the cleanest level.

    Raises:
        ValueError: one of them is infinite.
    """
    low, high = (float(logsnr(*schedule.at(np.float64(t)))) for t in schedule.span)
    if not np.isfinite([low, high]).all():
        raise ValueError(
            "this schedule ends at zero or infinite log-SNR; use a grid in t (trailing, uniform)"
        )
    return high, low


def uniform_logsnr(schedule: Schedule, steps: int, *, final: str = "clean") -> Grid:
    """Make a grid at equal distances in log-SNR (Lu et al. 2022, section 3.4).

    Raises:
        ValueError: the log-SNR is infinite at an end of the schedule.
    """
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
    """Make the grid of EDM, in ``rho_i = sigma_i / alpha_i`` (Karras et al. 2022, eq. 5).

    ``rho_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho``

    Args:
        rho: the exponent; a large one puts more levels near the data.
        sigma_min, sigma_max: the smallest and the largest ratio; None is that of the schedule.

    Raises:
        ValueError: the log-SNR is infinite at an end of the schedule.
    """
    first, last = (np.exp(-0.5 * lam) for lam in _ends(schedule))
    top, bottom = (sigma_max or first) ** (1 / rho), (sigma_min or last) ** (1 / rho)
    ratio = np.linspace(top, bottom, _steps(steps) + (final == "last")) ** rho
    return _of_logsnr(schedule, -2 * np.log(ratio), final)


def beta(
    schedule: Schedule, steps: int, *, a: float = 0.6, b: float = 0.6, final: str = "clean"
) -> Grid:
    """Make a grid of ratios ``sigma / alpha`` at quantiles of Beta(a, b).

    There are more steps near both ends. Lee et al. 2024 (beta sampling), with the parametrisation
    of diffusers.

    Args:
        a, b: shape of the distribution; 1 and 1 spread the ratios evenly.

    Raises:
        ValueError: the log-SNR is infinite at an end of the schedule.
    """
    high, low = (np.exp(-0.5 * lam) for lam in _ends(schedule))
    count = _steps(steps) + (final == "last")
    quantiles = betaincinv(a, b, 1 - np.linspace(0, 1, count))
    return _of_logsnr(schedule, -2 * np.log(low + quantiles * (high - low)), final)


def from_sigmas(schedule: Schedule, sigmas: npt.ArrayLike, *, final: str = "clean") -> Grid:
    """Make the grid that visits given ratios ``sigma / alpha``, noisiest first.

    Args:
        sigmas: (N,), falling and positive; a last 0 stands for the data and may be left out.

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
    """Make a grid of S of the timesteps that a consistency model was distilled on.

    These are ``k T/K - 1`` for k = 1 .. K, of which the grid takes those at
    ``floor(linspace(0, K, S, endpoint=False))``, noisiest first (Luo et al. 2023, section 4.3).

    Args:
        original_steps: K, the steps of the distillation.

    Raises:
        ValueError: the schedule is continuous, or steps are outside 1 .. K.
    """
    total = _table(schedule, "lcm")
    origin = np.arange(1, original_steps + 1)[::-1] * (total // original_steps) - 1
    index = np.linspace(0, original_steps, _steps(steps, original_steps), endpoint=False)
    return from_times(schedule, origin[np.floor(index).astype(int)])


def truncate(grid: Grid, *, strength: float = 1.0) -> Grid:
    """Keep the last ``min(int(N strength), N)`` steps, to start from a noised image.

    Meng et al. 2021 (SDEdit).

    Args:
        strength: share of the steps, in (0, 1]; 1 starts from pure noise.

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
    """Keep the part of a discrete grid between two fractions of the denoising.

    SDXL hands over from its base to its refiner at such a fraction. A cut at fraction f is the
    timestep ``round(T - f T)``: steps from timesteps at or above the cut of ``end`` belong to this
    model, and those below it to the next.

    Args:
        start, end: fractions in [0, 1], 0 at pure noise.
        total: T.

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
    """Return the grid without its first ``count`` levels."""
    return _slice(grid, count, len(grid.levels.t)) if count else grid


def _slice(grid: Grid, first: int, last: int) -> Grid:
    """Return the part of a grid from level ``first`` up to, but without, level ``last``."""
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
    """Return the shift ``exp(mu)`` of the flow schedule for a number of image tokens.

    mu is linear in the tokens, ``base`` at ``fewest`` and ``maximum`` at ``most``, as in Flux; the
    shift itself is Esser et al. 2024, eq. 23.
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
    "full": lambda schedule, steps: full(schedule),  # ignores the number of steps
}


def make(
    name: str, schedule: Schedule, steps: int | None = None, options: Options | None = None
) -> Grid:
    """Return the named grid of a schedule.

    Args:
        name: a key of `GRIDS`.
        schedule: on which its levels lie.
        steps: number of steps; None for all timesteps of a discrete schedule.
        options: further keyword arguments of the grid.

    Raises:
        ValueError: unknown name or option, or a grid that the schedule does not have.
    """
    if steps is None:
        choose("grid", name, GRIDS)
        if schedule.steps is None:
            raise ValueError("a continuous schedule needs a number of steps")
        return full(schedule)
    return build("grid", name, GRIDS, {"schedule": schedule, "steps": steps, **dict(options or {})})
