"""summary.json of a workdir: what was trained, on what machine, and how long each session took.

A session is one process of a run, from its start or resumption to its end.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffjax.train import Checkpoints, hosts
from diffjax.writing import write_json

SUMMARY = "summary.json"


def is_trained(folder: Path | None) -> bool:
    """Whether a folder is the workdir of a run that has saved a checkpoint."""
    if folder is None:
        return False
    return any(any((folder / steps).glob("[0-9]*")) for steps in ("checkpoints", "best"))


class Record:
    """The record of a run in its workdir. The current session begins when this is made."""

    def __init__(self, folder: Path, cfg: ConfigDict, parameters: int):
        """Read the sessions that are recorded already, and start the clocks of this one.

        Args:
            folder: the workdir.
            cfg: the config; its batch size and seed are recorded.
            parameters: number of parameters that are trained.
        """
        self._path, self._cfg, self._parameters = folder / SUMMARY, cfg, parameters
        self._wall, self._cpu = time.monotonic(), time.process_time()
        earlier = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._sessions: list[dict[str, Any]] = earlier.get("sessions", [])

    def count_minutes(self) -> float:
        """Count the wall-clock minutes of this session so far."""
        return (time.monotonic() - self._wall) / 60

    def write_session(self, step: int | None = None, *, finished: bool = False) -> None:
        """Add this session to summary.json. Only the first process of a run writes.

        Args:
            step: the step that the session ended with; None for that of the newest checkpoint.
            finished: whether the run has reached its last step.
        """
        if not hosts.is_writer():
            return
        if step is None:
            step = max(Checkpoints(self._path.parent / "checkpoints").steps())
        session = {
            "to_step": step,
            "wall_seconds": time.monotonic() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "cpu_cores": len(os.sched_getaffinity(0)),
        }
        self._sessions.append(session)
        summary = {
            "parameters": self._parameters,
            "steps": step,
            "finished": finished,
            "images": step * self._cfg.data.batch_size,
            "wall_seconds": sum(s["wall_seconds"] for s in self._sessions),
            "cpu_seconds": sum(s["cpu_seconds"] for s in self._sessions),
            "seed": self._cfg.seed,
            "devices": [d.device_kind for d in jax.devices()],
            "machine": platform.machine(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "sessions": self._sessions,
        }
        write_json(self._path, summary)
