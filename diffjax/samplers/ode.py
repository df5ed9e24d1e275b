r"""Solvers of the probability flow in the noise prediction.

With ``rho = sigma / alpha`` and ``y = z / alpha`` the flow is ``dy/drho = eps`` (Song et al. 2020,
eq. 14), so any solver of ordinary differential equations gives a sampler; Euler's is ``ddim(0)``.
Between levels s and t a slope ``e`` moves the state by

    z_t = r z_s + c e,    r = alpha_t / alpha_s,    c = alpha_t (rho_t - rho_s)

A level of pure noise (alpha = 0) has no finite rho: the step that leaves it is Euler's, written
``alpha_t x + sigma_t eps``, and it does not enter the memory of a multistep method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.polynomial import Polynomial

from diffjax.samplers.affine import Entry, Source, Terms, affine, at
from diffjax.samplers.ancestral import ends, variances
from diffjax.types import Array, ArrayLike, Grid, Level, Sampler


def _move(start: Level, end: Level) -> tuple[Array, Array]:
    """Return (r, c) of the equation above."""
    ratio = end.alpha / start.alpha
    return ratio, end.sigma - ratio * start.sigma


def _euler(end: Level) -> dict[Source, ArrayLike]:
    """Return the step ``alpha_t x + sigma_t eps`` to a level, which needs no finite rho."""
    return {"x": end.alpha, "eps": end.sigma}


def _rho(grid: Grid) -> np.ndarray:
    """Return ``rho = sigma / alpha`` of every level (N + 1,); infinite for pure noise."""
    with np.errstate(divide="ignore"):
        return np.asarray(grid.levels.sigma / grid.levels.alpha)


def heun(
    *, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> Sampler:
    """Make EDM's sampler: Heun's method with churn (Karras et al. 2022, algorithm 2), 2N - 1 rows.

    Churn raises rho to ``rho (1 + gamma)``, ``gamma = min(s_churn / N, sqrt(2) - 1)`` where
    ``s_tmin <= rho <= s_tmax``. N is that of the whole grid, of which this may be a part. The noise
    of a raised level is added by the row before, and at the first level by the initial noise, which
    is drawn for the raised level.

    Args:
        s_churn: amount of churn, 0 for a deterministic sampler.
        s_tmin, s_tmax: where it is applied, in rho.
        s_noise: standard deviation of the noise, slightly above 1 in the paper.

    Raises:
        ValueError: negative churn or noise.
    """
    if s_churn < 0 or s_noise < 0:
        raise ValueError(f"s_churn and s_noise must not be negative, got {s_churn} and {s_noise}")

    def table(grid: Grid) -> Sequence[Entry]:
        rho, count = _rho(grid), len(grid.levels.t) - 1
        gamma = np.where(
            (s_tmin <= rho) & (rho <= s_tmax), min(s_churn / grid.steps, 2**0.5 - 1), 0
        )
        gamma[~np.isfinite(rho) | (rho == 0)] = 0
        levels = [at(grid, k) for k in range(count + 1)]
        raised = [
            grid.at(-2 * np.log(r * (1 + g))) if g else level
            for level, r, g in zip(levels, rho, gamma, strict=True)
        ]
        entries: list[Entry] = []
        for start, goal, end in zip(raised, levels[1:], raised[1:], strict=False):
            lift = end.alpha / goal.alpha
            added = max(end.sigma**2 - (lift * goal.sigma) ** 2, 0.0)
            entries += _heun_step(start, goal, lift, s_noise * math.sqrt(added))
        return entries

    return affine(table)


def _heun_step(start: Level, goal: Level, lift: ArrayLike, extra: float) -> list[Entry]:
    """Write the rows from one level to the next, with the result scaled and noise added.

    Args:
        start, goal: the levels.
        lift: factor of the result, up to the raised level.
        extra: standard deviation of the noise.
    """
    if start.alpha == 0 or goal.sigma == 0:
        last = {key: lift * value for key, value in _euler(goal).items()}
        return [(start, {0: {**last, "noise": extra}, 2: {}})]
    r, c = _move(start, goal)
    half = lift * c / 2
    return [
        (start, {0: {0: r, "eps": c}, 1: {0: 1}, 2: {"eps": 1}}),
        (goal, {0: {1: lift * r, 2: half, "eps": half, "noise": extra}, 2: {}}),
    ]


def flow_heun() -> Sampler:
    """Make Heun's method in z itself, ``dz = x dalpha + eps dsigma``, 2N - 1 rows.

    On the flow schedule that is Heun's method in t for the velocity ``eps - x`` (Esser et al.
    2024). The last step to the data is Euler's.
    """

    def table(grid: Grid) -> Sequence[Entry]:
        entries: list[Entry] = []
        for i in range(len(grid.levels.t) - 1):
            start, end = at(grid, i), at(grid, i + 1)
            x, eps = end.alpha - start.alpha, end.sigma - start.sigma
            if end.sigma == 0:
                entries.append((i, {0: {0: 1, "x": x, "eps": eps}, 1: {}}))
                continue
            half: dict[Source, ArrayLike] = {"x": x / 2, "eps": eps / 2}
            entries.append((i, {0: {0: 1, "x": x, "eps": eps}, 1: {0: 1, **half}}))
            entries.append((i + 1, {0: {1: 1, **half}, 1: {}}))
        return entries

    return affine(table)


def dpm2(*, ancestral: bool = False) -> Sampler:
    """Make the midpoint rule with the midpoint in log rho, 2N - 1 rows.

    This is the DPM-Solver-2 of Karras et al. 2022 and k-diffusion. The last step to the data, which
    has no midpoint, is Euler's.

    Args:
        ancestral: step down to ``rho_t sqrt(1 - rho_t^2 / rho_s^2)``, and add noise up to rho_t.
    """

    def table(grid: Grid) -> Sequence[Entry]:
        rho, post = _rho(grid), variances(grid)[1]
        entries: list[Entry] = []
        for i in range(len(rho) - 1):
            start, end = at(grid, i), at(grid, i + 1)
            noise = math.sqrt(post[i]) if ancestral and end.sigma > 0 else 0.0
            down = end._replace(sigma=np.sqrt(np.maximum(end.sigma**2 - noise**2, 0.0)))
            if start.alpha == 0 or end.sigma == 0:
                entries.append((i, {0: {**_euler(down), "noise": noise}, 1: {}}))
                continue
            middle = grid.at(-np.log(rho[i] * down.sigma / down.alpha))
            (r, c), (r2, c2) = _move(start, middle), _move(start, down)
            entries.append((i, {0: {0: r, "eps": c}, 1: {0: 1}}))
            entries.append((middle, {0: {1: r2, "eps": c2, "noise": noise}, 1: {}}))
        return entries

    return affine(table)


# Adams-Bashforth weights of equal steps, newest slope first.
_ADAMS = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
_ORDERS = (1, 2, 3, 4)


def _multistep(
    weights: Callable[[np.ndarray, int, int], Sequence[float]],
    order: int,
    *,
    final: int = 0,
    blind: bool = False,
) -> Sampler:
    """Make a multistep method of the slopes at the last ``order`` levels.

    Args:
        weights: ``(rho, step, order of the step) -> weights``, newest first; their sum is 1.
        order: 1 to 4.
        final: the last steps of grids shorter than this have orders ..., 2, 1.
        blind: leave pure noise without using x, see `ipndm`.

    Raises:
        ValueError: the order is not 1 to 4.
    """
    if order not in _ORDERS:
        raise ValueError(f"order must be one of {_ORDERS}, got {order}")

    def table(grid: Grid) -> Sequence[Entry]:
        rho, count, known = _rho(grid), len(grid.levels.t) - 1, 0
        memory: dict[int, Terms]
        memory = {k: {"eps" if k == 1 else k - 1: 1} for k in range(1, order)}
        entries: list[Entry] = []
        for i in range(count):
            if blind and not np.isfinite(rho[i]):
                entries.append((i, {0: {"eps": grid.levels.sigma[i + 1]}, **memory}))
                known = 1
                continue
            if not np.isfinite(rho[i]):
                entries.append((i, {0: _euler(at(grid, i + 1)), **{k: {} for k in memory}}))
                continue
            known = min(known + 1, order, grid.remaining(i) if grid.steps < final else order)
            r, c = _move(at(grid, i), at(grid, i + 1))
            # A step of no length changes nothing.
            w = weights(rho, i, known) if c else [0.0] * known
            update: dict[Source, ArrayLike] = {k: c * w[k] for k in range(1, known)}
            update |= {0: r, "eps": c * w[0]}
            entries.append((i, {0: update, **memory}))
        return entries

    return affine(table)


def ipndm(*, order: int = 4, blind: bool = False) -> Sampler:
    """Make iPNDM: Adams-Bashforth with the weights of equal steps, N rows.

    Liu et al. 2022 (PNDM) without its warm-up; Zhang & Chen 2022, iPNDM. The first steps have
    orders 1, 2, 3, ...

    Args:
        order: 1 to 4.
        blind: leave a level of pure noise along eps alone, and remember that eps, as diffusers
            does; the x predicted there is lost.

    Raises:
        ValueError: another order.
    """
    return _multistep(lambda rho, i, known: _ADAMS[known - 1], order, blind=blind)


def plms(*, runge_kutta: bool = False, output: str = "eps", total: int | None = None) -> Sampler:
    """Make PLMS: Adams-Bashforth of order 4 after a warm-up (Liu et al. 2022, eq. 12, 13).

    Stable Diffusion's warm-up is one step of Heun's, N + 1 rows: the second row evaluates at level
    1 and repeats the first step with the mean of both slopes. The paper's is three steps of
    Runge-Kutta of order 4, N + 9 rows.

    Args:
        runge_kutta: use the paper's warm-up.
        output: what the multistep rule combines: slopes ``eps``, or ``v = alpha eps - sigma x``
            as diffusers does with networks that predict v, which leaves a method of order 1.
        total: see `ddim`.

    Raises:
        ValueError: the output has another name.
    """
    if output not in ("eps", "v"):
        raise ValueError(f"output must be 'eps' or 'v', got {output!r}")

    def table(grid: Grid) -> Sequence[Entry]:
        rho, goals = _rho(grid), ends(grid, total)
        warm = min(3, len(rho) - 2) if runge_kutta else 0
        rows: list[Entry] = []
        for i in range(len(rho) - 1):
            start, goal = at(grid, i), Level(*(np.asarray(leaf)[i] for leaf in goals))
            if not np.isfinite(rho[i]):
                rows.append((i, {0: _euler(goal), **{k: {k: 1} for k in range(1, 5)}}))
                continue
            known = int(np.isfinite(rho[: i + 1]).sum())
            new = _output(start, output)
            memory: dict[int, Terms] = {1: new, 2: {1: 1}, 3: {2: 1}, 4: {0: 1}}
            if known <= warm:
                rows += _runge_kutta(grid, i, total, output, memory)
                continue
            slope = _combine(new, _ADAMS[min(known, 4) - 1])
            rows.append((i, {0: _along(start, goal, slope, output), **memory}))
            if known == 1 and i < len(rho) - 2:
                other = at(grid, i + 1)
                if total is not None:  # the level that diffusers takes as the start of the step
                    start = grid.at_time(other.t + total // grid.steps)
                mean = {k: v / 2 for k, v in _output(other, output).items()} | {1: 0.5}
                keep: dict[int, Terms] = {k: {k: 1} for k in range(1, 5)}
                rows.append((i + 1, {0: _along(start, other, mean, output, 4), **keep}))
        return rows

    return affine(table)


def _output(level: Level, output: str) -> dict[Source, ArrayLike]:
    """Return what the network's prediction at a level adds to the memory."""
    return {"eps": level.alpha, "x": -level.sigma} if output == "v" else {"eps": 1.0}


