"""Jobs of a Slurm cluster.

submitit writes, submits and requeues them. How jobs are it asks `sacct`, which many clusters do not
have, and its commands do not pass signals on; this module does both itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax.launch.jobs import STOPPED, Job
from diffjax.types import ConfigError


class _Command:
    """Runs a command under submitit; if told to stop, lets the run save and asks for a requeue."""

    def __init__(self, job: Job):
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command, and return its exit code."""
        self._process = subprocess.Popen(self._job.command)
        code = self._process.wait()
        if code in STOPPED:
            time.sleep(2)  # Slurm signals both: leave submitit's handler the time to come
        return code

    def checkpoint(self, *arguments: Any) -> Any:
        """Let the run save, and return what to submit again. submitit calls this on SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            # This interrupts `wait` above, whose lock Popen's own methods would wait for.
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGUSR2)
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(_Command(self._job), *arguments)


class SlurmExecutor:
    """Runs jobs on a Slurm cluster through submitit; only squeue is asked how they are."""

    def __init__(self, folder: Path, options: Mapping[str, str | int]):
        """Prepare to submit jobs.

        Args:
            folder: of submitit's scripts and of the jobs' logs.
            options: submitit's parameters, such as ``slurm_partition`` or ``timeout_min``.

        Raises:
            ConfigError: submitit is not installed, or an option or the folder has line breaks,
                which would become lines of the script.
        """
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "jobs of Slurm need submitit: pip install 'diffjax[sweep]'"
            ) from error
        for name, value in {"the workdir": folder, **options}.items():
            if not f"{name}{value}".isprintable():
                raise ConfigError(f"{name}={str(value)!r} has line breaks or control signs")
        self._executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=100)
        # USR2 comes this long before the end of the time: enough to save, and less than short jobs.
        defaults: dict[str, str | int] = {"slurm_signal_delay_s": 60, "timeout_min": 24 * 60}
        self._executor.update_parameters(**{**defaults, **options})
        self._running: dict[str, str] = {}

    def start(self, job: Job) -> str:
        """Submit a job; returns its number."""
        job.folder.mkdir(parents=True, exist_ok=True)
        self._executor.update_parameters(name=job.name[:40])
        number = self._executor.submit(_Command(job)).job_id
        self._running[job.name] = number
        return number

    def adopt(self, name: str, number: str) -> bool:
        """Look after a job of an earlier invocation; False if Slurm does not have it any more."""
        there = _list_queue()
        if there is not None and number not in there:
            return False
        self._running[name] = number
        return True

    def take_ended(self) -> dict[str, int | None]:
        """Take the jobs that Slurm does not have any more; it does not tell their exit codes."""
        there = _list_queue()
        if there is None:
            return {}
        done = [name for name, number in self._running.items() if number not in there]
        for name in done:
            del self._running[name]
        return dict.fromkeys(done)

    def stop(self) -> None:
        """Do nothing: jobs go on without the sweep, and the next invocation finds them again."""


def _list_queue() -> set[str] | None:
    """List the jobs that Slurm has, waiting or running; None if it does not answer now."""
    command = ["squeue", "--noheader", "--format=%A", "--me"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return None if listed.returncode else set(listed.stdout.split())


def parse_options(items: Sequence[str]) -> dict[str, str | int]:
    """Parse options of submitit from texts NAME=VALUE; whole numbers become int."""
    pairs = [item.partition("=")[::2] for item in items]
    return {k: int(v) if v.lstrip("-").isdigit() else v for k, v in pairs}
