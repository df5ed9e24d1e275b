"""Jobs as processes of this machine.

submitit has local executors too, but they need an extra, know no exit codes and share no GPUs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from diffjax.launch.jobs import LOG, Job


class LocalExecutor:
    """Runs jobs as processes of this machine; their output goes to log.txt in their folders."""

    def __init__(self, parallel: int = 1) -> None:
        """Find the GPUs of this machine, and divide them.

        Args:
            parallel: number of jobs at a time, which share the GPUs equally.
        """
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._shares = share_gpus(find_gpus(), parallel)
        self._taken: dict[str, int] = {}

    def start(self, job: Job) -> str:
        """Start a job with its share of the GPUs; returns the number of its process."""
        job.folder.mkdir(parents=True, exist_ok=True)
        free = set(range(len(self._shares))) - {self._taken[name] for name in self._running}
        self._taken[job.name] = min(free, default=0)
        with (job.folder / LOG).open("ab") as log:
            # A session of its own: Ctrl-C reaches the sweep alone, which passes it on.
            process = subprocess.Popen(
                job.command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self._shares[self._taken[job.name]]},
            )
        self._running[job.name] = process
        return str(process.pid)

    def adopt(self, name: str, number: str) -> bool:
        """Return False: processes end with the one that started them."""
        return False  # processes end with the one that started them

    def take_ended(self) -> dict[str, int | None]:
        """Take the exit codes of the processes that have ended since the last call."""
        done = {n: p.returncode for n, p in self._running.items() if p.poll() is not None}
        self._running = {n: p for n, p in self._running.items() if n not in done}
        return dict(done)

    def stop(self) -> None:
        """Send SIGTERM to all processes, and wait until they have saved and ended."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            process.wait()


def find_gpus() -> list[str]:
    """Find the NVIDIA GPUs that a process started here would have, by their names for CUDA.

    ``CUDA_VISIBLE_DEVICES`` decides if it is set, and else ``nvidia-smi``. Without either there are
    none.
    """
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return listed.stdout.split()
    return []


def share_gpus(gpus: Sequence[str], parallel: int) -> list[dict[str, str]]:
    """Divide GPUs among processes; if there are too few, several processes share one.

    JAX takes 75 % of a GPU's memory at once, so processes that share a GPU are told to take less.

    Args:
        gpus: names of the GPUs for CUDA.
        parallel: number of processes.

    Returns:
        Environment variables for each process.
    """
    if not gpus or parallel == 1:
        return [{}] * parallel
    each, crowd = max(1, len(gpus) // parallel), -(-parallel // len(gpus))
    out = []
    for slot in range(parallel):
        own = [gpus[(slot * each + k) % len(gpus)] for k in range(each)]
        out.append({"CUDA_VISIBLE_DEVICES": ",".join(own)})
        if crowd > 1:
            out[-1]["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / crowd:.2f}"
    return out
