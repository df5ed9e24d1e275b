"""Snapshots of averages, and averages of other lengths that are reconstructed of them afterwards.

A training keeps a few power-function averages (`diffjax.train.averages`) and stores them every so
many steps. Each is a weighted sum of the parameters of all steps, so a sum of them is one too: its
profile can come close to that of any average, which was not kept (Karras et al. 2024, section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax.train.averages import Tracked, find_exponent
from diffjax.train.checkpoint import Checkpoints
from diffjax.train.sealed_files import CheckpointError
from diffjax.train.step import State
from diffjax.types import Array, ArrayLike, ConfigError, Params

FOLDER = "snapshots"
CELLS = 4096  # pieces of time in which profiles are compared; fewer if there are fewer steps


class Snapshots:
    """Stored averages of a run, in a folder apart from its checkpoints; none is ever removed.

    Args:
        workdir: of the run.
        section: ``config.ema``. Nothing is stored for kinds but power, and if its
            ``snapshot_every`` is 0.
    """

    def __init__(self, workdir: Path, section: ConfigDict):
        self._every = section.snapshot_every if section.kind == "power" else 0
        self._lengths = list(section.lengths)
        self._last = -1
        self._steps = Checkpoints(workdir / FOLDER, keep=2**31) if self._every else None

    def take(self, step: int, state: State, *, last: bool = False) -> None:
        """Start writing the averages after a step, if it is a step to do so at.

        Args:
            step: optimiser steps done.
            state: after them.
            last: whether the training ends here, which is a step to do so at.

        Raises:
            CheckpointError: this or the previous snapshot could not be written.
        """
        if not self._steps or step == self._last or not (last or step % self._every == 0):
            return
        further = state.opt.averages if isinstance(state.opt, Tracked) else ()
        averages = {str(k): tree for k, tree in enumerate((state.ema, *further))}
        # A step that is there may be of a training that a rollback has left behind.
        self._steps.save(step, averages, {"lengths": self._lengths}, replace=True)
        self._last = step

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._steps:
            self._steps.__exit__(kind, error, trace)


def weigh_snapshots(
    steps: Sequence[int] | np.ndarray,
    lengths: Sequence[float] | np.ndarray,
    step: int,
    length: float,
) -> np.ndarray:
    """Find the weights of stored averages whose sum is closest to an average of another length.

    The average of exponent g after step t gives ``(s/t)^(g+1)`` of its weight to the steps up to s.
    So the share of every piece of time is known exactly, and the weights are the least squares of
    the difference in these shares, which is the L2 distance of the profiles (Karras et al. 2024,
    section 3.2); their sum is then made 1. With as many steps as pieces, or fewer, this is exact
    wherever the average is a sum of those that are stored.

    Args:
        steps: when each average was stored, (n,), at least 1.
        lengths: relative length of each, (n,), see `find_exponent`.
        step: of the average that is wanted.
        length: its relative length.

    Returns:
        (n,) in float64, of sum 1.

    Raises:
        ValueError: nothing is stored up to that step, or there is no average of that length.
    """
    when = np.append(np.asarray(steps, np.float64), step)
    powers = np.array([find_exponent(x) for x in (*lengths, length)]) + 1
    if len(when) < 2 or when[:-1].min() < 1 or when[:-1].max() > step:
        raise ValueError(f"snapshots of steps 1 .. {step} are needed, got {list(steps)}")
    edges = np.linspace(0.0, step, min(step, CELLS) + 1)
    shares = np.diff(np.minimum(edges[:, None] / when, 1.0) ** powers, axis=0)
    stored, wanted = shares[:, :-1], shares[:, -1]
    size = np.linalg.norm(stored, axis=0)  # equal columns make the least squares well conditioned
    weights = np.linalg.lstsq(stored / size, wanted, rcond=None)[0] / size
    return weights / weights.sum()


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Params, weight: Array, tree: Params) -> Params:
    return jax.tree.map(lambda a, b: a + weight * b, total, tree)


def reconstruct(workdir: Path, like: Params, step: int, length: float) -> tuple[int, Params]:
    """Reconstruct the average of any length from the snapshots of a run, one at a time.

    Args:
        workdir: of the run.
        like: shapes of the parameters with their shardings.
        step: the average is of the newest snapshot up to this step.
        length: relative length sigma_rel of the average, such as 0.13.

    Returns:
        The step that the average is of, and the average.

    Raises:
        ConfigError: the run has no snapshots up to that step, or there is no such length.
        CheckpointError: a snapshot is damaged; the message names it.
    """
    folder = workdir / FOLDER
    snapshots = Checkpoints(folder) if folder.is_dir() else None
    steps = [s for s in snapshots.steps() if s <= step] if snapshots else []
    if not snapshots or not steps:
        raise ConfigError(
            f"{folder} holds no averages up to step {step}, of which one of length {length:g} "
            "could be made; runs store them with config.ema.kind=power"
        )
    lengths: dict[int, list[float]]
    lengths = {s: snapshots.metadata(s).get("lengths", []) for s in steps}
    if damaged := [s for s in steps if not lengths[s]]:
        raise CheckpointError(f"{folder}: the snapshot of step {damaged[0]} is damaged; remove it")
    kept = [(s, k) for s in steps for k in range(len(lengths[s]))]
    try:
        weights = weigh_snapshots(
            [s for s, _ in kept], [lengths[s][k] for s, k in kept], steps[-1], length
        )
    except ValueError as error:
        raise ConfigError(f"ema_length={length:g}: {error}") from error
    by_key = dict(zip(kept, weights, strict=True))
    total: Params | None = None
    for s in steps:
        abstract = {str(k): like for k in range(len(lengths[s]))}
        found = snapshots.restore(abstract, step=s)
        if found is None:
            raise CheckpointError(f"the snapshot of step {s} is gone from {folder}")
        for k, tree in found[1].items():
            weight = cast(ArrayLike, np.float32(by_key[s, int(k)]))
            if total is None:
                total = jax.tree.map(jax.numpy.zeros_like, tree)
            total = _add(total, weight, tree)
    assert total is not None
    logging.info(
        "average of length %g after step %d, of %d snapshots", length, steps[-1], len(steps)
    )
    return steps[-1], total
