"""Guidance: ``Denoiser -> Denoiser`` wrappers that strengthen the effect of a condition.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) extrapolates from the unconditional to the
conditional prediction. The paper writes ``(1 + w) eps_c - w eps_u``, most software

    eps = eps_u + s (eps_c - eps_u),    s = 1 + w,

so s = 0 is unconditional, s = 1 conditional, and s > 1 guided. `scale` is s everywhere here. Every
raw output is affine in the pair (x, eps), so that guiding the pair guides any parameterization. The
learned variance is that of the conditional prediction. Wrappers that bound x go outside.

Ways to combine the two predictions (`Combine`) are `cfg`, `cfg_plus_plus`, `apg`, `cfg_zero_star`
and `fdg`; `rescale` changes any of them. `guide` applies one to a conditional denoiser, `contrast`
to two. A scale that changes from step to step is made by `schedule` or `per_evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import (
    Array,
    ArrayLike,
    Cond,
    Denoiser,
    Level,
    Options,
    Parameterization,
    Prediction,
    Rows,
    T,
    build,
    choose,
    expand,
    option_names,
)

# ``(z, level, cond) -> Prediction``.
Conditional: TypeAlias = Callable[[Array, Level, Cond], Prediction]
# A guidance scale: a number, one per image (B,), or a function of the level that gives either.
Scale: TypeAlias = ArrayLike | Callable[[Level], ArrayLike]
# ``(conditional, unconditional, scale, z, level) -> guided``.
Combine: TypeAlias = Callable[[Prediction, Prediction, ArrayLike, Array, Level], Prediction]


def cfg(
    c: Prediction, u: Prediction, scale: ArrayLike, z: Array, level: Level, *, channels: int = 0
) -> Prediction:
    """Combine by classifier-free guidance, ``u + s (c - u)`` for both x and eps.

    Ho & Salimans 2022, eq. 6.

    Args:
        c, u: the conditional and the unconditional prediction (B, H, W, C).
        scale: s, a number or (B,).
        z, level: what was denoised; this rule uses the shape of z alone.
        channels: how many are guided, the first ones; 0: all. Released DiT and SiT guide 3 of 4.
    """
    s = expand(jnp.asarray(scale, jnp.float32), z)
    if channels:
        s = jnp.where(jnp.arange(z.shape[-1]) < channels, s, 1.0)
    return Prediction(u.x + s * (c.x - u.x), u.eps + s * (c.eps - u.eps), c.var)


def cfg_plus_plus(
    c: Prediction, u: Prediction, scale: ArrayLike, z: Array, level: Level
) -> Prediction:
    """Combine by CFG++ (Chung et al. 2024): the guided x with the unconditional eps.

    The step goes back to the noise that the unconditional model sees, so that scales are
    interpolations, in [0, 1]. Arguments are those of `cfg`.
    """
    return cfg(c, u, scale, z, level)._replace(eps=u.eps)


def apg(*, eta: float = 0.0, norm_limit: float = 0.0) -> Combine:
    """Make the rule of adaptive projected guidance (Sadat et al. 2024, without its momentum).

    With ``d = x_c - x_u`` split into parts parallel and orthogonal to ``x_c``, the guided data are
    ``x_c + (s - 1)(d_orthogonal + eta d_parallel)``. The parallel part saturates images.

    Args:
        eta: factor of the parallel part; 1 gives classifier-free guidance.
        norm_limit: largest norm of d per image, 0 for no bound.
    """

    def combine(
        c: Prediction, u: Prediction, scale: ArrayLike, z: Array, level: Level
    ) -> Prediction:
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


def cfg_zero_star(*, parameterization: Parameterization) -> Combine:
    """Make the rule of CFG-Zero* (Fan et al. 2025), which scales the unconditional half first.

    On the raw output, ``k u + s (c - k u)`` with ``k = <c, u> / |u|^2`` for each image, the length
    of c along u. Published for velocities of flows; `zero_first` is its other half.

    Args:
        parameterization: what the raw output means.
    """

    def combine(
        c: Prediction, u: Prediction, scale: ArrayLike, z: Array, level: Level
    ) -> Prediction:
        said, silent = (parameterization.target(p.x, p.eps, level) for p in (c, u))
        axes = tuple(range(1, z.ndim))
        along = (said * silent).sum(axes, keepdims=True)
        silent = along / jnp.maximum((silent**2).sum(axes, keepdims=True), 1e-12) * silent
        s = expand(jnp.asarray(scale, jnp.float32), z)
        raw = silent + s * (said - silent)
        if parameterization.channels == 2:
            raw = jnp.concatenate([raw, jnp.zeros_like(raw)], -1)
        return parameterization.decode(raw, z, level)._replace(var=c.var)

    return combine


def zero_first(denoise: Denoiser, parameterization: Parameterization, steps: int) -> Denoiser:
    """Make the raw output 0 in the first evaluations, where a flow does not move.

    Fan et al. 2025, "zero-init": at the most noise a velocity is worse than none.

    Args:
        parameterization: what the raw output means.
        steps: number of evaluations K.
    """

    def quiet(z: Array, level: Level) -> Prediction:
        shape = (*z.shape[:-1], parameterization.channels * z.shape[-1])
        still = parameterization.decode(jnp.zeros(shape), z, level)
        first = jnp.asarray(level.i) < steps
        return jax.lax.cond(first, lambda: still, lambda: denoise(z, level))

    return quiet if steps else denoise


def fdg(*, low: float = 0.5) -> Combine:
    """Make the rule of frequency-decoupled guidance (Sadat et al. 2025).

    ``x_c + (s - 1)(high(d) + low low(d))`` with ``d = x_c - x_u``, where low(d) is the coarse level
    of a Laplacian pyramid and high(d) the rest. Strong guidance of low frequencies saturates images
    and makes them alike, that of high ones sharpens them.

    Args:
        low: share of guidance that low frequencies get; 1 gives classifier-free guidance.
    """

    def combine(
        c: Prediction, u: Prediction, scale: ArrayLike, z: Array, level: Level
    ) -> Prediction:
        update = c.x - u.x
        s = expand(jnp.asarray(scale, jnp.float32), z)
        x = c.x + (s - 1) * (update - (1 - low) * pass_low(update))
        return _with_x(c, x, z, level)

    return combine


def pass_low(images: Array) -> Array:
    """Return the coarse part of images (B, H, W, C), of the same shape (Burt & Adelson 1983).

    They are blurred by (1, 4, 6, 4, 1) / 16 along both sides, halved, and enlarged linearly.
    """
    blurred = images
    for axis in (1, 2):
        pads = [(2, 2) if k == axis else (0, 0) for k in range(4)]
        padded, size = jnp.pad(blurred, pads, mode="edge"), images.shape[axis]
        parts = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(5))
        weighted = [w / 16 * p for w, p in zip((1, 4, 6, 4, 1), parts, strict=True)]
        blurred = jnp.stack(weighted).sum(0)
    return jax.image.resize(blurred[:, ::2, ::2], images.shape, "linear")


# Rules by ``sample.guidance_rule``.
RULES: Mapping[str, Callable[..., Combine]] = {
    "cfg": lambda *, channels=0: partial(cfg, channels=channels) if channels else cfg,
    "apg": apg,
    "cfg_zero_star": cfg_zero_star,
    "fdg": fdg,
}


def make_rule(
    name: str, parameterization: Parameterization, options: Options | None = None
) -> Combine:
    """Return the named rule of `RULES`.

    Args:
        parameterization: what the raw output means.
        options: its other keyword arguments.

    Raises:
        ValueError: unknown name or option.
    """
    known = option_names(choose("guidance rule", name, RULES))
    own = {"parameterization": parameterization} if "parameterization" in known else {}
    return build("guidance rule", name, RULES, {**own, **(options or {})})


def rescale(parameterization: Parameterization, phi: float, inner: Combine = cfg) -> Combine:
    """Make the rule of guidance rescale, which restores the spread of the conditional output.

    Lin et al. 2023, eq. 14-16: ``raw' = phi raw std(raw_c) / std(raw) + (1 - phi) raw`` on the
    network's raw output. Standard deviations are per image over all other axes (unbiased).

    Args:
        parameterization: what the raw output means.
        phi: share of the rescaled output, in [0, 1]; the paper uses 0.7.
        inner: the rule whose result is rescaled.

    Raises:
        ValueError: phi outside [0, 1].
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"guidance rescale must lie in [0, 1], got {phi}")

    def combine(
        c: Prediction, u: Prediction, scale: ArrayLike, z: Array, level: Level
    ) -> Prediction:
        def std(raw: Array) -> Array:
            return raw.std(tuple(range(1, raw.ndim)), keepdims=True, ddof=1)

        guided = inner(c, u, scale, z, level)
        raw, wanted = (parameterization.target(p.x, p.eps, level) for p in (guided, c))
        raw = raw * (phi * std(wanted) / std(raw) + 1 - phi)
        if parameterization.channels == 2:
            raw = jnp.concatenate([raw, jnp.zeros_like(raw)], -1)
        return parameterization.decode(raw, z, level)._replace(var=guided.var)

    return combine


