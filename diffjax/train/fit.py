"""Training in memory: a task, batches and an optimiser, without configs or files.

`diffjax.train.train` is the trainer of runs, which stores, resumes and reports; both take the same
steps (`make_step`).
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import optax

from diffjax.train.averages import ema_decay
from diffjax.train.step import Batch, State, init_state, make_step
from diffjax.train.window import OnMetrics
from diffjax.types import Params, Task


def fit(
    task: Task,
    batches: Iterable[Batch],
    steps: int,
    *,
    optimizer: optax.GradientTransformation | None = None,
    decay: float = 0.999,
    seed: int = 0,
    frozen: Params | None = None,
    on_metrics: OnMetrics | None = None,
    log_every: int = 100,
) -> State:
    """Train for some steps and return the state; ``state.ema`` are the averaged parameters.

    ::

        task = diffjax.diffusion_task(model)
        state = diffjax.fit(task, batches, 1000, on_metrics=lambda step, m: print(step, m["loss"]))
        images = diffjax.draw(model._replace(params=state.ema, statistics=state.extra))

    Args:
        task: what is trained.
        batches: dicts of (B, ...) arrays, such as ``image`` (B, H, W, C) in [-1, 1] and ``label``
            (B,); all of one shape.
        steps: optimiser steps, at least 1.
        optimizer: Adam with a learning rate of 1e-3 if None.
        decay: of the average of the parameters, with a warm-up ``min(decay, (1 + n) / (10 + n))``.
        seed: of the initial parameters and of all noise.
        frozen: parameters that the task reads but does not train.
        on_metrics: called every ``log_every`` steps, and after the last, with the step and the
            metrics of that step.
        log_every: steps between two calls.

    Raises:
        ValueError: there are fewer batches than steps, or a loss is not finite; the step is named.
    """
    optimizer = optimizer or optax.adam(1e-3)
    step = jax.jit(
        make_step(task, optimizer, decay=ema_decay(decay, warmup=True), seed=seed),
        donate_argnums=0,
    )
    state, metrics, stream = None, {}, iter(batches)
    start = jax.jit(lambda f, b: init_state(task, optimizer, jax.random.key(seed), f, b))
    for n in range(1, steps + 1):
        batch = next(stream, None)
        if batch is None:
            raise ValueError(f"there are batches for {n - 1} of {steps} steps")
        if state is None:
            state = start(frozen, batch)
        state, metrics = step(state, frozen, batch)
        if n % log_every == 0 or n == steps:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not values.pop("finite"):
                raise ValueError(f"the loss or its gradient is not finite at step {n}")
            if on_metrics is not None:
                on_metrics(n, values)
    if state is None:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return state
