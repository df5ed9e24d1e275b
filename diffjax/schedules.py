"""Noise schedules: ``t -> (alpha, sigma)`` with ``z = alpha x + sigma eps``.

Discrete schedules tabulate ``abar_t = prod_s (1 - beta_s)`` at ``t = 0 .. T - 1`` and set
``alpha = sqrt(abar)``, ``sigma = sqrt(1 - abar)``; the paper's step ``t`` is index ``t - 1`` here.
Continuous schedules are closed forms. Both work on NumPy float64 (plans made on the host) and on
traced float32 arrays (training).

A schedule is variance preserving if ``alpha^2 + sigma^2 = 1``, and variance exploding if
``alpha = 1``. The log-SNR ``lam = log(alpha^2 / sigma^2)`` falls as t grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, ArrayLike, Options, Schedule, build

TINY = 1e-12  # the least that is used for alpha^2 and sigma^2 in logarithms


def _xp(t: ArrayLike) -> ModuleType:
    """Return the module that computes with ``t``: NumPy on the host, jax.numpy for JAX arrays."""
    return jnp if isinstance(t, jax.Array) else np


def logsnr(alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return the log-SNR ``log(alpha^2 / sigma^2)``; it is infinite where sigma is 0.

    Args:
        alpha, sigma: signal and noise scales of the same shape.
    """
    xp = _xp(alpha) if isinstance(alpha, jax.Array) else _xp(sigma)
    with np.errstate(divide="ignore"):
        return 2 * (xp.log(alpha) - xp.log(sigma))


def scales_of(lam: ArrayLike) -> tuple[Array, Array]:
    """Return the variance-preserving ``(alpha, sigma)`` of a log-SNR: ``alpha^2 = sigmoid(lam)``.

    Both have the shape of ``lam``, and ``alpha^2 + sigma^2 = 1``.
    """
    xp = _xp(lam)
    return xp.exp(-0.5 * xp.logaddexp(0.0, -lam)), xp.exp(-0.5 * xp.logaddexp(0.0, lam))


# ---- discrete schedules ---------------------------------------------------------------------


def from_abar(abar: np.ndarray) -> Schedule:
    """Make the schedule that tabulates ``abar_t``.

    Fractional times interpolate ``log(sigma / alpha)`` linearly, which is what solvers that
    evaluate between timesteps expect (Karras et al. 2022, appendix C.3.4).

    Args:
        abar: cumulative products (T,), decreasing, each in [0, 1).

    Raises:
        ValueError: the table is not one-dimensional, leaves the range, or does not decrease.
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
        between = scales_of(-2 * np.interp(t, index, log_ratio))
        whole = t == nearest
        return np.where(whole, alpha[nearest], between[0]), np.where(
            whole, sigma[nearest], between[1]
        )

    def t_of(lam: ArrayLike) -> Array:
        return np.interp(-0.5 * np.asarray(lam, np.float64), log_ratio, index)

    return Schedule(at, t_of, (0.0, float(len(abar) - 1)), len(abar))


def from_betas(betas: np.ndarray) -> Schedule:
    """Make the schedule of ``abar_t = prod_{s<=t} (1 - beta_s)`` (Ho et al. 2020, section 2).

    Args:
        betas: variances (T,) of the forward steps, each in (0, 1].

    Raises:
        ValueError: a beta is outside of its range.
    """
    betas = np.asarray(betas, np.float64)
    if not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"betas must lie in (0, 1], got {betas.min()} .. {betas.max()}")
    return from_abar(np.cumprod(1 - betas))


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the schedule of DDPM, with ``beta_t`` linear in t (Ho et al. 2020, section 4).

    Args:
        steps: number T of timesteps.
        beta_start, beta_end: the first and the last beta.
    """
    return from_betas(np.linspace(beta_start, beta_end, steps))


def scaled_linear(
    steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Schedule:
    """Return the schedule of latent diffusion, with ``sqrt(beta_t)`` linear in t.

    Rombach et al. 2022 use it for all models, and their code calls it linear. The defaults are
    those of Stable Diffusion; the models of the paper have 0.0015 to 0.0155, 0.0195 or 0.0205.

    Args:
        steps: number T of timesteps.
        beta_start, beta_end: the first and the last beta.
    """
    return from_betas(np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps) ** 2)


