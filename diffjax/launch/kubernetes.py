"""Jobs described for Kubernetes, to be started by ``kubectl apply -f``.

Names and amounts are checked here, because kubectl reports them late and one by one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffjax.launch.jobs import STOPPED, Job
from diffjax.types import ConfigError

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # of RFC 1123
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_RESOURCE = rf"(?:{_DOMAIN}/)?[A-Za-z0-9](?:[-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
_QUANTITY = r"[0-9]+(?:\.[0-9]+)?(?:m|k|[KMGTPE]i?)?"


def format_manifest(
    jobs: Sequence[Job], *, image: str, claim: str, workdir: Path, resources: Mapping[str, str]
) -> str:
    """Format jobs as a list of Kubernetes Jobs in JSON, for ``kubectl apply -f``.

    A run that a preemption stops, after it has saved, is started again and does not count as a
    failure.

    Args:
        image: container image with diffjax.
        claim: name of the persistent volume claim that holds the runs.
        workdir: absolute path at which the pods mount it.
        resources: amounts by name, such as ``{"nvidia.com/gpu": "1"}``.

    Raises:
        ConfigError: Kubernetes would refuse the image, the claim, a resource or the workdir.
    """
    _check_names(image, claim, workdir, resources)
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "List",
            "items": [_describe_job(job, image, claim, workdir, resources) for job in jobs],
        },
        indent=1,
    )


def _check_names(image: str, claim: str, workdir: Path, resources: Mapping[str, str]) -> None:
    """Check what a user chose against the rules of Kubernetes.

    Raises:
        ConfigError: a name or an amount breaks them.
    """
    if not re.fullmatch(_DOMAIN, claim) or len(claim) > 253:
        raise ConfigError(
            f"claim={claim!r} is not a name that Kubernetes takes: use small letters, digits, -, ."
        )
    if not image or not image.isascii() or re.search(r"\s", image) or not image.isprintable():
        raise ConfigError(f"image={image!r} must name a container, such as diffjax:latest")
    if not workdir.is_absolute():
        raise ConfigError(
            f"workdir={workdir} is where the pods have the volume: an absolute path is needed"
        )
    if ":" in str(workdir) or not str(workdir).isprintable():
        raise ConfigError(f"workdir={str(workdir)!r}: pods cannot mount a folder of that name")
    for name, amount in resources.items():
        if not re.fullmatch(_RESOURCE, name) or not re.fullmatch(_QUANTITY, amount):
            raise ConfigError(
                f"resources={name}={amount}: must be NAME=AMOUNT, such as nvidia.com/gpu=1"
            )


def make_job_name(job: Job) -> str:
    """Make a label of RFC 1123, as Kubernetes wants it, with room for what it appends to pods.

    A digest of the folder keeps runs apart whose names begin alike, and those of other sweeps.
    """
    readable = re.sub(r"[^a-z0-9]", "-", job.name.lower())[:46].strip("-") or "run"
    return f"{readable}-{hashlib.sha256(str(job.folder).encode()).hexdigest()[:6]}"


def _describe_job(
    job: Job, image: str, claim: str, workdir: Path, resources: Mapping[str, str]
) -> dict[str, object]:
    """Describe a job as Kubernetes' ``batch/v1`` Job, with two retries."""
    container = {
        "name": "train",
        "image": image,
        # Kubernetes puts environment variables in place of $(NAME); $$ is a dollar sign.
        "command": ["python", *(part.replace("$", "$$") for part in job.command[1:])],
        "resources": {"limits": dict(resources)},
        "volumeMounts": [{"name": "runs", "mountPath": str(workdir)}],
    }
    ignored: list[dict[str, object]] = [
        {"onExitCodes": {"containerName": "train", "operator": "In", "values": list(STOPPED)}},
        {"onPodConditions": [{"type": "DisruptionTarget"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": make_job_name(job), "labels": {"app": "diffjax-sweep"}},
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
