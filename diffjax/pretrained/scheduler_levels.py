"""The noise levels that diffusers' schedulers visit, reproduced to the rounding of float32.

The tables of betas are float32 (`betas`), the rest is float64. The classes of diffusers differ in
small ways: linspace over N or N + 1 points, bounds from the whole table or from the spaced
timesteps, rounding or truncation. These differences are options of the functions here, and
`scheduler_kinds` sets them for each class.

Options are complete: every key of the class is there. T is ``num_train_timesteps`` and N the number
of steps.
"""

from __future__ import annotations

import math

import numpy as np

from diffjax import grids, schedules
from diffjax.pretrained.betas import F32, compute_abar_table, compute_ratio_table, linspace
from diffjax.pretrained.scheduler_spacing import (
    Asked,
    check_asked,
    find_spacing,
    interpolate_times,
    preserve_variance,
    read_falling,
    read_timesteps,
    space_between_bounds,
    space_exponential,
    space_karras,
    space_timesteps,
)
from diffjax.types import Grid, Options, Schedule, choose

# ---- schedules ------------------------------------------------------------------------------


def make_discrete_schedule(o: Options) -> Schedule:
    """Return the schedule of a beta table, at times 0 .. T - 1."""
    return schedules.from_abar(compute_abar_table(o))


def make_floored_discrete_schedule(o: Options) -> Schedule:
    """Return the schedule of a beta table, with a last ``abar`` of 2^-24 if its SNR would be 0."""
    return schedules.from_abar(compute_abar_table(o, floor=True))


def make_flow_schedule(o: Options) -> Schedule:
    """Return the schedule ``alpha = 1 - t/T``, ``sigma = t/T``. Shifts belong to the grid."""
    inner, total = schedules.flow(t_min=0.0, t_max=1.0), o["num_train_timesteps"]
    return Schedule(
        lambda t: inner.at(t / total), lambda lam: total * inner.t_of(lam), (0.0, float(total))
    )


def make_edm_schedule(o: Options) -> Schedule:
    """Return the schedule ``alpha = 1``, ``t = log(sigma) / 4`` of EDM (Karras et al. 2022)."""
    return schedules.edm(o["sigma_min"], o["sigma_max"])


def make_angle_schedule(o: Options) -> Schedule:
    """Return the schedule ``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)`` for t in [0, 1]."""
    quarter = math.pi / 2
    return Schedule(
        lambda t: (np.cos(quarter * t), np.sin(quarter * t)),
        lambda lam: np.arctan(np.exp(-0.5 * np.asarray(lam, np.float64))) / quarter,
        (0.0, 1.0),
    )


# ---- grids ----------------------------------------------------------------------------------


def _make_grid(
    schedule: Schedule, t: np.ndarray, levels: tuple[np.ndarray, np.ndarray], init_std: float
) -> Grid:
    """Return a grid of N + 1 levels at times t (N + 1,), with (alpha, sigma) in ``levels``."""
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in levels)
    return grids.from_levels(schedule, np.asarray(t, np.float64), alpha, sigma)._replace(
        init_std=float(init_std)
    )


def make_table_grid(o: Options, asked: Asked, *, final: str, listed: bool = False) -> Grid:
    """Return the grid of DDPM, DDIM and PNDM: whole timesteps of the table.

    Args:
        o: complete options.
        asked: the steps, or a list of timesteps.
        final: ``clean`` or ``first``, see `grids.from_times`.
        listed: whether the class takes a list of timesteps.

    Raises:
        ValueError: see `space_timesteps` and `check_asked`.
    """
    check_asked(asked, *(("timesteps",) if listed else ()))
    times = np.asarray(asked.timesteps) if asked.steps is None else space_timesteps(o, asked.steps)
    grid = grids.from_times(make_discrete_schedule(o), times, final=final)
    return grid._replace(init_std=1.0)


