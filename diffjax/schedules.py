r"""Noise schedules: ``t -> (alpha, sigma)`` with ``z = alpha x + sigma eps``.

Discrete schedules tabulate ``abar_t = prod_s (1 - beta_s)`` at ``t = 0..T-1`` and set
``alpha = sqrt(abar)``, ``sigma = sqrt(1 - abar)``; the paper's step ``t`` is index ``t - 1`` here.
Continuous schedules are closed forms. Both work on NumPy float64 (host-side plans) and on traced
float32 arrays (training).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, ArrayLike, Options, Schedule, build

TINY = 1e-12  # floor of alpha^2 and sigma^2 inside logarithms


def _xp(t: ArrayLike) -> ModuleType:
    """NumPy for host values, jax.numpy for device and traced arrays."""
    return jnp if isinstance(t, jax.Array) else np


def logsnr(alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """``log(alpha^2 / sigma^2)``; infinite where sigma is 0."""
    xp = _xp(alpha) if isinstance(alpha, jax.Array) else _xp(sigma)
    with np.errstate(divide="ignore"):
        return 2 * (xp.log(alpha) - xp.log(sigma))


def sigmas_of(lam: ArrayLike) -> tuple[Array, Array]:
    """Variance-preserving ``(alpha, sigma)`` of a log-SNR: ``alpha^2 = sigmoid(lam)``."""
    xp = _xp(lam)
    return xp.exp(-0.5 * xp.logaddexp(0.0, -lam)), xp.exp(-0.5 * xp.logaddexp(0.0, lam))


# ---- discrete schedules ---------------------------------------------------------------------


def from_abar(abar: np.ndarray) -> Schedule:
    """Schedule that tabulates ``abar_t`` (T,), decreasing, each in [0, 1).

    Fractional times interpolate ``log(sigma / alpha)`` linearly, which is what solvers that
    evaluate between timesteps expect (Karras et al. 2022, appendix C.3.4).

    Raises:
        ValueError: the table is not one-dimensional, in range and decreasing.
    """
    abar = np.asarray(abar, np.float64)
    if abar.ndim != 1 or len(abar) < 2 or not (np.diff(abar) < 0).all():
        raise ValueError(
            f"abar must be a decreasing table of at least 2 values, got "
            f"{len(abar)} values {np.ravel(abar)[:3]} ..."
        )
    if not (0 <= abar[-1] and abar[0] < 1):
        raise ValueError(f"abar must lie in [0, 1), got {abar[0]} .. {abar[-1]}")
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    index = np.arange(len(abar), dtype=np.float64)
    log_ratio = np.log(sigma) - 0.5 * np.log(np.maximum(abar, TINY))
    table = np.stack([alpha, sigma], axis=-1).astype(np.float32)

    def at(t: ArrayLike) -> tuple[Array, Array]:
        if isinstance(t, jax.Array):
            pair = jnp.asarray(table)[t.astype(jnp.int32)]
            return pair[..., 0], pair[..., 1]
        t = np.asarray(t, np.float64)
        nearest = np.clip(np.rint(t), 0, len(abar) - 1).astype(int)
        between = sigmas_of(-2 * np.interp(t, index, log_ratio))
        whole = t == nearest
        return np.where(whole, alpha[nearest], between[0]), np.where(
            whole, sigma[nearest], between[1]
        )

    def t_of(lam: ArrayLike) -> Array:
        return np.interp(-0.5 * np.asarray(lam, np.float64), log_ratio, index)

    return Schedule(at, t_of, (0.0, float(len(abar) - 1)), len(abar))


def from_betas(betas: np.ndarray) -> Schedule:
    """Schedule of ``abar_t = prod_{s<=t} (1 - beta_s)``; betas (T,) in (0, 1)."""
    betas = np.asarray(betas, np.float64)
    if not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"betas must lie in (0, 1], got {betas.min()} .. {betas.max()}")
    return from_abar(np.cumprod(1 - betas))


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """``beta_t`` linear in t (Ho et al. 2020, section 4)."""
    return from_betas(np.linspace(beta_start, beta_end, steps))


def scaled_linear(
    steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Schedule:
    """``sqrt(beta_t)`` linear in t (Rombach et al. 2022, where it is called linear)."""
    return from_betas(np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps) ** 2)


def _capped(cumulative: Callable[[np.ndarray], np.ndarray], steps: int, cap: float) -> Schedule:
    """Betas of a closed-form abar on ``t/T``, each capped so that no step erases everything."""
    abar = cumulative(np.linspace(0, 1, steps + 1))
    return from_betas(np.minimum(1 - abar[1:] / abar[:-1], cap))


def cosine(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """``abar(t) = cos^2((t/T + s)/(1 + s) pi/2)``, beta capped (Nichol & Dhariwal 2021, eq. 17)."""
    return _capped(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, steps, max_beta)


def sigmoid(
    steps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> Schedule:
    """``abar(t)`` a rescaled sigmoid falling from 1 to 0 (Jabri et al. 2022; Chen 2023, eq. 3)."""

    def squash(v: np.ndarray | float) -> np.ndarray:
        return 1 / (1 + np.exp(-v / tau))

    def cumulative(u: np.ndarray) -> np.ndarray:
        return (squash(end) - squash(u * (end - start) + start)) / (squash(end) - squash(start))

    return _capped(cumulative, steps, max_beta)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and scale ``sqrt(abar)`` so that the last step has no signal (Lin et al. 2023, alg. 1).

    Raises:
        ValueError: the schedule is not discrete.
    """
    if schedule.steps is None:
        raise ValueError("zero_terminal_snr needs a discrete schedule")
    root = np.asarray(schedule.at(np.arange(schedule.steps))[0])
    return from_abar(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)


# ---- continuous schedules -------------------------------------------------------------------


