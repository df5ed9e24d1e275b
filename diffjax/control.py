"""Control: networks beside a denoiser, whose residuals are added to its features while sampling.

A ControlNet (Zhang et al. 2023) makes one residual for every skip of a UNet and one for its middle.
The residuals of several networks add. Each is multiplied by its strength at this evaluation and by
a weight per layer:

    cond["control"] = sum_k s_k(i) w_kj r_kj(z, t, cond, hint_k)

A T2I-Adapter (Mou et al. 2023) makes features for the way down, ``cond["adapter"]``, from the hint
alone: they are made once, and its residuals are these features (`diffjax.model`).

`control` wraps a conditional denoiser, so that ordinary control is ``guide(control(denoise))``.
`guide` here is for balances that leave the null half of guidance without control, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import guidance
from diffjax.guidance import Combine, Conditional, Scale
from diffjax.types import (
    IMAGE_PROMPTS,
    Array,
    ArrayLike,
    Cond,
    Denoiser,
    Level,
    Prediction,
    T,
    choose,
    expand,
)

# Residuals of a ControlNet: one for every skip of the UNet, finest first (None: for the middle
# alone), and one for its middle. Each has the shape of the features that it is added to.
Residuals: TypeAlias = tuple[list[Array] | None, Array]
# Features of a T2I-Adapter, one (B, h, w, c) for every level of the way down, finest first.
Features: TypeAlias = list[Array]
# ``(z, level, cond) -> residuals``; the hint is ``cond["hint"]``.
Controller: TypeAlias = Callable[[Array, Level, Cond], Residuals | Features]
# Heights (layers,) of the residuals in pixels, finest first, to their weights (layers,).
Weights: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Balance(NamedTuple):
    """How control and condition share the work.

    Attributes:
        weights: heights of the residuals, finest first and the middle last, to their weights.
        null: whether the unconditional half of guidance is controlled, too.
    """

    weights: Weights
    null: bool


def flat(sides: np.ndarray) -> np.ndarray:
    """Return the weight 1 for every layer."""
    return np.ones(len(sides))


def decay(sides: np.ndarray) -> np.ndarray:
    """Return the weights ``0.825^(n - i)`` of the published code's guess mode; the middle has 1.

    Zhang et al. 2023, released code.
    """
    return 0.825 ** np.arange(len(sides))[::-1]


def logspace(sides: np.ndarray) -> np.ndarray:
    """Return weights from 0.1 to 1 in equal ratios, as diffusers has them for guess mode.

    They are within 0.6% of `decay` for the 13 layers of Stable Diffusion's ControlNets.
    """
    return np.logspace(-1, 0, len(sides))


def resolution(sides: np.ndarray) -> np.ndarray:
    """Return the weights ``w_i = h_1 / h_i`` of Zhang et al. 2023, section 3.4.

    The paper writes ``64 / h_i``; h_1 is the height of the finest residual, which is 64 there.
    """
    return sides[0] / sides


BALANCES = {
    "balanced": Balance(flat, True),
    "prompt": Balance(decay, True),  # the finer the features, the less control
    "control": Balance(flat, False),  # guidance amplifies control as it does the condition
    "guess": Balance(logspace, False),
    "resolution": Balance(resolution, False),
}


class AppliedControl(NamedTuple):
    """A control network with its hint and strength, ready for sampling.

    Attributes:
        residuals: ``(z, level, cond) -> residuals``.
        hint: (B, ...), or (1, ...) for all images; for an adapter, the features made of it.
        strength: number, (B,) array, or a function of the level that gives
            either; the network does not run where it is 0.
        balance: one of the values of `BALANCES`.
        entry: entry of the condition that the residuals are added to: ``control`` or ``adapter``.
    """

    residuals: Controller
    hint: Array | Features
    strength: Scale = 1.0
    balance: Balance = BALANCES["balanced"]
    entry: str = "control"


ENTRIES = ("control", "adapter")
# What a control network does not read of the condition of its base.
_OF_BASES = (*ENTRIES, "concat", IMAGE_PROMPTS)


def make_controls(
    residuals: Sequence[Controller],
    hints: Sequence[Array],
    evaluations: int,
    *,
    scale: ArrayLike | Sequence[ArrayLike] = 1.0,
    start: float | Sequence[float] = 0.0,
    end: float | Sequence[float] = 1.0,
    balance: str = "balanced",
) -> list[AppliedControl]:
    """Make the controls of several networks. A single number applies to all of them.

    Args:
        residuals: one function per network, see `AppliedControl`.
        hints: one hint per network.
        evaluations: number of rows of the sampler's plan.
        scale: factors of the residuals, one for all or one per network, traced or not.
        start, end: fractions of the sampling in [0, 1], one for all or one per network; see
            `window`.
        balance: a name in `BALANCES`.

    Raises:
        ValueError: a wrong number of values, an empty window, or an unknown balance.
    """
    count = len(residuals)
    lists = [
        _each(name, values, count)
        for name, values in (
            ("hint", list(hints)),
            ("scale", scale),
            ("start", start),
            ("end", end),
        )
    ]
    chosen = choose("balance", balance, BALANCES)
    return [
        AppliedControl(net, hint, strength(evaluations, factor, a, b), chosen)
        for net, hint, factor, a, b in zip(residuals, *lists, strict=True)
    ]


def _each(name: str, values: T | Sequence[T], count: int) -> list[T]:
    """Return one value per network; a value that is no list is repeated.

    Raises:
        ValueError: there are more or fewer values than networks.
    """
    if not isinstance(values, list | tuple):
        return [cast(T, values)] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} values of {name} for {count} networks: {values}")
    return list(values)


def window(evaluations: int, start: float, end: float) -> np.ndarray:
    """Return 1 for each of n evaluations inside a window and 0 for the others, (n,) float32.

    Evaluation i is outside where ``i/n < start or (i+1)/n > end``, as in diffusers. This is decided
    in float64 on the host, since a rounding that differs would move a step across the border.

    Args:
        evaluations: n, at least 1.
        start, end: fractions of the sampling.

    Raises:
        ValueError: not ``0 <= start < end <= 1``.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"control needs 0 <= start < end <= 1, got {start} to {end}")
    i = np.arange(evaluations, dtype=np.float64)
    outside = (i / evaluations < start) | ((i + 1) / evaluations > end)
    return np.where(outside, 0, 1).astype(np.float32)


