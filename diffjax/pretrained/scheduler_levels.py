"""The noise levels that diffusers' schedulers visit, reproduced to the rounding of float32.

The tables are float32, see `betas`; the rest is float64. Timesteps and levels of the schedulers
differ in small ways (linspace of N or of N + 1 points, bounds from the whole table or from the
spaced timesteps, rounding, truncation), which are options of the functions here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

from diffjax import grids, schedules
from diffjax.pretrained.betas import F32, Options, abar_table, linspace, ratio_table
from diffjax.types import Grid, Schedule, choose


class Asked(NamedTuple):
    """What a caller asks of a grid.

    Attributes:
        steps: number of steps N, or None with a list of them.
        timesteps: to be visited instead, falling.
        sigmas: levels in the scheduler's own measure, falling.
        mu: logarithm of the shift of schedulers with dynamic shifting.
    """

    steps: int | None = None
    timesteps: Any = None
    sigmas: Any = None
    mu: float | None = None


# ---- schedules ------------------------------------------------------------------------------


def discrete(o: Options) -> Schedule:
    """The table of a beta schedule."""
    return schedules.from_abar(abar_table(o))


def floored_discrete(o: Options) -> Schedule:
    """Build `discrete`, but end at ``abar = 2^-24`` where the last SNR is zero."""
    return schedules.from_abar(abar_table(o, floor=True))


def flow(o: Options) -> Schedule:
    """``alpha = 1 - t/T``, ``sigma = t/T``; shifts are a matter of the grid."""
    inner, total = schedules.flow(t_min=0.0, t_max=1.0), o["num_train_timesteps"]
    return Schedule(
        lambda t: inner.at(t / total), lambda lam: total * inner.t_of(lam), (0.0, float(total))
    )


def edm(o: Options) -> Schedule:
    """``alpha = 1``, ``t = log(sigma) / 4``."""
    return schedules.edm(o["sigma_min"], o["sigma_max"])


def angle(o: Options) -> Schedule:
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``."""
    quarter = math.pi / 2
    return Schedule(
        lambda t: (np.cos(quarter * t), np.sin(quarter * t)),
        lambda lam: np.arctan(np.exp(-0.5 * np.asarray(lam, np.float64))) / quarter,
        (0.0, 1.0),
    )


# ---- timesteps and ratios -------------------------------------------------------------------


