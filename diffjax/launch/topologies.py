"""Chips that are not there: what they have, and how JAX compiles for them.

TPU topologies (v5e:2x4, v5p:2x2x2, v6e:2x4, ...) are compiled by the libtpu of PyPI on any machine:

    pip install --no-deps 'libtpu==0.0.42.*'    # the version of jax's tpu extra: 0.0.42 for 0.10.2

``cpu:8`` compiles for as many CPU devices. Compilation runs at effort O0, or an SD-sized step takes
more than half an hour on two cores. Peaks at O0 say whether a step fits; an optimised program may
take less.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import jax

from diffjax.types import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """What a chip has.

    Attributes:
        bytes: memory that programs may use.
        flops: bfloat16 FLOP/s at most, as the vendor states them.
    """

    bytes: float
    flops: float


CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12),
    "v6e": Chip(31.25 * GIB, 918e12),
    "v5p": Chip(95.74 * GIB, 459e12),
}


# Asked by libtpu when it starts; any slice can be described afterwards.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file stops a second process
    "TPU_LOG_DIR": "disabled",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def find_devices(name: str) -> tuple[list[jax.Device], Chip | None]:
    """Find the devices of a topology such as ``v5e:2x4`` or ``cpu:8``, and what each of them has.

    Returns:
        The devices, for which programs can be compiled and not run, and the chip; None for CPUs,
        whose memory has no known limit.

    Raises:
        ConfigError: the name is unknown, or libtpu is missing.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and shape.isdigit():
        return jax.devices("cpu")[: int(shape)], None
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ConfigError(
            f"unknown topology {name!r}; choose one of {', '.join(CHIPS)} with a shape, as in "
            "v5e:2x4 or v5p:2x2x2, or cpu:N"
        )
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"{name} cannot be described: {reason}. It needs PyPI's libtpu of this jax "
            f"({jax.__version__}): see the help of {__name__}"
        ) from error
    return list(found.devices), CHIPS[kind]


def configure_jax(name: str) -> None:
    """Change the settings that JAX reads before it looks for devices, to compile for a topology."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # cannot load programs of absent chips
    kind, _, count = name.partition(":")
    if kind == "cpu" and count.isdigit():
        jax.config.update("jax_num_cpu_devices", int(count))
    else:
        jax.config.update("jax_optimization_level", "O0")
