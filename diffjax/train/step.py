"""The compiled training step: a pure function of (state, frozen, batch).

It averages gradients over parts of the batch, updates the parameters and their exponential moving
average, and keeps the old state if anything is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from diffjax.train.averages import EMADecay, ema_decay, move_average
from diffjax.types import Array, Batch, Params, Statistics, Task


class State(NamedTuple):
    """All that training changes; it is donated to the step and stored in checkpoints.

    Attributes:
        step: optimiser steps done, int32 ().
        params: trained parameters.
        ema: their exponential moving average, of the same structure.
        opt: optimiser state.
        extra: the task's own statistics.
    """

    step: Array
    params: Params
    ema: Params
    opt: optax.OptState
    extra: Statistics


# ``(state, frozen, batch) -> (state, metrics)``.
Step: TypeAlias = Callable[[State, Params | None, Batch], tuple[State, dict[str, Array]]]
# The gradient of the parameters, the new statistics of the task, and metrics.
Gradient: TypeAlias = tuple[Params, Statistics, dict[str, Array]]
ComputeGradient: TypeAlias = Callable[[State, Params | None, jax.Array, Batch], Gradient]


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    frozen: Params | None,
    batch: Batch,
) -> State:
    """Make the state of step 0; traceable, so `jax.eval_shape` gives shapes without memory.

    Args:
        task, optimizer: see `make_step`.
        key: a key of `jax.random`.
        frozen: parameters that the task reads but does not train.
        batch: an example, whose shapes count.
    """
    params, extra = task.init(key, frozen, batch)
    # The average starts at a copy of the parameters, since both are donated.
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), extra)


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    decay: EMADecay | None = None,
    accumulate: int = 1,
    seed: int = 0,
) -> Step:
    """Make one optimiser step; everything random in it is a function of (seed, step).

    Gradients of ``accumulate`` equal parts of the batch are averaged by a scan, so that step
    counters, schedules and the EMA count optimiser steps. If the loss, the gradient or the
    parameters it leads to are not finite, the state keeps its values and the metric ``finite`` is
    0.

    Args:
        task: the loss.
        optimizer: of the parameters.
        decay: of their average; None for 0.9999.
        accumulate: parts of the batch.
        seed: of all noise.

    Returns:
        ``(state, frozen, batch) -> (state, metrics)``. The metrics have ``loss``, ``grad_norm`` and
        ``finite`` beside those of the task.

    Raises:
        ValueError: accumulate is not positive, or (at trace time) the batch does not divide by it.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: a step needs at least 1 part")
    average, gradients = decay or ema_decay(), _accumulate_gradients(task, accumulate)

    def step(state: State, frozen: Params | None, batch: Batch) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, extra, metrics = gradients(state, frozen, key, batch)
        norm = optax.tree.norm(grads)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = move_average(state.ema, params, average(state.step))
        size = optax.tree.norm(params)  # a finite gradient can still overflow the parameters
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & jnp.isfinite(size)
        new = State(state.step, params, ema, opt, extra)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {**metrics, "grad_norm": norm, "finite": finite.astype(jnp.float32)}
        return new._replace(step=state.step + 1), metrics

    return step


def _accumulate_gradients(task: Task, parts: int) -> ComputeGradient:
    """Return a function for the mean gradient of equal parts of a batch.

    It also returns the task's new statistics and the mean metrics.
    """

    def differentiate(
        state: State, frozen: Params | None, key: jax.Array, batch: Batch
    ) -> Gradient:
        def loss(params: Params) -> tuple[Array, tuple[Statistics, dict[str, Array]]]:
            return task.loss(params, frozen, state.extra, key, state.step, batch)

        (_, (extra, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return grads, extra, metrics

    def accumulate(state: State, frozen: Params | None, key: jax.Array, batch: Batch) -> Gradient:
        split = jax.tree.map(lambda leaf: _split(leaf, parts), batch)

        def body(
            carry: tuple[Params, Statistics], item: tuple[Array, Batch]
        ) -> tuple[tuple[Params, Statistics], dict[str, Array]]:
            total, extra = carry
            index, part = item
            part_key = jax.random.fold_in(key, index)
            before = state._replace(extra=extra)
            grads, extra, metrics = differentiate(before, frozen, part_key, part)
            return (jax.tree.map(jnp.add, total, grads), extra), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, extra), metrics = jax.lax.scan(
            body, (zeros, state.extra), (jnp.arange(parts), split)
        )
        mean = jax.tree.map(lambda leaf: leaf / parts, total)
        return mean, extra, jax.tree.map(lambda leaf: leaf.mean(0), metrics)

    return differentiate if parts == 1 else accumulate


def _split(leaf: Array, parts: int) -> Array:
    """Split the rows of a batch into equal parts, (parts, B / parts, ...).

    Raises:
        ValueError: the parts do not divide the batch.
    """
    if leaf.shape[0] % parts:
        raise ValueError(f"a batch of {leaf.shape[0]} does not divide into {parts} parts")
    # The split is strided, so that every part is spread over all devices as the batch was.
    return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)
