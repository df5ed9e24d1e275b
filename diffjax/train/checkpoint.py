"""Orbax checkpoints with a checksum manifest, read back from the newest valid step."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from diffjax.types import PyTree

MANIFEST = "manifest.json"
STATE = "state"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Every file of a step; the writer's own metadata, which Orbax may touch later, is left out."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "_CHECKPOINT_METADATA")
    }


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def verify(folder: Path) -> None:
    """Compare a step with its manifest; a step cut off before its manifest is let through.

    Raises:
        CheckpointError: a file is missing or differs.
    """
    if not (folder / MANIFEST).exists():
        logging.warning("%s has no manifest: its contents cannot be verified", folder)
        return
    try:
        wanted = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from error
    found = _files(folder)
    for name, digest in wanted.items():
        if name not in found:
            raise CheckpointError(f"{folder / name} is missing")
        if _digest(found[name]) != digest:
            raise CheckpointError(f"{folder / name} is damaged: its checksum differs")


class Checkpoints:
    """Asynchronous checkpoints of one workdir, the newest ``keep`` of them.

    Args:
        folder: where steps are written.
        keep: how many of the newest steps stay.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._saver = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._pending: tuple[int, Any] | None = None

    def save(self, step: int, state: PyTree, config: Any = None) -> None:
        """Start writing a step; waits for the previous one first.

        Raises:
            CheckpointError: this or the previous step could not be written.
        """
        self.wait()
        if step in self.steps():
            return
        try:
            metadata = None if config is None else {"config": config}
            response = self._saver.save_checkpointables_async(
                step, {STATE: state}, force=True, custom_metadata=metadata
            )
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = (step, response)

    def wait(self) -> None:
        """Finish the pending write and give it its manifest.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            if jax.process_index() == 0:
                folder = self.folder / str(step)
                digests = {name: _digest(path) for name, path in _files(folder).items()}
                write_atomically(folder / MANIFEST, json.dumps(digests, indent=1))
        except Exception as error:
            raise self._failure(step, error) from error

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        left = [s for s in self.steps() if s != step]
        kept = f"the newest complete one is step {left[-1]}" if left else "there is no earlier one"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.folder}: {error}; {kept}"
        )

    def steps(self) -> list[int]:
        """Committed steps, oldest first, as the folder has them now."""
        return sorted(int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def restore(self, abstract: PyTree, *, step: int | None = None) -> tuple[int, PyTree] | None:
        """The newest valid step (or the one asked for) and its state; None if there is none at all.

        Args:
            abstract: tree of `jax.ShapeDtypeStruct`, with shardings.

        Raises:
            CheckpointError: there are checkpoints but none is readable.
        """
        candidates = self.steps() if step is None else [step]
        problems = []
        for candidate in reversed(candidates):
            folder = self.folder / str(candidate)
            try:
                if not folder.is_dir():
                    raise CheckpointError(f"there is no step {candidate}; found {self.steps()}")
                verify(folder)
                loaded = ocp.load_checkpointables(folder, {STATE: abstract})[STATE]
            except Exception as error:  # any damage: fall back to the step before
                reason = str(error).strip().splitlines()[0][:300]
                logging.warning("checkpoint %s cannot be used: %s", folder, reason)
                problems.append(f"step {candidate}: {reason}")
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
        """Finish pending writes and release the folder."""
        self.wait()
        self._saver.close()
