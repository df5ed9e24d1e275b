"""A job, and what an executor does with it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

LOG = "log.txt"  # of a local job, in its folder
STOPPED = (140, 143)  # exit codes of a run that has saved its state and wants to be started again


class Job(NamedTuple):
    """A command to run.

    Attributes:
        name: tells the jobs of a sweep apart.
        command: program and arguments.
        folder: where the command writes; it need not exist.
    """

    name: str
    command: tuple[str, ...]
    folder: Path


class Executor(Protocol):
    """Starts jobs, and says which of them have ended."""

    def start(self, job: Job) -> str:
        """Start or submit a job. Returns what the executor calls it, such as a number."""

    def adopt(self, name: str, number: str) -> bool:
        """Watch over a job that an earlier process started; False if it is no longer there."""

    def take_ended(self) -> dict[str, int | None]:
        """Exit codes of the jobs that ended since the last call, None where it is not known."""

    def stop(self) -> None:
        """Ask the jobs to save and leave, and wait for that, where they end with this process."""
