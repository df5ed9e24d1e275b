"""Objectives of consistency models: training without a teacher, tuning of a model, distillation.

A consistency function f maps every point of a path of the probability flow to its data. At noise
levels ``s < t`` of a variance-exploding schedule it is to say the same of both ends:

``E w(t, s) d(f(z_t, t), stop_gradient f(z_s, s))``.

In training z_t and z_s are the same image with the same noise, ``z = x + sigma eps`` (Song et al.
2023, algorithm 3); in distillation a step of a teacher leads from one to the other (algorithm 2).
f is the model's prediction of x, which the parameterization ``consistency`` makes z at the smallest
level, and ``edm`` at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax.losses import absolute_error, per_image, squared_error
from diffjax.model import Model, predict
from diffjax.tasks.autoencoder_task import measure_perceptual_distance
from diffjax.tasks.few_steps import require_teacher
from diffjax.tasks.objectives import Drawn, Measured, Objective
from diffjax.types import Array, Cond, Level, choose, expand, mix

# (sigma (B,), step) -> the two levels of a pair, (B,) each, the noisier one first
Neighbours = Callable[[Array, Array], tuple[Array, Array]]
RHO = 7.0  # of the levels between which consistency is asked for, as of `grids.karras`


def count_growing(step: Array, steps: int, first: int, last: int) -> Array:
    """Return ``N = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`` (Song et al. 2023, app. C).

    Args:
        step: k.
        steps: K of the training.
        first, last: s0 and s1.
    """
    square = step / steps * ((last + 1) ** 2 - first**2) + first**2
    return jnp.ceil(jnp.sqrt(square) - 1) + 1


def count_doubling(step: Array, steps: int, first: int, last: int) -> Array:
    """Return ``N = min(s0 2^floor(k/K'), s1) + 1`` with ``K' = floor(K / (log2(s1/s0) + 1))``.

    Song & Dhariwal 2023, section 3.4; arguments are those of `count_growing`. With s0 = s1 it is
    ``s1 + 1`` at every step.
    """
    stage = max(1, math.floor(steps / (math.log2(last // first) + 1)))
    return jnp.minimum(first * 2.0 ** jnp.minimum(step // stage, 30), last) + 1


COUNTS = {"growing": count_growing, "doubling": count_doubling}


def make_consistency(
    model: Model,
    steps: int,
    spacing: str = "doubling",
    first: int = 10,
    last: int = 1280,
    base: float = 2.0,
    slope: float = 1.0,
    gain: float = 8.0,
    stages: int = 8,
    metric: str = "huber",
    huber: float = 0.00054,
    by_step: bool = True,
    solver: str = "",
    initial_decay: float = 0.0,
) -> Objective:
    """Make the objective of a consistency model.

    Defaults are those of improved training, iCT (Song & Dhariwal 2023, table 1). The pair of levels
    is made of the level that was drawn: the ends of its interval between N levels (growing: Song et
    al. 2023; doubling: iCT), or the level t itself and ``t (1 - n(t) / base^(a + 1))`` (ratio: ECT,
    Geng et al. 2024) with ``n(t) = 1 + gain sigmoid(-slope t)`` in stage a of the training.

    Args:
        model: with the schedule ``edm``.
        steps: optimiser steps K of the whole training.
        spacing: growing, doubling or ratio.
        first, last: s0 and s1 of the first two; N - 1 = s0 = s1 intervals stay as they are.
        base, slope, gain, stages: q, b, k and the number of stages of ratio.
        metric: huber, ``sqrt(|a - b|^2 + c^2) - c`` over the whole image, or l2, l1; or lpips,
            of images enlarged to 224 pixels (Song et al. 2023), by ``model.frozen["lpips"]``.
        huber: c over the square root of the numbers of an image; 0 is the norm itself.
        by_step: weigh by ``1 / (t - s)``; else by 1.
        solver: of the teacher's step from t to s: euler, heun, or none, which trains without.
        initial_decay: mu0 of the average that makes targets, ``exp(s0 log(mu0) / N)``; 0 for the
            trained parameters themselves.

    Raises:
        ValueError: another schedule, an unknown name or a number out of range.
    """
    if model.schedule.span[0] >= 0 or model.schedule.steps is not None:
        raise ValueError("loss.name=consistency needs schedule.name=edm, of variance exploding")
    choose("solver of a teacher", solver, {"": 0, "euler": 0, "heun": 0})
    if metric == "lpips" and (model.space.net is not None or model.space.shape[-1] not in (1, 3)):
        raise ValueError("loss.metric=lpips compares pictures of 1 or 3 channels: set huber or l2")
    distance = _make_distance(metric, huber)
    count = _make_count(spacing, steps, first, last)
    if count is None:
        neighbours = _pair_by_ratio(base, slope, gain, max(1, steps // stages))
    else:
        neighbours = _pair_on_grid(model, count)

    def measure(model: Model, drawn: Drawn) -> Measured:
        upper, lower = neighbours(drawn.level.sigma, drawn.step)
        above, below = _find_level(upper), _find_level(lower)
        z, rngs = drawn.add_noise(above), {"dropout": drawn.key}
        if solver:
            teacher = require_teacher(drawn, "consistency with a solver")
            other = step_teacher(teacher, z, above, below, drawn.cond, heun=solver == "heun")
        else:
            other = drawn.add_noise(below)
        said = predict(model, z, above, drawn.cond, train=True, rngs=rngs)[1].x
        held = predict(drawn.target, other, below, drawn.cond, train=True, rngs=rngs)[1].x
        # The function is the identity without noise, and only there EDM's target is not defined.
        held = jnp.where(expand(lower, z) > _LEAST, held, drawn.x)
        held = jax.lax.stop_gradient(held)
        value = _compare_pictures(model, said, held) if distance is None else distance(said, held)
        weight = 1 / (upper - lower) if by_step else 1.0
        return weight * value, {"distance": value.mean()}

    if not initial_decay:
        return Objective(measure)
    if count is None or not 0 < initial_decay < 1:
        raise ValueError(
            f"loss.initial_decay={initial_decay} must lie in [0, 1), and is for spacings by number"
        )
    intervals = first * math.log(initial_decay)
    return Objective(measure, lambda step: jnp.exp(intervals / count(step)))


def _make_count(spacing: str, steps: int, first: int, last: int) -> Callable[[Array], Array] | None:
    """Make the number of levels by step; None for a spacing without levels.

    Raises:
        ValueError: an unknown name, or numbers out of order.
    """
    choose("spacing of consistency", spacing, dict.fromkeys((*COUNTS, "ratio"), 0))
    if spacing == "ratio":
        return None
    if not 1 <= first <= last:
        raise ValueError(f"loss.first={first} and loss.last={last} must be 1 or more, in order")
    return lambda step: COUNTS[spacing](step, max(1, steps), first, last)


_LEAST = 1e-6  # levels below are no noise at all


def _find_level(sigma: Array) -> Level:
    """Return the level of the schedule ``edm`` with this noise."""
    sigma = jnp.maximum(sigma, _LEAST)
    return Level(jnp.log(sigma) / 4, jnp.ones_like(sigma), sigma)


_SIDE = 224  # of the pictures that LPIPS compares


def _compare_pictures(model: Model, a: Array, b: Array) -> Array:
    """Return LPIPS (B,) of images enlarged linearly, by the network among the frozen parts."""
    shape = (len(a), _SIDE, _SIDE, a.shape[-1])
    large = (jax.image.resize(images, shape, "bilinear") for images in (a, b))
    return measure_perceptual_distance(model.frozen or {}, *large)


def _make_distance(metric: str, huber: float) -> Callable[[Array, Array], Array] | None:
    """Make the distance of two batches of images, (B,); None for LPIPS, which reads frozen parts.

    Raises:
        ValueError: an unknown name, or a negative constant.
    """
    if huber < 0:
        raise ValueError(f"loss.huber must be at least 0, got {huber}")

    def pseudo_huber(a: Array, b: Array) -> Array:
        size = a[0].size
        c = huber * size**0.5
        # The gradient of the norm itself is not defined where both are equal.
        total = jnp.maximum(size * per_image(jnp.square(a - b)), 0.0 if c else 1e-20)
        return jnp.sqrt(total + c**2) - c

    table = {"huber": pseudo_huber, "l2": squared_error, "l1": absolute_error, "lpips": None}
    return choose("metric of consistency", metric, table)


def _pair_on_grid(model: Model, count: Callable[[Array], Array]) -> Neighbours:
    """Make the function that finds the interval of a level between N levels.

    They are evenly spaced in ``sigma^(1/rho)`` between the ends of the schedule (Karras et al.
    2022, eq. 5).
    """
    low, high = (math.exp(4 * t / RHO) for t in model.schedule.span)

    def find(sigma: Array, step: Array) -> tuple[Array, Array]:
        intervals = count(step) - 1
        place = (sigma ** (1 / RHO) - low) / (high - low) * intervals
        place = jnp.clip(jnp.floor(place), 0, intervals - 1)
        upper, lower = ((low + (place + k) / intervals * (high - low)) ** RHO for k in (1, 0))
        return upper, lower

    return find


def _pair_by_ratio(base: float, slope: float, gain: float, stage_steps: int) -> Neighbours:
    """Make the function that finds a smaller level, which comes closer from stage to stage."""

    def find(sigma: Array, step: Array) -> tuple[Array, Array]:
        stage = step // stage_steps
        gap = (1 + gain * jax.nn.sigmoid(-slope * sigma)) / base ** (stage + 1.0)
        return sigma, jnp.maximum(sigma * (1 - gap), 0.0)

    return find


def step_teacher(
    teacher: Model, z: Array, above: Level, below: Level, cond: Cond, *, heun: bool
) -> Array:
    """Step from one level to a lower one by Euler's or Heun's method on the probability flow.

    With ``dz/dsigma = (z - x) / sigma`` for ``alpha = 1``, which is eps.
    """
    first = predict(teacher, z, above, cond)[1]
    end = mix(first.x, first.eps, below)
    if heun:
        second = predict(teacher, end, below, cond)[1]
        end = z + expand((below.sigma - above.sigma) / 2, z) * (first.eps + second.eps)
    return jax.lax.stop_gradient(end)
