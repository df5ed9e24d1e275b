"""The tables of diffusers' beta schedules, with the bits that torch computes in float32.

Schedulers round timesteps that they interpolate in these tables. A table in float64 would round
some of them the other way, and the samples would then differ from those of diffusers.

    abar[t] = prod_{s <= t} (1 - beta[s]),    t = 0 .. T - 1
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from diffjax.types import Options, choose

F32 = np.float32


def linspace(start: float, end: float, count: int) -> np.ndarray:
    """Return ``torch.linspace`` in float32, bit by bit.

    torch counts the first half up from ``start`` and the second half down from ``end``.
    """
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
    """Return ``beta_i = min(1 - abar((i + 1) / N) / abar(i / N), 0.999)`` for i in 0 .. N - 1, in
    float32.

    Nichol & Dhariwal (2021, section 3.2) cap betas so, to avoid a singularity at the last step.
    """
    values = [abar(i / count) for i in range(count + 1)]
    return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(values)], F32)


def _compute_laplace_abar(t: float) -> float:
    """Return ``sqrt(snr / (1 + snr))`` at t in [0, 1] for the Laplace schedule (Hang et al.
    2024), as diffusers computes it.
    """
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


def compute_abar_table(o: Options, *, floor: bool = False) -> np.ndarray:
    """Return ``alphas_cumprod`` (T,) of a scheduler's options, in float32.

    With ``rescale_betas_zero_snr`` the roots are shifted and scaled so that the last one is 0 and
    the first one stays (Lin et al. 2023, algorithm 1).

    Args:
        o: complete options of a scheduler class.
        floor: with zero terminal SNR, end at ``2^-24`` instead of 0, for solvers in ``sigma /
            alpha``, which would be infinite.

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


def compute_ratio_table(o: Options) -> np.ndarray:
    """Return the table of ``sigma / alpha = sqrt((1 - abar) / abar)`` (T,) in float32, which
    rises with t.
    """
    abar = compute_abar_table(o, floor=True)
    return np.sqrt((F32(1) - abar) / abar)
