"""The training loop: resumes, reports, checkpoints, and stops cleanly.

Stopping and resuming gives bit-identical results to not stopping, in the state and in the log:
randomness and data are functions of (seed, step). The workdir gets config.json when the config is
known to fit what is there. A run of several processes (`hosts.start`) calls `train` in each of
them; the first one writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import optax
from absl import logging
from ml_collections import ConfigDict

from diffjax.train import hosts, resume
from diffjax.train.checkpoint import Best, Checkpoints
from diffjax.train.preempt import OUT_OF_TIME, Preempted, Stop
from diffjax.train.prepare import Batches, Inputs, PreparedRun, StartPoint, closing_stream
from diffjax.train.progress import StepBar, say_compiling
from diffjax.train.reporter import NoReporter, Reporter
from diffjax.train.sealed_files import sole_writer
from diffjax.train.snapshots import Snapshots
from diffjax.train.step import State
from diffjax.train.trackers import Tracker, check_trackers, start_trackers
from diffjax.train.window import LOOK_AHEAD, Metrics, NonFiniteLoss, OnMetrics, Window
from diffjax.types import Params, Task, choose

OnSample = Callable[[State, Params | None, int, Reporter], None]
OnEvaluate = Callable[[State, Params | None, int], Metrics]
ROLLBACKS = 3  # attempts from one checkpoint before the error is raised


def check_workdir(workdir: Path) -> None:
    """Create the workdir and check that it can be written; warn if its disk is nearly full.

    Raises:
        OSError: it cannot be written; the message has the reason.
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


class Callbacks(NamedTuple):
    """Functions that a run calls beside its steps; each may be None.

    Attributes:
        sample, evaluate, metrics: ``on_sample``, ``on_evaluate`` and ``on_metrics`` of `train`.
    """

    sample: OnSample | None = None
    evaluate: OnEvaluate | None = None
    metrics: OnMetrics | None = None


def train(
    task: Task,
    config: ConfigDict,
    workdir: str | Path,
    batches: Batches,
    *,
    frozen: Params | None = None,
    initial: Callable[[], Params] | None = None,
    data: resume.Fingerprint | None = None,
    optimizer: optax.GradientTransformation | None = None,
    on_sample: OnSample | None = None,
    on_evaluate: OnEvaluate | None = None,
    on_metrics: OnMetrics | None = None,
    resolve: resume.Resolve = dict,
) -> State:
    """Train to ``config.train.steps``, or to ``config.train.minutes`` of wall-clock.

    Args:
        task: what to train.
        config: sections ``train``, ``optim``, ``ema``, ``mesh`` and ``seed``.
        workdir: folder of the run. If it has a checkpoint, the training resumes there.
        batches: ``(step, sharding) -> iterator`` of device batches from that step on.
        frozen: parameters that the task reads but does not train, whole in every process. They
            are sharded as the others, and written once, under their content's hash.
        initial: makes parameters to begin with instead of those of ``task.init``, whole in every
            process; called only if there is no checkpoint.
        data: fingerprint of the data, which JSON can hold. It is stored in every checkpoint and
            compared when the run resumes, see `resume.find_data_differences`.
        optimizer: in place of that of ``config.optim``; the log has no learning rate then.
        on_sample: called every ``train.sample_every`` steps, in every process, with the state,
            the frozen weights as they are placed, the step and the reporter.
        on_evaluate: called every ``train.evaluate_every`` steps with the first three of these. The
            log gets what it measures, ``best/`` the state with the best value of ``eval.best``.
        on_metrics: called with (step, metrics) of every line of the log, in the first process.
        resolve: fills in what a config leaves open, before it is compared with a checkpoint's.

    Returns:
        The last state.

    Raises:
        ValueError: a wrong value in the config; the message names it.
        FileExistsError: the workdir has a config.json that is not of a run.
        NonFiniteLoss: the loss is not finite; the message names the step, and the last good
            checkpoint is kept.
        Preempted: after SIGTERM, SIGUSR2 or SIGINT, when the state has been saved.
        CheckpointError: a checkpoint could not be written, or none of those there can be read.
        CheckpointMismatch: those there belong to another config, other frozen weights or data.
        OSError: the workdir cannot be written, or another process is writing it.
    """
    folder = Path(workdir)
    _check_section(config.train)
    check_workdir(folder)
    with _claim_workdir(folder):
        inputs = Inputs(frozen, initial, data)
        run = PreparedRun(task, config, folder, batches, inputs, optimizer, resolve)
        return _train_until_done(run, Callbacks(on_sample, on_evaluate, on_metrics))


