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

from diffjax.remat import POLICIES, resolve_remat
from diffjax.train import hosts, memory, resume
from diffjax.train.averages import make_averages, track_further
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
    Step,
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
        optimizer = track_further(optimizer, config.ema, config.data.batch_size)
        mesh = self.mesh = make_mesh(config.mesh)
        self.place = make_batch_sharding(mesh)
        example = _take_batch(batches(0, self.place))
        init = _make_initializer(task, optimizer, config.seed, example)
        frozen_shardings = make_tree_sharding(frozen, mesh)
        self._hash = hash_content(frozen)
        self.frozen = place(frozen, frozen_shardings)
        write_once(workdir / "frozen", self._hash, self.frozen)
        shapes = jax.eval_shape(init, self.frozen)
        shardings = make_tree_sharding(shapes, mesh)
        self._abstract = with_sharding(shapes, shardings)
        self._fresh = _compile_initializer(init, shardings, mesh)
        given = (
            self._abstract,
            with_sharding(jax.eval_shape(lambda tree: tree, self.frozen), frozen_shardings),
            jax.tree.map(_describe, example),
        )

        def compile(remat: str) -> jax.stages.Wrapped:
            places = (shardings, frozen_shardings)
            return compile_step(task, optimizer, config, places, mesh, remat=remat)

        self.update = compile_what_fits(compile, given, config, mesh, workdir)

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


def _take_batch(stream: Iterator[Batch]) -> Batch:
    """Take the first batch of a stream, and end the stream."""
    with closing_stream(stream):
        return next(stream)


def _describe(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Describe an array by its shape, its type, and where it is if it says so."""
    place = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _make_initializer(
    task: Task, optimizer: optax.GradientTransformation, seed: int, batch: Batch
) -> Callable[[Params | None], State]:
    """Return ``frozen -> State``, which initialises with the first batch as the example.

    With several processes, all use the example of the first one.
    """
    # One example is enough: parameters do not depend on the batch size.
    example = jax.tree.map(_take_first, batch)
    if jax.process_count() > 1:
        example = multihost_utils.broadcast_one_to_all(example)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return lambda frozen: init_state(task, optimizer, key, frozen, example)


def _compile_initializer(
    init: Callable[[Params | None], State], shardings: Shardings, mesh: Mesh
) -> jax.stages.Wrapped:
    """Compile what makes the initial state, quickly on CPUs, since it runs once.

    At this level of LLVM it compiles in half the time there, to the same values.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    quick = on_cpu and not jax.config.values["jax_disable_most_optimizations"]
    options = {"xla_backend_optimization_level": 1} if quick else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)


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
    *,
    remat: str = POLICIES[0],
) -> jax.stages.Wrapped:
    """Compile the step of a config: ``(state, frozen, batch) -> (state, metrics)``, state donated.

    Args:
        task: what is trained.
        optimizer: of the parameters.
        config: sections ``train``, ``ema``, ``data`` and ``seed``.
        shardings: of the state, and of the frozen weights.
        mesh: all devices of the run.
        remat: what ``network.remat=auto`` stands for.
    """
    step = make_step(
        task,
        optimizer,
        decay=make_averages(config.ema, config.data.batch_size)[0],
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
    # Kernels of accelerators are placed by the mesh of the context. CPUs have none.
    own = mesh.devices.flat[0].platform != "cpu"

    def trace(state: State, frozen: Params | None, batch: Batch) -> tuple[State, dict[str, Array]]:
        where = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with resolve_remat(remat), where if own else contextlib.nullcontext():
            return step(state, frozen, batch)

    return jax.jit(
        trace,
        in_shardings=(*shardings, make_batch_sharding(mesh)),
        out_shardings=(shardings[0], make_replicated_sharding(mesh)),
        donate_argnums=0,
    )


def compile_what_fits(
    compile: Callable[[str], jax.stages.Wrapped],
    given: tuple[State, Params | None, Batch],
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
) -> Step:
    """Return the step of a config; with ``network.remat=auto``, the first that fits the device.

    A program that was compiled to see whether it fits is the one that runs. Where the device does
    not say how much memory it has, and for a policy that the workdir knows, nothing is compiled.

    Args:
        compile: from what ``auto`` stands for to the jitted step.
        given: shapes and places of its arguments.
        config: section ``network``, if there is one, beside those of `compile_step`.
        mesh: all devices of the run.
        workdir: where the choice is kept.

    Raises:
        DoesNotFit: the compiler refuses the step, whatever is computed again.
    """
    limit = memory.read_limit(mesh)
    if config.get("network", {}).get("remat") != "auto" or limit is None:
        return compile(POLICIES[0])
    situation = memory.describe_situation(config, mesh, limit)
    if (known := memory.read_choice(workdir, situation)) is not None:
        logging.info("network.remat=auto: %s, as before", known)
        return compile(known)
    sizes = {"state_bytes": memory.count_local_bytes(given[:2])}

    def attempt(policy: str) -> tuple[tuple[Step, jax.stages.Compiled], float]:
        step = compile(policy)
        with say_compiling(f"the training step with remat={policy}"):
            program = memory.compile_within_memory(step.lower(*given).compile, sizes)
        return (step, program), memory.read_peak(program)

    policy, found, peak = memory.take_first_that_fits(attempt, limit * memory.SHARE)
    memory.keep_choice(workdir, situation, policy, peak)
    step, program = found
    shapes = jax.tree.map(_describe_shape, given[2])

    def call(state: State, frozen: Params | None, batch: Batch) -> tuple[State, dict[str, Array]]:
        same = jax.tree.map(_describe_shape, batch) == shapes
        return program(state, frozen, batch) if same else step(state, frozen, batch)

    return call


def _describe_shape(leaf: jax.Array | jax.ShapeDtypeStruct) -> tuple[object, ...]:
    """Describe an array by its shape and type."""
    return (*leaf.shape, str(leaf.dtype))


def closing_stream(
    stream: Iterator[Batch],
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Return a context that ends the threads of a stream, if it has any."""
    if isinstance(stream, Generator):
        return contextlib.closing(stream)
    return contextlib.nullcontext(stream)
