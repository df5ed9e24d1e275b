"""Checkpoints written by Orbax, sealed with checksums, read back from the newest intact step.

A step is written to ``N.partial``, gets a manifest of checksums, and becomes a checkpoint when it
is renamed to ``N``: a crash at any moment leaves whole checkpoints and leftovers, nothing between.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, TypeVar, cast

import jax
from absl import logging
from jax.tree_util import KeyPath
from orbax.checkpoint import v1 as ocp

from diffjax.train import hosts
from diffjax.train.sealed_files import MANIFEST, CheckpointError, seal, verify
from diffjax.types import JsonObject, choose

STATE = "state"
# Names of finished and unfinished steps; folders with other names are left alone.
_STEP = re.compile(r"0|[1-9]\d*", re.ASCII)
_LEFTOVER = re.compile(r"(0|[1-9]\d*)\.(partial|removed)(\.orbax-checkpoint-tmp.*)?", re.ASCII)
# A step that was written here has at least one of these, however damaged it is.
_PARTS = (MANIFEST, STATE, "_CHECKPOINT_METADATA", "orbax.checkpoint", "commit_success.txt")
StateT = TypeVar("StateT")
Metadata: TypeAlias = JsonObject  # what is stored beside the arrays of a checkpoint
SHOWN = 5  # differing leaves named in a message


class CheckpointMismatch(CheckpointError):
    """An intact checkpoint holds another state than the one asked for."""


def _name_leaves(tree: object) -> dict[str, jax.Array]:
    """Return leaves, or their shapes, by dotted name; stored named tuples are dictionaries."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _describe(leaf: jax.Array) -> str:
    return f"{tuple(leaf.shape)} {leaf.dtype}"


def _describe_differences(stored: object, wanted: object) -> list[str]:
    """Describe how a stored tree differs from the wanted one, with a text per leaf."""
    have, want = _name_leaves(stored), _name_leaves(wanted)
    found = []
    for name, leaf in want.items():
        if name not in have:
            found.append(f"{name} is not stored, wanted {_describe(leaf)}")
        elif jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            continue  # random keys are stored as the integers they are made of
        elif _describe(have[name]) != _describe(leaf):
            found.append(f"{name} is stored as {_describe(have[name])}, wanted {_describe(leaf)}")
    found += [f"{name} is stored, not wanted" for name in have if name not in want]
    return found


def _check(folder: Path, abstract: object, parts: Collection[str] | None) -> None:
    """Check that a step holds the state that is wanted, or those parts of one.

    Raises:
        CheckpointMismatch: it has other leaves, shapes or types.
    """
    stored = ocp.checkpointables_metadata(folder).metadata[STATE]
    if parts is not None:
        stored = {key: value for key, value in stored.items() if key in parts}
    if found := _describe_differences(stored, abstract):
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CheckpointMismatch(
            f"the checkpoint {folder} belongs to another config: {'; '.join(found[:SHOWN])}{more}. "
            "Use the config it was made with, or another workdir; config.train.override=true "
            "starts the leaves that differ afresh"
        )


def _read_matching(folder: Path, fresh: StateT) -> StateT:
    """Return ``fresh`` with every stored leaf of the same name and shape, cast to its type."""
    stored = ocp.checkpointables_metadata(folder).metadata[STATE]
    want = _name_leaves(fresh)
    anywhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        same = want.get(jax.tree_util.keystr(path, simple=True, separator="."))
        fits = same is not None and tuple(same.shape) == tuple(leaf.shape)
        sharding = same.sharding if same is not None and fits else anywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = jax.tree_util.tree_map_with_path(place, stored)
    have = _name_leaves(ocp.load_checkpointables(folder, {STATE: abstract})[STATE])

    def choose(path: KeyPath, leaf: jax.Array) -> jax.Array:
        found = have.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if found is None or tuple(found.shape) != tuple(leaf.shape):
            return leaf
        return found if found.dtype == leaf.dtype else found.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(choose, fresh)


