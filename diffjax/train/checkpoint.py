"""Checkpoints written by Orbax, sealed with checksums, read back from the newest intact step.

A step is written to ``N.partial``, gets a manifest of checksums, and becomes a checkpoint when it
is renamed to ``N``: a crash at any moment leaves whole checkpoints and leftovers, nothing between.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from diffjax.types import PyTree

MANIFEST = "manifest.json"
STATE = "state"
SHOWN = 5  # differing leaves named in a message


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class CheckpointMismatch(CheckpointError):
    """An intact checkpoint holds another state than the one asked for."""


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def fingerprint(tree: PyTree) -> str:
    """SHA-256 of a tree's names, shapes, types and values; empty for an empty tree."""
    leaves = _leaves(tree)
    if not leaves:
        return ""
    digest = hashlib.sha256()
    for name in sorted(leaves):
        value = np.asarray(leaves[name])
        digest.update(f"{name} {_describe(value)}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old or the new one, never a part.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def verify(folder: Path) -> None:
    """Compare a step with its manifest.

    Raises:
        CheckpointError: a file is missing or differs, or there is no manifest.
    """
    if not (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder / MANIFEST} is missing")
    try:
        wanted = json.loads((folder / MANIFEST).read_text()).items()
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from error
    for name, digest in wanted:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
        if _digest(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is damaged: its checksum differs")


def _leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by dotted name, whatever the containers: stored named tuples are dictionaries."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _describe(leaf: Any) -> str:
    return f"{tuple(leaf.shape)} {leaf.dtype}"


def _differences(stored: PyTree, wanted: PyTree) -> list[str]:
    """What keeps a stored tree from being the wanted one, one line per leaf."""
    have, want = _leaves(stored), _leaves(wanted)
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


def _read(folder: Path, abstract: PyTree) -> PyTree:
    """The state in a step folder.

    Raises:
        CheckpointMismatch: it is intact and has other leaves, shapes or types.
        Exception: anything that damage leads to.
    """
    verify(folder)
    stored = ocp.checkpointables_metadata(folder).metadata[STATE]
    if found := _differences(stored, abstract):
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CheckpointMismatch(
            f"the checkpoint {folder} belongs to another config: {'; '.join(found[:SHOWN])}{more}. "
            "Use the config it was made with, or another workdir"
        )
    return ocp.load_checkpointables(folder, {STATE: abstract})[STATE]


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

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # what went wrong first is what the caller should see

    def save(self, step: int, state: PyTree, metadata: dict[str, Any] | None = None) -> None:
        """Start writing a step; waits for the previous one first. A step that is there is kept.

        Steps that `restore` found damaged are removed first: the new ones take their place.

        Args:
            metadata: anything JSON can hold, read back by `metadata`.

        Raises:
            CheckpointError: this or the previous step could not be written.
        """
        self.wait()
        if step in set(self.steps()) - self._damaged:
            return
        try:
            self._clear()
            response = ocp.save_checkpointables_async(
                self._partial(step), {STATE: state}, custom_metadata=metadata
            )
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = (step, self._thread.submit(self._commit, step, response))

    def wait(self) -> None:
        """Finish the pending write.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        try:
            written.result()
        except Exception as error:
            raise self._failure(step, error) from error

    def _partial(self, step: int) -> Path:
        return self.folder / f"{step}.partial"

    def _commit(self, step: int, response: Any) -> None:
        """Runs beside the training: seal the written step, name it, drop the oldest ones."""
        response.result()
        if jax.process_index():
            return
        partial = self._partial(step)
        write_atomically(partial / MANIFEST, json.dumps(_digests(partial), indent=1))
        partial.rename(self.folder / str(step))
        for old in self.steps()[: -self._keep]:
            self._remove(old)

    def _remove(self, step: int) -> None:
        # Renamed first, so that a crash in between leaves no half-empty step behind.
        leftover = (self.folder / str(step)).rename(self.folder / f"{step}.removed")
        shutil.rmtree(leftover, ignore_errors=True)

    def _clear(self) -> None:
        """Remove what crashed runs have left and what `restore` found damaged."""
        if jax.process_index():
            return
        for leftover in self.folder.iterdir():
            if leftover.is_dir() and not leftover.name.isdigit():
                shutil.rmtree(leftover, ignore_errors=True)
        for step in sorted(self._damaged & set(self.steps())):
            logging.warning("removing the damaged checkpoint %s", self.folder / str(step))
            self._remove(step)
        self._damaged.clear()

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        for partial in self.folder.glob(f"{self._partial(step).name}*"):
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
        left = [s for s in self.steps() if s != step]
        kept = f"the newest complete one is step {left[-1]}" if left else "there is no earlier one"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.folder}: "
            f"{_first_line(error)}; {kept}"
        )

    def steps(self) -> list[int]:
        """Committed steps, oldest first, as the folder has them now."""
        return sorted(int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def metadata(self, step: int) -> dict[str, Any]:
        """What was given to `save` beside the state."""
        return dict(ocp.checkpointables_metadata(self.folder / str(step)).custom_metadata or {})

    def restore(self, abstract: PyTree, *, step: int | None = None) -> tuple[int, PyTree] | None:
        """The newest intact step (or the one asked for) and its state; None if there is none.

        Args:
            abstract: tree of `jax.ShapeDtypeStruct`, with shardings.

        Raises:
            CheckpointError: there are checkpoints but none is readable.
            CheckpointMismatch: one is intact, but its leaves have other names, shapes or types.
        """
        candidates = self.steps() if step is None else [step]
        problems = []
        for candidate in reversed(candidates):
            folder = self.folder / str(candidate)
            try:
                if not folder.is_dir():
                    raise CheckpointError(f"there is no such step; found {self.steps()}")
                loaded = _read(folder, abstract)
            except CheckpointMismatch:
                raise
            except Exception as error:  # any damage: fall back to the step before
                reason = _first_line(error)
                logging.warning("checkpoint %s cannot be used: %s", folder, reason)
                problems.append(f"step {candidate}: {reason}")
                self._damaged.add(candidate)
                continue
            if problems:
                logging.warning("falling back to the checkpoint of step %d", candidate)
            return candidate, loaded
        if problems:
            raise CheckpointError(
                f"no checkpoint under {self.folder} can be used: " + "; ".join(problems)
            )
        return None

    def close(self) -> None:
        """Finish pending writes.

        Raises:
            CheckpointError: the last one could not be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
