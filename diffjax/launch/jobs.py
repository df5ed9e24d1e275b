"""The contract between a sweep and the executors that run its jobs."""

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
    """Starts jobs and says which of them have ended: on this machine, or on a cluster."""

    def start(self, job: Job) -> str:
        """Start or submit a job.

        Returns:
            What the executor calls the job, such as a process or job number.
        """

    def adopt(self, name: str, number: str) -> bool:
        """Watch over a job that an earlier process started.

        Args:
            name: of the job.
            number: what `start` returned.

        Returns:
            Whether the job is still there.
        """

    def take_ended(self) -> dict[str, int | None]:
        """Take the jobs that have ended since the last call.

        Returns:
            Exit codes by the name of the job; None where the code is not known.
        """

    def stop(self) -> None:
        """Ask the jobs to save and leave, and wait for that, if they end with this process."""