class Checkpoints:
    """Asynchronous checkpoints of one workdir, the newest ``keep`` of them.

    Reading changes nothing in the folder, so that a running training can be sampled from.

    Args:
        folder: where steps are written.
        keep: how many of the newest steps stay.

    Raises:
        ValueError: keep is not positive.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: at least 1 checkpoint must stay")
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self._damaged: set[int] = set()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the caller should see the first error

    def save(
        self,
        step: int,
        state: object,
        metadata: Metadata | None = None,
        *,
        replace: bool = False,
    ) -> None:
        """Start writing a step; waits for the previous one first.

        Steps that `restore` found damaged are removed first: the new ones take their place.

        Args:
            metadata: anything JSON can hold, which `metadata` reads back.
            replace: write a step anew that is there already; else it is kept.

        Raises:
            CheckpointError: this or the previous step could not be written.
        """
        self.wait()
        there = not replace and step in set(self.steps()) - self._damaged
        if hosts.agree("checkpoint is there", str(there)) == "True":
            return
        try:
            self._clear()
            response = ocp.save_checkpointables_async(
                self._name_partial(step), {STATE: state}, custom_metadata=metadata
            )
        except Exception as error:
            raise self._explain_failure(step, error) from error
        self._pending = (step, self._thread.submit(self._commit, step, response))

    def check(self) -> None:
        """Check without waiting that the pending write has not failed so far.

        Raises:
            CheckpointError: it has.
        """
        if self._pending is None or not self._pending[1].done():
            return
        if failure := self._pending[1].exception():
            (step, _), self._pending = self._pending, None
            raise self._explain_failure(step, failure) from failure

    def wait(self) -> None:
        """Finish the pending write.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        failure = None
        try:
            written.result()
        except Exception as error:
            failure = self._explain_failure(step, error)
            failure.__cause__ = error
        # Process 0 seals and names the step for all; here the others learn whether that worked.
        elsewhere = hosts.agree(f"checkpoint {step}", str(failure or ""))
        if failure or elsewhere:
            raise failure or CheckpointError(elsewhere)

    def _name_partial(self, step: int) -> Path:
        return self.folder / f"{step}.partial"

    def _commit(self, step: int, response: ocp.AsyncResponse[None]) -> None:
        """Seal the written step, name it, and drop the oldest ones; runs beside the training."""
        response.result()
        if not hosts.is_writer():
            return
        partial = self._name_partial(step)
        seal(partial)
        if step in self.steps():
            self._remove(step)
        target = self.folder / str(step)
        if target.exists():
            raise FileExistsError(f"{target} exists and is not a checkpoint; move it away")
        partial.rename(target)
        for old in self.steps()[: -self._keep]:
            self._remove(old)

    def _remove(self, step: int) -> None:
        # It is renamed first, so that a crash in between leaves no half-empty step behind.
        _delete((self.folder / str(step)).rename(self.folder / f"{step}.removed"))

    def _clear(self) -> None:
        """Remove the leftovers of crashed runs, and what `restore` found damaged."""
        if not hosts.is_writer():
            return
        for leftover in self._find_leftovers():
            _delete(leftover)
        for step in sorted(self._damaged & set(self.steps())):
            logging.warning("removing the damaged checkpoint %s", self.folder / str(step))
            self._remove(step)
        self._damaged.clear()

    def _explain_failure(self, step: int, error: BaseException) -> CheckpointError:
        for leftover in self._find_leftovers():
            if leftover.name.startswith(self._name_partial(step).name):
                _delete(leftover)  # a full disk needs the room
        left = [s for s in self.steps() if s != step]
        kept = f"the newest complete one is step {left[-1]}" if left else "there is no earlier one"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.folder}: "
            f"{_take_first_line(error)}; {kept}"
        )

    def steps(self) -> list[int]:
        """Return the steps that are in the folder now, oldest first."""
        return sorted(int(p.name) for p in self.folder.iterdir() if _is_step(p))

    def _find_leftovers(self) -> list[Path]:
        """Find folders that a crash has left while steps were written or removed."""
        found = (p for p in self.folder.iterdir() if _LEFTOVER.fullmatch(p.name))
        return [p for p in found if p.is_dir()]

    def metadata(self, step: int) -> Metadata:
        """Return what was stored by `save` beside the state."""
        return dict(ocp.checkpointables_metadata(self.folder / str(step)).custom_metadata or {})

    def newest(self, *, step: int | None = None) -> int | None:
        """Return the newest intact step (or the one asked for); None if there is none.

        Damaged ones are named in warnings, and `save` removes them. With several processes the
        first one decides for all.

        Raises:
            CheckpointError: there are checkpoints but all are damaged.
        """
        found, problems = self._find_intact(step) if hosts.is_writer() else (None, [])
        found, problems = json.loads(hosts.agree("newest step", json.dumps([found, problems])))
        if found is None and problems:
            raise CheckpointError(
                f"no checkpoint under {self.folder} can be used: " + "; ".join(problems)
            )
        return found

    def _find_intact(self, step: int | None) -> tuple[int | None, list[str]]:
        problems: list[str] = []
        for candidate in reversed(self.steps() if step is None else [step]):
            folder = self.folder / str(candidate)
            try:
                if not folder.is_dir():
                    raise CheckpointError(f"there is no such step; found {self.steps()}")
                verify(folder)
            except (CheckpointError, OSError) as error:  # any damage: try the step before
                logging.warning("checkpoint %s cannot be used: %s", folder, _take_first_line(error))
                problems.append(f"step {candidate}: {_take_first_line(error)}")
                self._damaged.add(candidate)
                continue
            if problems:
                logging.warning("falling back to the checkpoint of step %d", candidate)
            return candidate, problems
        return None, problems

    def restore(
        self,
        abstract: StateT,
        *,
        step: int | None = None,
        fresh: Callable[[], StateT] | None = None,
        parts: Collection[str] | None = None,
    ) -> tuple[int, StateT] | None:
        """Return the newest intact step (or the given one) and its state; None if there is none.

        Args:
            abstract: tree of `jax.ShapeDtypeStruct`, with shardings of any number of devices.
            fresh: makes the values of leaves that are not stored, or have another shape; types are
                cast. Without it, leaves that differ are errors.
            parts: names of what ``abstract`` is a dictionary of; the others are not read.

        Raises:
            CheckpointError: there are checkpoints but none is readable.
            CheckpointMismatch: one is intact, but its leaves have other names, shapes or types.
        """
        found = self.newest(step=step)
        if found is None:
            return None
        folder = self.folder / str(found)
        try:
            _check(folder, abstract, parts)
        except CheckpointMismatch as difference:
            if fresh is None:
                raise
            logging.warning("overridden: %s", difference)
            return found, _read_matching(folder, fresh())
        if parts is None:
            return found, ocp.load_checkpointables(folder, {STATE: abstract})[STATE]
        wanted = cast(dict[str, object], abstract)
        full = {key: value for key, value in wanted.items() if jax.tree.leaves(value)}
        context = ocp.Context()
        context.pytree.loading.partial_load = True  # partial loading needs leaves
        with context:
            read = {**wanted, **ocp.load_checkpointables(folder, {STATE: full})[STATE]}
        return found, cast(StateT, read)

    def close(self) -> None:
        """Finish pending writes.

        Raises:
            CheckpointError: the last one could not be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()


class Best:
    """The one step with the best value of a metric, in a folder apart from the latest ones.

    Neither can crowd out the other: the latest steps are there to resume, the best to be used.

    Args:
        folder: where that step is written.
        metric: its name; a folder keeps to one.
        mode: whether the smallest (min) or the largest (max) value is the best.

    Raises:
        ValueError: unknown mode, or the folder holds the best of another metric.
    """

    def __init__(self, folder: str | Path, metric: str, *, mode: str = "min"):
        sign = choose("mode", mode, {"min": 1, "max": -1})
        self._steps = Checkpoints(folder, keep=1)
        self._key = {"metric": metric, "mode": mode}
        self._better: Callable[[float, float], bool] = lambda a, b: sign * a < sign * b
        self.step: int | None = None
        self.value = math.inf * sign
        try:
            self.step = self._steps.newest()
        except CheckpointError as error:
            logging.warning("the best step is lost: %s", error)
        if self.step is not None:
            stored = self._steps.metadata(self.step)
            if {k: stored[k] for k in self._key} != self._key:
                raise ValueError(
                    f"{folder} holds the best by {stored['metric']} ({stored['mode']}), not by "
                    f"{metric} ({mode}); move it away or choose another workdir"
                )
            self.value = stored["value"]

    def offer(
        self, step: int, value: float, state: object, metadata: Metadata | None = None
    ) -> bool:
        """Keep a state if its value is better than all before; a NaN never is.

        Raises:
            CheckpointError: this or the previous best could not be written.
        """
        if not self._better(value, self.value):
            return False
        self._steps.save(
            step, state, {**(metadata or {}), **self._key, "value": value}, replace=True
        )
        self.step, self.value = step, value
        return True

    def restore(self, abstract: StateT) -> tuple[int, StateT] | None:
        """Return the best step and its state, as `Checkpoints.restore`."""
        self._steps.wait()
        return self._steps.restore(abstract)

    def close(self) -> None:
        """Finish the pending write; as `Checkpoints.close`."""
        self._steps.close()

    def __enter__(self) -> Best:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._steps.__exit__(kind, error, trace)


def _is_step(folder: Path) -> bool:
    """Return whether a folder was written here as a step: by its name and its content."""
    if not _STEP.fullmatch(folder.name) or not folder.is_dir():
        return False
    return any((folder / name).exists() for name in _PARTS) or not any(folder.iterdir())


def _delete(folder: Path) -> None:
    """Remove a folder; of one that is a link, the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _take_first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