def _combine(new: dict[Source, ArrayLike], weights: Sequence[float]) -> dict[Source, ArrayLike]:
    """Return the newest output and those in slots 1, 2, ... with their weights."""
    older: dict[Source, ArrayLike] = {k: weights[k] for k in range(1, len(weights))}
    return older | {key: value * weights[0] for key, value in new.items()}


def _along(
    start: Level, end: Level, slope: Terms, output: str, slot: int = 0
) -> dict[Source, ArrayLike]:
    """Return the step that moves the state in a slot along a slope.

    A slope in v stands for ``eps = alpha v + sigma z``.
    """
    r, c = _move(start, end)
    scale, lift = (c * start.alpha, c * start.sigma) if output == "v" else (c, 0.0)
    moved: dict[Source, ArrayLike] = {key: scale * value for key, value in slope.items()}
    return moved | {slot: r + lift}


def _runge_kutta(
    grid: Grid, i: int, total: int | None, output: str, memory: dict[int, Terms]
) -> list[Entry]:
    """Write the four rows of a Runge-Kutta step of order 4; slot 5 collects the slope.

    Args:
        i: the level that the step starts at.
        total, output: see `plms`.
        memory: what the first row remembers for later steps.
    """
    start, end = at(grid, i), at(grid, i + 1)
    stride = start.t - end.t if total is None else total // grid.steps
    half = stride / 2 if total is None else stride // 2
    first, middle = grid.at_time(start.t - half), grid.at_time(end.t + half)
    out = _output(middle, output)
    keep: dict[int, Terms] = {k: {k: 1.0} for k in range(1, 5)}
    third: dict[Source, ArrayLike] = {5: 1.0, **{k: v / 3 for k, v in out.items()}}
    sixth = {k: v / 6 for k, v in memory[1].items()}
    last: dict[Source, ArrayLike] = {5: 1.0, **{k: v / 6 for k, v in _output(end, output).items()}}
    return [
        (i, {0: _along(start, first, memory[1], output), **memory, 5: sixth}),
        (middle, {0: _along(start, middle, out, output, 4), **keep, 5: third}),
        (middle, {0: _along(start, end, out, output, 4), **keep, 5: third}),
        (i + 1, {0: _along(start, end, last, output, 4), **keep, 5: {}}),
    ]


