"""The training loop: resumes, reports, checkpoints, and stops cleanly."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from diffjax.train import hosts, resume
from diffjax.train.checkpoint import Best, Checkpoints
from diffjax.train.files import sole_writer
from diffjax.train.frozen import content_hash, write_once
from diffjax.train.optimizer import learning_rate, make_optimizer
from diffjax.train.preempt import OUT_OF_TIME, Preempted, Stop
from diffjax.train.reporter import NoReporter, Reporter
from diffjax.train.sharding import (
    batch_sharding,
    make_mesh,
    place,
    replicated,
    tree_sharding,
    with_sharding,
)
from diffjax.train.step import (
    EMADecay,
    State,
    ema_decay,
    ema_half_life,
    init_state,
    make_step,
)
from diffjax.types import PyTree, Task, choose
from diffjax.writing import write_atomically

Batches = Callable[[int, jax.sharding.Sharding], Iterator[dict[str, Any]]]
OnSample = Callable[[State, PyTree, int, Reporter], None]
OnEvaluate = Callable[[State, PyTree, int], dict[str, float]]
LOOK_AHEAD = 2  # steps queued beyond the running one: enough to hide the host, and clocks stay true
ROLLBACKS = 3  # from one checkpoint, before giving up


class NonFiniteLoss(RuntimeError):
    """The loss, its gradient or the updated parameters became NaN or infinite.

    Attributes:
        step: the first bad step.
    """

    def __init__(self, text: str, step: int):
        super().__init__(text)
        self.step = step


def _average(config: Any) -> EMADecay:
    """The decay of the parameter average that ``config.ema`` describes."""
    section = config.ema
    if half_life := section.half_life:
        return ema_half_life(half_life, config.data.batch_size, ramp=section.ramp)
    return ema_decay(section.decay, warmup=section.warmup)


class _Window:
    """Metrics of the steps since the last line of the log."""

    def __init__(self, reporter: Reporter, config: Any, step: int, values: list[Any]):
        self._reporter, self._values = reporter, values
        self._rate = learning_rate(config.optim, config.train.steps)
        self._skip = config.train.nonfinite == "skip"
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Leave the time since the last line out of the next one's speed."""
        self._clock = time.monotonic(), step

    def add(self, metrics: dict[str, Any]) -> None:
        """Take a step's metrics, waiting while more than LOOK_AHEAD steps are queued."""
        self._values.append(metrics)
        if len(self._values) > LOOK_AHEAD:
            jax.block_until_ready(self._values[-1 - LOOK_AHEAD]["loss"])

    def fetch(self, step: int) -> list[dict[str, float]]:
        """The values so far; ``step`` is the last one's.

        Raises:
            NonFiniteLoss: naming the first bad step, unless such steps are skipped.
        """
        host = jax.device_get(self._values)
        self._values = [{k: float(v) for k, v in value.items()} for value in host]
        for offset, value in enumerate(self._values, 1 - len(self._values)):
            if not value["finite"] and not self._skip:
                raise _not_finite(value, step + offset)
        return list(self._values)  # a copy: `add` goes on while a checkpoint is written

    def report(self, step: int, measure: Callable[[], dict[str, float]] = dict) -> float:
        """Write the means as the line of ``step``, start over, and give the mean loss.

        Steps that were skipped are counted beside the means of the others; ``measure`` is called
        when the steps are done, and what it gives is written in the same line.

        Raises:
            NonFiniteLoss: naming the first bad step; of skipped ones, if there are no others.
        """
        values = self.fetch(step)
        good = [value for value in values if value["finite"]]
        if not good:
            raise _not_finite(values[0], step + 1 - len(values))
        means = {k: math.fsum(v[k] for v in good) / len(good) for k in good[0]}
        means.pop("finite")
        if self._skip:
            means["skipped"] = float(len(values) - len(good))
        since, first = self._clock
        speed = (step - first) / max(time.monotonic() - since, 1e-9)
        line = {**means, "lr": float(self._rate(step - 1)), "steps_per_second": speed}
        self._reporter(step, {**line, **measure()})
        self._values = []
        self.restart_clock(step)
        return means["loss"]


def _not_finite(value: dict[str, float], step: int) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"the loss, its gradient or the updated parameters are not finite at step {step} "
        f"(loss {value['loss']}, gradient norm {value['grad_norm']}); the last good checkpoint "
        "is kept. Lower optim.lr, or set optim.clip, or train.nonfinite to skip or rollback",
        step,
    )


