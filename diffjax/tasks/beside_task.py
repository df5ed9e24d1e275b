"""Tasks that train something beside a frozen base: adapters, a word, a ControlNet.

``frozen["base"]`` holds the parameters of the base, and ``frozen["statistics"]``, if there, what it
measured of its data. They are no arguments of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from diffjax.types import Array, Batch, Frozen, LossAndState, Params, Statistics, Task


def train_beside(
    inner: Task,
    start: Callable[[jax.Array, Params, Frozen], Params],
    join: Callable[[Params, Frozen, Batch], Params],
) -> Task:
    """Make a task that trains a few parameters, with the loss of another task.

    The loss is ``inner.loss(join(params, frozen, batch), frozen, ...)``, and the state that is kept
    beside the parameters begins as that of the base.

    Args:
        inner: the task of the whole network.
        start: ``(key, fresh, frozen) ->`` the parameters that are trained. ``fresh`` are those of
            ``inner``, which nobody computes under jit if they are not used.
        join: ``(params, frozen, batch) ->`` the parameters that ``inner`` reads.
    """

    def init(key: jax.Array, frozen: Frozen, batch: Batch) -> tuple[Params, Statistics]:
        fresh, extra = inner.init(key, frozen, batch)
        return start(key, fresh, frozen), {**extra, **frozen.get("statistics", {})}

    def loss(
        params: Params,
        frozen: Frozen,
        extra: Statistics,
        key: jax.Array,
        step: Array,
        batch: Batch,
    ) -> LossAndState:
        joined = join(params, frozen, batch)
        return inner.loss(joined, frozen, extra, key, step, batch)

    return Task(init, loss)
