"""What a network's raw output means, decoded to the canonical pair ``(x, eps)``.

Every target is affine in ``(x, eps)`` at a given level, so that one decoder per format replaces
converters between all pairs. Decoding solves the target's equation and ``z = alpha x + sigma eps``
for x and eps. ``gain`` is ``d x / d raw`` at fixed ``z``:
``w_x |x - x_hat|^2 = w_x gain^2 |raw - raw_hat|^2``.

Arrays x, eps, z and raw are (B, H, W, C); levels have leaves () or (B,).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, Grid, Level, Options, Parameterization, Prediction, build, expand


def _one(level: Level) -> float:
    return 1.0


def _scales(level: Level, like: Array) -> tuple[Array, Array]:
    """Return alpha and sigma with axes appended, so that they multiply ``like``."""
    return expand(level.alpha, like), expand(level.sigma, like)


def _from_x(x: Array, z: Array, level: Level) -> Prediction:
    """Return the pair of a predicted x: ``eps = (z - alpha x) / sigma``."""
    a, s = _scales(level, z)
    return Prediction(x, (z - a * x) / s)


def eps() -> Parameterization:
    """Predict the noise: ``raw = eps``, ``x = (z - sigma eps) / alpha`` (Ho et al. 2020, eq. 11).

    Decoding divides by alpha: it needs signal at every level, see `check_levels`.
    """

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        a, s = _scales(level, z)
        return Prediction((z - s * raw) / a, raw)

    return Parameterization(lambda x, e, level: e, decode, _one, lambda lv: -lv.sigma / lv.alpha)


def x0() -> Parameterization:
    """Predict the data: ``raw = x``, ``eps = (z - alpha x) / sigma``.

    Decoding divides by sigma, which is 0 at clean data only.
    """
    return Parameterization(lambda x, e, level: x, _from_x, _one, _one)


def v() -> Parameterization:
    """Predict ``v = alpha eps - sigma x`` (Salimans & Ho 2022, appendix D).

    ``x = (alpha z - sigma v) / n`` and ``eps = (sigma z + alpha v) / n`` with
    ``n = alpha^2 + sigma^2``, so that any schedule can be used and no level divides by 0.
    """

    def target(x: Array, e: Array, level: Level) -> Array:
        a, s = _scales(level, x)
        return a * e - s * x

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        a, s = _scales(level, z)
        norm = a**2 + s**2
        return Prediction((a * z - s * raw) / norm, (s * z + a * raw) / norm)

    def gain(level: Level) -> Array:
        return -level.sigma / (level.alpha**2 + level.sigma**2)

    return Parameterization(target, decode, _one, gain)


def score(score_scale: float = 1.0) -> Parameterization:
    """Predict the score, ``raw = k grad log q(z) = -k eps / sigma`` (Song & Ermon 2019).

    ``x = (z + sigma^2 raw / k) / alpha``, which is Tweedie's formula.

    Args:
        score_scale: k; 2 for the score of pixels in [0, 1], of which z is twice as wide.
    """

    def target(x: Array, e: Array, level: Level) -> Array:
        return -score_scale * e / expand(level.sigma, x)

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        a, s = _scales(level, z)
        return Prediction((z + s**2 * raw / score_scale) / a, -s * raw / score_scale)

    return Parameterization(target, decode, _one, lambda lv: lv.sigma**2 / lv.alpha / score_scale)


def velocity() -> Parameterization:
    """Predict the velocity ``eps - x`` of the flow ``z = (1 - t) x + t eps`` (Lipman et al. 2022).

    ``x = (z - sigma raw) / (alpha + sigma)``, ``eps = (z + alpha raw) / (alpha + sigma)``.
    """

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        a, s = _scales(level, z)
        return Prediction((z - s * raw) / (a + s), (z + a * raw) / (a + s))

    return Parameterization(
        lambda x, e, level: e - x, decode, _one, lambda lv: -lv.sigma / (lv.alpha + lv.sigma)
    )


def mean(grid: Grid) -> Parameterization:
    """Predict the posterior mean, ``mu = c1 x + c2 z`` (Ho et al. 2020, eq. 7).

    ``c2 = (sigma_s^2 / sigma_t^2)(alpha_t / alpha_s)`` and ``c1 = alpha_s - c2 alpha_t`` with the
    level s before t.

    Args:
        grid: the full discrete grid. ``level.t`` of the levels that are decoded must hold whole
            timesteps of it.
    """
    a, s = grid.levels.alpha[::-1], grid.levels.sigma[::-1]  # index t+1 holds timestep t
    c2 = (s[:-1] / s[1:]) ** 2 * a[1:] / a[:-1]
    table = np.stack([a[:-1] - c2 * a[1:], c2], -1).astype(np.float32)

    def coefs(level: Level) -> tuple[Array, Array]:
        pair = jnp.asarray(table)[jnp.asarray(level.t).astype(jnp.int32)]
        return pair[..., 0], pair[..., 1]

    def target(x: Array, e: Array, level: Level) -> Array:
        a, s = _scales(level, x)
        c1, c2 = (expand(c, x) for c in coefs(level))
        return c1 * x + c2 * (a * x + s * e)

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        c1, c2 = (expand(c, z) for c in coefs(level))
        return _from_x((raw - c2 * z) / c1, z, level)

    return Parameterization(target, decode, _one, lambda level: 1 / coefs(level)[0])


def edm(sigma_data: float = 0.5) -> Parameterization:
    """Predict the raw output of EDM, ``x = c_skip z' + c_out raw`` with ``z' = z / alpha``.

    Karras et al. 2022, eq. 7 and table 1. With ``sigma' = sigma / alpha`` and sd the standard
    deviation of the data: ``c_skip = sd^2 / (sigma'^2 + sd^2)``,
    ``c_out = sigma' sd / sqrt(sigma'^2 + sd^2)``, ``c_in = 1 / sqrt(sigma'^2 + sd^2)``.

    Args:
        sigma_data: sd, of the pixels or latents that are trained on.
    """
    return _precondition(sigma_data, 0.0)


def consistency(sigma_data: float = 0.5, sigma_least: float = 0.002) -> Parameterization:
    """Predict the raw output of a consistency model, whose x is z at the least noise.

    Song et al. 2023, appendix C: as `edm`, with ``c_skip = sd^2 / ((sigma' - e)^2 + sd^2)`` and
    ``c_out = (sigma' - e) sd / sqrt(sigma'^2 + sd^2)``.

    Args:
        sigma_data: sd, of the pixels or latents that are trained on.
        sigma_least: e, where ``c_skip`` is 1 and ``c_out`` is 0.
    """
    return _precondition(sigma_data, sigma_least)


def _precondition(sigma_data: float, least: float) -> Parameterization:
    """Make the parameterization ``x = c_skip z' + c_out raw`` of `edm` and `consistency`."""

    def scales(level: Level) -> tuple[Array, Array]:
        ratio = level.sigma / level.alpha
        return ratio, ratio**2 + sigma_data**2

    def c_out(level: Level) -> Array:
        ratio, norm = scales(level)
        return (ratio - least) * sigma_data / norm**0.5

    def skip(z: Array, level: Level) -> Array:
        ratio, _ = scales(level)
        factor = sigma_data**2 / ((ratio - least) ** 2 + sigma_data**2)
        return expand(factor, z) * z / expand(level.alpha, z)

    def target(x: Array, e: Array, level: Level) -> Array:
        a, s = _scales(level, x)
        return (x - skip(a * x + s * e, level)) / expand(c_out(level), x)

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        return _from_x(skip(z, level) + expand(c_out(level), z) * raw, z, level)

    def scale_in(level: Level) -> Array:
        return 1 / (level.alpha * scales(level)[1] ** 0.5)

    return Parameterization(target, decode, scale_in, c_out)


def learned_range(inner: Parameterization) -> Parameterization:
    """Add a variance output to a parameterization (Nichol & Dhariwal 2021, eq. 15).

    ``raw`` gets twice the data's channels. Its last half v gives the fraction ``f = (v + 1) / 2``,
    and the sampler's variance is ``exp(f log beta + (1 - f) log posterior)``.
    """

    def decode(raw: Array, z: Array, level: Level) -> Prediction:
        value, var = jnp.split(raw, 2, axis=-1)
        return inner.decode(value, z, level)._replace(var=(var + 1) / 2)

    return inner._replace(decode=decode, channels=2)


def k_diffusion() -> Parameterization:
    """Predict the raw output of k-diffusion's networks: `edm` of unit variance, and a variance.

    Crowson 2022, after Karras et al. 2022. The network reads ``t = ln(sigma / alpha) / 4``. The
    variance, its last channel, is only used by their training, and is dropped here.
    """
    inner = edm(1.0)
    return inner._replace(
        decode=lambda raw, z, level: inner.decode(raw[..., :-1], z, level),
        time=lambda level: jnp.log(level.sigma / level.alpha) / 4,
    )


def check_levels(param: Parameterization, levels: Level) -> None:
    """Refuse levels without signal for a prediction that does not determine the data there.

    At ``alpha = 0``, the last level of zero terminal SNR, z holds no data: eps and score
    predictions divide by 0, v and x0 predictions do not.

    Args:
        param: the prediction.
        levels: with leaves () or (N,).

    Raises:
        ValueError: alpha is 0 at a level, and decoding divides by it.
    """
    empty = np.flatnonzero(np.atleast_1d(np.asarray(levels.alpha)) == 0)
    if not len(empty):
        return
    first = Level(*(np.atleast_1d(np.asarray(leaf))[empty[:1]] for leaf in levels[:3]))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = param.decode(np.ones((1, param.channels)), np.ones((1, 1)), first)
    if not np.isfinite(np.asarray(found.x)).all():
        raise ValueError(
            "this prediction (eps, score or EDM's) divides by alpha, which is 0 at the noisiest "
            "level of this schedule (zero terminal SNR): predict v or x0, or use a schedule that "
            "keeps some signal"
        )


PARAMETERIZATIONS: dict[str, Callable[..., Parameterization]] = {
    "eps": eps,
    "x0": x0,
    "v": v,
    "score": score,
    "velocity": velocity,
    "edm": edm,
    "consistency": consistency,
}


def make(
    name: str,
    options: Options | None = None,
    *,
    learned_variance: bool = False,
    grid: Grid | None = None,
) -> Parameterization:
    """Return the named parameterization.

    Args:
        name: a key of `PARAMETERIZATIONS`, or ``mean``.
        options: its keyword arguments.
        learned_variance: whether the network predicts a variance too, see `learned_range`.
        grid: the full grid of a discrete schedule, which ``mean`` needs.

    Raises:
        ValueError: unknown name or option, or ``mean`` without a grid.
    """
    table = {**PARAMETERIZATIONS, "mean": lambda: mean(grid)}  # type: ignore[arg-type]
    if name == "mean" and grid is None:
        raise ValueError("the mean parameterization needs a discrete schedule")
    inner = build("parameterization", name, table, options)
    return learned_range(inner) if learned_variance else inner
