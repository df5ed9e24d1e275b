"""Likelihoods: the variational bound, the probability-flow ODE, and the rate-distortion curve.

``-log p(x) <= KL(q(z_T|x) || N(0, I)) + sum_t KL(q(z_s|z_t, x) || p(z_s|z_t)) - log p(x|z_1)``
(Ho et al. 2020, eq. 5). All values are in bits per dimension unless a docstring says otherwise:
nats per image over ``H W C log 2``. The images are discrete with ``levels`` grey values mapped to
[-1, 1] (256 for 8-bit images).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.losses import LOG2, per_image
from diffjax.samplers.ancestral import mix_log_variance, reverse_rows
from diffjax.types import (
    Array,
    ArrayLike,
    Denoiser,
    Grid,
    Level,
    Noise,
    Prediction,
    Rows,
    Schedule,
    expand,
)


def discretized_gaussian(x: Array, mean: Array, log_scale: Array, *, levels: int = 256) -> Array:
    """Return the log-probability (nats) that a Gaussian falls into the bin of x, elementwise.

    Ho et al. 2020, eq. 13. Bins have width ``2 / (levels - 1)``. Those at -1 and 1 extend to
    infinity, so that the probabilities of all levels sum to 1. They are at least 1e-12, as in the
    released code.

    Args:
        x: data in [-1, 1], any shape.
        mean, log_scale: of the Gaussian, with the shape of x; the scale is a standard deviation.
        levels: number of grey values.
    """
    half = 1.0 / (levels - 1)
    inv = jnp.exp(-log_scale)
    upper = jax.scipy.special.ndtr((x + half - mean) * inv)
    lower = jax.scipy.special.ndtr((x - half - mean) * inv)
    upper = jnp.where(x > 1 - half / 2, 1.0, upper)
    lower = jnp.where(x < -1 + half / 2, 0.0, lower)
    return jnp.log(jnp.maximum(upper - lower, 1e-12))


def normal_kl(mean1: ArrayLike, logvar1: ArrayLike, mean2: ArrayLike, logvar2: ArrayLike) -> Array:
    """Return ``KL(N(mean1, var1) || N(mean2, var2))`` elementwise, in nats.

    Args:
        mean1, mean2: means.
        logvar1, logvar2: natural logarithms of the variances.
    """
    return 0.5 * (
        logvar2 - logvar1 + jnp.expm1(logvar1 - logvar2) + (mean1 - mean2) ** 2 * jnp.exp(-logvar2)
    )


def prior_kl(x: Array, grid: Grid) -> Array:
    """Return ``KL(q(z_T|x) || N(0, init_std^2))`` (B,), in bits per dimension.

    Args:
        x: images (B, H, W, C).
        grid: the first of its levels is T.
    """
    top = jax.tree.map(lambda leaf: float(leaf[0]), grid.levels)
    kl = normal_kl(
        top.alpha * x, 2 * math.log(top.sigma), jnp.zeros_like(x), 2 * math.log(grid.init_std)
    )
    return per_image(kl) / LOG2


def log_variance(prediction: Prediction, coef: Mapping[str, Array], variance: str) -> Array:
    """Return the log-variance of a reverse step, as in `diffjax.samplers.ancestral`.

    Args:
        prediction: whose ``var`` counts if the variance is learned.
        coef: of a row of `diffjax.samplers.ancestral.reverse_rows`.
        variance: ``fixedsmall``, ``fixedlarge`` or ``learned``.

    Raises:
        ValueError: another variance, or ``learned`` of a network that predicts none.
    """
    if variance in (fixed := {"fixedsmall": "log_post", "fixedlarge": "log_large"}):
        return coef[fixed[variance]]
    if variance != "learned" or prediction.var is None:
        raise ValueError(
            f"variance must be fixedsmall, fixedlarge or (predicted) learned, got {variance!r}"
        )
    return mix_log_variance(coef, prediction.var)


def bound_term(
    prediction: Prediction,
    x: Array,
    eps: Array,
    row: Rows,
    *,
    variance: str = "fixedsmall",
    levels: int = 256,
    stop_mean: bool = False,
) -> Array:
    """Return one term of the bound (B,), in bits per dimension.

    It is a KL divergence, or the decoder's negative log-likelihood where the row ends at the data.

    Args:
        prediction: of the network at the level of the row.
        x, eps: data and noise (B, H, W, C) that z was made of.
        row: from `reverse_rows`, with leaves () or (B,).
        variance: see `log_variance`.
        levels: number of grey values.
        stop_mean: pass no gradient through the mean, as in L_hybrid (Nichol & Dhariwal 2021,
            section 3.1).
    """
    coef = jax.tree.map(lambda leaf: expand(leaf, x), row.coef)
    mean = coef["x"] * prediction.x + coef["eps"] * prediction.eps
    mean = jax.lax.stop_gradient(mean) if stop_mean else mean
    logvar = log_variance(prediction, coef, variance)
    true_mean = coef["x"] * x + coef["eps"] * eps
    kl = normal_kl(true_mean, coef["log_post"], mean, logvar)
    nll = -discretized_gaussian(x, mean, 0.5 * logvar * jnp.ones_like(x), levels=levels)
    return per_image(jnp.where(coef["noisy"] > 0, kl, nll)) / LOG2


def vlb_bits(
    denoise: Denoiser,
    x: Array,
    noise: Noise,
    grid: Grid,
    *,
    variance: str = "fixedsmall",
    levels: int = 256,
) -> dict[str, Array]:
    """Evaluate the whole bound on a grid, with one draw of noise per level; traceable.

    Args:
        denoise: the model.
        x: images (B, H, W, C) in [-1, 1].
        noise: draw 0 of evaluation i is the noise of level i.
        grid: the reverse process, usually every timestep.
        variance: see `log_variance`.
        levels: number of grey values.

    Returns:
        ``total`` (B,), ``prior`` (B,), ``terms`` (N, B) from noisiest to the decoder, all in bits
        per dimension, and the mean squared errors ``x_mse`` and ``eps_mse`` (N, B).
    """
    rows = jax.tree.map(jnp.asarray, reverse_rows(grid))

    def body(carry: None, row: Rows) -> tuple[None, tuple[Array, Array, Array]]:
        eps = noise(row.level.i)
        prediction = denoise(row.level.alpha * x + row.level.sigma * eps, row.level)
        term = bound_term(prediction, x, eps, row, variance=variance, levels=levels)
        errors = per_image((prediction.x - x) ** 2), per_image((prediction.eps - eps) ** 2)
        return carry, (term, *errors)

    _, (terms, x_mse, eps_mse) = jax.lax.scan(body, None, rows)
    start = prior_kl(x, grid)
    return {
        "total": start + terms.sum(0),
        "prior": start,
        "terms": terms,
        "x_mse": x_mse,
        "eps_mse": eps_mse,
    }


def rate_distortion(bound: Mapping[str, Array], *, levels: int = 256) -> dict[str, np.ndarray]:
    """Return the curve of progressive coding (Ho et al. 2020, section 4.3), averaged over images.

    Args:
        bound: the result of `vlb_bits`.
        levels: number of grey values.

    Returns:
        ``rate`` (N,): bits per dimension received before each reverse step; ``distortion`` (N,):
        root mean squared error of the x predicted then, on the scale 0 .. levels - 1.
    """
    terms = np.asarray(bound["terms"], np.float64).mean(-1)
    before = np.asarray(bound["prior"], np.float64).mean() + np.cumsum(terms) - terms
    rmse = np.sqrt(np.asarray(bound["x_mse"], np.float64).mean(-1))
    return {"rate": before, "distortion": rmse * (levels - 1) / 2}


def ode_bits(
    denoise: Denoiser,
    x: Array,
    noise: Noise,
    schedule: Schedule,
    *,
    steps: int = 100,
    levels: int = 256,
    lam_max: float = 10.0,
    probes: int = 1,
) -> Array:
    """Estimate the likelihood by the probability flow (B,), in bits per dimension.

    In ``y = z / alpha`` and ``s = sigma / alpha`` the flow is ``dy/ds = eps(z, t)`` (Song et al.
    2021, eq. 39), so that ``log p(y_0) = log p(y_T) + int div eps ds``. Heun steps integrate it on
    a grid even in log-SNR. The divergence is Hutchinson's estimate with Rademacher probes, and
    images are dequantized uniformly.

    Args:
        denoise: the model.
        x: images (B, H, W, C) in [-1, 1].
        noise: draw 0 of evaluation 0 dequantizes, the others are probes.
        schedule: how noise grows.
        steps: Heun steps, two network evaluations each.
        levels: number of grey values.
        lam_max: log-SNR at which the data side of the flow starts, at most the schedule's own.
        probes: Hutchinson probes per evaluation.

    Raises:
        ValueError: the schedule has no finite log-SNR at its noisy end.
    """
    grid = _flow_grid(schedule, steps, lam_max)
    level = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), grid)
    half = 1.0 / (levels - 1)
    y = x + half * (2 * _uniform(noise(0)) - 1)

    def field(y: Array, lv: Level, k: jax.Array) -> tuple[Array, Array]:
        def eps(y: Array) -> Array:
            return denoise(lv.alpha * y, lv).eps

        def divergence(j: int) -> tuple[Array, Array]:
            probe = jnp.sign(noise(1 + k, j))
            value, pushed = jax.jvp(eps, (y,), (probe,))
            return value, (probe * pushed).reshape(y.shape[0], -1).sum(1)

        drawn = [divergence(j) for j in range(probes)]
        total = jnp.stack([d for _, d in drawn]).mean(0)
        return drawn[0][0], total

    def body(k: jax.Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        y, logdet = carry
        here, there = (jax.tree.map(lambda v, j=j: v[j], level) for j in (k, k + 1))
        step = there.sigma / there.alpha - here.sigma / here.alpha
        slope, div = field(y, here, k)
        slope2, div2 = field(y + step * slope, there, k)
        return y + step * (slope + slope2) / 2, logdet + step * (div + div2) / 2

    y, logdet = jax.lax.fori_loop(0, steps, body, (y, jnp.zeros(x.shape[0])))
    top = grid.sigma[-1] / grid.alpha[-1]
    var = top**2 if not _preserving(grid) else 1 / grid.alpha[-1] ** 2
    dims = math.prod(x.shape[1:])
    logp = -0.5 * (y**2).reshape(x.shape[0], -1).sum(1) / var - 0.5 * dims * math.log(
        2 * math.pi * var
    )
    # A uniform bin has width 2/(levels-1): its log volume turns the density into a probability.
    return -(logp + logdet) / (dims * LOG2) - math.log2(2 * half)


def _uniform(noise: Array) -> Array:
    """Map standard normal noise to uniform noise in [0, 1]."""
    return jax.scipy.special.ndtr(noise)


def _preserving(grid: Level) -> bool:
    """Return whether a schedule preserves variance, judged by its noisiest level."""
    return bool(grid.alpha[-1] ** 2 + grid.sigma[-1] ** 2 < 1 + 1e-6)


def _flow_grid(schedule: Schedule, steps: int, lam_max: float) -> Level:
    """Return levels from data to noise, even in log-SNR, leaves (steps + 1,) in host float64.

    Raises:
        ValueError: the schedule has no finite log-SNR at its noisy end.
    """
    ends = [schedule.at(np.float64(t)) for t in schedule.span]
    with np.errstate(divide="ignore"):
        clean, noisy = (float(2 * (np.log(a) - np.log(s))) for a, s in ends)
    if not np.isfinite(noisy):
        raise ValueError("the probability-flow likelihood needs a schedule with terminal SNR > 0")
    t = schedule.t_of(np.linspace(min(clean, lam_max), noisy, steps + 1))
    return Level(t, *schedule.at(np.asarray(t, np.float64)), np.arange(steps + 1))
