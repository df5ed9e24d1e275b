"""The training loop: resumes, reports, checkpoints, and stops cleanly."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import optax
from absl import logging
from tqdm import tqdm

from diffjax.train.checkpoint import CheckpointMismatch, Checkpoints, fingerprint
from diffjax.train.optimizer import learning_rate, make_optimizer
from diffjax.train.reporter import Reporter
from diffjax.train.sharding import (
    batch_sharding,
    make_mesh,
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
from diffjax.types import PyTree, Task

Batches = Callable[[int, jax.sharding.Sharding], Iterator[dict[str, Any]]]
OnSample = Callable[[State, int, Reporter], None]
LOOK_AHEAD = 2  # steps queued beyond the running one: enough to hide the host, and clocks stay true


class NonFiniteLoss(RuntimeError):
    """The loss, its gradient or the updated parameters became NaN or infinite."""


class Preempted(RuntimeError):
    """A signal asked the run to stop; its state has been saved."""

    def __init__(self, signum: int, step: int):
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name}; the state of step {step} has been saved")
        self.exit_code = 128 + signum


class _StopSignal:
    """Remembers SIGTERM or Ctrl-C for the loop to save and leave; a second one changes nothing."""

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _StopSignal:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(signum) != signal.SIG_IGN:  # as in `nohup command &`
                    self._old[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *unused: Any) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum


def _average(config: Any) -> EMADecay:
    """The decay of the parameter average that ``config.ema`` describes."""
    section = config.ema
    if half_life := section.get("half_life", 0):
        return ema_half_life(half_life, config.data.batch_size, ramp=section.ramp)
    return ema_decay(section.decay, warmup=section.warmup)


class _Window:
    """Metrics of the steps since the last line of the log."""

    def __init__(self, reporter: Reporter, rate: optax.Schedule, step: int, values: list[Any]):
        self._reporter, self._rate, self._values = reporter, rate, values
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
            NonFiniteLoss: naming the first bad step.
        """
        host = jax.device_get(self._values)
        self._values = [{k: float(v) for k, v in value.items()} for value in host]
        for offset, value in enumerate(self._values, 1 - len(self._values)):
            _check_finite(value, step + offset)
        return list(self._values)  # a copy: `add` goes on while a checkpoint is written

    def report(self, step: int) -> float:
        """Write the means as the line of ``step``, start over, and give the mean loss.

        Raises:
            NonFiniteLoss: naming the first bad step.
        """
        values = self.fetch(step)
        means = {k: math.fsum(v[k] for v in values) / len(values) for k in values[0]}
        means.pop("finite")
        since, first = self._clock
        speed = (step - first) / max(time.monotonic() - since, 1e-9)
        self._reporter(
            step, {**means, "lr": float(self._rate(step - 1)), "steps_per_second": speed}
        )
        self._values = []
        self.restart_clock(step)
        return means["loss"]


def _check_finite(value: dict[str, float], step: int) -> None:
    if not value["finite"]:
        raise NonFiniteLoss(
            f"the loss, its gradient or the updated parameters are not finite at step {step} "
            f"(loss {value['loss']}, gradient norm {value['grad_norm']}); the last good checkpoint "
            "is kept. Lower optim.lr, or set optim.clip"
        )