def _cap_betas(cumulative: Callable[[np.ndarray], np.ndarray], steps: int, cap: float) -> Schedule:
    """Make a schedule of betas ``1 - abar(k/T) / abar((k-1)/T)``, each at most ``cap``.

    A beta of 1 would erase the signal in one step, and closed forms of abar end at 0.

    Args:
        cumulative: the closed form of abar on [0, 1].
        steps: number T of timesteps.
        cap: the largest beta.
    """
    abar = cumulative(np.linspace(0, 1, steps + 1))
    return from_betas(np.minimum(1 - abar[1:] / abar[:-1], cap))


def cosine(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Return the schedule of improved DDPM, ``abar(t) = cos^2((t/T + s)/(1 + s) pi/2)``.

    Nichol & Dhariwal 2021, eq. 17. With T = 4000 exactly one beta reaches the cap.

    Args:
        steps: number T of timesteps.
        s: offset that keeps the first betas from being too small.
        max_beta: the largest beta.
    """
    return _cap_betas(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, steps, max_beta)


def sigmoid(
    steps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> Schedule:
    """Return the schedule whose ``abar(t)`` is a rescaled sigmoid that falls from 1 to 0.

    Jabri et al. 2022; Chen 2023, eq. 3.

    Args:
        steps: number T of timesteps.
        start, end: the piece of the sigmoid that is used.
        tau: temperature; a small one makes the fall steep.
        max_beta: the largest beta.
    """

    def squash(v: np.ndarray | float) -> np.ndarray:
        return 1 / (1 + np.exp(-v / tau))

    def cumulative(u: np.ndarray) -> np.ndarray:
        return (squash(end) - squash(u * (end - start) + start)) / (squash(end) - squash(start))

    return _cap_betas(cumulative, steps, max_beta)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and scale ``sqrt(abar)`` so that the last step has no signal (Lin et al. 2023, alg. 1).

    The first step keeps its abar. A network that predicts eps cannot be used with the result,
    because eps says nothing of x at ``alpha = 0``; see `diffjax.parameterization.check_levels`.

    Raises:
        ValueError: the schedule is not discrete.
    """
    if schedule.steps is None:
        raise ValueError("zero_terminal_snr needs a discrete schedule")
    root = np.asarray(schedule.at(np.arange(schedule.steps))[0])
    return from_abar(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)


# ---- continuous schedules -------------------------------------------------------------------


def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> Schedule:
    """Return the variance-preserving SDE of Song et al. 2021, eq. 33.

    ``alpha = exp(-B(t)/2)``, ``sigma^2 = 1 - alpha^2`` with
    ``B(t) = t beta_min + t^2 (beta_max - beta_min) / 2``.

    Args:
        beta_min, beta_max: rates of noise at t = 0 and t = 1.
        t_min: the cleanest time; at 0 the log-SNR would be infinite.
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
    """Return the sub-VP SDE, ``alpha = exp(-B(t)/2)``, ``sigma = 1 - alpha^2``.

    Song et al. 2021, eq. 35; ``B(t)`` and the arguments are those of `vp_sde`. Its variance is at
    most that of VP, and the paper finds better likelihoods with it.
    """
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


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 0.0) -> Schedule:
    """Return the variance-exploding SDE (Song et al. 2021, eq. 31).

    ``alpha = 1``, ``sigma = sigma_min (sigma_max/sigma_min)^t`` with t in [t_min, 1].

    Args:
        sigma_min, sigma_max: noise at t = 0 and t = 1, in units of the data.
        t_min: the cleanest time; the released code trains from 1e-5 on.
    """
    log_range = math.log(sigma_max / sigma_min)

    def at(t: ArrayLike) -> tuple[Array, Array]:
        sigma = sigma_min * _xp(t).exp(log_range * t)
        return _xp(t).ones_like(sigma), sigma

    def t_of(lam: ArrayLike) -> Array:
        return (-0.5 * np.asarray(lam, np.float64) - math.log(sigma_min)) / log_range

    return Schedule(at, t_of, (t_min, 1.0))


def ve_discrete(sigma_min: float = 0.01, sigma_max: float = 50.0, *, steps: int = 1000) -> Schedule:
    """Return the noise levels of NCSN: `ve` at ``steps`` times, a geometric sequence.

    Song & Ermon 2019, section 4.2. Time is 0 .. steps - 1, from sigma_min to sigma_max.

    Args:
        sigma_min, sigma_max: noise at the first and the last time, in units of the data.
        steps: number of levels.
    """
    inner = ve(sigma_min, sigma_max)
    last = steps - 1
    return Schedule(
        lambda t: inner.at(t / last), lambda lam: last * inner.t_of(lam), (0.0, float(last)), steps
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """Return the schedule of EDM, ``alpha = 1``, with time ``t = log(sigma) / 4``.

    Karras et al. 2022, table 1; t is the ``c_noise`` that EDM's networks read.

    Args:
        sigma_min, sigma_max: the ends of the span, in units of the data.
    """

    def at(t: ArrayLike) -> tuple[Array, Array]:
        sigma = _xp(t).exp(4.0 * t)
        return _xp(t).ones_like(sigma), sigma

    def t_of(lam: ArrayLike) -> Array:
        return -np.asarray(lam, np.float64) / 8

    return Schedule(at, t_of, (math.log(sigma_min) / 4, math.log(sigma_max) / 4))


def log_snr(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
    """Return the schedule ``lambda(u) = -2 log tan(a u + b)``, u in [0, 1], variance preserving.

    ``b = arctan(exp(-lambda_max/2))``, ``a = arctan(exp(-lambda_min/2)) - b`` (Ho & Salimans 2022,
    section 2); ``u = 0`` is the cleanest level.

    Args:
        logsnr_min, logsnr_max: log-SNR of the noisiest and of the cleanest level.
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
    """Return rectified flow, ``alpha = 1 - s``, ``sigma = s``.

    ``s = shift t / (1 + (shift - 1) t)``: Liu et al. 2022; Lipman et al. 2022; the shift is Esser
    et al. 2024, eq. 23.

    Args:
        shift: above 1, times move towards the noise, as large images need.
        t_min, t_max: the ends of the span. They stop short of 0 and 1, where log-SNR is infinite.
    """

    def at(t: ArrayLike) -> tuple[Array, Array]:
        sigma = _xp(t).asarray(shift * t / (1 + (shift - 1) * t))
        return 1 - sigma, sigma

    def t_of(lam: ArrayLike) -> Array:
        sigma = 1 / (1 + np.exp(0.5 * np.asarray(lam, np.float64)))
        return sigma / (shift - (shift - 1) * sigma)

    return Schedule(at, t_of, (t_min, t_max))


def trigonometric(t_min: float = 1e-3, t_max: float = 0.999) -> Schedule:
    """Return the variance-preserving interpolant, ``alpha = cos(pi t/2)``, ``sigma = sin(pi t/2)``.

    Albergo & Vanden-Eijnden 2022; GVP of SiT (Ma et al. 2024, section 2.2). Its velocity is
    ``pi/2 (alpha eps - sigma x)``, so that predicting v is predicting the velocity.

    Args:
        t_min, t_max: the ends of the span. They stop short of 0 and 1, where log-SNR is infinite.
    """

    def at(t: ArrayLike) -> tuple[Array, Array]:
        xp = _xp(t)
        return xp.cos(math.pi / 2 * t), xp.sin(math.pi / 2 * t)

    def t_of(lam: ArrayLike) -> Array:
        return 2 / math.pi * np.arctan(np.exp(-0.5 * np.asarray(lam, np.float64)))

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
    "trigonometric": trigonometric,
}


def make(name: str, options: Options | None = None) -> Schedule:
    """Return the named schedule of `SCHEDULES`.

    Args:
        name: a key of `SCHEDULES`.
        options: its keyword arguments; ``zero_snr=True`` among them applies `zero_terminal_snr`.

    Raises:
        ValueError: unknown name or option, a value that the schedule refuses, or ``zero_snr`` of a
            continuous schedule.
    """
    options = dict(options or {})
    rescale = options.pop("zero_snr", False)
    schedule = build("schedule", name, SCHEDULES, options)
    return zero_terminal_snr(schedule) if rescale else schedule
