"""How diffusers' schedulers space timesteps and noise levels, and what a caller may ask for.

`scheduler_levels` makes the grid of each family of schedulers from these functions. Options are
complete: every key of the class is there. T is ``num_train_timesteps`` and N the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from diffjax.pretrained.betas import F32
from diffjax.types import Options, choose


class Asked(NamedTuple):
    """The levels that a caller asks for: a number of them or a list.

    Attributes:
        steps: number of steps N, or None with a list.
        timesteps: falling timesteps to visit instead.
        sigmas: falling levels in the scheduler's own measure to visit instead.
        mu: logarithm of the shift, for schedulers with dynamic shifting.
    """

    steps: int | None = None
    timesteps: Sequence[float] | np.ndarray | None = None
    sigmas: Sequence[float] | np.ndarray | None = None
    mu: float | None = None


# ---- timesteps and ratios -------------------------------------------------------------------


def space_timesteps(
    o: Options, steps: int, *, extra: bool = False, whole: bool = True, last: int | None = None
) -> np.ndarray:
    """Return timesteps (N,), falling, as ``timestep_spacing`` of a config spaces them.

    They are ``linspace`` from 0 to T - 1, ``leading`` multiples of ``T // N`` plus
    ``steps_offset``, or ``trailing`` multiples of ``T / N`` down from T, less 1 (Lin et al. 2023,
    table 2).

    Args:
        o: complete options.
        steps: N.
        extra: space N + 1 points and drop the last.
        whole: round linspace to whole timesteps.
        last: number of timesteps that ``lambda_min_clipped`` leaves; T if None.

    Raises:
        ValueError: the spacing is unknown, or there are more steps than timesteps.
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
    """Return the fractional timesteps at which a table of ``sigma / alpha`` has the values
    ``ratios``.

    The interpolation is linear in the logarithm.
    """
    logs = np.log(table).astype(np.float64)
    return np.interp(np.log(np.maximum(ratios, 1e-10)), logs, np.arange(len(table)))


def space_karras(low: float, high: float, count: int, rho: float = 7.0) -> np.ndarray:
    """Return ``count`` levels from high to low, equally spaced in ``sigma^(1 / rho)`` (Karras et
    al. 2022, eq.

    5).
    """
    ends = high ** (1 / rho), low ** (1 / rho)
    return (ends[0] + np.linspace(0, 1, count) * (ends[1] - ends[0])) ** rho


def space_exponential(low: float, high: float, count: int) -> np.ndarray:
    """Return ``count`` levels from high to low, equally spaced in ``log sigma``."""
    return np.exp(np.linspace(math.log(high), math.log(low), count))


def space_beta(low: float, high: float, count: int) -> np.ndarray:
    """Return ``count`` levels at quantiles of a Beta(0.6, 0.6) distribution (Lee et al. 2024)."""
    return low + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, count)) * (high - low)


SPACINGS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "use_karras_sigmas": space_karras,
    # Equal steps in log sigma / alpha, which is what rho = 1 makes of Lu's rule.
    "use_lu_lambdas": space_exponential,
    "use_exponential_sigmas": space_exponential,
    "use_beta_sigmas": space_beta,
}


def find_spacing(o: Options) -> str:
    """Return the one of `SPACINGS` that a config asks for, or "".

    Raises:
        ValueError: it asks for more than one.
    """
    chosen = [name for name in SPACINGS if o.get(name)]
    if len(chosen) > 1:
        raise ValueError(f"only one of {', '.join(chosen)} can be set")
    return chosen[0] if chosen else ""


def space_between_bounds(
    o: Options, name: str, bounds: tuple[float, float], count: int
) -> np.ndarray:
    """Space levels between ``sigma_min`` and ``sigma_max`` of the options, or between
    ``bounds`` where they are None.
    """
    low, high = o.get("sigma_min"), o.get("sigma_max")
    low, high = bounds[0] if low is None else low, bounds[1] if high is None else high
    return SPACINGS[name](float(low), float(high), count)


def preserve_variance(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (alpha, sigma) with ``alpha^2 + sigma^2 = 1`` for ratios ``sigma / alpha``."""
    alpha = 1 / np.sqrt(np.float64(ratios) ** 2 + 1)
    return alpha, ratios * alpha


def check_asked(asked: Asked, *allowed: str) -> None:
    """Check that a caller asks for steps, or for one of the lists that a class takes.

    Raises:
        ValueError: something else is asked for, or not exactly one of steps, timesteps and sigmas.
            Timesteps may come with sigmas.
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


def read_falling(name: str, values: Sequence[float] | np.ndarray | None, most: float) -> np.ndarray:
    """Read a list of falling numbers in [0, most] in float64.

    Raises:
        ValueError: it is empty, does not fall, or leaves the range.
    """
    out = np.asarray(values, np.float64)
    if out.ndim != 1 or not len(out) or not (np.diff(out) < 0).all():
        raise ValueError(f"{name} must be one falling sequence, got {values}")
    if not (0 <= out[-1] and out[0] <= most):
        raise ValueError(f"{name} must lie in 0 .. {most:g}, got {out[0]:g} .. {out[-1]:g}")
    return out


def read_timesteps(o: Options, asked: Asked, name: str) -> np.ndarray:
    """Read falling timesteps of a table.

    Raises:
        ValueError: they are not falling or leave the table, or the config spaces levels by itself.
    """
    if name:
        raise ValueError(f"timesteps cannot be given with {name}")
    return read_falling("timesteps", asked.timesteps, o["num_train_timesteps"] - 1)
