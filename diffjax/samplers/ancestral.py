"""The DDPM/DDIM family: every reverse process that keeps the forward marginals.

From level t to a cleaner level s,

    forward variance    beta = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2
    posterior variance  post = beta sigma_s^2 / sigma_t^2

    z_s = alpha_s x + sqrt(sigma_s^2 - var) eps + sqrt(noise_var) noise

DDIM has ``var = noise_var = eta^2 post`` (Song et al. 2020, eq. 12 and 16). ``eta = 1`` is DDPM
with its posterior variance (fixedsmall, also called Euler-ancestral), ``eta = 0`` the Euler step of
the probability flow. DDPM with the forward variance (fixedlarge) has ``var = post`` and
``noise_var = beta``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np

from diffjax.samplers.affine import Entry, affine, at, matrices, to_rows
from diffjax.types import Array, Denoiser, Grid, Level, Memory, Noise, Rows, Sampler


def variances(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the forward and the posterior variance of every step of a grid, (N,) in float64.

    They are formed from log-SNR differences, ``beta = -sigma_t^2 expm1(lam_t - lam_s)``, because
    the difference of squares above cancels where steps are small.
    """
    return _variances(grid, ends(grid))


def _variances(grid: Grid, goals: Level) -> tuple[np.ndarray, np.ndarray]:
    """Return the two variances of the steps from the grid's levels to ``goals`` (N,)."""
    sigma = grid.levels.sigma[:-1]
    with np.errstate(divide="ignore"):
        lam = 2 * (np.log(grid.levels.alpha[:-1]) - np.log(sigma))
        beta = -(sigma**2) * np.expm1(lam - 2 * (np.log(goals.alpha) - np.log(goals.sigma)))
    return beta, beta * (goals.sigma / sigma) ** 2


def ends(grid: Grid, total: int | None = None) -> Level:
    """Return the levels (N,) where the steps of a grid end.

    Args:
        grid: N steps.
        total: None for the next level; a number T of timesteps for ``t - T // N``, see `ddim`.
    """
    end = Level(*(np.asarray(leaf)[1:] for leaf in grid.levels))
    if total is None:
        return end
    times = np.asarray(grid.levels.t)[:-1] - total // grid.steps
    inside, level = times >= 0, grid.at_time(np.maximum(times, 0))
    pairs = zip(level[:3], end[:3], strict=True)
    t, alpha, sigma = (np.where(inside, here, there[-1]) for here, there in pairs)
    return Level(t, alpha, sigma, end.i)