def check_workdir(workdir: Path) -> None:
    """Create the workdir and see that it can be written.

    Raises:
        OSError: it cannot, with the reason.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Every process of a run tries, and several hosts may use the same numbers.
        probe = workdir / f".write-test-{socket.gethostname()}-{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to workdir {workdir}: {error.strerror}"
        ) from error
    if shutil.disk_usage(workdir).free < 100 * 2**20:
        logging.warning("less than 100 MiB are free in workdir %s", workdir)


def train(
    task: Task,
    config: Any,
    workdir: str | Path,
    batches: Batches,
    *,
    frozen: PyTree = None,
    initial: Callable[[], PyTree] | None = None,
    data: Mapping[str, Any] | None = None,
    on_sample: OnSample | None = None,
    on_evaluate: OnEvaluate | None = None,
    resolve: resume.Resolve = dict,
) -> State:
    """Train to ``config.train.steps``, or to ``config.train.minutes`` of wall-clock.

    The workdir gets config.json when the config is known to fit what is there.

    Stopping and resuming gives bit-identical results to not stopping, in the state and in the log:
    randomness and data are functions of (seed, step). A run of several processes (`hosts.start`)
    calls this in each of them; the first one writes.

    Args:
        task: what to train.
        config: sections ``train``, ``optim``, ``ema``, ``mesh`` and ``seed``.
        batches: ``(step, sharding) -> iterator`` of device batches from that step on.
        frozen: parameters that the task reads but does not train, whole in every process. They are
            sharded as the others, and written once, by their content's hash.
        initial: parameters to begin with instead of those of ``task.init``, whole in every
            process; asked for only if there is no checkpoint.
        data: fingerprint of the data, which JSON can hold: it is stored in every checkpoint and
            compared when the run goes on, see `resume.data_differences`.
        on_sample: called every ``train.sample_every`` steps, in every process, with the state, the
            frozen weights as they are placed, the step and the reporter.
        on_evaluate: called every ``train.evaluate_every`` steps with the first three of these; what
            it measures is written to the log, and ``best/`` keeps the state with the best value of
            ``eval.best``.
        resolve: fills in what a config leaves open, before it is compared with that of a
            checkpoint; see `diffjax.config.resolve`.

    Raises:
        ValueError: a wrong value in the config, naming it.
        FileExistsError: the workdir has a config.json that is not of a run.
        NonFiniteLoss: naming the step; the last good checkpoint is kept.
        Preempted: after SIGTERM, SIGUSR2 or SIGINT, when the state has been saved.
        CheckpointError: a checkpoint could not be written, or none of those there can be read.
        CheckpointMismatch: those there belong to another config, other frozen weights or data.
        OSError: the workdir cannot be written, or another process is writing it.
    """
    workdir, cfg = Path(workdir), config.train
    _check_section(cfg)
    check_workdir(workdir)
    mesh = make_mesh(config.mesh)
    with contextlib.ExitStack() as closing:
        closing.enter_context(_claimed(workdir))
        run = _Run(task, config, workdir, batches, (frozen, initial), mesh, (data, resolve))
        stop = closing.enter_context(Stop(mesh, minutes=cfg.minutes))
        checkpoints = closing.enter_context(Checkpoints(workdir / "checkpoints", keep=cfg.keep))
        offset, tries, last = 0, 0, -1
        while True:
            begun = run.begin(checkpoints, offset)
            try:
                return _advance(run, begun, checkpoints, stop, on_sample, on_evaluate)
            except NonFiniteLoss as error:
                checkpoints.wait()
                newest = checkpoints.newest() or 0
                tries, last = (tries + 1 if newest == last else 1), newest
                if cfg.nonfinite != "rollback" or tries > ROLLBACKS:
                    raise
                left_out = error.step - newest
                offset = begun.offset + left_out
                logging.warning(
                    "%s; back to step %d, leaving out %d batches", error, newest, left_out
                )


class _Begun(NamedTuple):
    """Where training begins: values are the metrics since the last line of the log.

    ``offset`` is how many batches rollbacks have left out so far.
    """

    step: int
    state: State
    values: list[Any]
    offset: int


class _Run:
    """What stays the same however often the training of a workdir begins."""

    def __init__(
        self,
        task: Task,
        config: Any,
        workdir: Path,
        batches: Batches,
        given: tuple[PyTree, Callable[[], PyTree] | None],
        mesh: Any,
        comparison: tuple[Mapping[str, Any] | None, resume.Resolve],
    ):
        frozen, self._initial = given
        data, self._resolve = comparison
        self._data = None if data is None else dict(data)
        optimizer = make_optimizer(config.optim, config.train.steps)
        self.config, self.workdir, self.batches = config, workdir, batches
        self.place = batch_sharding(mesh)
        init = _initializer(task, optimizer, config.seed, batches(0, self.place))
        frozen_shardings = tree_sharding(frozen, mesh)
        self._hash = content_hash(frozen)
        self.frozen = place(frozen, frozen_shardings)
        write_once(workdir / "frozen", self._hash, self.frozen)
        shapes = jax.eval_shape(init, self.frozen)
        shardings = tree_sharding(shapes, mesh)
        self._abstract = with_sharding(shapes, shardings)
        self._fresh = jax.jit(init, out_shardings=shardings)
        self.update = compiled_step(task, optimizer, config, (shardings, frozen_shardings), mesh)

    def begin(self, checkpoints: Checkpoints, offset: int) -> _Begun:
        """The newest checkpoint, or a fresh state."""
        step, override = checkpoints.newest(), self.config.train.override
        stored = {} if step is None else checkpoints.metadata(step)
        if step is not None:
            resume.check(
                *(stored, self.config, self._hash, self._data),
                override=override,
                resolve=self._resolve,
            )
        self._store_config()
        if step is None:
            return _Begun(0, self._start(), [], offset)
        fresh = self._start if override else None
        restored = checkpoints.restore(self._abstract, step=step, fresh=fresh)
        assert restored is not None
        logging.info("resumed at step %d", step)
        offset = max(offset, stored.get("offset", 0))
        return _Begun(step, restored[1], stored.get("window", []), offset)

    def _start(self) -> State:
        """A fresh state."""
        state = self._fresh(self.frozen)
        if self._initial is None:
            return state
        given = self._initial()
        check_shapes(given, state.params)
        where = jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.ema))
        # Copied: both are donated, and placing need not copy.
        twice = jax.jit(lambda tree: jax.tree.map(jnp.copy, (tree, tree)), out_shardings=where)
        params, ema = twice(place(given, where[0]))
        return state._replace(params=params, ema=ema)

    def _store_config(self) -> None:
        """config.json, once it is known to fit the checkpoints of the workdir."""
        if not hosts.is_writer() or not (config := resume.as_json(self.config)):
            return
        config["train"]["override"] = False  # it was for this time
        path = self.workdir / "config.json"
        resume.check_is_config(path)
        write_atomically(path, json.dumps(config, indent=2) + "\n")

    def metadata(self, window: list[Any], offset: int) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        config = resume.as_json(self.config)
        known = {} if self._data is None else {"data": self._data}
        return {
            **known, "config": config, "frozen": self._hash, "window": window, "offset": offset,
        }  # fmt: skip


def _advance(
    run: _Run,
    begun: _Begun,
    checkpoints: Checkpoints,
    stop: Stop,
    on_sample: OnSample | None,
    on_evaluate: OnEvaluate | None,
) -> State:
    """Train from there to the end, or to a reason to stop."""
    cfg = run.config.train
    every = cfg.evaluate_every if on_evaluate else 0
    step, state, values, offset = begun
    with contextlib.ExitStack() as closing:
        make_reporter = Reporter if hosts.is_writer() else NoReporter
        reporter = closing.enter_context(make_reporter(run.workdir, resumed=step - len(values)))
        window = _Window(reporter, run.config, step, values)
        stream = closing.enter_context(_closing(run.batches(step + offset, run.place)))
        bar = closing.enter_context(_progress(cfg.steps, step))
        evaluate = (
            closing.enter_context(_keep_best(run, on_evaluate)) if on_evaluate and every else None
        )
        reason = 0
        while step < cfg.steps and not (reason := stop.reason()):
            state, metrics = run.update(state, run.frozen, next(stream))
            step += 1
            window.add(metrics)
            bar.update()
            checkpoints.check()
            if step % cfg.log_every == 0:
                due = evaluate and step % every == 0
                look = partial(evaluate, state, run.frozen, step) if evaluate and due else dict
                loss = window.report(step, look)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if step % cfg.checkpoint_every == 0:
                checkpoints.save(step, state, run.metadata(window.fetch(step), offset))
            due = cfg.sample_every and step % cfg.sample_every == 0
            if on_sample and due and not stop.hurried:
                on_sample(state, run.frozen, step, reporter)
                window.restart_clock(step)
        if reason:
            logging.info("stopping at step %d", step)
        unfinished = window.fetch(step)
        checkpoints.save(step, state, run.metadata(unfinished, offset))
        checkpoints.wait()
        if any(value["finite"] for value in unfinished):  # else all of them were skipped
            window.report(step)
    if reason > OUT_OF_TIME:
        raise Preempted(reason, step)
    return state


@contextlib.contextmanager
def _keep_best(run: _Run, on_evaluate: OnEvaluate) -> Iterator[OnEvaluate]:
    """``on_evaluate``, after which the state is offered to the best."""
    section = run.config.eval
    name, mode = section.best, section.best_mode
    if not name:
        yield on_evaluate
        return
    with Best(run.workdir / "best", name, mode=mode) as best:

        def evaluate(state: State, frozen: PyTree, step: int) -> dict[str, float]:
            found = on_evaluate(state, frozen, step)
            if name not in found:
                raise ValueError(f"eval.best={name!r} was not measured, but {', '.join(found)}")
            best.offer(step, found[name], state, run.metadata([], 0))
            return found

        yield evaluate


@contextlib.contextmanager
def _claimed(workdir: Path) -> Iterator[None]:
    """The workdir is this run's alone.

    Raises:
        OSError: another run has it.
    """
    with contextlib.ExitStack() as held:
        problem = ""
        try:
            if hosts.is_writer():
                held.enter_context(sole_writer(workdir))
        except OSError as error:
            problem = str(error.strerror)
        if problem := hosts.agree("workdir", problem):
            raise BlockingIOError(errno.EAGAIN, problem)
        yield


def _initializer(
    task: Task, optimizer: optax.GradientTransformation, seed: int, stream: Iterator[Any]
) -> Callable[[PyTree], State]:
    with _closing(stream):
        # One example is enough: parameters do not depend on the batch size.
        example = jax.tree.map(_first, next(stream))
    if jax.process_count() > 1:
        example = multihost_utils.broadcast_one_to_all(example)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return lambda frozen: init_state(task, optimizer, key, frozen, example)


def check_shapes(given: PyTree, wanted: PyTree) -> None:
    """See that parameters to begin with are those of the task.

    Raises:
        ValueError: naming what differs.
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