def make_consistency_grid(o: Options, asked: Asked, *, final: str) -> Grid:
    """Return the grid of LCM and TCD: a part of the ``original_inference_steps`` of their
    distillation.

    Args:
        o: complete options.
        asked: the steps, or a list of timesteps.
        final: ``clean`` or ``first``, see `grids.from_times`.

    Raises:
        ValueError: there are more steps than those of the distillation, or see `check_asked`.
    """
    check_asked(asked, "timesteps")
    schedule = make_discrete_schedule(o)
    if asked.timesteps is not None:
        return grids.from_times(schedule, asked.timesteps, final=final)._replace(init_std=1.0)
    assert asked.steps is not None
    grid = grids.lcm(schedule, asked.steps, original_steps=o["original_inference_steps"])
    return grids.from_times(schedule, grid.levels.t[:-1], final=final)._replace(init_std=1.0)


def make_ratio_grid(
    o: Options, asked: Asked, *, whole: bool = False, listed: tuple[str, ...] = ()
) -> Grid:
    """Return the grid of Euler, LMS, Heun and DPM2, which work in ``sigma / alpha``.

    The last level is in that measure (alpha = 1), so that samples end as those of diffusers do.

    Args:
        o: complete options.
        asked: the steps, or a list.
        whole: round the timesteps of Karras' levels.
        listed: what the class takes instead of a number of steps.

    Raises:
        ValueError: see `space_timesteps` and `check_asked`.
    """
    check_asked(asked, *listed)
    table, name = compute_ratio_table(o), find_spacing(o)
    if asked.sigmas is not None:
        ratios = read_falling("sigmas", asked.sigmas, math.inf)
        if len(ratios) < 2:
            raise ValueError(f"sigmas must hold the last level too, got {asked.sigmas}")
        times = interpolate_times(ratios[:-1], table)
    else:
        times, ratios = _space_ratios(o, asked, table, whole, name)
    ratios = ratios.astype(F32).astype(np.float64)
    if o.get("timestep_type") == "continuous" and o["prediction_type"] == "v_prediction":
        times = 0.25 * np.log(ratios[:-1])
    alpha, sigma = preserve_variance(ratios)
    alpha[-1], sigma[-1] = 1.0, ratios[-1]
    spread = o.get("timestep_spacing") in ("linspace", "trailing")
    schedule = make_floored_discrete_schedule(o)
    return _make_grid(schedule, np.append(times, 0.0), (alpha, sigma), sigma[0] if spread else 1.0)