def strength(evaluations: int, scale: ArrayLike, start: float = 0.0, end: float = 1.0) -> Scale:
    """Make the strength that is ``scale`` inside `window` and 0 outside, for `AppliedControl`."""
    keep = window(evaluations, start, end)
    return lambda level: jnp.asarray(scale, jnp.float32) * jnp.asarray(keep)[level.i]


def control(denoise: Conditional, controls: Sequence[AppliedControl]) -> Conditional:
    """Wrap a conditional denoiser so that controls add to its condition.

    Residuals are added to those that the condition may already hold.
    """

    def controlled(z: Array, level: Level, cond: Cond) -> Prediction:
        out = dict(cond or {})
        for entry, added in sum_residuals(controls, z, level, cond).items():
            before = out.get(entry)
            out[entry] = added if before is None else jax.tree.map(jnp.add, before, added)
        return denoise(z, level, out)

    return controlled if controls else denoise


def guide(
    denoise: Conditional,
    controls: Sequence[AppliedControl],
    cond: Cond,
    null: Cond,
    scale: Scale,
    *,
    combine: Combine = guidance.cfg,
    sequential: bool = False,
    always: bool = False,
) -> Denoiser:
    """Guide as `diffjax.guidance.guide`, with controls.

    `Balance.null` says whether a control is on both halves or on the conditional one alone. Where a
    balance leaves the null half out, the control network runs on the conditional half only, and the
    other half's residuals are zeros.

    Args:
        denoise: the conditional denoiser, without controls.
        controls: those of all networks.
        cond, null, scale, combine, sequential, always: see `diffjax.guidance.guide`.

    Raises:
        ValueError: as `diffjax.guidance.guide` and `sum_residuals`.
    """
    both = control(denoise, [c for c in controls if c.balance.null])
    single = [c for c in controls if not c.balance.null]

    def guided(z: Array, level: Level) -> Prediction:
        ours, theirs = cond, null
        if single:
            added = sum_residuals(single, z, level, cond)
            ours = {**(cond or {}), **added}
            theirs = {**(null or {}), **jax.tree.map(jnp.zeros_like, added)}
        whole = guidance.guide(
            both, ours, theirs, scale, combine=combine, sequential=sequential, always=always
        )
        return whole(z, level)

    return guided


def sum_residuals(
    controls: Sequence[AppliedControl], z: Array, level: Level, cond: Cond
) -> dict[str, Residuals | Features]:
    """Sum the weighted residuals of all controls, by the entry of the condition that they are for.

    Raises:
        ValueError: the networks are not of one base, or a hint has another batch size.
    """
    parts: dict[str, list[Residuals | Features]] = {}
    for one in controls:
        parts.setdefault(one.entry, []).append(_weighted(one, z, level, cond))
    return {entry: _sum(found) for entry, found in parts.items()}


def _sum(parts: list[Residuals | Features]) -> Residuals | Features:
    """Add the residuals of several networks, layer by layer.

    Raises:
        ValueError: they differ in structure or shapes.
    """
    shapes = {str(jax.tree.map(jnp.shape, part)) for part in parts}
    if len({jax.tree.structure(part) for part in parts}) > 1 or len(shapes) > 1:
        raise ValueError(
            f"these control networks are for different bases: their residuals are {sorted(shapes)}"
        )
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)


def _weighted(one: AppliedControl, z: Array, level: Level, cond: Cond) -> Residuals | Features:
    """Return the weighted residuals of one control; its network runs only if its strength is not 0.

    Guidance may repeat the batch, so that hints and strengths are repeated to its size. Residuals
    that are pooled to one pixel have no height to weigh by, and get the weight 1.
    """
    s = jnp.asarray(one.strength(level) if callable(one.strength) else one.strength, jnp.float32)
    own = {k: v for k, v in (cond or {}).items() if k not in _OF_BASES}
    own["hint"] = jax.tree.map(lambda leaf: _repeated(leaf, z.shape[0]), one.hint)

    def run() -> Residuals | Features:
        layers, structure = jax.tree.flatten(one.residuals(z, level, own))  # the middle comes last
        sides = np.asarray([layer.shape[1] for layer in layers], np.float64)
        pooled = len(layers) > 1 and bool((sides == 1).all())
        weights = flat(sides) if pooled else one.balance.weights(sides)
        factor = _repeated(s, z.shape[0]) if s.ndim else s
        scaled = [
            expand(factor, layer) * (np.float32(w) * layer)
            for w, layer in zip(weights, layers, strict=True)
        ]
        return jax.tree.unflatten(structure, scaled)

    shapes = jax.eval_shape(run)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(jnp.any(s != 0), run, lambda: zeros)


def _repeated(value: Array, batch: int) -> Array:
    """Repeat the whole first axis up to the batch size, as guidance repeats a batch.

    Raises:
        ValueError: the batch is no multiple of the first axis.
    """
    if batch % value.shape[0]:
        raise ValueError(f"{value.shape[0]} hints or strengths for a batch of {batch}")
    times = batch // value.shape[0]
    return jnp.tile(value, (times,) + (1,) * (value.ndim - 1)) if times > 1 else value