def add_contrast(
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

    def combine(c: Prediction, u: Prediction, s: ArrayLike, z: Array, level: Level) -> Prediction:
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
    """Replace x, and derive eps from it: ``eps = (z - alpha x) / sigma``."""
    a, s = expand(jnp.asarray(level.alpha), z), expand(jnp.asarray(level.sigma), z)
    return p._replace(x=x, eps=(z - a * x) / s)


def contrast(strong: Denoiser, weak: Denoiser, scale: Scale, *, combine: Combine = cfg) -> Denoiser:
    """Guide one denoiser away from another, in two passes: autoguidance (Karras et al. 2024).

    At run time the weak denoiser is not called where the scale is 1.

    Args:
        strong: the denoiser whose images are wanted.
        weak: one with the same faults, but stronger, such as a smaller or less trained network.
        scale: s; 1 is ``strong`` alone.
        combine: the rule, with the strong prediction as c and the weak one as u.
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
    """Guide ``denoise(z, level, cond)`` by the pair (cond, null), without a classifier.

    Args:
        denoise: the conditional denoiser.
        cond: what is wanted.
        null: the unconditional entries, or a negative condition; with the structure and shapes of
            ``cond``.
        scale: s; traced, so that another value does not recompile. Where it is 1 only the
            conditional pass runs.
        combine: the rule.
        sequential: run two passes of one batch instead of one of twice the size, in half the
            memory.
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
        levels = jax.tree.map(lambda v: jnp.concatenate([v, v]) if jnp.ndim(v) else v, level)
        pair = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)
        p = denoise(jnp.concatenate([z, z]), levels, pair)
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
    """Raise a ValueError if a condition and its null condition differ in structure or shapes."""
    theirs, of_null = (jax.tree.map(jnp.shape, tree) for tree in (cond, null))
    if theirs != of_null:
        raise ValueError(f"condition and null condition differ: {theirs} and {of_null}")


