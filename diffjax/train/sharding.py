"""Meshes and placements: one `jax.jit` with `NamedSharding`, from one CPU to many hosts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffjax.types import PyTree

AXES = ("data", "fsdp", "tensor")


def make_mesh(section: Any = None) -> Mesh:
    """Mesh of all devices; one axis may be -1 and takes what the others leave.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or a size is not one.
    """
    sizes = [int((section or {}).get(axis, -1 if axis == "data" else 1)) for axis in AXES]
    devices = np.asarray(jax.devices())
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))}: sizes are positive, and one may be -1"
        )
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not match {len(devices)} devices"
        )
    return Mesh(devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_sharding(tree: PyTree, mesh: Mesh, *, min_size: int = 2**16) -> PyTree:
    """Shard each large leaf over fsdp along its largest divisible dimension; replicate the rest."""
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        shape = leaf.shape
        divisible = [d for d, n in enumerate(shape) if n % parts == 0]
        if parts == 1 or leaf.size < min_size or not divisible:
            return replicated(mesh)
        largest = max(divisible, key=lambda d: shape[d])
        return NamedSharding(
            mesh, PartitionSpec(*("fsdp" if d == largest else None for d in range(len(shape))))
        )

    return jax.tree.map(place, tree)


def with_sharding(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and where they go, as `Checkpoints.restore` takes them."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