def check_workdir(workdir: Path) -> None:
    """Create the workdir and see that it can be written.

    Raises:
        OSError: it cannot, with the reason.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-test-{os.getpid()}"
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
    on_sample: OnSample | None = None,
) -> State:
    """Train to ``config.train.steps``, or to ``config.train.minutes`` of wall-clock.

    Stopping and resuming gives bit-identical results to not stopping, in the state and in the log:
    randomness and data are functions of (seed, step).

    Args:
        task: what to train.
        config: sections ``train``, ``optim``, ``ema``, ``mesh`` and ``seed``.
        batches: ``(step, sharding) -> iterator`` of device batches from that step on.
        frozen: parameters that the task reads but does not train. A checkpoint stores their
            fingerprint, and does not resume with others.
        on_sample: called every ``train.sample_every`` steps.

    Raises:
        ValueError: a wrong value in the config, naming it.
        NonFiniteLoss: naming the step; the last good checkpoint is kept.
        Preempted: after SIGTERM or SIGINT, when the state has been saved.
        CheckpointError: a checkpoint could not be written, or none of those there can be read, or
            it was trained with other frozen parameters.
        OSError: the workdir cannot be written.
    """
    workdir, cfg = Path(workdir), config.train
    _check_intervals(cfg)
    check_workdir(workdir)
    mesh = make_mesh(config.mesh)
    place = batch_sharding(mesh)
    optimizer = make_optimizer(config.optim, cfg.steps)
    init = _initializer(task, optimizer, config.seed, frozen, batches(0, place))
    shapes = jax.eval_shape(init)
    shardings = tree_sharding(shapes, mesh)
    update = _compiled(task, optimizer, config, shardings, mesh)
    as_json = getattr(config, "to_json_best_effort", lambda: "null")
    stored = {"config": json.loads(as_json()), "frozen": fingerprint(frozen)}
    with contextlib.ExitStack() as closing:
        stop = closing.enter_context(_StopSignal())
        checkpoints = closing.enter_context(Checkpoints(workdir / "checkpoints", keep=cfg.keep))
        restored = checkpoints.restore(with_sharding(shapes, shardings))
        step, values = 0, []
        if restored is None:
            state = jax.jit(init, out_shardings=shardings)()
        else:
            step, state = restored
            _check_frozen(checkpoints.metadata(step), stored["frozen"], workdir)
            values = checkpoints.metadata(step).get("window", [])
            logging.info("resumed at step %d", step)
        reporter = closing.enter_context(Reporter(workdir, resumed=step - len(values)))
        window = _Window(reporter, learning_rate(config.optim, cfg.steps), step, values)
        stream = closing.enter_context(_closing(batches(step, place)))
        bar = closing.enter_context(_progress(cfg.steps, step))
        end = time.monotonic() + 60 * cfg.minutes if cfg.minutes else math.inf
        while step < cfg.steps and not stop.received and time.monotonic() < end:
            state, metrics = update(state, frozen, next(stream))
            step += 1
            window.add(metrics)
            bar.update()
            if step % cfg.log_every == 0:
                bar.set_postfix(loss=f"{window.report(step):.4f}", refresh=False)
            if step % cfg.checkpoint_every == 0:
                checkpoints.save(step, state, {**stored, "window": window.fetch(step)})
            due = cfg.sample_every and step % cfg.sample_every == 0
            if on_sample and due and not stop.received:
                on_sample(state, step, reporter)
                window.restart_clock(step)
        if stop.received:
            logging.info("stopping at step %d", step)
        if unfinished := window.fetch(step):
            window.report(step)
        checkpoints.save(step, state, {**stored, "window": unfinished})
        checkpoints.wait()
        if stop.received:
            raise Preempted(stop.received, step)
    return state


def _check_frozen(metadata: dict[str, Any], found: str, workdir: Path) -> None:
    if (known := metadata.get("frozen", found)) != found:
        raise CheckpointMismatch(
            f"the checkpoint in {workdir} was trained with other frozen parameters ({known[:12]}, "
            f"not {found[:12]}): use those, or another workdir"
        )


def _initializer(
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int,
    frozen: PyTree,
    stream: Iterator[Any],
) -> Callable[[], State]:
    with _closing(stream):
        # One example is enough: parameters do not depend on the batch size.
        example = jax.tree.map(lambda leaf: leaf[:1], next(stream))
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return lambda: init_state(task, optimizer, key, frozen, example)


def _compiled(
    task: Task, optimizer: optax.GradientTransformation, config: Any, shardings: PyTree, mesh: Any
) -> Callable[..., tuple[State, dict[str, Any]]]:
    step = make_step(
        task,
        optimizer,
        decay=_average(config),
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
    return jax.jit(
        step,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _check_intervals(section: Any) -> None:
    for name in ("log_every", "checkpoint_every"):
        if section[name] < 1:
            raise ValueError(f"train.{name}={section[name]}: an interval is at least 1 step")


def _closing(stream: Iterator[Any]) -> contextlib.AbstractContextManager[Any]:
    """Ends the threads of a stream that has any."""
    if isinstance(stream, Generator):
        return contextlib.closing(stream)
    return contextlib.nullcontext(stream)


def _progress(steps: int, start: int) -> Any:
    return tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=1.0)
