"""What stays the same however often the training of a workdir begins: the step and its inputs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding
from ml_collections import ConfigDict

from diffjax.train import hosts, resume
from diffjax.train.averages import make_averages, track
from diffjax.train.checkpoint import Checkpoints, Metadata
from diffjax.train.frozen import hash_content, write_once
from diffjax.train.optimizer import learning_rate, make_optimizer
from diffjax.train.progress import say_compiling
from diffjax.train.sharding import (
    Shardings,
    make_batch_sharding,
    make_mesh,
    make_replicated_sharding,
    make_tree_sharding,
    place,
    with_sharding,
)
from diffjax.train.step import (
    Batch,
    State,
    init_state,
    make_step,
)
from diffjax.train.window import Metrics
from diffjax.types import Array, Params, Task
from diffjax.writing import write_atomically

Batches = Callable[[int, Sharding], Iterator[Batch]]


class StartPoint(NamedTuple):
    """Where a training begins or resumes.

    Attributes:
        step: optimiser steps done.
        state: the state after them.
        values: the metrics of the steps since the last line of the log.
        offset: how many batches rollbacks have left out so far.
    """

    step: int
    state: State
    values: list[Metrics]
    offset: int


class Inputs(NamedTuple):
    """What a training needs beside its config.

    Attributes:
        frozen: parameters that the task reads but does not train.
        initial: makes the parameters to begin with; None: the task does.
        data: fingerprint of the data; None if it is not known.
    """

    frozen: Params | None
    initial: Callable[[], Params] | None
    data: resume.Fingerprint | None


class PreparedRun:
    """What stays the same however often the training of a workdir begins.

    Attributes:
        update: the compiled step.
        frozen: the frozen weights, placed on the devices.
        place: the sharding of batches.
        mesh: all devices of the run.
        rate: learning rate of a step; None for an optimiser that the caller made.
        config, workdir, batches: arguments of `diffjax.train.training_loop.train`.
    """

    def __init__(
        self,
        task: Task,
        config: ConfigDict,
        workdir: Path,
        batches: Batches,
        inputs: Inputs,
        optimizer: optax.GradientTransformation | None = None,
        resolve: resume.Resolve = dict,
    ):
        frozen, self._initial, data = inputs
        self.config, self.workdir, self.batches = config, workdir, batches
        self._resolve = resolve
        self._data = None if data is None else dict(data)
        steps = config.train.steps
        self.rate = None if optimizer else learning_rate(config.optim, steps)
        optimizer = optimizer or make_optimizer(config.optim, steps)
        optimizer = track(optimizer, make_averages(config.ema, config.data.batch_size)[1:])
        mesh = self.mesh = make_mesh(config.mesh)
        self.place = make_batch_sharding(mesh)
        init = _make_initializer(task, optimizer, config.seed, batches(0, self.place))
        frozen_shardings = make_tree_sharding(frozen, mesh)
        self._hash = hash_content(frozen)
        self.frozen = place(frozen, frozen_shardings)
        write_once(workdir / "frozen", self._hash, self.frozen)
        shapes = jax.eval_shape(init, self.frozen)
        shardings = make_tree_sharding(shapes, mesh)
        self._abstract = with_sharding(shapes, shardings)
        self._fresh = jax.jit(init, out_shardings=shardings)
        self.update = compile_step(task, optimizer, config, (shardings, frozen_shardings), mesh)

    def begin(self, checkpoints: Checkpoints, offset: int) -> StartPoint:
        """Return the newest checkpoint, or a newly initialised state.

        Args:
            checkpoints: of the workdir.
            offset: batches that rollbacks have left out so far.

        Raises:
            CheckpointMismatch: the checkpoint belongs to another config, other weights or data.
            CheckpointError: there are checkpoints, but all are damaged.
        """
        step, override = checkpoints.newest(), self.config.train.override
        stored = {} if step is None else checkpoints.metadata(step)
        if step is not None:
            resume.check_resume(
                *(stored, self.config, self._hash, self._data),
                override=override,
                resolve=self._resolve,
            )
        self._store_config()
        if step is None:
            return StartPoint(0, self._initialize(), [], offset)
        fresh = self._initialize if override else None
        restored = checkpoints.restore(self._abstract, step=step, fresh=fresh)
        assert restored is not None
        logging.info("resumed at step %d", step)
        offset = max(offset, stored.get("offset", 0))
        return StartPoint(step, restored[1], stored.get("window", []), offset)

    def _initialize(self) -> State:
        """Make the state of step 0, with the parameters of ``initial`` if there are any."""
        with say_compiling("the initial state"):
            state = self._fresh(self.frozen)
        if self._initial is None:
            return state
        given = self._initial()
        check_shapes(given, state.params)
        where = jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.ema))
        # Each gets a copy of its own, because both are donated and placing need not copy.
        twice = jax.jit(lambda tree: jax.tree.map(jnp.copy, (tree, tree)), out_shardings=where)
        params, ema = twice(place(given, where[0]))
        return state._replace(params=params, ema=ema)

    def _store_config(self) -> None:
        """Write config.json, once it is known to fit the checkpoints of the workdir."""
        if not hosts.is_writer() or not (config := resume.to_json_tree(self.config)):
            return
        config["train"]["override"] = False  # the override holds for this start only
        path = self.workdir / "config.json"
        resume.check_is_config(path)
        write_atomically(path, json.dumps(config, indent=2) + "\n")

    def metadata(self, window: list[Metrics], offset: int) -> Metadata:
        """Return what is stored beside the state of a checkpoint: config, data, metrics.

        Args:
            window: metrics since the last line of the log.
            offset: batches that rollbacks have left out so far.
        """
        config = resume.to_json_tree(self.config)
        known = {} if self._data is None else {"data": self._data}
        return {
            **known, "config": config, "frozen": self._hash, "window": window, "offset": offset,
        }  # fmt: skip


def _make_initializer(
    task: Task, optimizer: optax.GradientTransformation, seed: int, stream: Iterator[Batch]
) -> Callable[[Params | None], State]:
    """Return ``frozen -> State``, which initialises with the first batch as the example.

    With several processes, all use the example of the first one.
    """
    with closing_stream(stream):
        # One example is enough: parameters do not depend on the batch size.
        example = jax.tree.map(_take_first, next(stream))
    if jax.process_count() > 1:
        example = multihost_utils.broadcast_one_to_all(example)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return lambda frozen: init_state(task, optimizer, key, frozen, example)


def check_shapes(given: Params, wanted: Params) -> None:
    """Check that parameters to begin with have the names and shapes of the task's.

    Raises:
        ValueError: they do not; the message names the first difference.
    """
    found, needed = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}
        for flat in (jax.tree_util.tree_leaves_with_path(tree) for tree in (given, wanted))
    )
    wrong = [k for k in found.keys() | needed.keys() if found.get(k) != needed.get(k)]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"{len(wrong)} of the parameters to begin with do not fit, such as {name}: "
            f"{found.get(name, 'none')} where the task has {needed.get(name, 'none')}"
        )


def _take_first(leaf: jax.Array) -> Array:
    """Return the first row of an array, or of this process's part of it."""
    whole = getattr(leaf, "is_fully_addressable", True)
    return leaf[:1] if whole else np.asarray(leaf.addressable_data(0))[:1]


def compile_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    shardings: tuple[Shardings, Shardings],
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """Compile the step of a config: ``(state, frozen, batch) -> (state, metrics)``, state donated.

    Args:
        task: what is trained.
        optimizer: of the parameters.
        config: sections ``train``, ``ema``, ``data`` and ``seed``.
        shardings: of the state, and of the frozen weights.
        mesh: all devices of the run.
    """
    step = make_step(
        task,
        optimizer,
        decay=make_averages(config.ema, config.data.batch_size)[0],
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
    return jax.jit(
        step,
        in_shardings=(*shardings, make_batch_sharding(mesh)),
        out_shardings=(shardings[0], make_replicated_sharding(mesh)),
        donate_argnums=0,
    )


def closing_stream(
    stream: Iterator[Batch],
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Return a context that ends the threads of a stream, if it has any."""
    if isinstance(stream, Generator):
        return contextlib.closing(stream)
    return contextlib.nullcontext(stream)
