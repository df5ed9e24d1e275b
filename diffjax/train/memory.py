"""Whether a compiled step fits the memory of a device, and how little it must compute again to fit.

``network.remat=auto`` takes the first of `diffjax.remat.POLICIES` with which the step fits: none
adds no work, ``blocks`` adds most. What was found is kept in the workdir, so that a resumed run
begins with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffjax.remat import POLICIES
from diffjax.train import hosts
from diffjax.types import JsonObject, PyTree
from diffjax.writing import write_atomically

T = TypeVar("T")
GIB = 2**30
NEEDED = r"([Uu]sed |temporaries \()(?P<used>[\d.]+)(?P<unit>[KMGT])"  # in XLA's messages
# Share of a device's memory that a step may take: batches and previews need some as well.
SHARE = 0.95
FILE = "remat.json"


class DoesNotFit(RuntimeError):
    """The compiled step needs more memory than a chip has.

    Attributes:
        needed: bytes, 0 if the compiler does not say.
        sizes: what is known without compiling, state_bytes among it.
    """

    def __init__(self, needed: float, sizes: Mapping[str, float]):
        """Make the error with its message.

        Args:
            needed: bytes, 0 if the compiler does not say.
            sizes: bytes by name; ``state_bytes`` must be among them.
        """
        size = f"{needed / GIB:.2f} GiB" if needed else "more than there is"
        state = sizes["state_bytes"] / GIB
        super().__init__(
            f"the step does not fit: XLA needs {size}; the state takes {state:.2f} GiB"
        )
        self.needed = needed
        self.sizes = dict(sizes)


def compile_within_memory(compile: Callable[[], T], sizes: Mapping[str, float]) -> T:
    """Compile a program, and recognise the errors of XLA that are of memory.

    Args:
        compile: compiles, and returns the result.
        sizes: what is known without compiling, for the error.

    Raises:
        DoesNotFit: the program does not fit into memory.
    """
    try:
        return compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(NEEDED, str(error))
        if not found and ("RESOURCE_EXHAUSTED" not in str(error) or "Vmem" in str(error)):
            raise  # not of memory, or of a kernel's
        scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        needed = float(found["used"]) * scale[found["unit"]] if found else 0.0
        raise DoesNotFit(needed, sizes) from error


def count_local_bytes(tree: PyTree) -> int:
    """Count the bytes that a tree of placed shapes takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def read_peak(compiled: Any) -> int:
    """Read the peak memory of a compiled program on one device, in bytes."""
    memory = compiled.memory_analysis()
    return int(
        getattr(memory, "peak_memory_in_bytes", 0)
        or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    )


def read_limit(mesh: Mesh) -> float | None:
    """Read the bytes that programs may use on a device of a mesh; None if it does not say.

    CPUs do not say.
    """
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = own[0].memory_stats() if own and own[0].platform != "cpu" else None
    limit = (stats or {}).get("bytes_limit")
    return float(limit) if limit else None


def take_first_that_fits(
    attempt: Callable[[str], tuple[T, float]], limit: float, policies: Sequence[str] = POLICIES
) -> tuple[str, T, float]:
    """Take the first policy with which a step fits, or the last one if its program exists.

    Args:
        attempt: from a policy to the compiled program, or what was read of it, and its peak in
            bytes; raises `DoesNotFit` if the compiler refuses.
        limit: bytes of a device.
        policies: in the order of preference.

    Returns:
        The policy, what ``attempt`` returned for it, and the peak.

    Raises:
        DoesNotFit: the compiler refuses the last one as well.
    """
    for policy in policies:
        try:
            found, peak = attempt(policy)
        except DoesNotFit:
            if policy == policies[-1]:
                raise
            continue
        if peak <= limit or policy == policies[-1]:
            return policy, found, peak
    raise ValueError("no policies to choose from")


def describe_situation(config: ConfigDict, mesh: Mesh, limit: float) -> JsonObject:
    """Describe what the choice of a policy depends on, as JSON holds it."""
    device = mesh.devices.flat[0]
    network = json.loads(config.network.to_json_best_effort())
    return {
        "device": device.device_kind,
        "bytes": limit,
        "mesh": {str(name): int(size) for name, size in mesh.shape.items()},
        "batch": config.data.batch_size,
        "accumulate": config.train.accumulate,
        "image": json.loads(json.dumps(config.data.get("image_size", 0))),
        "network": network,
        "jax": jax.__version__,
    }


def read_choice(workdir: Path, situation: JsonObject) -> str | None:
    """Read the policy that a run took before; None if it took none, or in another situation.

    Args:
        workdir: folder of the run.
        situation: of `describe_situation`.
    """
    try:
        stored = json.loads((workdir / FILE).read_text())
        same = stored["situation"] == situation and stored["remat"] in POLICIES
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(stored["remat"]) if same else None


def keep_choice(workdir: Path, situation: JsonObject, policy: str, peak: float) -> None:
    """Say which policy was taken, and write it to the workdir.

    Args:
        workdir: folder of the run.
        situation: of `describe_situation`.
        policy: that was taken.
        peak: bytes of the step with it.
    """
    logging.info(
        "network.remat=auto: %s, with which the step needs %.2f of %.2f GiB",
        *(policy, peak / GIB, situation["bytes"] / GIB),
    )
    if hosts.is_writer():
        found = {"remat": policy, "peak_bytes": peak, "situation": situation}
        write_atomically(workdir / FILE, json.dumps(found, indent=2) + "\n")
