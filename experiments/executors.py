"""Where the runs of a sweep happen: here, on a Slurm cluster, or described for Kubernetes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments import common

LOG = "log.txt"
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # of RFC 1123
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_RESOURCE = rf"(?:{_DOMAIN}/)?[A-Za-z0-9](?:[-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
_QUANTITY = r"[0-9]+(?:\.[0-9]+)?(?:m|k|[KMGTPE]i?)?"
STOPPED = (140, 143)  # exit codes of a run that has saved its state and wants to be started again


class Job(NamedTuple):
    """One run to be made: a command, and the folder that it works in."""

    name: str
    command: tuple[str, ...]
    folder: Path


class Executor(Protocol):
    """Starts jobs, and says which have ended."""

    def start(self, job: Job) -> str:
        """Start or submit it; what it is called there."""

    def ended(self) -> dict[str, int | None]:
        """Those that ended since the last call, with their exit codes where they are known."""

    def stop(self) -> None:
        """Have all of them save and leave; wait for that."""


class Local:
    """Processes of this machine; their output goes to log.txt in their folders.

    Args:
        parallel: how many there are at once; they share the GPUs equally.
    """

    def __init__(self, parallel: int = 1) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._shares = shares(visible_gpus(), parallel)
        self._taken: dict[str, int] = {}

    def start(self, job: Job) -> str:
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

    def ended(self) -> dict[str, int | None]:
        done = {n: p.returncode for n, p in self._running.items() if p.poll() is not None}
        self._running = {n: p for n, p in self._running.items() if n not in done}
        return dict(done)

    def stop(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            process.wait()


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that a process started here would have."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return listed.stdout.split()
    return []


def shares(gpus: Sequence[str], parallel: int) -> list[dict[str, str]]:
    """Environments of ``parallel`` processes that divide the GPUs, or share them if they are few.

    JAX takes 75 % of a GPU's memory at once: those that share one take less of it each.
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


class _Command:
    """Runs a command under submitit; told to stop, it lets the run save and asks for a requeue."""

    def __init__(self, job: Job):
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self._process = subprocess.Popen(self._job.command)
        code = self._process.wait()
        if code in STOPPED:
            time.sleep(2)  # Slurm signals both: leave submitit's handler the time to come
        return code

    def checkpoint(self, *arguments: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            # This interrupts `wait` above, whose lock Popen's own methods would wait for.
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGUSR2)
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(_Command(self._job), *arguments)