def log_variances(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(log beta, log posterior)`` of every step, (N,).

    The last posterior variance is 0; it takes the value before it. This is the clipped log-variance
    of Nichol & Dhariwal 2021, section 3.1.
    """
    beta, post = variances(grid)
    if post[-1] == 0:
        post = np.append(post[:-1], post[-2] if len(post) > 1 else beta[-1])
    return np.log(beta), np.log(post)


def ddim(eta: float = 0.0, *, total: int | None = None) -> Sampler:
    """Make DDIM (Song et al. 2020, eq. 12 and 16) with stochasticity ``eta``.

    Args:
        eta: 0 is deterministic, 1 is DDPM; values above 1 are possible while the variance allows.
        total: number of timesteps T of a discrete schedule, to step from t to ``t - T // N`` (to
            the last level if that is below 0) as diffusers does on any grid, wherever the next row
            starts; None to step to the next level.

    Raises:
        ValueError: ``eta`` is negative, or (from ``plan``) so large that the direction to ``z``
            would have a negative variance.
    """
    if eta < 0:
        raise ValueError(f"eta must not be negative, got {eta}")

    def table(grid: Grid) -> Sequence[Entry]:
        goals = ends(grid, total)
        var = eta**2 * _variances(grid, goals)[1]
        left = goals.sigma**2 - var
        if (left < -1e-12).any():
            raise ValueError(
                f"eta={eta} is too large for this grid: a step would add more noise than its "
                "level has"
            )
        return _entries(goals, np.maximum(left, 0.0), var)

    return affine(table)


def ddim_inverse() -> Sampler:
    """Make deterministic DDIM from data to noise over a grid's levels.

    Song et al. 2020, section 4.3. It is the Euler step of ``ddim(0)`` with time reversed. At clean
    data the network has no level
    to read: the first row evaluates it at the first noisy level instead, and uses the eps found
    there.
    """

    def plan(grid: Grid) -> Rows:
        t, alpha, sigma, _ = (np.asarray(leaf)[::-1] for leaf in grid.levels)
        upward = grid._replace(levels=Level(t, alpha, sigma, np.arange(len(t))))
        zeros = np.zeros(len(t) - 1)
        entries = _entries(ends(upward), sigma[1:] ** 2, zeros)
        places: list[int | Level] = list(range(len(zeros)))
        if sigma[0] == 0:
            places[0] = at(upward, 1)
            entries[0] = (0, {0: {0: alpha[1], "eps": sigma[1]}})  # z is the data x here
        return to_rows(upward, places, matrices(entries))

    return affine(lambda grid: ())._replace(plan=plan)


def _entries(goals: Level, left: np.ndarray, noise_var: np.ndarray) -> list[Entry]:
    """Write the rows ``alpha x + sqrt(left) eps + sqrt(noise_var) noise`` of a table."""
    x, eps, noise = goals.alpha, np.sqrt(left), np.sqrt(noise_var)
    return [(i, {0: {"x": x[i], "eps": eps[i], "noise": noise[i]}}) for i in range(len(x))]


def ancestral(variance: float | str = "fixedsmall") -> Sampler:
    """Make DDPM's reverse process: the posterior mean, and noise of a chosen variance.

    Ho et al. 2020, algorithm 2. No noise is added in the last step of a grid that ends at the data.

    Args:
        variance: ``fixedsmall`` (posterior), ``fixedlarge`` (forward beta, DDIM's sigma-hat),
            ``learned`` (the network's fraction), or a number v in [0, 1] for ``post^(1-v) beta^v``
            (Ho & Salimans 2022, section 2).

    Raises:
        ValueError: unknown variance.
    """
    if variance == "learned":
        return Sampler(reverse_rows, _no_state, _learned_step)
    try:
        v = float({"fixedsmall": 0.0, "fixedlarge": 1.0}.get(str(variance), variance))
    except ValueError:
        v = -1.0
    if not 0 <= v <= 1:
        raise ValueError(
            "variance must be fixedsmall, fixedlarge, learned or a number in [0, 1], "
            f"got {variance!r}"
        )

    def table(grid: Grid) -> Sequence[Entry]:
        log_beta, log_post = log_variances(grid)
        noise_var = np.exp(v * log_beta + (1 - v) * log_post)
        return _entries(
            ends(grid), mean_eps(grid) ** 2, np.where(grid.levels.sigma[1:] > 0, noise_var, 0)
        )

    return affine(table)


def mean_eps(grid: Grid) -> np.ndarray:
    """Return the coefficient of eps in the posterior mean (N,).

    It is ``(alpha_t/alpha_s) sigma_s^2 / sigma_t``; the coefficient of x is ``alpha_s`` (Ho et al.
    2020, eq. 7, in x and eps).
    """
    alpha, sigma = grid.levels.alpha, grid.levels.sigma
    return np.asarray(alpha[:-1] / alpha[1:] * sigma[1:] ** 2 / sigma[:-1])


def reverse_rows(grid: Grid) -> Rows:
    """Make rows that hold the posterior mean's coefficients and the log-variances of every step.

    Ancestral sampling with a learned variance and the variational bound both read them. Their
    ``coef`` has ``x``, ``eps``, ``log_beta``, ``log_post``, ``log_large`` and ``noisy`` (0 where
    the step ends at the data), each (N,).
    """
    log_beta, log_post = log_variances(grid)
    coef = {
        "x": grid.levels.alpha[1:],
        "eps": mean_eps(grid),
        "log_beta": log_beta,
        "log_post": log_post,
        # DDPM's fixedlarge table is [post_2, beta_2, ..., beta_T]: only the decoder's differs.
        "log_large": np.where(grid.levels.sigma[1:] > 0, log_beta, log_post),
        "noisy": grid.levels.sigma[1:] > 0,
    }
    return to_rows(grid, range(len(log_beta)), coef)


def mix_log_variance(coef: Mapping[str, Array], fraction: Array) -> Array:
    """Return ``f log beta + (1 - f) log posterior`` (Nichol & Dhariwal 2021, eq. 15).

    Args:
        coef: of a row of `reverse_rows`.
        fraction: f in [0, 1], see `Prediction.var`.
    """
    return fraction * coef["log_beta"] + (1 - fraction) * coef["log_post"]


def _no_state(z: Array, rows: Rows) -> tuple[()]:
    """Return the memory of a one-step method."""
    return ()


def _learned_step(
    noise: Noise, denoise: Denoiser, z: Array, memory: Memory, row: Rows
) -> tuple[Array, Memory]:
    """Step with the variance that the network predicts, which makes the step no longer affine.

    Raises:
        ValueError: the network predicts no variance.
    """
    prediction, coef = denoise(z, row.level), cast(Mapping[str, Array], row.coef)
    if prediction.var is None:
        raise ValueError("variance 'learned' needs a network that predicts a variance")
    scale = coef["noisy"] * jnp.exp(0.5 * mix_log_variance(coef, prediction.var))
    mean = coef["x"] * prediction.x + coef["eps"] * prediction.eps
    return mean + scale * noise(row.level.i), memory