def _space_ratios(
    o: Options, asked: Asked, table: np.ndarray, whole: bool, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the timesteps (N,) of `make_ratio_grid` and its ratios ``sigma / alpha`` (N + 1,).

    Args:
        o: complete options.
        asked: the steps, or a list of timesteps.
        table: ``sigma / alpha`` at every timestep, (T,).
        whole: round the timesteps of Karras' levels.
        name: the spacing of levels, see `find_spacing`.
    """
    if asked.timesteps is not None:
        times = read_timesteps(o, asked, name)
    else:
        assert asked.steps is not None
        times = space_timesteps(o, asked.steps, whole=False)
    final = float(table[0]) if o.get("final_sigmas_type") == "sigma_min" else 0.0
    ratios = np.interp(times, np.arange(len(table)), table)
    if name:
        ratios = space_between_bounds(o, name, (ratios[-1], ratios[0]), len(times))
        times = interpolate_times(ratios, table)
        if whole and name == "use_karras_sigmas":
            times = np.round(times)
    elif o.get("interpolation_type") == "log_linear":
        ends = math.log(table[-1]), math.log(table[0])
        return times, np.exp(linspace(*ends, len(times) + 1))
    return times, np.append(ratios, final)


def make_exponential_grid(
    o: Options, asked: Asked, *, listed: tuple[str, ...] = (), repeat: bool = False
) -> Grid:
    """Return the grid of DPM-Solver, DEIS and UniPC, which work in (alpha, sigma).

    These classes space N + 1 timesteps and drop the last.

    Args:
        o: complete options.
        asked: the steps, or a list.
        listed: what the class takes instead of a number of steps.
        repeat: a final ``sigma_min`` repeats the last of respaced and flow levels; otherwise it is
            the first level of the table.

    Raises:
        ValueError: see `space_timesteps` and `check_asked`.
    """
    shifting = ("mu",) if o.get("use_dynamic_shifting") else ()
    check_asked(asked, *listed, *shifting)
    if o["use_flow_sigmas"]:
        return _flow_grid(o, asked, repeat)
    if asked.sigmas is not None:
        raise ValueError("sigmas cannot be given without use_flow_sigmas")
    table, name = compute_ratio_table(o), find_spacing(o)
    if asked.timesteps is not None:
        times = read_timesteps(o, asked, name)
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
        ratios = space_between_bounds(o, name, (table[0], table[-1]), asked.steps)
        last = ratios[-1] if repeat and final == "sigma_min" else last
        times = _round_times(o, interpolate_times(ratios, table), name)
    ratios = np.append(ratios, last).astype(F32).astype(np.float64)
    return _make_grid(
        make_floored_discrete_schedule(o), np.append(times, 0.0), preserve_variance(ratios), 1.0
    )


def _count_above_clip(o: Options) -> int:
    """Return how many timesteps have a half log-SNR of at least ``lambda_min_clipped``."""
    abar = compute_abar_table(o, floor=True)
    lam = np.log(np.sqrt(abar)) - np.log(np.sqrt(F32(1) - abar))
    least = o.get("lambda_min_clipped", -math.inf)
    return len(abar) - int(np.searchsorted(lam[::-1], F32(least)))


def _round_times(o: Options, times: np.ndarray, name: str) -> np.ndarray:
    """Make fractional timesteps whole: some spacings round them, the others truncate."""
    rounded = name in ("use_karras_sigmas", "use_lu_lambdas")
    if rounded and not (o.get("use_lu_lambdas") is not None and _is_cosine(o)):
        times = np.round(times)
    return np.trunc(times)


def _is_cosine(o: Options) -> bool:
    return o["beta_schedule"] == "squaredcos_cap_v2"


def _shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Return ``s sigma / (1 + (s - 1) sigma)`` for a shift s (Esser et al. 2024, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _shift_by_config(o: Options, sigmas: np.ndarray, mu: float | None, shift: float) -> np.ndarray:
    """Shift flow levels by ``shift``, or by the caller's mu if the config shifts dynamically.

    Raises:
        ValueError: the config shifts dynamically and there is no mu.
    """
    if o.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("this scheduler shifts dynamically: give mu, see grids.flow_shift")
        shift = mu if o["time_shift_type"] == "linear" else math.exp(mu)
        return shift / (shift + (1 / sigmas - 1))
    return _shift_sigmas(sigmas, shift)


def _stretch_to_terminal(o: Options, sigmas: np.ndarray) -> np.ndarray:
    """Stretch flow levels linearly in ``1 - sigma``, so that the last one is ``shift_terminal``."""
    if not o.get("shift_terminal"):
        return sigmas
    return 1 - (1 - sigmas) * (1 - o["shift_terminal"]) / (1 - sigmas[-1])


def _flow_grid(o: Options, asked: Asked, repeat: bool) -> Grid:
    """Return the grid of `make_exponential_grid` with ``use_flow_sigmas``: ``alpha = 1 - sigma``.

    Raises:
        ValueError: a list of timesteps is asked for, or mu is missing.
    """
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
    last = sigmas[-1] if repeat else float(compute_ratio_table(o)[0])
    sigmas = np.append(sigmas, 0.0 if final == "zero" else last).astype(F32).astype(np.float64)
    return _make_grid(make_flow_schedule(o), np.append(times, 0.0), (1 - sigmas, sigmas), 1.0)


def _space_unipc_flow(o: Options, asked: Asked) -> np.ndarray:
    """Return the N flow levels of UniPC, which differ from those of the other classes.

    The first level is kept below 1, where the log-SNR would be infinite.
    """
    if o["use_karras_sigmas"]:
        assert asked.steps is not None
        table = compute_ratio_table(o)
        ratios = space_between_bounds(o, "use_karras_sigmas", (table[0], table[-1]), asked.steps)
        return ratios / (ratios + 1)
    if asked.sigmas is not None:
        sigmas = read_falling("sigmas", asked.sigmas, 1.0)
    else:
        assert asked.steps is not None
        sigmas = np.linspace(1, 1 / o["num_train_timesteps"], asked.steps + 1)[:-1]
    sigmas = _stretch_to_terminal(o, _shift_by_config(o, sigmas, asked.mu, o["flow_shift"]))
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6
    return sigmas


def make_flow_match_grid(o: Options, asked: Asked, *, listed: tuple[str, ...] = ()) -> Grid:
    """Return the grid of flow matching: ``alpha = 1 - sigma``, ``t = T sigma``, ending at the data.

    Args:
        o: complete options.
        asked: the steps, or lists of timesteps, of sigmas, or of both.
        listed: what the class takes instead of a number of steps.

    Raises:
        ValueError: the lists differ in length, mu is missing, or see `check_asked`.
    """
    total, dynamic = o["num_train_timesteps"], o.get("use_dynamic_shifting")
    check_asked(asked, *listed, *(("mu",) if dynamic else ()))
    times = None if asked.timesteps is None else read_falling("timesteps", asked.timesteps, total)
    if asked.sigmas is not None:
        sigmas = read_falling("sigmas", asked.sigmas, 1.0)
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
        sigmas = space_between_bounds(o, name, (sigmas[-1], sigmas[0]), len(sigmas))
    sigmas = sigmas.astype(F32).astype(np.float64)
    times = sigmas * total if times is None else times
    sigmas = np.append(sigmas, 0.0)
    return _make_grid(make_flow_schedule(o), np.append(times, 0.0), (1 - sigmas, sigmas), 1.0)


def make_edm_grid(o: Options, asked: Asked) -> Grid:
    """Return the grid of EDM: ``alpha = 1``, ``t = log(sigma) / 4``.

    With a final ``sigma_min``, that level is there twice.

    Raises:
        ValueError: ``sigma_schedule`` is unknown, or something else than steps is asked for.
    """
    check_asked(asked)
    assert asked.steps is not None
    makers = {
        "karras": lambda: space_karras(o["sigma_min"], o["sigma_max"], asked.steps, o["rho"]),
        "exponential": lambda: space_exponential(o["sigma_min"], o["sigma_max"], asked.steps),
    }
    sigmas = choose("sigma_schedule", o["sigma_schedule"], makers)().astype(F32).astype(np.float64)
    last = {"zero": 0.0, "sigma_min": sigmas[-1]}[o["final_sigmas_type"]]
    levels = np.ones(len(sigmas) + 1), np.append(sigmas, last)
    times = np.append(0.25 * np.log(sigmas), math.log(o["sigma_min"]) / 4)
    return _make_grid(make_edm_schedule(o), times, levels, math.sqrt(o["sigma_max"] ** 2 + 1))


def make_angle_grid(o: Options, asked: Asked) -> Grid:
    """Return the grid of iPNDM: ``sigma = sin(pi u / 2)^2`` at N + 1 equidistant u from 1 to 0.

    Raises:
        ValueError: something else than a number of steps is asked for.
    """
    check_asked(asked)
    assert asked.steps is not None
    sigma = np.sin(linspace(1, 0, asked.steps + 1).astype(np.float64) * math.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    return _make_grid(
        make_angle_schedule(o), np.arctan2(sigma, alpha) / math.pi * 2, (alpha, sigma), 1.0
    )
