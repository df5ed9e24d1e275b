r"""Guidance: ``Denoiser -> Denoiser`` wrappers that sharpen what a condition says.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) extrapolates from the unconditional to the
conditional prediction. The paper writes ``(1 + w) eps_c - w eps_u``, most software

    eps = eps_u + s (eps_c - eps_u),    s = 1 + w,

so s = 0 is unconditional, s = 1 conditional, and s > 1 guided. `scale` is s everywhere here; every
raw output is affine in the pair (x, eps), so guiding the pair guides any parameterization. The
learned variance is that of the conditional prediction. Wrappers that bound x go outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import (
    Array,
    ArrayLike,
    Cond,
    Denoiser,
    Level,
    Parameterization,
    Prediction,
    PyTree,
    Rows,
    expand,
)

Conditional = Callable[[Array, Level, Cond], Prediction]
Scale = Any  # number, (B,) array, or ``level -> `` either of them
# (conditional, unconditional, scale, z, level) -> guided
Combine = Callable[[Prediction, Prediction, Any, Array, Level], Prediction]


def cfg(c: Prediction, u: Prediction, scale: Any, z: Array, level: Level) -> Prediction:
    """Classifier-free guidance, the equation above."""
    s = expand(jnp.asarray(scale, jnp.float32), z)
    return Prediction(u.x + s * (c.x - u.x), u.eps + s * (c.eps - u.eps), c.var)


def cfg_plus_plus(c: Prediction, u: Prediction, scale: Any, z: Array, level: Level) -> Prediction:
    """CFG++ (Chung et al. 2024): guided x, unconditional eps; its scale lies in [0, 1]."""
    return cfg(c, u, scale, z, level)._replace(eps=u.eps)


def apg(*, eta: float = 0.0, norm_limit: float = 0.0) -> Combine:
    """Adaptive projected guidance (Sadat et al. 2024, without its momentum).

    The update of x is split into parts parallel and orthogonal to the conditional x; the parallel
    one, which saturates images, counts ``eta`` times. ``norm_limit`` bounds the update's norm per
    image, 0: no bound.
    """

    def combine(c: Prediction, u: Prediction, scale: Any, z: Array, level: Level) -> Prediction:
        def dot(a: Array, b: Array) -> Array:
            return (a * b).sum(tuple(range(1, z.ndim)), keepdims=True)

        update = c.x - u.x
        if norm_limit:
            norm = jnp.sqrt(dot(update, update))
            update = update * jnp.minimum(1.0, norm_limit / jnp.maximum(norm, 1e-12))
        parallel = dot(update, c.x) / jnp.maximum(dot(c.x, c.x), 1e-12) * c.x
        s = expand(jnp.asarray(scale, jnp.float32), z)
        x = c.x + (s - 1) * (update - (1 - eta) * parallel)
        return _with_x(c, x, z, level)

    return combine


def rescaled(parameterization: Parameterization, phi: float, inner: Combine = cfg) -> Combine:
    """Guidance rescale (Lin et al. 2023, eq. 14-16): bring back the conditional spread.

    ``raw' = phi raw std(raw_c) / std(raw) + (1 - phi) raw`` on the network's raw output, standard
    deviations per image over all other axes (unbiased).

    Raises:
        ValueError: phi outside [0, 1].
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"guidance rescale must lie in [0, 1], got {phi}")

    def combine(c: Prediction, u: Prediction, scale: Any, z: Array, level: Level) -> Prediction:
        def std(raw: Array) -> Array:
            return raw.std(tuple(range(1, raw.ndim)), keepdims=True, ddof=1)

        guided = inner(c, u, scale, z, level)
        raw, wanted = (parameterization.target(p.x, p.eps, level) for p in (guided, c))
        raw = raw * (phi * std(wanted) / std(raw) + 1 - phi)
        if parameterization.channels == 2:
            raw = jnp.concatenate([raw, jnp.zeros_like(raw)], -1)
        return parameterization.decode(raw, z, level)._replace(var=guided.var)

    return combine


def contrasted(
    weak: Denoiser, scale: Scale, inner: Combine = cfg, *, of_null: bool = False
) -> Combine:
    """Add ``k (c - w)`` to what ``inner`` makes of a pair, w being another denoiser's prediction.

    With a network whose self-attention is the identity as w this is perturbed-attention guidance
    (Ahn et al. 2024, eq. 12, beside classifier-free guidance). Where k is 0, w is not computed.

    With ``of_null`` it is ``k (u - w)``. If w lacks an image that c and u have, this is the
    guidance of images that are edited, whose scale is ``k + 1`` (Brooks et al. 2023, eq. 3).

    Args:
        scale: k.
    """

    def combine(c: Prediction, u: Prediction, s: Any, z: Array, level: Level) -> Prediction:
        guided = inner(c, u, s, z, level)
        k = jnp.asarray(scale(level) if callable(scale) else scale, jnp.float32)

        def add() -> Prediction:
            w, factor = weak(z, level), expand(k, z)
            strong = u if of_null else c
            x = guided.x + factor * (strong.x - w.x)
            return guided._replace(x=x, eps=guided.eps + factor * (strong.eps - w.eps))

        return jax.lax.cond(jnp.all(k == 0), lambda: guided, add)

    return combine


def _with_x(p: Prediction, x: Array, z: Array, level: Level) -> Prediction:
    a, s = expand(jnp.asarray(level.alpha), z), expand(jnp.asarray(level.sigma), z)
    return p._replace(x=x, eps=(z - a * x) / s)


