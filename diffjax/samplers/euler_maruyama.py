"""The Euler-Maruyama scheme for the reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffjax.samplers.affine import Entry, affine
from diffjax.types import Grid, Sampler, choose

DIFFUSIONS = ("forward", "sigma", "sine")


def euler_maruyama(*, diffusion: str = "forward", strength: float = 1.0) -> Sampler:
    """Make equal steps of the reverse SDE ``dz = (f z - (g^2 + w)/2 score) dt + sqrt(w) dw``.

    Song et al. 2021, eq. 6, where w is g^2; any w gives the same marginals (Ma et al. 2024, eq. 5).
    A step is ``z' = z - (f z - (g^2 + w)/2 score) dt + sqrt(w dt) noise`` with
    ``f = d log alpha / dt``, ``g^2 = d sigma^2 / dt - 2 f sigma^2`` and ``score = -eps / sigma``.
    The last step adds no noise.

    On a grid that ends at the data the step is ``T / N``, T the first of its N times, however far
    these lie apart: the released code evaluates at N times from T to 1e-3 and steps by ``1 / N``.

    Args:
        diffusion: w over its strength: forward (g^2), sigma, or sine, ``sin^2(pi t / T)``.
        strength: factor on w; 0 is Euler's method on the probability flow.

    Raises:
        ValueError: an unknown diffusion.
    """
    choose("diffusion", diffusion, dict.fromkeys(DIFFUSIONS))

    def table(grid: Grid) -> Sequence[Entry]:
        t, sigma = np.asarray(grid.levels.t), np.asarray(grid.levels.sigma)
        count = len(t) - 1
        dt = np.full(count, t[0] / count) if sigma[-1] == 0 else t[:-1] - t[1:]
        f, g2 = drift_and_diffusion(grid, t[:-1])
        sine = np.sin(np.pi * (t[:-1] - t[-1]) / (t[0] - t[-1])) ** 2
        w = strength * {"forward": g2, "sigma": sigma[:-1], "sine": sine}[diffusion]
        entries: list[Entry] = []
        for i in range(count):
            noise = np.sqrt(w[i] * dt[i]) if i < count - 1 else 0.0
            pull = -(g2[i] + w[i]) / 2 * dt[i] / sigma[i]
            move: dict[Any, float] = {0: 1 - f[i] * dt[i], "eps": pull}
            entries.append((i, {0: {**move, "noise": noise}}))
        return entries

    return affine(table)


def drift_and_diffusion(grid: Grid, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f and g^2 of the forward SDE at times t (N,) of a grid, by differences in float64."""
    width = 1e-6 * max(abs(t[0] - t[-1]), abs(t[0]))
    high, low = np.minimum(t + width, t[0]), np.maximum(t - width, t[-1] - width)
    above, below = grid.at_time(high), grid.at_time(low)
    f = (np.log(above.alpha) - np.log(below.alpha)) / (high - low)
    growth = (np.asarray(above.sigma) ** 2 - np.asarray(below.sigma) ** 2) / (high - low)
    return f, growth - 2 * f * np.asarray(grid.at_time(t).sigma) ** 2
