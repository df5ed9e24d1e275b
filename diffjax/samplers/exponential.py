r"""Exponential integrators: DPM-Solver, DPM-Solver++ and UniPC, as tables of affine updates.

With ``lam = log(alpha / sigma)`` and h the step in it, the linear part of the flow is solved
exactly and the network's output m is expanded in lam (Lu et al. 2022a, eq. 3.4; 2022b, eq. 9):

    z_t = ratio z_s - scale (phi_1 m + phi_2 m' + phi_3 m'' + ...),
    phi_1 = e^H - 1,  phi_2 = phi_1 / H - 1,  phi_3 = phi_2 / H - 1/2

| network output m | ratio | scale | H | name |
|---|---|---|---|---|
| x | sigma_t / sigma_s | alpha_t | -h | dpmsolver++ |
| eps | alpha_t / alpha_s | sigma_t | h | dpmsolver |
| x, with noise | sigma_t / sigma_s e^-h | alpha_t | -2h | sde-dpmsolver++ |
| eps, with noise | alpha_t / alpha_s | 2 sigma_t | h | sde-dpmsolver |

A step to the data (sigma = 0), or in eps from pure noise (alpha = 0), is the first-order one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.samplers.affine import Entry, Source, Terms, affine, at
from diffjax.types import ArrayLike, Grid, Sampler, choose

ALGORITHMS = {
    "dpmsolver++": ("x", False),
    "dpmsolver": ("eps", False),
    "sde-dpmsolver++": ("x", True),
    "sde-dpmsolver": ("eps", True),
}
_FEW = 15  # grids of fewer steps end with lower orders, as in the authors' code


class _Step(NamedTuple):
    """The constants of one step of the table above, and the scale of the noise that it adds."""

    ratio: ArrayLike
    scale: ArrayLike
    signed: float  # H
    noise: ArrayLike


def _lam(grid: Grid) -> np.ndarray:
    """Return the half log-SNR ``log(alpha / sigma)`` of every level, (N + 1,)."""
    with np.errstate(divide="ignore"):
        return np.log(grid.levels.alpha) - np.log(grid.levels.sigma)


def _step(grid: Grid, start: int, end: int, output: str, noisy: bool) -> _Step:
    """Return the constants of the step from level ``start`` to level ``end`` of a grid.

    Args:
        output: ``x`` or ``eps``, the output that is expanded.
        noisy: whether the solver is stochastic.
    """
    (a, s), (b, t) = ((grid.levels.alpha[k], grid.levels.sigma[k]) for k in (start, end))
    h = _lam(grid)[end] - _lam(grid)[start]
    if output == "x":
        ratio, noise = (t / s * math.exp(-h), t * math.sqrt(-math.expm1(-2 * h)))
        return _Step(ratio, b, -2 * h, noise) if noisy else _Step(t / s, b, -h, 0.0)
    if noisy:
        return _Step(b / a, 2 * t, h, t * math.sqrt(math.expm1(2 * h)))
    return _Step(b / a, t, h, 0.0)


def _first_order_only(grid: Grid, start: int, end: int, output: str) -> bool:
    """Return whether a step has to be of first order, because its lam is infinite at an end."""
    alpha, sigma = grid.levels.alpha, grid.levels.sigma
    if sigma[end] == 0 or _repeated(grid, start, end):
        return True
    return output == "eps" and bool(alpha[start] == 0)


def _repeated(grid: Grid, start: int, end: int) -> bool:
    """Return whether a step has no length; some grids of diffusers end with such a step."""
    return bool(at(grid, start)[1:3] == at(grid, end)[1:3])


def _ddim(grid: Grid, end: int) -> dict[Source, ArrayLike]:
    """Return the first-order step to level ``end``, which is DDIM's."""
    return {"x": grid.levels.alpha[end], "eps": grid.levels.sigma[end]}