def schedule(rows: Rows, scale: float, *, low: float = 0.0, high: float = np.inf) -> Scale:
    """Make a scale that is ``scale`` where ``low <= sigma / alpha <= high``, and 1 elsewhere.

    This is the limited interval of Kynkäänniemi et al. 2024. It is formed on the host, so that a
    change of the interval does not recompile; see `per_evaluation`.

    Args:
        rows: the sampler's plan.
        low, high: bounds of the noise-to-signal ratio.
    """
    return per_evaluation(interval(rows, scale, low=low, high=high))


def interval(rows: Rows, scale: float, *, low: float = 0.0, high: float = np.inf) -> np.ndarray:
    """Return the scale of every row (rows,), float32, as `schedule` applies it."""
    with np.errstate(divide="ignore"):
        ratio = np.asarray(rows.level.sigma) / np.asarray(rows.level.alpha)
    return np.where((low <= ratio) & (ratio <= high), scale, 1.0).astype(np.float32)


def per_evaluation(values: ArrayLike) -> Scale:
    """Make the scale that is ``values[i]`` at network evaluation i.

    Args:
        values: (rows,), or (rows, B) for a scale per image; a number is returned as it is.
    """
    if not jnp.ndim(values):
        return values
    return lambda level: jnp.asarray(values)[level.i]


def classifier(
    denoise: Denoiser, log_prob: Callable[[Array, Level], Array], scale: Scale
) -> Denoiser:
    """Guide by a classifier: ``eps - s sigma grad_z log p(y | z)``.

    Dhariwal & Nichol 2021, algorithm 2. x changes by ``s (sigma^2 / alpha) grad_z log p(y | z)``,
    so that the pair still gives z.

    Args:
        denoise: a denoiser, conditional or not.
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


def drop(key: jax.Array, cond: T, null: T, rate: float) -> T:
    """Replace the whole condition of each image by the null one with probability ``rate``.

    Training with it makes one network conditional and unconditional (Ho & Salimans 2022, alg. 1).

    Args:
        key: a key of `jax.random`.
        cond: pytree of arrays (B, ...); all leaves of an image are dropped together.
        null: the null condition, of the same structure and shapes.
        rate: in [0, 1]; 0.1 is usual.

    Raises:
        ValueError: the rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the drop rate must lie in [0, 1], got {rate}")
    images = jax.tree.leaves(cond)[0].shape[0]
    return replace(cond, null, jax.random.bernoulli(key, rate, (images,)))


def replace(cond: T, null: T, gone: Array) -> T:
    """Replace the condition of the images in ``gone``, bool (B,), by the null one."""
    return jax.tree.map(lambda a, b: jnp.where(expand(gone, a), b, a), cond, null)
