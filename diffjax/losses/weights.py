"""Weights of the noise levels in the loss.

Weights are functions ``w_x(SNR)`` on ``|x - x_hat|^2``. `Parameterization.gain` turns them into
weights on the raw output, so that one table serves every parameterization. ``simple`` is the
unweighted squared error of the raw output (Ho et al. 2020, eq. 14). SNR is ``alpha^2 / sigma^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from diffjax.schedules import logsnr
from diffjax.types import Array, ArrayLike, Level, Options, Parameterization, Schedule, build

# ``(level, parameterization) -> weight`` of the squared error of the raw output, with the shape of
# the leaves of the level.
Weight: TypeAlias = Callable[[Level, Parameterization], ArrayLike]


def _on_x(weight: Callable[[Array], Array]) -> Weight:
    """Make a weight of the raw error from a weight of the error of x as a function of the SNR.

    The log-SNR is clipped to [-60, 60], which keeps the SNR finite in float32.
    """

    def raw(level: Level, parameterization: Parameterization) -> ArrayLike:
        snr = jnp.exp(jnp.clip(logsnr(level.alpha, level.sigma), -60.0, 60.0))
        return weight(snr) * parameterization.gain(level) ** 2

    return raw


def simple() -> Weight:
    """Weigh the error of the raw output by 1, whatever it is (Ho et al. 2020, eq. 14)."""
    return lambda level, parameterization: jnp.ones_like(level.sigma)


def snr() -> Weight:
    """Weigh by ``w_x = SNR``: the plain squared error of eps, in any parameterization."""
    return _on_x(lambda r: r)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """Weigh by ``w_eps = (k + SNR)^-gamma`` (Choi et al. 2022, eq. 8).

    Args:
        k: bounds the weight where there is little signal.
        gamma: 0 gives `snr`; the paper uses 1 and 0.5.
    """
    return _on_x(lambda r: r / (k + r) ** gamma)


def min_snr(gamma: float = 5.0) -> Weight:
    """Weigh by ``w_x = min(SNR, gamma)`` (Hang et al. 2023, section 3.4).

    Args:
        gamma: the largest weight; 5 is the paper's value.
    """
    return _on_x(lambda r: jnp.minimum(r, gamma))


def truncated_snr() -> Weight:
    """Weigh by ``w_x = max(SNR, 1)``: the larger error of x and eps (Salimans & Ho 2022, eq. 9)."""
    return _on_x(lambda r: jnp.maximum(r, 1.0))


def snr_plus_one() -> Weight:
    """Weigh by ``w_x = SNR + 1``, which is the error of v (Salimans & Ho 2022, section 4)."""
    return _on_x(lambda r: r + 1)


def edm_weight(sigma_data: float = 0.5) -> Weight:
    """Weigh by ``w_x = (sigma^2 + sd^2)/(sigma sd)^2`` with sigma^2 = 1/SNR.

    Karras et al. 2022, table 1.

    Args:
        sigma_data: sd, the standard deviation of the data.
    """
    return _on_x(lambda r: r + 1 / sigma_data**2)


def likelihood(schedule: Schedule) -> Weight:
    """Weigh by ``w_eps = g^2 / sigma^2 = -d log-SNR / dt``, which bounds the likelihood.

    Song et al. 2021 (arXiv:2101.09258), section 4, for uniform times.

    Args:
        schedule: continuous; ``g^2`` is that of its SDE.

    Raises:
        ValueError: the schedule is discrete.
    """
    if schedule.steps is not None:
        raise ValueError("the likelihood weight needs a continuous schedule, such as vp_sde")

    def raw(level: Level, parameterization: Parameterization) -> ArrayLike:
        t = jnp.asarray(level.t, jnp.float32)
        (alpha, sigma), (da, ds) = jax.jvp(schedule.at, (t,), (jnp.ones_like(t),))
        snr = jnp.square(alpha / sigma)
        return 2 * (ds / sigma - da / alpha) * snr * parameterization.gain(level) ** 2

    return raw


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "simple": simple,
    "snr": snr,
    "p2": p2,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
    "edm": edm_weight,
    "likelihood": likelihood,
}


def make_weight(name: str, options: Options | None = None) -> Weight:
    """Return the named weight.

    Args:
        name: a key of `WEIGHTS`.
        options: its keyword arguments.

    Raises:
        ValueError: unknown name or option.
    """
    return build("loss weight", name, WEIGHTS, options)