def _train_until_done(run: PreparedRun, callbacks: Callbacks) -> State:
    """Train to the end, with as many rollbacks as ``train.nonfinite`` allows.

    A rollback returns to the newest checkpoint and leaves out the batches up to the bad step.

    Raises:
        NonFiniteLoss: rollbacks are not wanted, or `ROLLBACKS` from one checkpoint did not help.
    """
    cfg, names = run.config.train, run.config.train.trackers if hosts.is_writer() else ()
    with contextlib.ExitStack() as closing:
        stop = closing.enter_context(Stop(run.mesh, minutes=cfg.minutes))
        trackers = closing.enter_context(start_trackers(names, run.workdir, run.config))
        checkpoints = closing.enter_context(Checkpoints(run.workdir / "checkpoints", keep=cfg.keep))
        snapshots = closing.enter_context(Snapshots(run.workdir, run.config.ema))
        offset, tries, last = 0, 0, -1
        while True:
            begun = run.begin(checkpoints, offset)
            try:
                return _advance(run, begun, (checkpoints, snapshots), stop, callbacks, trackers)
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


def _advance(
    run: PreparedRun,
    begun: StartPoint,
    stores: tuple[Checkpoints, Snapshots],
    stop: Stop,
    callbacks: Callbacks,
    trackers: list[Tracker],
) -> State:
    """Train from a starting point to the end, or to a reason to stop, and save the last state.

    Raises:
        NonFiniteLoss: see `Window`.
        Preempted: a signal asked the run to stop.
    """
    cfg, on_sample, (checkpoints, snapshots) = run.config.train, callbacks.sample, stores
    step, state, values, offset = begun
    with contextlib.ExitStack() as closing:
        make_reporter = Reporter if hosts.is_writer() else NoReporter
        reporter = closing.enter_context(
            make_reporter(
                run.workdir,
                resumed=step - len(values),
                trackers=trackers,
                on_metrics=callbacks.metrics,
            )
        )
        window = Window(reporter, step, values, rate=run.rate, skip=cfg.nonfinite == "skip")
        stream = closing.enter_context(closing_stream(run.batches(step + offset, run.place)))
        bar = closing.enter_context(contextlib.closing(StepBar(cfg.steps, step)))
        evaluate, every = closing.enter_context(_keep_best(run, callbacks.evaluate))
        reason = 0
        while step < cfg.steps and not (reason := stop.reason()):
            batch = next(stream)
            with say_compiling("the training step", first=step == begun.step):
                state, metrics = run.update(state, run.frozen, batch)
            step += 1
            window.add(metrics)
            if bar.update() and cfg.log_every > LOOK_AHEAD + 1:
                window.restart_clock(step)
            checkpoints.check()
            if step % cfg.log_every == 0:
                due = every and step % every == 0
                look = partial(evaluate, state, run.frozen, step) if due else dict
                loss = window.report(step, look)
                bar.show_loss(loss)
            snapshots.take(step, state)
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
        snapshots.take(step, state, last=True)
        if any(value["finite"] for value in unfinished):  # otherwise all of them were skipped
            window.report(step)
    if reason > OUT_OF_TIME:
        raise Preempted(reason, step)
    return state


@contextlib.contextmanager
def _keep_best(
    run: PreparedRun, on_evaluate: OnEvaluate | None
) -> Iterator[tuple[OnEvaluate, int]]:
    """Wrap ``on_evaluate`` so that the state is offered to `Best` afterwards.

    Yields:
        The wrapped function, and the steps between two calls; 0 for never.

    Raises:
        ValueError: (when called) the metric ``eval.best`` was not measured.
    """
    every, section = run.config.train.evaluate_every, run.config.eval
    name, mode = section.best, section.best_mode
    if not on_evaluate or not every:
        yield lambda state, frozen, step: {}, 0
        return
    if not name:
        yield on_evaluate, every
        return
    with Best(run.workdir / "best", name, mode=mode) as best:

        def evaluate(state: State, frozen: Params | None, step: int) -> Metrics:
            found = on_evaluate(state, frozen, step)
            if name not in found:
                raise ValueError(f"eval.best={name!r} was not measured, but {', '.join(found)}")
            best.offer(step, found[name], state, run.metadata([], 0))
            return found

        yield evaluate, every


@contextlib.contextmanager
def _claim_workdir(workdir: Path) -> Iterator[None]:
    """Keep other runs out of the workdir while the block runs.

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


def _check_section(section: ConfigDict) -> None:
    """Check the intervals, trackers and choices of ``config.train``.

    Raises:
        ValueError, ConfigError: a value is wrong; the message names it.
    """
    for name in ("log_every", "checkpoint_every"):
        if section[name] < 1:
            raise ValueError(f"train.{name}={section[name]}: an interval is at least 1 step")
    if section.evaluate_every % section.log_every:
        raise ValueError(
            f"train.evaluate_every={section.evaluate_every} must be a multiple of "
            f"train.log_every={section.log_every}: measures are written to lines of the log"
        )
    check_trackers(section.trackers)
    choose("train.nonfinite", section.nonfinite, dict.fromkeys(("stop", "skip", "rollback")))