class Slurm:
    """Jobs of a Slurm cluster, through submitit; squeue alone is asked how they are.

    Args:
        folder: of submitit's scripts and of the jobs' logs.
        options: submitit's parameters, such as ``slurm_partition`` or ``timeout_min``.

    Raises:
        UsageError: submitit is not installed, or an option or the folder has line breaks, which
            would become lines of the script.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]):
        try:
            import submitit
        except ImportError as error:
            raise common.UsageError(
                "--executor=slurm needs submitit: pip install 'diffjax[sweep]'"
            ) from error
        for name, value in {"the workdir": folder, **options}.items():
            if not f"{name}{value}".isprintable():
                raise common.UsageError(f"{name}={str(value)!r} has line breaks or control signs")
        self._executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=100)
        # USR2 comes this long before the end of the time: enough to save, and less than short jobs.
        defaults = {"slurm_signal_delay_s": 60, "timeout_min": 24 * 60}
        self._executor.update_parameters(**{**defaults, **options})
        self._running: dict[str, str] = {}

    def start(self, job: Job) -> str:
        job.folder.mkdir(parents=True, exist_ok=True)
        self._executor.update_parameters(name=job.name[:40])
        number = self._executor.submit(_Command(job)).job_id
        self._running[job.name] = number
        return number

    def adopt(self, name: str, number: str) -> bool:
        """Look after a job of an earlier invocation; False if it is no longer there."""
        there = _queue()
        if there is not None and number not in there:
            return False
        self._running[name] = number
        return True

    def ended(self) -> dict[str, int | None]:
        there = _queue()
        if there is None:
            return {}
        done = [name for name, number in self._running.items() if number not in there]
        for name in done:
            del self._running[name]
        return dict.fromkeys(done)

    def stop(self) -> None:
        """Jobs go on without the sweep; the next invocation finds them again."""


def _queue() -> set[str] | None:
    """Numbers of the jobs that Slurm has, waiting or running; None if it does not answer now."""
    command = ["squeue", "--noheader", "--format=%A", "--me"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return None if listed.returncode else set(listed.stdout.split())


def kubernetes(
    jobs: Sequence[Job], *, image: str, claim: str, workdir: Path, resources: Mapping[str, str]
) -> str:
    """A list of Kubernetes Jobs as JSON, for ``kubectl apply -f``.

    A run that a preemption stops, having saved, starts again and is not counted as a failure.

    Raises:
        UsageError: Kubernetes would refuse the image, the claim, a resource or the workdir.
    """
    _check_for_kubernetes(image, claim, workdir, resources)
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "List",
            "items": [_kubernetes_job(job, image, claim, workdir, resources) for job in jobs],
        },
        indent=1,
    )


def _check_for_kubernetes(
    image: str, claim: str, workdir: Path, resources: Mapping[str, str]
) -> None:
    if not re.fullmatch(_DOMAIN, claim) or len(claim) > 253:
        raise common.UsageError(
            f"--claim={claim!r} is no name of Kubernetes: small letters, digits, - and . inside"
        )
    if not image or not image.isascii() or re.search(r"\s", image) or not image.isprintable():
        raise common.UsageError(f"--image={image!r} is no name of an image")
    if ":" in str(workdir) or not str(workdir).isprintable():
        raise common.UsageError(f"--workdir={str(workdir)!r}: pods mount no folder of that name")
    for name, amount in resources.items():
        if not re.fullmatch(_RESOURCE, name) or not re.fullmatch(_QUANTITY, amount):
            raise common.UsageError(
                f"--resources={name}={amount}: NAME=AMOUNT is wanted, such as nvidia.com/gpu=1"
            )


def job_name(job: Job) -> str:
    """A label of RFC 1123, which Kubernetes asks for, with room for what it appends to pods.

    Runs whose names begin alike, and those of other sweeps, are other jobs.
    """
    readable = re.sub(r"[^a-z0-9]", "-", job.name.lower())[:46].strip("-") or "run"
    return f"{readable}-{hashlib.sha256(str(job.folder).encode()).hexdigest()[:6]}"


def _kubernetes_job(
    job: Job, image: str, claim: str, workdir: Path, resources: Mapping[str, str]
) -> dict[str, Any]:
    container = {
        "name": "train",
        "image": image,
        # Kubernetes puts environment variables in place of $(NAME); $$ is a dollar sign.
        "command": ["python", *(part.replace("$", "$$") for part in job.command[1:])],
        "resources": {"limits": dict(resources)},
        "volumeMounts": [{"name": "runs", "mountPath": str(workdir)}],
    }
    ignored = [
        {"onExitCodes": {"containerName": "train", "operator": "In", "values": list(STOPPED)}},
        {"onPodConditions": [{"type": "DisruptionTarget"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(job), "labels": {"app": "diffjax-sweep"}},
        "spec": {
            "backoffLimit": 2,
            "podFailurePolicy": {"rules": [{"action": "Ignore", **rule} for rule in ignored]},
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 300,
                    "containers": [container],
                    "volumes": [
                        {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
                    ],
                }
            },
        },
    }


def train_command(config: str, folder: Path, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """``python -m experiments.train`` with overrides."""
    changes = [
        f"--config.{key}={tuple(value) if isinstance(value, list) else value}"
        for key, value in overrides.items()
    ]
    return (
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={config}",
        f"--workdir={folder}",
        *changes,
    )