def contrast(strong: Denoiser, weak: Denoiser, scale: Scale, *, combine: Combine = cfg) -> Denoiser:
    """Guide one denoiser away from another, in two passes; autoguidance (Karras et al. 2024).

    The weak pass is left out at run time wherever the scale is 1.
    """

    def denoise(z: Array, level: Level) -> Prediction:
        s = jnp.asarray(scale(level) if callable(scale) else scale, jnp.float32)
        c = strong(z, level)
        return jax.lax.cond(
            jnp.all(s == 1), lambda: c, lambda: combine(c, weak(z, level), s, z, level)
        )

    return denoise


def guide(
    denoise: Conditional,
    cond: Cond,
    null: Cond,
    scale: Scale,
    *,
    combine: Combine = cfg,
    sequential: bool = False,
    always: bool = False,
) -> Denoiser:
    """Classifier-free guidance of ``denoise(z, level, cond)`` by the pair (cond, null).

    Args:
        null: what unconditional means, or a negative condition; the structure of ``cond``.
        scale: s; traced, so that another one does not recompile. Wherever it is 1 only the
            conditional pass runs.
        sequential: two passes of one batch instead of one of twice the size: half the memory.
        always: the scale is never 1; the network is compiled once instead of twice.

    Raises:
        ValueError: cond and null differ in structure or shapes.
    """
    _check_pair(cond, null)
    if sequential:
        return contrast(
            lambda z, level: denoise(z, level, cond),
            lambda z, level: denoise(z, level, null),
            scale,
            combine=combine,
        )

    def both(z: Array, level: Level, s: Array) -> Prediction:
        def twice(a: Any, b: Any) -> Any:
            return jnp.concatenate([a, b])

        levels = jax.tree.map(lambda v: twice(v, v) if jnp.ndim(v) else v, level)
        p = denoise(twice(z, z), levels, jax.tree.map(twice, cond, null))
        c = jax.tree.map(lambda v: v[: z.shape[0]], p)
        u = jax.tree.map(lambda v: v[z.shape[0] :], p)
        return combine(c, u, s, z, level)

    def guided(z: Array, level: Level) -> Prediction:
        s = jnp.asarray(scale(level) if callable(scale) else scale, jnp.float32)
        if always:
            return both(z, level, s)
        return jax.lax.cond(
            jnp.all(s == 1), lambda: denoise(z, level, cond), lambda: both(z, level, s)
        )

    return guided


def _check_pair(cond: Cond, null: Cond) -> None:
    def shapes(tree: PyTree) -> Any:
        return jax.tree.map(jnp.shape, tree)

    if shapes(cond) != shapes(null):
        raise ValueError(f"condition and null condition differ: {shapes(cond)} and {shapes(null)}")


def schedule(
    rows: Rows, scale: float, *, low: float = 0.0, high: float = np.inf
) -> Callable[[Level], Array]:
    """Scale by evaluation: ``scale`` where ``low <= sigma / alpha <= high``, else 1.

    The limited interval of Kynkaanniemi et al. 2024, formed on the host; see `per_evaluation`.
    """
    return per_evaluation(interval(rows, scale, low=low, high=high))


def interval(rows: Rows, scale: float, *, low: float = 0.0, high: float = np.inf) -> np.ndarray:
    """The values of `schedule` (rows,), float32."""
    with np.errstate(divide="ignore"):
        ratio = np.asarray(rows.level.sigma) / np.asarray(rows.level.alpha)
    return np.where((low <= ratio) & (ratio <= high), scale, 1.0).astype(np.float32)


def per_evaluation(values: ArrayLike) -> Scale:
    """Scale of evaluation i: ``values[i]``; values (rows,) or (rows, B), or a number for all."""
    return (lambda level: jnp.asarray(values)[level.i]) if jnp.ndim(values) else values


def classifier(
    denoise: Denoiser, log_prob: Callable[[Array, Level], Array], scale: Scale
) -> Denoiser:
    """Classifier guidance: ``eps - s sigma grad_z log p(y | z)`` (Dhariwal & Nichol 2021, alg. 2).

    Args:
        log_prob: ``(z, level) -> log p(y | z)`` (B,) of a classifier trained on noisy images.
        scale: s, the exponent of p(y | z).
    """

    def guided(z: Array, level: Level) -> Prediction:
        p = denoise(z, level)
        s = scale(level) if callable(scale) else scale
        gradient = jax.grad(lambda value: log_prob(value, level).sum())(z)
        a, sigma = expand(jnp.asarray(level.alpha), z), expand(jnp.asarray(level.sigma), z)
        push = expand(jnp.asarray(s, jnp.float32), z) * sigma * gradient
        return p._replace(x=p.x + sigma / a * push, eps=p.eps - push)

    return guided


def drop(key: jax.Array, cond: PyTree, null: PyTree, rate: float) -> PyTree:
    """Replace the whole condition of each image by the null one with probability ``rate``.

    Leaves are (B, ...); the leaves of an image are dropped together (Ho & Salimans 2022, alg. 1).

    Raises:
        ValueError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the drop rate must lie in [0, 1], got {rate}")
    images = jax.tree.leaves(cond)[0].shape[0]
    gone = jax.random.bernoulli(key, rate, (images,))
    return jax.tree.map(lambda a, b: jnp.where(expand(gone, a), b, a), cond, null)
