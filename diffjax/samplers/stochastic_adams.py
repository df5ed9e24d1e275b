r"""SA-Solver: stochastic Adams methods for the SDE of diffusion (Xue et al. 2023).

With ``lam = log(alpha / sigma)``, a step h in it, ``k = 1 + tau^2`` and the network's output x as a
polynomial of lam through s points (eq. 13 and 16, where u is lam less that of the end),

    z_t = e^{-tau^2 h} sigma_t / sigma_s z_s + k alpha_t int_{-h}^0 e^{k u} x(u) du
          + sigma_t sqrt(1 - e^{-2 tau^2 h}) noise,

and with eps as the output

    z_t = alpha_t / alpha_s z_s - k sigma_t int_{-h}^0 e^{-u} eps(u) du
          + tau sigma_t sqrt(e^{2 h} - 1) noise.

The predictor's points are the levels passed. The corrector redoes the last step with the same noise
and with the output at its end as one more point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffjax.samplers.affine import Entry, affine, at
from diffjax.types import Grid, Sampler

ORDERS = 4  # of the polynomials, at most


def sa_solver(
    *,
    predictor: int = 2,
    corrector: int = 2,
    tau: float = 1.0,
    low: float = 200.0,
    high: float = 800.0,
    predict_x: bool = True,
    lower_order_final: bool = True,
) -> Sampler:
    """Stochastic Adams predictor and corrector, one evaluation a step; N rows.

    Args:
        predictor, corrector: numbers of points of their polynomials, 1 to 4.
        tau: noise of the SDE at times ``low <= t <= high``; there is none at others.
        low, high: times of the network. Schedules without a table have other times, and no noise.
        predict_x: expand x instead of eps.
        lower_order_final: let the orders fall towards the end.

    Raises:
        ValueError: an order is none of these.
    """
    for name, value in (("predictor", predictor), ("corrector", corrector)):
        if not 1 <= value <= ORDERS:
            raise ValueError(f"{name} must lie in 1 .. {ORDERS}, got {value}")
    output, kept = "x" if predict_x else "eps", max(predictor, corrector - 1)
    noise = 2 + kept  # slot 0 is z, 1 the corrected z, then outputs, the newest first

    def table(grid: Grid) -> Sequence[Entry]:
        entries: list[Entry] = []
        known = 0  # outputs in memory, this one included
        before = 0  # points of the corrector of the step before
        for i in range(len(grid.levels.t) - 1):
            base: dict[Any, float] = {0: 1.0}
            if before:
                points = [i - j for j in range(before)]
                step = _integrate(grid, i - 1, i, points, _tau(grid, i - 1), predict_x)
                outputs = [output, *range(2, 2 + kept)]
                base = {1: step[0], noise: step[2], **dict(zip(outputs, step[1], strict=False))}
            memory: dict[int, dict[Any, float]]
            memory = {1: base, 2: {output: 1}, **{2 + j: {1 + j: 1} for j in range(1, kept)}}
            memory[noise] = {"noise": 1}
            if grid.levels.sigma[i + 1] == 0 or grid.levels.alpha[i] == 0:
                # To the data, or from pure noise: of first order, as in the other solvers.
                data: dict[Any, float] = {
                    "x": float(grid.levels.alpha[i + 1]),
                    "eps": float(grid.levels.sigma[i + 1]),
                }
                entries.append((i, {0: data, **memory}))
                known = before = 0
                continue
            known += 1
            most = grid.remaining(i) if lower_order_final else ORDERS
            points = [i - j for j in range(min(predictor, most, known))]
            before = min(corrector, most + 1, known + 1)
            ratio, weights, spread = _integrate(grid, i, i + 1, points, _tau(grid, i), predict_x)
            update = {slot: ratio * value for slot, value in base.items()} | {"noise": spread}
            for slot, weight in zip([output, *range(2, 2 + kept)], weights, strict=False):
                update[slot] = update.get(slot, 0.0) + weight
            entries.append((i, {0: update, **memory}))
        return entries

    def _tau(grid: Grid, i: int) -> float:
        return tau if low <= grid.levels.t[i] <= high else 0.0

    return affine(table)


def _integrate(
    grid: Grid, start: int, end: int, points: Sequence[int], tau: float, predict_x: bool
) -> tuple[float, list[float], float]:
    """Factor of z, weights of the outputs at the points, and factor of the noise of a step."""
    (a, s), (b, t) = (
        (float(grid.levels.alpha[n]), float(grid.levels.sigma[n])) for n in (start, end)
    )
    if at(grid, start)[1:3] == at(grid, end)[1:3]:  # some grids of diffusers end so
        return 1.0, [0.0] * len(points), 0.0
    with np.errstate(divide="ignore"):  # sigma may be 0 at the end
        lam = np.log(grid.levels.alpha) - np.log(grid.levels.sigma)
    h, k = float(lam[end] - lam[start]), 1 + tau**2
    if predict_x:
        rate, factor, ratio = k, k * b, math.exp(-(tau**2) * h) * t / s
        spread = t * math.sqrt(-math.expm1(-2 * tau**2 * h))
    else:
        rate, factor, ratio = -1.0, -k * t, b / a
        spread = tau * t * math.sqrt(math.expm1(2 * h))
    nodes = [float(lam[n] - lam[end]) for n in points]
    moments = _integrate_powers(rate, h, len(points))
    weights = [factor * float(np.dot(_lagrange(nodes, n), moments)) for n in range(len(nodes))]
    if predict_x and len(points) == 2:
        # The authors' change of order 2, smaller than its error: exact for a slope at small k h.
        extra = h**2 / 2 - (h * k + math.expm1(-k * h)) / k**2
        extra *= factor / (nodes[0] - nodes[1])
        weights = [weights[0] + extra, weights[1] - extra]
    return ratio, weights, spread


def _integrate_powers(rate: float, h: float, count: int) -> list[float]:
    """``int_{-h}^0 e^{rate u} u^j du`` for j = 0 .. count - 1, by parts."""
    edge = math.exp(-rate * h)
    out = [-math.expm1(-rate * h) / rate]
    for j in range(1, count):
        out.append((-((-h) ** j) * edge - j * out[-1]) / rate)
    return out


def _lagrange(nodes: Sequence[float], n: int) -> np.ndarray:
    """Coefficients, the constant first, of the polynomial that is 1 at node n and 0 at others."""
    out = np.ones(1)
    for m, node in enumerate(nodes):
        if m != n:
            out = np.convolve(out, np.array([-node, 1.0]) / (nodes[n] - node))
    return out