def _phis(h: float) -> tuple[float, float, float]:
    """Return ``phi_1``, ``phi_2`` and ``phi_3`` of H, see the module."""
    one = math.expm1(h)
    two = one / h - 1
    return one, two, two / h - 0.5


def _check(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise a ValueError if an option has none of the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def _multistep_weights(
    signed: float, spans: Sequence[float], order: int, solver_type: str, factor: float
) -> list[float]:
    """Return the weights of the outputs, newest first.

    Args:
        signed: H of the step.
        spans: lengths in lam of the steps before this one, over the length h of this one.
        order: 1 to 3; as many outputs get a weight.
        solver_type: how order 2 estimates the slope.
        factor: of the second derivative in order 3.
    """
    one, two, three = _phis(signed)
    if order == 1:
        return [one]
    r0 = spans[0]
    if order == 2:
        slope = (0.5 * one if solver_type == "midpoint" else two) / r0
        return [one + slope, -slope]
    # m' by the newest two differences extrapolated, m'' by their difference (Lu et al. 2022b, A).
    r1, share = spans[1], r0 / (r0 + spans[1])
    new = two * (1 + share) + factor * three / (r0 + r1)
    old = two * share + factor * three / (r0 + r1)
    return [one + new / r0, -new / r0 - old / r1, old / r1]


def dpm_solver(
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    corrected: bool = False,
) -> Sampler:
    """Make multistep DPM-Solver or DPM-Solver++ (Lu et al. 2022b, algorithm 2), N rows.

    The stochastic forms are the last two rows of the module's table.

    Args:
        order: 1 (DDIM), 2 (2M) or 3 (3M).
        algorithm: a key of `ALGORITHMS`.
        solver_type: how order 2 estimates the slope, ``midpoint`` or ``heun``.
        lower_order_final: end with orders 2, 1 on grids of fewer than 15 steps.
        euler_at_final: take a last step of order 1 on any grid.
        corrected: double the second-derivative term of order 3. As published it is a divided
            difference without its factor 2, and the method measures order 2; corrected, 3.

    Raises:
        ValueError: an option has another value.
    """
    output, noisy = choose("algorithm", algorithm, ALGORITHMS)
    _check("order", order, (1, 2, 3))
    _check("solver_type", solver_type, ("midpoint", "heun"))

    def table(grid: Grid) -> Sequence[Entry]:
        lam, count = _lam(grid), len(grid.levels.t) - 1
        memory: dict[int, Terms]
        memory = {k: {output if k == 1 else k - 1: 1} for k in range(1, order)}
        entries: list[Entry] = []
        for i in range(count):
            p = min(i + 1, order)
            if lower_order_final and grid.steps < _FEW:
                p = min(p, grid.remaining(i))
            if grid.remaining(i) == 1 and euler_at_final:
                p = 1
            if _first_order_only(grid, i, i + 1, output):
                entries.append((i, {0: _ddim(grid, i + 1), **memory}))
                continue
            step = _step(grid, i, i + 1, output, noisy)
            spans = [(lam[i - k] - lam[i - k - 1]) / (lam[i + 1] - lam[i]) for k in range(p - 1)]
            w = _multistep_weights(step.signed, spans, p, solver_type, 2.0 if corrected else 1.0)
            update: dict[Source, ArrayLike]
            update = {k: -step.scale * w[k] for k in range(1, p)}
            update |= {0: step.ratio, output: -step.scale * w[0], "noise": step.noise}
            entries.append((i, {0: update, **memory}))
        return entries

    return affine(table)


def _single_orders(count: int, order: int, lower_order_final: bool, ends_clean: bool) -> list[int]:
    """Return the order of every step of singlestep DPM-Solver: 1, 2, ..., order, 1, 2, ...

    The orders at the end are lowered if the number of steps is no multiple of the order, if the
    grid ends at the data, or if ``lower_order_final`` asks for it.
    """
    groups = [k % order + 1 for k in range(count)]
    lower = lower_order_final or count % order != 0 or ends_clean
    if lower and order > 1 and count % order == 0:
        groups[-2:] = [2, 1] if order == 3 else [1, 1]
    if lower and order == 3 and count % order:
        groups[-1] = min(groups[-1], count % order)
    if ends_clean:
        groups[-1] = 1
    return groups


def dpm_solver_single(
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Sampler:
    """Make singlestep DPM-Solver or DPM-Solver++ on the grid's own levels, N rows.

    Lu et al. 2022a, algorithms 4 and 5. Groups of ``order`` rows start again from the state at
    their first level, and use the outputs at the levels passed since: 2S and 3S whose inner points
    are levels of the grid.

    Args:
        order: 1, 2 or 3.
        algorithm: a key of `ALGORITHMS`.
        solver_type: how slopes are estimated, ``midpoint`` or ``heun``.
        lower_order_final: lower the orders at the end. They are always lowered where the number of
            steps is no multiple of the order or the grid ends at the data.

    Raises:
        ValueError: an option has another value.
    """
    output, noisy = choose("algorithm", algorithm, ALGORITHMS)
    _check("order", order, (1, 2, 3))
    _check("solver_type", solver_type, ("midpoint", "heun"))

    def table(grid: Grid) -> Sequence[Entry]:
        lam, noiseless = _lam(grid), int(grid.levels.alpha[0] == 0)
        # The step from pure noise is of order 1; the others are grouped over the whole grid.
        count = max(grid.steps, grid.first + len(lam) - 1) - noiseless
        clean = bool(grid.levels.sigma[-1] == 0)
        whole = _single_orders(count, order, lower_order_final, clean) if count else []
        rest = whole[grid.first : grid.first + len(lam) - 1 - noiseless]
        orders = [1] * noiseless + [min(p, i + 1) for i, p in enumerate(rest)]
        memory: dict[int, Terms]
        memory = {k: {output if k == 2 else k - 1: 1} for k in range(2, order + 1)}
        entries: list[Entry] = []
        for i, p in enumerate(orders):
            anchor: dict[int, Terms] = {1: {min(p - 1, 1): 1}} if order > 1 else {}
            base = i - p + 1
            if _first_order_only(grid, base, i + 1, output):
                entries.append((i, {0: _ddim(grid, i + 1), **anchor, **memory}))
                continue
            step = _step(grid, base, i + 1, output, noisy)
            spans = [(lam[k] - lam[base]) / (lam[i + 1] - lam[base]) for k in range(i, base, -1)]
            w = [-step.scale * v for v in _single_weights(step.signed, spans, p, solver_type)]
            update: dict[Source, ArrayLike] = {k + 1: w[k] for k in range(1, p)}
            update |= {min(p - 1, 1): step.ratio, output: w[0], "noise": step.noise}
            entries.append((i, {0: update, **anchor, **memory}))
        return entries

    return affine(table)


def _single_weights(
    signed: float, spans: Sequence[float], order: int, solver_type: str
) -> list[float]:
    """Return the weights of the outputs, newest first.

    Args:
        signed: H from the base of the group to the end of the step.
        spans: distances of the outputs from the base in lam, over h.
        order: 1 to 3.
        solver_type: how slopes are estimated.
    """
    one, two, three = _phis(signed)
    if order == 1:
        return [one]
    if order == 2:
        slope = (0.5 * one if solver_type == "midpoint" else two) / spans[0]
        return [slope, one - slope]
    r0, r1 = spans
    if solver_type == "midpoint":
        return [two / r0, 0.0, one - two / r0]
    # m' and m'' of the parabola through the base and the two later outputs.
    gap = r0 - r1
    near, far = (two * r0 - 2 * three) / gap / r1, (2 * three - two * r1) / gap / r0
    return [far, near, one - near - far]


def unipc(
    *,
    order: int = 2,
    solver_type: str = "bh2",
    predict_x: bool = True,
    corrector: bool = True,
    disable_corrector: Sequence[int] = (),
    lower_order_final: bool = True,
) -> Sampler:
    """Make UniPC, a predictor and a corrector with one evaluation a step, N rows.

    Zhao et al. 2023. The corrector repeats the last step with the output at its end, which the next
    step needs anyway.

    Args:
        order: 1 to 4.
        solver_type: the factor B(h), ``bh1`` = H or ``bh2`` = e^H - 1.
        predict_x: expand x instead of eps.
        corrector: whether there is one.
        disable_corrector: indices of the steps after which it is left out.
        lower_order_final: let the order fall towards the end.

    Raises:
        ValueError: an option has another value.
    """
    _check("order", order, (1, 2, 3, 4))
    _check("solver_type", solver_type, ("bh1", "bh2"))
    output = "x" if predict_x else "eps"

    def table(grid: Grid) -> Sequence[Entry]:
        lam, count = _lam(grid), len(grid.levels.t) - 1
        entries: list[Entry] = []
        known = previous = (
            0  # outputs in memory; order of the step before, 0 if not to be corrected
        )
        for i in range(count):
            base: dict[Source, ArrayLike] = {0: 1.0}  # the corrected z at level i
            if previous and corrector and grid.first + i - 1 not in disable_corrector:
                ratio, w, new = _unipc(grid, i - 1, i, previous, output, solver_type, True)
                base = {1: ratio, output: new, **{2 + k: v for k, v in enumerate(w)}}
            known = known + 1 if np.isfinite(lam[i]) else 0
            most = min(order, grid.remaining(i)) if lower_order_final else order
            p = min(most, max(known, 1))
            slots: dict[int, Terms]
            slots = {1: base, 2: {output: 1}, **{2 + k: {1 + k: 1} for k in range(1, order)}}
            if _repeated(grid, i, i + 1):
                entries.append((i, {0: base, **slots}))
                continue
            if _first_order_only(grid, i, i + 1, output) or not known:
                entries.append((i, {0: _ddim(grid, i + 1), **slots}))
                previous = 0
                continue
            ratio, w, _ = _unipc(grid, i, i + 1, p, output, solver_type, False)
            update = {k: ratio * v for k, v in base.items()}
            for k, weight in enumerate(w):
                source = output if k == 0 else 1 + k
                update[source] = update.get(source, 0.0) + weight
            entries.append((i, {0: update, **slots}))
            previous = p
        return entries

    return affine(table)


def _unipc(
    grid: Grid, start: int, end: int, order: int, output: str, solver_type: str, corrector: bool
) -> tuple[ArrayLike, list[ArrayLike], ArrayLike]:
    """Return the coefficients of one predictor or corrector step.

    The weights solve a Vandermonde system in the relative positions of the outputs.

    Returns:
        ``(ratio, weights, new)``: the factor of the state, the weights of the outputs at start,
        start - 1, ..., and that of the output at the end (0 for a predictor).
    """
    lam, step = _lam(grid), _step(grid, start, end, output, False)
    h = step.signed
    r = [(lam[start - k] - lam[start]) / (lam[end] - lam[start]) for k in range(1, order)] + [1.0]
    b_of_h = math.expm1(h) if solver_type == "bh2" else h
    phi, factorial, right = math.expm1(h) / h - 1, 1, []
    for k in range(1, order + 1):
        right.append(phi * factorial / b_of_h)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    size = order if corrector else order - 1
    # The authors' code sets 1/2 where the system has one unknown.
    if size == 1:
        rho = np.array([0.5])
    else:
        rho = np.linalg.solve(np.vander(r[:size], size, increasing=True).T, right[:size])
    new = -step.scale * b_of_h * rho[-1] if corrector else 0.0
    older = [-step.scale * b_of_h * rho[k] / r[k] for k in range(order - 1)]
    return step.ratio, [-step.scale * math.expm1(h) - sum(older) - new, *older], new
