"""Tables of diffusers' beta schedules, to the bits that torch's float32 gives them.

Rounded timesteps of Karras' levels would flip otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffjax.types import choose

F32 = np.float32
Options = Mapping[str, Any]


def linspace(start: float, end: float, count: int) -> np.ndarray:
    """``torch.linspace`` of float32, bit by bit."""
    low, high = F32(start), F32(end)
    if count == 1:
        return np.array([low])
    step, i = F32((high - low) / F32(count - 1)), np.arange(count)
    up = np.float64(low) + np.float64(step) * i
    down = np.float64(high) - np.float64(step) * (count - 1 - i)
    return np.where(i < count // 2, up, down).astype(F32)


def _accumulate_abar(betas: np.ndarray) -> np.ndarray:
    """Return ``torch.cumprod(1 - betas)``: float32, accumulated in float64."""
    return np.cumprod((F32(1) - betas).astype(np.float64)).astype(F32)


def _compute_capped_betas(abar: Callable[[float], float], count: int) -> np.ndarray:
    """Return ``count`` betas (float32) of a function ``abar`` of [0, 1], at most 0.999."""
    values = [abar(i / count) for i in range(count + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(values)], F32)


def _compute_laplace_abar(t: float) -> float:
    """Return abar at t in [0, 1] for the Laplace schedule, as diffusers computes it."""
    size = math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * size)
    return math.sqrt(snr / (1 + snr))


BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": linspace,
    "scaled_linear": lambda low, high, n: linspace(low**0.5, high**0.5, n) ** 2,
    "squaredcos_cap_v2": lambda low, high, n: _compute_capped_betas(
        lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, n
    ),
    "exp": lambda low, high, n: _compute_capped_betas(lambda t: math.exp(-12.0 * t), n),
    "laplace": lambda low, high, n: _compute_capped_betas(_compute_laplace_abar, n),
    "sigmoid": lambda low, high, n: (
        F32(1) / (F32(1) + np.exp(-linspace(-6, 6, n))) * F32(high - low) + F32(low)
    ),
}


def abar_table(o: Options, *, floor: bool = False) -> np.ndarray:
    """``alphas_cumprod`` (T,) in float32.

    Args:
        floor: with zero terminal SNR, end at ``2^-24`` instead of 0, for solvers in sigma / alpha.

    Raises:
        ValueError: the beta schedule is unknown.
    """
    if o["trained_betas"] is not None:
        betas = np.asarray(o["trained_betas"], F32)
    else:
        make = choose("beta_schedule", o["beta_schedule"], BETAS)
        betas = make(o["beta_start"], o["beta_end"], o["num_train_timesteps"])
    if not o.get("rescale_betas_zero_snr"):
        return _accumulate_abar(betas)
    root = np.sqrt(_accumulate_abar(betas))
    abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    out = _accumulate_abar(F32(1) - np.append(abar[:1], abar[1:] / abar[:-1]))
    if floor:
        out[-1] = 2.0**-24
    return out


def ratio_table(o: Options) -> np.ndarray:
    """Table of ``sigma / alpha`` in float32, rising."""
    abar = abar_table(o, floor=True)
    return np.sqrt((F32(1) - abar) / abar)
