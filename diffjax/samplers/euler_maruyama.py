"""The Euler-Maruyama scheme for the reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffjax.samplers.affine import Entry, affine
from diffjax.types import Grid, Sampler, choose

DIFFUSIONS = ("forward", "sigma", "sine")


def euler_maruyama(*, diffusion: str = "forward", strength: float = 1.0) -> Sampler:
    """Make steps of the reverse SDE ``dz = (v - w/2 score) dt + sqrt(w) dw``.

    Song et al. 2021, eq. 6, where w is g^2; any w gives the same marginals (Ma et al. 2024, eq. 5).
    ``v = alpha' x + sigma' eps`` is the probability flow, ``f z - g^2/2 score`` in Song et al., and
    ``score = -eps / sigma``. A step is ``z' = z - (v - w/2 score) dt + sqrt(w dt) noise``. The last
    step adds no noise.

    If a grid ends at the data, and its schedule has noise at the last time, steps are ``T / N``, T
    the first of its N times, however far these lie apart: the released code of score SDEs evaluates
    at N times from T to 1e-3 and steps by ``1 / N``.

    Args:
        diffusion: w over its strength: forward (g^2), sigma, or sine, ``sin^2(pi t / T)``.
        strength: factor on w; 0 is Euler's method on the probability flow. SiT's released code
            calls w/2 its diffusion, so that its sigma is strength 2.

    Raises:
        ValueError: an unknown diffusion; (when planned) g^2 where the schedule has no signal.
    """
    choose("diffusion", diffusion, dict.fromkeys(DIFFUSIONS))

    def table(grid: Grid) -> Sequence[Entry]:
        t, sigma = np.asarray(grid.levels.t), np.asarray(grid.levels.sigma)
        count = len(t) - 1
        even = sigma[-1] == 0 and np.asarray(grid.at_time(max(t[-1], 0.0)).sigma) > 0
        dt = np.full(count, t[0] / count) if even else t[:-1] - t[1:]
        w = strength * _find_diffusion(grid, diffusion)
        signal, growth = slopes(grid, t[:-1])
        entries: list[Entry] = []
        for i in range(count):
            noise = np.sqrt(w[i] * dt[i]) if i < count - 1 else 0.0
            pull = -(growth[i] + w[i] / 2 / sigma[i]) * dt[i]
            move: dict[Any, float] = {0: 1.0, "x": -signal[i] * dt[i], "eps": pull}
            entries.append((i, {0: {**move, "noise": noise}}))
        return entries

    return affine(table)


def _find_diffusion(grid: Grid, name: str) -> np.ndarray:
    """Return w over its strength at all but the last level of a grid."""
    t, alpha, sigma = (np.asarray(leaf)[:-1] for leaf in grid.levels[:3])
    if name == "sigma":
        return sigma
    if name == "sine":
        end = np.asarray(grid.levels.t)[-1]
        return np.sin(np.pi * (t - end) / (t[0] - end)) ** 2
    if (alpha == 0).any():
        raise ValueError(
            "diffusion=forward is infinite where a schedule has no signal (alpha is 0): use sigma "
            "or sine, or a schedule that ends earlier (t_max below 1)"
        )
    return drift_and_diffusion(grid, t)[1]


def slopes(grid: Grid, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return alpha' and sigma' at times t (N,) of a grid, by differences in float64."""
    first, last = (np.asarray(grid.levels.t)[k] for k in (0, -1))
    width = 1e-6 * max(abs(first - last), abs(first))
    high, low = np.minimum(t + width, first), np.maximum(t - width, last - width)
    above, below = grid.at_time(high), grid.at_time(low)
    return tuple(
        (np.asarray(up) - np.asarray(down)) / (high - low)
        for up, down in ((above.alpha, below.alpha), (above.sigma, below.sigma))
    )


def drift_and_diffusion(grid: Grid, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f and g^2 of the forward SDE at times t (N,): f = alpha'/alpha.

    ``g^2 = d sigma^2 / dt - 2 f sigma^2``.
    """
    (signal, growth), level = slopes(grid, t), grid.at_time(t)
    alpha, sigma = np.asarray(level.alpha), np.asarray(level.sigma)
    f = signal / alpha
    return f, 2 * sigma * (growth - f * sigma)