def space_timesteps(
    o: Options, steps: int, *, extra: bool = False, whole: bool = True, last: int | None = None
) -> np.ndarray:
    """Space timesteps (N,), falling, by the ``timestep_spacing`` of a config.

    Args:
        extra: space N + 1 points and drop the last.
        whole: round linspace to whole timesteps.
        last: number of timesteps that are left after clipping.

    Raises:
        ValueError: unknown spacing, or more steps than timesteps.
    """
    total, spacing = o["num_train_timesteps"], o.get("timestep_spacing", "linspace")
    last, count, offset = total if last is None else last, steps + extra, o.get("steps_offset", 0)
    most = last - (extra and spacing == "leading")
    if not 1 <= steps <= most:
        raise ValueError(f"steps must lie in 1 .. {most}, got {steps}")
    makers: dict[str, Callable[[], np.ndarray]] = {
        "linspace": lambda: np.linspace(0, last - 1, count)[::-1],
        "leading": lambda: (np.arange(count) * (last // count))[::-1] + offset,
        "trailing": lambda: np.round(np.arange(last, 0, -total / steps)) - 1,
    }
    times = choose("timestep_spacing", spacing, makers)().astype(np.float64)
    if spacing == "linspace":
        times = np.round(times) if whole else times.astype(F32).astype(np.float64)
    return times[:-1] if extra and spacing != "trailing" else times


def interpolate_times(ratios: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return fractional timesteps at which a table of ``sigma / alpha`` has given values."""
    logs = np.log(table).astype(np.float64)
    return np.interp(np.log(np.maximum(ratios, 1e-10)), logs, np.arange(len(table)))


def _karras(low: float, high: float, count: int, rho: float = 7.0) -> np.ndarray:
    ends = high ** (1 / rho), low ** (1 / rho)
    return (ends[0] + np.linspace(0, 1, count) * (ends[1] - ends[0])) ** rho


def _exponential(low: float, high: float, count: int) -> np.ndarray:
    return np.exp(np.linspace(math.log(high), math.log(low), count))


def _beta(low: float, high: float, count: int) -> np.ndarray:
    return low + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, count)) * (high - low)


SPACINGS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "use_karras_sigmas": _karras,
    "use_lu_lambdas": _exponential,  # equal steps in log sigma / alpha, what rho = 1 makes of them
    "use_exponential_sigmas": _exponential,
    "use_beta_sigmas": _beta,
}


def find_spacing(o: Options) -> str:
    """Return the one of `SPACINGS` that a config asks for, or "".

    Raises:
        ValueError: more than one.
    """
    chosen = [name for name in SPACINGS if o.get(name)]
    if len(chosen) > 1:
        raise ValueError(f"only one of {', '.join(chosen)} can be set")
    return chosen[0] if chosen else ""


def _space_between_bounds(
    o: Options, name: str, bounds: tuple[float, float], count: int
) -> np.ndarray:
    low, high = o.get("sigma_min"), o.get("sigma_max")
    low, high = bounds[0] if low is None else low, bounds[1] if high is None else high
    return SPACINGS[name](float(low), float(high), count)


def _variance_preserving(ratios: Any) -> tuple[Any, Any]:
    alpha = 1 / np.sqrt(np.float64(ratios) ** 2 + 1)
    return alpha, ratios * alpha


def _refuse(asked: Asked, *allowed: str) -> None:
    """
    Raises:
        ValueError: something else than the number of steps and what is allowed was asked for.
    """
    for name, value in asked._asdict().items():
        if value is not None and name not in ("steps", *allowed):
            takes = " or ".join(("steps", *allowed))
            raise ValueError(f"this scheduler takes {takes}, but {name} is given")
    names = [name for name in ("steps", "timesteps", "sigmas") if getattr(asked, name) is not None]
    if len(names) != 1 and names != ["timesteps", "sigmas"]:
        raise ValueError(
            f"give one of steps, timesteps and sigmas, got {' and '.join(names) or 'none'}"
        )


def _read_falling(name: str, values: Any, most: float) -> np.ndarray:
    """Read a given list in float64.

    Raises:
        ValueError: it is empty, does not fall, or leaves 0 .. most.
    """
    out = np.asarray(values, np.float64)
    if out.ndim != 1 or not len(out) or not (np.diff(out) < 0).all():
        raise ValueError(f"{name} must be one falling sequence, got {values}")
    if not (0 <= out[-1] and out[0] <= most):
        raise ValueError(f"{name} must lie in 0 .. {most:g}, got {out[0]:g} .. {out[-1]:g}")
    return out


def _read_timesteps(o: Options, asked: Asked, name: str) -> np.ndarray:
    """Read given timesteps of a table.

    Raises:
        ValueError: they are bad, or the config spaces levels by itself.
    """
    if name:
        raise ValueError(f"timesteps cannot be given with {name}")
    return _read_falling("timesteps", asked.timesteps, o["num_train_timesteps"] - 1)


def _make_grid(schedule: Schedule, t: Any, levels: tuple[Any, Any], init_std: float) -> Grid:
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in levels)
    return grids.from_levels(schedule, np.asarray(t, np.float64), alpha, sigma)._replace(
        init_std=float(init_std)
    )


# ---- grids ----------------------------------------------------------------------------------


def table_grid(o: Options, asked: Asked, *, final: str, listed: bool = False) -> Grid:
    """DDPM, DDIM and PNDM: whole timesteps of the table.

    Args:
        final: ``clean`` or ``first``, see `grids.from_times`.
        listed: timesteps may be given.
    """
    _refuse(asked, *(("timesteps",) if listed else ()))
    times = asked.timesteps if asked.steps is None else space_timesteps(o, asked.steps)
    grid = grids.from_times(discrete(o), times, final=final)
    return grid._replace(init_std=1.0)


def consistency_grid(o: Options, asked: Asked, *, final: str) -> Grid:
    """LCM and TCD: a part of the timesteps of their distillation."""
    _refuse(asked, "timesteps")
    schedule = discrete(o)
    if asked.timesteps is not None:
        return grids.from_times(schedule, asked.timesteps, final=final)._replace(init_std=1.0)
    assert asked.steps is not None
    grid = grids.lcm(schedule, asked.steps, original_steps=o["original_inference_steps"])
    return grids.from_times(schedule, grid.levels.t[:-1], final=final)._replace(init_std=1.0)


def ratio_grid(
    o: Options, asked: Asked, *, whole: bool = False, listed: tuple[str, ...] = ()
) -> Grid:
    """Euler, LMS, Heun and DPM2, which work in sigma / alpha.

    The last level is in that measure (alpha = 1), so that samples end as theirs do.

    Args:
        whole: round timesteps of Karras' levels.
        listed: what may be given instead of a number of steps.
    """
    _refuse(asked, *listed)
    table, name = ratio_table(o), find_spacing(o)
    if asked.sigmas is not None:
        ratios = _read_falling("sigmas", asked.sigmas, math.inf)
        if len(ratios) < 2:
            raise ValueError(f"sigmas must hold the last level too, got {asked.sigmas}")
        times = interpolate_times(ratios[:-1], table)
    else:
        times, ratios = _space_ratios(o, asked, table, whole, name)
    ratios = ratios.astype(F32).astype(np.float64)
    if o.get("timestep_type") == "continuous" and o["prediction_type"] == "v_prediction":
        times = 0.25 * np.log(ratios[:-1])
    alpha, sigma = _variance_preserving(ratios)
    alpha[-1], sigma[-1] = 1.0, ratios[-1]
    spread = o.get("timestep_spacing") in ("linspace", "trailing")
    schedule = floored_discrete(o)
    return _make_grid(schedule, np.append(times, 0.0), (alpha, sigma), sigma[0] if spread else 1.0)


def _space_ratios(
    o: Options, asked: Asked, table: np.ndarray, whole: bool, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return timesteps (N,) and ratios ``sigma / alpha`` (N + 1,)."""
    if asked.timesteps is not None:
        times = _read_timesteps(o, asked, name)
    else:
        assert asked.steps is not None
        times = space_timesteps(o, asked.steps, whole=False)
    final = float(table[0]) if o.get("final_sigmas_type") == "sigma_min" else 0.0
    ratios = np.interp(times, np.arange(len(table)), table)
    if name:
        ratios = _space_between_bounds(o, name, (ratios[-1], ratios[0]), len(times))
        times = interpolate_times(ratios, table)
        if whole and name == "use_karras_sigmas":
            times = np.round(times)
    elif o.get("interpolation_type") == "log_linear":
        ends = math.log(table[-1]), math.log(table[0])
        return times, np.exp(linspace(*ends, len(times) + 1))
    return times, np.append(ratios, final)


def exponential_grid(
    o: Options, asked: Asked, *, listed: tuple[str, ...] = (), repeat: bool = False
) -> Grid:
    """DPM-Solver, DEIS and UniPC, which work in (alpha, sigma) and space N + 1 points.

    Args:
        listed: what may be given instead of a number of steps.
        repeat: a final ``sigma_min`` is the last of respaced and flow levels again, instead of
            the table's.
    """
    shifting = ("mu",) if o.get("use_dynamic_shifting") else ()
    _refuse(asked, *listed, *shifting)
    if o["use_flow_sigmas"]:
        return _flow_grid(o, asked, repeat)
    if asked.sigmas is not None:
        raise ValueError("sigmas cannot be given without use_flow_sigmas")
    table, name = ratio_table(o), find_spacing(o)
    if asked.timesteps is not None:
        times = _read_timesteps(o, asked, name)
    else:
        assert asked.steps is not None
        # As many steps as timesteps would visit one of them twice.
        times = np.unique(space_timesteps(o, asked.steps, extra=True, last=_count_above_clip(o)))[
            ::-1
        ]
    ratios = np.interp(times, np.arange(len(table)), table)
    final = o.get("final_sigmas_type", "sigma_min")
    last = {"sigma_min": float(table[0]), "zero": 0.0}[final]
    if name:
        assert asked.steps is not None
        ratios = _space_between_bounds(o, name, (table[0], table[-1]), asked.steps)
        last = ratios[-1] if repeat and final == "sigma_min" else last
        times = _round_times(o, interpolate_times(ratios, table), name)
    ratios = np.append(ratios, last).astype(F32).astype(np.float64)
    return _make_grid(floored_discrete(o), np.append(times, 0.0), _variance_preserving(ratios), 1.0)


def _count_above_clip(o: Options) -> int:
    """Count timesteps whose half log-SNR is at least ``lambda_min_clipped``."""
    abar = abar_table(o, floor=True)
    lam = np.log(np.sqrt(abar)) - np.log(np.sqrt(F32(1) - abar))
    least = o.get("lambda_min_clipped", -math.inf)
    return len(abar) - int(np.searchsorted(lam[::-1], F32(least)))


def _round_times(o: Options, times: np.ndarray, name: str) -> np.ndarray:
    """Make timesteps whole: some spacings round, the others cut."""
    rounded = name in ("use_karras_sigmas", "use_lu_lambdas")
    if rounded and not (o.get("use_lu_lambdas") is not None and _is_cosine(o)):
        times = np.round(times)
    return np.trunc(times)


def _is_cosine(o: Options) -> bool:
    return o["beta_schedule"] == "squaredcos_cap_v2"


def _shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _shift_by_config(o: Options, sigmas: np.ndarray, mu: float | None, shift: float) -> np.ndarray:
    """Shift flow levels by ``shift``, or by the caller's mu with dynamic shifting.

    Raises:
        ValueError: dynamic shifting without mu.
    """
    if o.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("this scheduler shifts dynamically: give mu, see grids.flow_shift")
        shift = mu if o["time_shift_type"] == "linear" else math.exp(mu)
        return shift / (shift + (1 / sigmas - 1))
    return _shift_sigmas(sigmas, shift)


def _stretch_to_terminal(o: Options, sigmas: np.ndarray) -> np.ndarray:
    """Stretch levels so that the last one is ``shift_terminal``."""
    if not o.get("shift_terminal"):
        return sigmas
    return 1 - (1 - sigmas) * (1 - o["shift_terminal"]) / (1 - sigmas[-1])


def _flow_grid(o: Options, asked: Asked, repeat: bool) -> Grid:
    total = o["num_train_timesteps"]
    if asked.timesteps is not None:
        raise ValueError("timesteps cannot be given with use_flow_sigmas")
    if "shift_terminal" in o:
        sigmas = _space_unipc_flow(o, asked)
    else:
        assert asked.steps is not None
        plain = 1 - np.linspace(1, 1 / total, asked.steps + 1)
        shift = o["flow_shift"] if asked.mu is None else math.exp(asked.mu)
        sigmas = _shift_sigmas(plain, shift)[::-1][:-1]
    times, final = np.trunc(sigmas * total), o.get("final_sigmas_type", "sigma_min")
    last = sigmas[-1] if repeat else float(ratio_table(o)[0])
    sigmas = np.append(sigmas, 0.0 if final == "zero" else last).astype(F32).astype(np.float64)
    return _make_grid(flow(o), np.append(times, 0.0), (1 - sigmas, sigmas), 1.0)


def _space_unipc_flow(o: Options, asked: Asked) -> np.ndarray:
    if o["use_karras_sigmas"]:
        assert asked.steps is not None
        table = ratio_table(o)
        ratios = _space_between_bounds(o, "use_karras_sigmas", (table[0], table[-1]), asked.steps)
        return ratios / (ratios + 1)
    if asked.sigmas is not None:
        sigmas = _read_falling("sigmas", asked.sigmas, 1.0)
    else:
        assert asked.steps is not None
        sigmas = np.linspace(1, 1 / o["num_train_timesteps"], asked.steps + 1)[:-1]
    sigmas = _stretch_to_terminal(o, _shift_by_config(o, sigmas, asked.mu, o["flow_shift"]))
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6
    return sigmas


def flow_match_grid(o: Options, asked: Asked, *, listed: tuple[str, ...] = ()) -> Grid:
    """Flow matching: ``alpha = 1 - sigma``, ``t = T sigma``, ending at the data."""
    total, dynamic = o["num_train_timesteps"], o.get("use_dynamic_shifting")
    _refuse(asked, *listed, *(("mu",) if dynamic else ()))
    times = None if asked.timesteps is None else _read_falling("timesteps", asked.timesteps, total)
    if asked.sigmas is not None:
        sigmas = _read_falling("sigmas", asked.sigmas, 1.0)
        if times is not None and len(times) != len(sigmas):
            raise ValueError(f"{len(times)} timesteps and {len(sigmas)} sigmas are given")
        sigmas = sigmas.astype(F32).astype(np.float64)
    elif times is not None:
        sigmas = times / total
    else:
        ends = np.array([total, 1], F32) / F32(total)
        high, low = ends if dynamic else _shift_sigmas(ends, o["shift"]).astype(F32)
        assert asked.steps is not None
        sigmas = np.linspace(float(high) * total, float(low) * total, asked.steps) / total
    sigmas = _stretch_to_terminal(o, _shift_by_config(o, sigmas, asked.mu, o["shift"]))
    name = find_spacing(o)
    if name:
        sigmas = _space_between_bounds(o, name, (sigmas[-1], sigmas[0]), len(sigmas))
    sigmas = sigmas.astype(F32).astype(np.float64)
    times = sigmas * total if times is None else times
    sigmas = np.append(sigmas, 0.0)
    return _make_grid(flow(o), np.append(times, 0.0), (1 - sigmas, sigmas), 1.0)


def edm_grid(o: Options, asked: Asked) -> Grid:
    """EDM: ``alpha = 1``, ``t = log(sigma) / 4``; a last ``sigma_min`` is there twice."""
    _refuse(asked)
    assert asked.steps is not None
    makers = {
        "karras": lambda: _karras(o["sigma_min"], o["sigma_max"], asked.steps, o["rho"]),
        "exponential": lambda: _exponential(o["sigma_min"], o["sigma_max"], asked.steps),
    }
    sigmas = choose("sigma_schedule", o["sigma_schedule"], makers)().astype(F32).astype(np.float64)
    last = {"zero": 0.0, "sigma_min": sigmas[-1]}[o["final_sigmas_type"]]
    levels = np.ones(len(sigmas) + 1), np.append(sigmas, last)
    times = np.append(0.25 * np.log(sigmas), math.log(o["sigma_min"]) / 4)
    return _make_grid(edm(o), times, levels, math.sqrt(o["sigma_max"] ** 2 + 1))


def angle_grid(o: Options, asked: Asked) -> Grid:
    """iPNDM: ``sigma = sin(pi u / 2)^2`` at N + 1 equal distances in u."""
    _refuse(asked)
    assert asked.steps is not None
    sigma = np.sin(linspace(1, 0, asked.steps + 1).astype(np.float64) * math.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    return _make_grid(angle(o), np.arctan2(sigma, alpha) / math.pi * 2, (alpha, sigma), 1.0)
