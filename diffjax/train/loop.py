"""The training loop: resumes, reports, checkpoints, and stops cleanly."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from diffjax.train.checkpoint import Checkpoints, write_atomically
from diffjax.train.optimizer import learning_rate, make_optimizer
from diffjax.train.sharding import batch_sharding, make_mesh, replicated, tree_sharding
from diffjax.train.step import State, init_state, make_step
from diffjax.types import Array, PyTree, Task

METRICS = "metrics.jsonl"
Batches = Callable[[int, jax.sharding.Sharding], Iterator[dict[str, Any]]]
LOOK_AHEAD = 2  # steps queued beyond the running one: enough to hide the host, and clocks stay true


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite."""


class Preempted(RuntimeError):
    """A signal asked the run to stop; its state has been saved."""


class Reporter:
    """Metrics to JSON lines and TensorBoard; lines past the resumed step are dropped first."""

    def __init__(self, workdir: Path, *, resumed: int = 0):
        from tensorboardX import SummaryWriter

        self._path = workdir / METRICS
        if self._path.exists():
            write_atomically(self._path, "".join(_lines_up_to(self._path, resumed)))
        self._stream = self._path.open("a")
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resumed + 1 if resumed else None
        )

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Append one line of scalars."""
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, name: str, step: int, image: Any) -> None:
        """Add an (H, W, C) uint8 image to TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._stream.close()
        self._board.close()


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except ValueError:
            continue  # the last line of a killed run may be cut


class _StopSignal:
    """Remembers SIGTERM so that the loop can save and leave; a second one changes nothing."""

    def __init__(self) -> None:
        self.received = False
        self._old: Any = None

    def __enter__(self) -> _StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = True


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
    on_sample: Callable[[State, int, Reporter], None] | None = None,
) -> State:
    """Train to ``config.train.steps``, or to ``config.train.minutes`` of wall-clock.

    Stopping and resuming gives bit-identical results to not stopping: randomness and data are
    functions of (seed, step).

    Args:
        task: what to train.
        config: sections ``train``, ``optim``, ``ema``, ``mesh`` and ``seed``.
        batches: ``(step, sharding) -> iterator`` of device batches from that step on.
        frozen: parameters that the task reads but does not train.
        on_sample: called every ``train.sample_every`` steps.

    Raises:
        NonFiniteLoss: naming the step; the last good checkpoint is kept.
        Preempted: after SIGTERM, when the state has been saved.
        CheckpointError: a checkpoint could not be written, or none of those there can be read.
    """
    workdir = Path(workdir)
    check_workdir(workdir)
    cfg, mesh = config.train, make_mesh(config.mesh)
    optimizer = make_optimizer(config.optim, cfg.steps)
    step_fn = make_step(
        task,
        optimizer,
        decay=config.ema.decay,
        ema_warmup=config.ema.warmup,
        accumulate=cfg.accumulate,
        seed=config.seed,
    )
    first = next(batches(0, batch_sharding(mesh)))
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)

    def init() -> State:
        # One example is enough: parameters do not depend on the batch size.
        return init_state(task, optimizer, key, frozen, jax.tree.map(lambda a: a[:1], first))

    shapes = jax.eval_shape(init)
    shardings = tree_sharding(shapes, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=cfg.keep)
    abstract = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings
    )
    restored = checkpoints.restore(abstract)
    if restored is None:
        start, state = 0, jax.jit(init, out_shardings=shardings)()
    else:
        start, state = restored
        logging.info("resumed at step %d", start)
    compiled = jax.jit(
        step_fn,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    reporter = Reporter(workdir, resumed=start)
    with _StopSignal() as stop:
        try:
            return _run(
                compiled, state, start, config, mesh, batches, frozen, checkpoints, reporter, stop,
                on_sample,
            )  # fmt: skip
        finally:
            reporter.close()


def _run(
    compiled: Any,
    state: State,
    step: int,
    config: Any,
    mesh: Any,
    batches: Batches,
    frozen: PyTree,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stop: _StopSignal,
    on_sample: Callable[[State, int, Reporter], None] | None,
) -> State:
    cfg = config.train
    rate = learning_rate(config.optim, cfg.steps)
    stored = (
        json.loads(config.to_json_best_effort()) if hasattr(config, "to_json_best_effort") else None
    )
    started, pending = time.monotonic(), []
    iterator = batches(step, batch_sharding(mesh))
    bar = tqdm(total=cfg.steps, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0)
    last_time, last_step = time.monotonic(), step

    def out_of_time() -> bool:
        return bool(cfg.minutes) and time.monotonic() - started > 60 * cfg.minutes

    def flush() -> None:
        nonlocal pending, last_time, last_step
        values = jax.device_get(pending)
        pending = []
        _check_finite(values, step - len(values))
        now = time.monotonic()
        speed = (step - last_step) / max(now - last_time, 1e-9)
        last_time, last_step = now, step
        means = {k: math.fsum(float(v[k]) for v in values) / len(values) for k in values[0]}
        means.pop("finite")
        reporter(step, {**means, "lr": float(rate(step - 1)), "steps_per_second": speed})
        bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)

    try:
        while step < cfg.steps and not stop.received and not out_of_time():
            state, metrics = compiled(state, frozen, next(iterator))
            pending.append(metrics)
            step += 1
            if len(pending) > LOOK_AHEAD:
                jax.block_until_ready(pending[-1 - LOOK_AHEAD]["loss"])
            bar.update()
            due = step == cfg.steps or stop.received
            if step % cfg.log_every == 0 or step % cfg.checkpoint_every == 0 or due:
                flush()
            if step % cfg.checkpoint_every == 0 and step < cfg.steps:
                checkpoints.save(step, state, stored)
            if on_sample and cfg.sample_every and step % cfg.sample_every == 0:
                on_sample(state, step, reporter)
                last_time, last_step = time.monotonic(), step
        if pending:
            flush()
        checkpoints.save(step, state, stored)
        checkpoints.close()
    except NonFiniteLoss:
        checkpoints.close()
        raise
    finally:
        bar.close()
        if hasattr(iterator, "close"):
            iterator.close()
    if stop.received:
        raise Preempted(f"stopped by SIGTERM; the state of step {step} has been saved")
    return state


def _check_finite(values: list[dict[str, Array]], first: int) -> None:
    for offset, value in enumerate(values):
        if not value["finite"]:
            raise NonFiniteLoss(
                f"the loss or its gradient is not finite at step {first + offset + 1} "
                f"(loss {float(value['loss'])}, gradient norm {float(value['grad_norm'])}); "
                "the last good checkpoint is kept. Lower optim.lr, or set optim.clip"
            )
