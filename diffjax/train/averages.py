"""Averages of the parameters: how fast each forgets, and how several are kept in one training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffjax.types import Array, ArrayLike, Config, Params, choose

# From the number of optimiser steps done to the decay of the parameter average.
EMADecay: TypeAlias = Callable[[ArrayLike], ArrayLike]
Section: TypeAlias = Config | ConfigDict  # config.ema
# The relative length of an average that weighs all steps alike; longer ones do not exist.
LONGEST = 12**-0.5


def ema_decay(decay: float = 0.9999, *, warmup: bool = False) -> EMADecay:
    """Make the constant decay of the parameter average.

    Args:
        decay: in [0, 1).
        warmup: use ``min(decay, (1 + n) / (10 + n))`` after n steps, as latent diffusion does.
    """
    return lambda step: jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else decay


def ema_half_life(images: float, batch_size: int, *, ramp: float = 0.05) -> EMADecay:
    """Make the decay ``0.5^(batch/H)`` with ``H = min(images, ramp * images seen)``.

    Karras et al. 2022, appendix F.2.

    Args:
        images: half-life of the average, in images.
        batch_size: images per step.
        ramp: largest half-life as a share of the images seen.

    Raises:
        ValueError: a number is not positive.
    """
    if min(images, batch_size, ramp) <= 0:
        raise ValueError(f"half-life {images}, batch {batch_size} and ramp {ramp} must be positive")

    def decay(step: ArrayLike) -> ArrayLike:
        life = jnp.minimum(images, ramp * step * batch_size)
        return 0.5 ** (batch_size / jnp.maximum(life, 1e-8))

    return decay


def skip_steps(decay: EMADecay, every: int) -> EMADecay:
    """Move an average after every so many steps alone, by the decay of all of them.

    Args:
        decay: of each step.
        every: number of steps; 1 changes nothing.
    """
    if every == 1:
        return decay

    def decay_rarely(step: ArrayLike) -> ArrayLike:
        moves = (jnp.asarray(step) + 1) % every == 0
        return jnp.where(moves, jnp.asarray(decay(step)) ** every, 1.0)

    return decay_rarely


def power_decay(length: float) -> EMADecay:
    """Make the decay of a power-function average, ``(1 - 1/t)^(gamma + 1)`` at step t = 1, 2, ...

    The average after step t is ``(gamma + 1) / t^(gamma + 1) * integral_0^t s^gamma theta(s) ds``
    with ``theta(s)`` the parameters after step ``ceil(s)`` (Karras et al. 2024, arXiv:2312.02696,
    equations 3 and 4, of discrete steps): it remembers a fixed share of the training, and forgets
    the parameters of step 0 at once.

    Args:
        length: see `find_exponent`, which raises a ValueError for lengths that do not exist.
    """
    power = find_exponent(length) + 1
    return lambda step: (step / (step + 1.0)) ** power


def find_exponent(length: float) -> float:
    """Find the exponent gamma of a power-function average by its relative length.

    The length sigma_rel is the standard deviation of the profile ``s^gamma`` over its support:
    ``sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`` (Karras et al. 2024, section 3.1).

    Args:
        length: sigma_rel, above 0 and less than 12^-0.5 = 0.2887, where gamma is 0.

    Raises:
        ValueError: there is no average of that length.
    """
    if not 0 < length < LONGEST:
        raise ValueError(
            f"no average has length {length:g}: lengths are shares of the training above 0 and "
            f"less than {LONGEST:.4f}, such as 0.05 or 0.1"
        )
    # With u = gamma + 1 the equation is u^3 + 4 u^2 + (5 - length^-2) u + 2 = 0.
    roots = np.roots([1.0, 4.0, 5.0 - length**-2, 2.0])
    return float(roots.real.max()) - 1


def find_length(exponent: float) -> float:
    """Find the relative length of a power-function average by its exponent, the inverse.

    Args:
        exponent: gamma, at least 0.
    """
    return float(((exponent + 1) / (exponent + 3)) ** 0.5 / (exponent + 2))


def _make_exponential(section: Section, batch_size: int) -> tuple[EMADecay, ...]:
    """Make the one decay of ``half_life`` and ``ramp``, or of ``decay`` and ``warmup``."""
    if half_life := section["half_life"]:
        decay = ema_half_life(half_life, batch_size, ramp=section["ramp"])
    else:
        decay = ema_decay(section["decay"], warmup=section["warmup"])
    return (skip_steps(decay, section["every"]),)


def _make_power(section: Section, batch_size: int) -> tuple[EMADecay, ...]:
    """Make a decay for each of ``lengths``."""
    return tuple(power_decay(length) for length in section["lengths"])


# Kinds of averages; each takes the section ``ema`` and the images of a step.
AVERAGES: dict[str, Callable[[Section, int], tuple[EMADecay, ...]]] = {
    "exponential": _make_exponential,
    "power": _make_power,
}


def make_averages(section: Section, batch_size: int) -> tuple[EMADecay, ...]:
    """Make the decays of the averages that a section ``ema`` describes, at least one.

    Args:
        section: ``kind``, a name in `AVERAGES`, with the options of each.
        batch_size: images per step.

    Raises:
        ValueError: the kind is unknown, or a number is wrong.
    """
    return choose("ema.kind", section["kind"], AVERAGES)(section, batch_size)


class Tracked(NamedTuple):
    """The state of an optimiser that keeps further averages of the parameters.

    Attributes:
        done: optimiser steps done, int32 ().
        averages: of the parameters.
        inner: state of the optimiser itself.
    """

    done: Array
    averages: tuple[Params, ...]
    inner: optax.OptState


def track(
    optimizer: optax.GradientTransformation, decays: Sequence[EMADecay]
) -> optax.GradientTransformation:
    """Let an optimiser keep averages of the parameters that it makes; its updates stay the same.

    Args:
        optimizer: any.
        decays: of each average; without any, the optimiser is returned as it is.
    """
    if not decays:
        return optimizer

    def init(params: Params) -> Tracked:
        averages = tuple(jax.tree.map(jnp.copy, params) for _ in decays)
        return Tracked(jnp.zeros((), jnp.int32), averages, optimizer.init(params))

    def update(
        grads: Params, state: Tracked, params: Params | None = None
    ) -> tuple[Params, Tracked]:
        updates, inner = optimizer.update(grads, state.inner, params)
        new = optax.apply_updates(params, updates)
        averages = tuple(
            move_average(average, new, decay(state.done))
            for average, decay in zip(state.averages, decays, strict=True)
        )
        return updates, Tracked(state.done + 1, averages, inner)

    return optax.GradientTransformation(init, update)


def track_further(
    optimizer: optax.GradientTransformation, section: Section, batch_size: int
) -> optax.GradientTransformation:
    """Let an optimiser keep the averages that a section ``ema`` describes beside the first.

    The first is that of `diffjax.train.State`.

    Args:
        optimizer: any.
        section, batch_size: see `make_averages`.
    """
    return track(optimizer, make_averages(section, batch_size)[1:])


def move_average(average: Params, params: Params, decay: ArrayLike) -> Params:
    """Move an average to the parameters: ``decay * average + (1 - decay) * params``."""
    return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
