"""What a step of training draws, and the objectives that are measured of it.

An `Objective` is a function of the model and of what was drawn. Those of one noise level evaluate
the network once (simple, vlb, hybrid). Those for few steps evaluate it at several
(`diffjax.tasks.few_steps`, `diffjax.tasks.consistency`). `diffjax.tasks.objective_table` has their
names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import likelihood, losses
from diffjax.model import Model, evaluate_network, predict
from diffjax.samplers.ancestral import reverse_rows
from diffjax.tasks.alignment import Alignment
from diffjax.types import Array, ArrayLike, Cond, Level, Prediction, choose, mix


class Drawn(NamedTuple):
    """What a step of training has drawn for a batch of B images.

    Attributes:
        x: data (B, h, w, C), in the space of the model.
        eps: noise that is to be found, of the shape of x.
        added: noise that is added to x; eps but for `losses.draw_noise`'s options.
        level: a random noise level for each image, leaves (B,).
        second: another one of the same distribution.
        cond: encoded condition.
        key: of dropout, and of what an objective draws itself.
        step: optimiser steps done, ().
        target: the model with the parameters that targets are computed with: an average of those
            that are trained (`Objective.decay`), or these themselves. They get no gradient.
        teacher: the frozen base of ``task=distillation``, else None.
        features: (B, N, K) that tokens are compared with (`diffjax.tasks.alignment`), else None.
    """

    x: Array
    eps: Array
    added: Array
    level: Level
    second: Level
    cond: Cond
    key: jax.Array
    step: Array
    target: Model
    teacher: Model | None = None
    features: Array | None = None

    def add_noise(self, level: Level) -> Array:
        """Return ``alpha x + sigma`` times the noise that is added, (B, h, w, C)."""
        return mix(self.x, self.added, level)


# What an objective gives: losses (B,), and metrics by name.
Measured = tuple[Array, dict[str, Array]]


# Statistics that a training keeps for its targets, see `Objective.decay`; no model reads them.
OF_TARGETS = ("target", "averaged")


class Objective(NamedTuple):
    """What is minimised.

    Attributes:
        measure: ``(model, drawn) -> (losses (B,), metrics)``, with the parameters that are trained.
        decay: ``step -> decay`` of the average of parameters that targets are computed with; None
            for the parameters themselves.
    """

    measure: Callable[[Model, Drawn], Measured]
    decay: Callable[[Array], ArrayLike] | None = None


# (raw, prediction, x, eps, level) -> losses (B,), metrics
Measure = Callable[[Array, Prediction, Array, Array, Level], Measured]


def measure_one_level(measure: Measure) -> Objective:
    """Make the objective that evaluates the network once, at the level that was drawn."""

    def evaluate_once(model: Model, drawn: Drawn) -> Measured:
        z, rngs = drawn.add_noise(drawn.level), {"dropout": drawn.key}
        raw, prediction = predict(model, z, drawn.level, drawn.cond, train=True, rngs=rngs)
        return measure(raw, prediction, drawn.x, drawn.eps, drawn.level)

    return Objective(evaluate_once)


def measure_aligned(measure: Measure, alignment: Alignment) -> Objective:
    """Make the same objective plus the term of REPA, see `diffjax.tasks.alignment`."""

    def evaluate_once(model: Model, drawn: Drawn) -> Measured:
        assert model.params is not None and drawn.features is not None
        z, rngs = drawn.add_noise(drawn.level), {"dropout": drawn.key}
        options: dict[str, Any] = {"train": True, "rngs": rngs, "keep": alignment.block}
        raw, tokens = evaluate_network(model, z, drawn.level, drawn.cond, **options)
        prediction = model.parameterization.decode(raw, z, drawn.level)
        values, metrics = measure(raw, prediction, drawn.x, drawn.eps, drawn.level)
        term = alignment.measure(model.params, tokens, drawn.features)
        metrics = {**metrics, "mse": values.mean(), "align": term.mean()}
        return values + alignment.weight * term, metrics

    return Objective(evaluate_once)


Error = Callable[[Array, Array], Array]
# (prediction, x, eps, level) -> bits (B,)
Bound = Callable[[Prediction, Array, Array, Level], Array]


def measure_simple(
    model: Model, weight: losses.Weight, error: Error, reduction: str = "mean"
) -> Measure:
    """Make the measure ``w(t) |raw - target|^2``, or that of another distance."""
    reduce = choose("loss reduction", reduction, losses.REDUCTIONS)

    def measure(raw: Array, prediction: Prediction, x: Array, eps: Array, level: Level) -> Measured:
        target = model.parameterization.target(x, eps, level)
        value = error(raw[..., : x.shape[-1]], target)
        factor = reduce(target[0].size)
        value = value if factor == 1 else factor * value
        return weight(level, model.parameterization) * value, {}

    return measure


def _make_bound(model: Model, variance: str, *, stop_mean: bool) -> Bound:
    """Make an unbiased estimate (B,) of the bound: its term at one timestep, times their number.

    Args:
        variance: of the reverse steps: fixedsmall, fixedlarge or learned.
        stop_mean: whether the bound has no gradient through the mean.
    """
    assert model.grid is not None
    rows = jax.tree.map(lambda leaf: leaf[::-1], reverse_rows(model.grid))  # row t is timestep t

    def estimate_bound(prediction: Prediction, x: Array, eps: Array, level: Level) -> Array:
        index = level.t.astype(jnp.int32)
        row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], rows)
        term = likelihood.bound_term(
            prediction,
            x,
            eps,
            row,
            variance=variance,
            levels=model.levels,
            stop_mean=stop_mean,
        )
        return term * len(rows.coef["noisy"])  # a uniform t makes its mean the whole bound

    return estimate_bound


def make_vlb(model: Model, variance: str = "fixedsmall") -> Objective:
    """Make the variational bound in bits per dimension (Ho et al. 2020, eq. 5).

    Args:
        model: with a discrete schedule.
        variance: of the reverse steps: fixedsmall, fixedlarge or learned.

    Raises:
        ValueError: the schedule is continuous.
    """
    bound = _make_bound(_require_grid(model, "vlb"), variance, stop_mean=False)
    return measure_one_level(
        lambda raw, prediction, x, eps, level: (bound(prediction, x, eps, level), {})
    )


def make_hybrid(
    model: Model, measure: Measure, variance: str = "fixedsmall", vlb_weight: float = 1e-3
) -> Objective:
    """Make ``simple + vlb_weight vlb`` with no gradient of the bound through the mean.

    Nichol & Dhariwal 2021, eq. 16.

    Args:
        model: with a discrete schedule.
        measure: the simple loss.
        variance: of the reverse steps: fixedsmall, fixedlarge or learned.
        vlb_weight: factor on the bound.

    Raises:
        ValueError: the schedule is continuous.
    """
    bound = _make_bound(_require_grid(model, "hybrid"), variance, stop_mean=True)

    def add(raw: Array, prediction: Prediction, x: Array, eps: Array, level: Level) -> Measured:
        bits = bound(prediction, x, eps, level)
        mse, _ = measure(raw, prediction, x, eps, level)
        return mse + vlb_weight * bits, {"mse": mse.mean(), "bound": bits.mean()}

    return measure_one_level(add)


def _require_grid(model: Model, name: str) -> Model:
    """Return the model, or raise a ValueError if its schedule is continuous."""
    if model.grid is None:
        raise ValueError(f"the {name} loss needs a discrete schedule")
    return model
