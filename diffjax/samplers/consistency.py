"""Few-step samplers of consistency-distilled networks: predict the data, add noise again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffjax.samplers.affine import Entry, Terms, affine
from diffjax.types import Array, Grid, Sampler

SIGMA_DATA = 0.5  # of the boundary condition, where the caller says nothing


def consistency() -> Sampler:
    """Make multistep consistency sampling (Song et al. 2023, algorithm 1).

    ``z' = alpha' x + sigma' noise``: the network predicts the data, and fresh noise of the next
    level is added. The last step of a grid that ends at the data returns x.
    """

    def table(grid: Grid) -> Sequence[Entry]:
        _, alpha, sigma, _ = grid.levels
        return [(i, {0: {"x": alpha[i + 1], "noise": sigma[i + 1]}}) for i in range(len(alpha) - 1)]

    return affine(table)


def weigh_boundary(
    t: Array, *, sigma_data: float = SIGMA_DATA, timestep_scaling: float = 10.0
) -> tuple[Array, Array]:
    """Return c_skip and c_out of ``f = c_skip z + c_out x``, so that f is z at t = 0.

    ``c_skip = sd^2 / (s^2 + sd^2)`` and ``c_out = s / sqrt(s^2 + sd^2)``.

    Args:
        t: timesteps of any shape.
        sigma_data: sd.
        timestep_scaling: s is the timestep times this number.
    """
    scaled = t * timestep_scaling
    square = scaled**2 + sigma_data**2
    return sigma_data**2 / square, scaled / square**0.5


def lcm(*, sigma_data: float = SIGMA_DATA, timestep_scaling: float = 10.0) -> Sampler:
    """Make multistep latent consistency sampling (Luo et al. 2023, algorithm 3).

    ``f = c_skip z + c_out x``, then ``z' = alpha' f + sigma' noise``. The last step returns f.

    Args:
        sigma_data, timestep_scaling: of c_skip and c_out, see `weigh_boundary`.
    """

    def table(grid: Grid) -> Sequence[Entry]:
        t, alpha, sigma, _ = grid.levels
        skip, out = weigh_boundary(
            np.asarray(t), sigma_data=sigma_data, timestep_scaling=timestep_scaling
        )
        last = len(t) - 2
        return [
            (i, {0: {0: a * skip[i], "x": a * out[i], "noise": sigma[i + 1] * (i < last)}})
            for i, a in ((i, alpha[i + 1] if i < last else 1.0) for i in range(last + 1))
        ]

    return affine(table)


def tcd(*, gamma: float = 0.3) -> Sampler:
    """Make trajectory consistency sampling (Zheng et al. 2024, algorithm 4).

    Each step is DDIM to the timestep ``floor((1 - gamma) t')``, followed by noise up to t'.

    Args:
        gamma: share of the noise in [0, 1]; 0 is DDIM, 1 is close to `consistency`.

    Raises:
        ValueError: gamma outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")

    def table(grid: Grid) -> Sequence[Entry]:
        t, alpha, sigma, _ = grid.levels
        entries: list[Entry] = []
        for i in range(len(t) - 1):
            if i == len(t) - 2 or gamma == 0:
                entries.append((i, {0: {"x": alpha[i + 1], "eps": sigma[i + 1]}}))
                continue
            goal = grid.at_time(np.floor((1 - gamma) * t[i + 1]))
            ratio = alpha[i + 1] / goal.alpha
            noise = np.sqrt(max(sigma[i + 1] ** 2 - (ratio * goal.sigma) ** 2, 0.0))
            update: Terms = {"x": alpha[i + 1], "eps": ratio * goal.sigma, "noise": noise}
            entries.append((i, {0: update}))
        return entries

    return affine(table)