def _first(leaf: Any) -> Any:
    """The first row; of what this process has, where an array spans several."""
    whole = getattr(leaf, "is_fully_addressable", True)
    return leaf[:1] if whole else np.asarray(leaf.addressable_data(0))[:1]


def compiled_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: Any,
    shardings: tuple[PyTree, PyTree],
    mesh: Any,
) -> Any:
    """The jitted step of a config: ``(state, frozen, batch) -> (state, metrics)``, state donated.

    Args:
        shardings: of the state, and of the frozen weights.
    """
    step = make_step(
        task,
        optimizer,
        decay=_average(config),
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
    return jax.jit(
        step,
        in_shardings=(*shardings, batch_sharding(mesh)),
        out_shardings=(shardings[0], replicated(mesh)),
        donate_argnums=0,
    )


def _check_section(section: Any) -> None:
    for name in ("log_every", "checkpoint_every"):
        if section[name] < 1:
            raise ValueError(f"train.{name}={section[name]}: an interval is at least 1 step")
    if section.evaluate_every % section.log_every:
        raise ValueError(
            f"train.evaluate_every={section.evaluate_every} must be a multiple of "
            f"train.log_every={section.log_every}: the measures stand in the log's lines"
        )
    choose("train.nonfinite", section.nonfinite, dict.fromkeys(("stop", "skip", "rollback")))


def _closing(stream: Iterator[Any]) -> contextlib.AbstractContextManager[Any]:
    """Ends the threads of a stream that has any."""
    if isinstance(stream, Generator):
        return contextlib.closing(stream)
    return contextlib.nullcontext(stream)


def _progress(steps: int, start: int) -> Any:
    return tqdm(
        total=steps,
        initial=start,
        unit="step",
        dynamic_ncols=True,
        mininterval=1.0,
        disable=not hosts.is_writer(),
    )