def _lagrange(nodes: np.ndarray, j: int) -> Polynomial:
    """Return the polynomial that is 1 at node j and 0 at the others."""
    others = np.delete(nodes, j)
    out = Polynomial.fromroots(others) if len(others) else Polynomial([1.0])
    return out / np.prod(nodes[j] - others)


def lms(*, order: int = 4) -> Sampler:
    """Make the linear multistep method of k-diffusion (Crowson 2022), N rows.

    A polynomial in rho through the last slopes is integrated exactly: Adams-Bashforth for unequal
    steps.

    Args:
        order: 1 to 4.

    Raises:
        ValueError: another order.
    """

    def weights(rho: np.ndarray, i: int, known: int) -> list[float]:
        # Nodes are relative to the newest one, because powers of large rho would cancel.
        nodes, end = rho[i - np.arange(known)] - rho[i], rho[i + 1] - rho[i]
        return [float(_lagrange(nodes, j).integ()(end) / end) for j in range(known)]

    return _multistep(weights, order)


def deis(*, order: int = 3, lower_order_final: bool = True) -> Sampler:
    """Make tAB-DEIS (Zhang & Chen 2022, eq. 15), in rho, N rows.

    A polynomial in log rho through the last slopes is integrated exactly.

    Args:
        order: 1 to 4.
        lower_order_final: lower the order at the end of grids of fewer than 15 steps.

    Raises:
        ValueError: another order.
    """

    def weights(rho: np.ndarray, i: int, known: int) -> list[float]:
        # With u = log(rho / rho_i) the integral of P drho is that of P(u) e^u, whose antiderivative
        # is e^u (P - P' + P'' - ...); it vanishes at rho = 0.
        nodes, end = np.log(rho[i - np.arange(known)] / rho[i]), rho[i + 1] / rho[i]
        out = []
        for j in range(known):
            p = _lagrange(nodes, j)
            total = sum(((-1) ** k * p.deriv(k) for k in range(1, known)), p)
            top = end * total(np.log(end)) if end > 0 else 0.0
            out.append(float((top - total(0.0)) / (end - 1)))
        return out

    return _multistep(weights, order, final=15 if lower_order_final else 0)