def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> Schedule:
    """``alpha = exp(-B(t)/2)``, ``sigma^2 = 1 - alpha^2``, variance preserving.

    ``B(t) = t beta_min + t^2 (beta_max - beta_min) / 2``; time in [t_min, 1].
    Song et al. 2021, eq. 33.
    """
    spread = beta_max - beta_min

    def at(t: ArrayLike) -> tuple[Array, Array]:
        xp = _xp(t)
        integral = t * beta_min + 0.5 * t**2 * spread
        return xp.exp(-0.5 * integral), xp.sqrt(-xp.expm1(-integral))

    def t_of(lam: ArrayLike) -> Array:
        integral = np.logaddexp(0.0, -np.asarray(lam, np.float64))
        return 2 * integral / (beta_min + np.sqrt(beta_min**2 + 2 * spread * integral))

    return Schedule(at, t_of, (t_min, 1.0))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> Schedule:
    """``alpha = exp(-B(t)/2)`` as in VP but ``sigma = 1 - alpha^2`` (Song et al. 2021, eq. 35)."""
    base = vp_sde(beta_min, beta_max, t_min)

    def at(t: ArrayLike) -> tuple[Array, Array]:
        alpha, sigma = base.at(t)
        return alpha, sigma**2

    def t_of(lam: ArrayLike) -> Array:
        # alpha/sigma = r solves r (1 - alpha^2) = alpha, so alpha = (sqrt(1 + 4 r^2) - 1) / (2 r).
        r = np.exp(0.5 * np.asarray(lam, np.float64))
        alpha = 2 * r / (np.sqrt(1 + 4 * r**2) + 1)
        return base.t_of(2 * np.log(alpha) - np.log1p(-(alpha**2)))

    return Schedule(at, t_of, base.span)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """``alpha = 1``, ``sigma = sigma_min (sigma_max/sigma_min)^t``, t in [0, 1].

    Variance exploding (Song et al. 2021, eq. 31).
    """
    log_range = math.log(sigma_max / sigma_min)

    def at(t: ArrayLike) -> tuple[Array, Array]:
        sigma = sigma_min * _xp(t).exp(log_range * t)
        return _xp(t).ones_like(sigma), sigma

    def t_of(lam: ArrayLike) -> Array:
        return (-0.5 * np.asarray(lam, np.float64) - math.log(sigma_min)) / log_range

    return Schedule(at, t_of, (0.0, 1.0))


def ve_discrete(sigma_min: float = 0.01, sigma_max: float = 50.0, *, steps: int = 1000) -> Schedule:
    """`ve` at ``t = 0 .. steps - 1``, from sigma_min to sigma_max: the levels of NCSN.

    Song & Ermon 2019, section 4.2: a geometric sequence.
    """
    inner = ve(sigma_min, sigma_max)
    last = steps - 1
    return Schedule(
        lambda t: inner.at(t / last), lambda lam: last * inner.t_of(lam), (0.0, float(last)), steps
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """``alpha = 1``, ``t = log(sigma) / 4``, what EDM networks are told (Karras et al. 2022)."""

    def at(t: ArrayLike) -> tuple[Array, Array]:
        sigma = _xp(t).exp(4.0 * t)
        return _xp(t).ones_like(sigma), sigma

    def t_of(lam: ArrayLike) -> Array:
        return -np.asarray(lam, np.float64) / 8

    return Schedule(at, t_of, (math.log(sigma_min) / 4, math.log(sigma_max) / 4))


def log_snr(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
    """``lambda(u) = -2 log tan(a u + b)``, u in [0, 1], variance preserving.

    ``b = arctan(exp(-lambda_max/2))``, ``a = arctan(exp(-lambda_min/2)) - b`` (Ho & Salimans 2022,
    section 2); ``u = 0`` is the cleanest level.
    """
    b = math.atan(math.exp(-0.5 * logsnr_max))
    a = math.atan(math.exp(-0.5 * logsnr_min)) - b

    def at(t: ArrayLike) -> tuple[Array, Array]:
        xp = _xp(t)
        return xp.cos(a * t + b), xp.sin(a * t + b)

    def t_of(lam: ArrayLike) -> Array:
        return (np.arctan(np.exp(-0.5 * np.asarray(lam, np.float64))) - b) / a

    return Schedule(at, t_of, (0.0, 1.0))


def flow(shift: float = 1.0, t_min: float = 1e-3, t_max: float = 0.999) -> Schedule:
    """Rectified flow: ``alpha = 1 - s``, ``sigma = s`` with ``s = shift t / (1 + (shift - 1) t)``.

    Liu et al. 2022; Lipman et al. 2022; the shift is Esser et al. 2024, eq. 23. The span stops
    short of both ends, where log-SNR is infinite.
    """

    def at(t: ArrayLike) -> tuple[Array, Array]:
        sigma = _xp(t).asarray(shift * t / (1 + (shift - 1) * t))
        return 1 - sigma, sigma

    def t_of(lam: ArrayLike) -> Array:
        sigma = 1 / (1 + np.exp(0.5 * np.asarray(lam, np.float64)))
        return sigma / (shift - (shift - 1) * sigma)

    return Schedule(at, t_of, (t_min, t_max))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "vp_sde": vp_sde,
    "sub_vp": sub_vp,
    "ve": ve,
    "ve_discrete": ve_discrete,
    "edm": edm,
    "log_snr": log_snr,
    "flow": flow,
}


def make(name: str, options: Options | None = None) -> Schedule:
    """The named schedule; ``zero_snr=True`` among the options rescales a discrete one."""
    options = dict(options or {})
    rescale = options.pop("zero_snr", False)
    schedule = build("schedule", name, SCHEDULES, options)
    return zero_terminal_snr(schedule) if rescale else schedule
