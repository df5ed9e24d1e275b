"""Meshes and placements: one `jax.jit` with `NamedSharding`, from one CPU to many hosts.

The mesh has three axes. Batches are split over ``data`` and ``fsdp``; parameters are split over
``fsdp`` (Rajbhandari et al. 2019, ZeRO) and ``tensor`` (Shoeybi et al. 2019, Megatron).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jax.tree_util import KeyPath
from ml_collections import ConfigDict

Leaf: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct
Tree = TypeVar("Tree")
# A tree of `NamedSharding` with the structure of what it places, or one sharding for all of it.
Shardings: TypeAlias = Any
AXES = ("data", "fsdp", "tensor")


def make_mesh(
    section: Mapping[str, int] | ConfigDict | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Make the mesh of all devices, or of some.

    Args:
        section: sizes of the axes ``data``, ``fsdp`` and ``tensor``; one may be -1, which is what
            the others leave. Default: all devices along ``data``.
        devices: default: all of them.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or a size is not one.
    """
    sizes = [int((section or {}).get(axis, -1 if axis == "data" else 1)) for axis in AXES]
    chosen = np.asarray(jax.devices() if devices is None else devices)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))}: sizes are positive, and one may be -1"
        )
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and chosen.size % known == 0:
        sizes[sizes.index(-1)] = chosen.size // known
    if -1 in sizes or int(np.prod(sizes)) != chosen.size:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not match {chosen.size} devices"
        )
    return Mesh(chosen.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def make_batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of batches, which are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def find_host_share(sharding: Sharding, size: int) -> tuple[int, int]:
    """Return ``(part, parts)``: which of equal contiguous parts of a batch this process reads.

    Processes whose devices hold the same rows, as those along the tensor axis do, read the same.

    Args:
        sharding: of batches.
        size: rows of the global batch.

    Raises:
        ValueError: the devices of this process do not hold such a part.
    """
    own = {
        (rows.start or 0, size if rows.stop is None else rows.stop)
        for device, (rows, *_) in sharding.devices_indices_map((size,)).items()
        if device.process_index == jax.process_index()  # type: ignore[attr-defined] # of jaxlib
    }
    first, count = min(own)[0], sum(stop - start for start, stop in own)
    if max(own)[1] - first != count or size % count or first % count:
        raise ValueError(
            f"process {jax.process_index()} has rows {sorted(own)} of a batch of {size}, which is "
            "not a contiguous part: order config.mesh so that each process has devices side by side"
        )
    return first // count, size // count


def make_replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that holds the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


# Which dimension of a kernel the tensor axis cuts, by the end of its path (Shoeybi et al. 2019):
# the outputs of the first product of a pair, the inputs of the second, so that one sum joins them.
OUTPUTS = re.compile(
    r"(to_q|to_k|to_v|[qkv]_proj|net\.0\.proj|fc1|conv1|linear_1|time_emb_proj|norm1\.linear)"
    r"/(kernel|bias)$"
)
INPUTS = re.compile(r"(to_out\.0|out_proj|net\.2|fc2|conv2|linear_2)/kernel$")


def make_tree_sharding(tree: object, mesh: Mesh, *, min_size: int = 2**16) -> Shardings:
    """Choose the sharding of parameters, their average and their optimiser state, leaf by leaf.

    The tensor axis cuts the dimension that the path asks for (see `OUTPUTS` and `INPUTS`). The fsdp
    axis cuts the largest remaining dimension that it divides.

    Args:
        tree: of arrays, or of their shapes.
        mesh: all devices of the run.
        min_size: smaller leaves stay whole along fsdp: splitting costs more than it saves.
    """

    def place(path: KeyPath, leaf: Leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _choose_spec(name, tuple(leaf.shape), mesh, min_size))

    return jax.tree_util.tree_map_with_path(place, tree)


def _choose_spec(name: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> PartitionSpec:
    """Choose which mesh axis cuts which dimension of one leaf.

    Args:
        name: path of the leaf, with slashes.
        shape: of the leaf.
        mesh, min_size: see `make_tree_sharding`.
    """
    axes: list[str | None] = [None] * len(shape)
    if OUTPUTS.search(name):
        _cut_axis(axes, shape, [len(shape) - 1], "tensor", mesh)
    elif INPUTS.search(name):
        _cut_axis(axes, shape, [len(shape) - 2], "tensor", mesh)
    if math.prod(shape) >= min_size:
        longest_first = sorted(range(len(shape)), key=lambda d: (-shape[d], d))
        _cut_axis(axes, shape, longest_first, "fsdp", mesh)
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def _cut_axis(
    axes: list[str | None], shape: tuple[int, ...], choices: list[int], axis: str, mesh: Mesh
) -> None:
    """Cut the first of the dimensions that is free and that the axis divides.

    Args:
        axes: mesh axis of every dimension; changed in place.
        shape: of the leaf.
        choices: dimensions, in the order of preference.
        axis: of the mesh.
        mesh: all devices of the run.
    """
    parts = mesh.shape[axis]
    for d in choices if parts > 1 else []:
        if axes[d] is None and shape[d] % parts == 0:
            axes[d] = axis
            return


def measure_sharded_fraction(tree: object, shardings: Shardings) -> float:
    """Return the share in [0, 1] of a tree's numbers that is not replicated on every device."""
    sizes = jax.tree.leaves(jax.tree.map(lambda leaf: math.prod(leaf.shape), tree))
    cut = [any(place.spec) for place in jax.tree.leaves(shardings)]
    return sum(size for size, c in zip(sizes, cut, strict=True) if c) / max(sum(sizes), 1)


def place(tree: Tree, shardings: Shardings) -> Tree:
    """Put a tree that every process holds whole onto the devices of all of them.

    Args:
        tree: of arrays.
        shardings: of its leaves, or one for all.
    """

    def put(leaf: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(shardings, tree))


def with_sharding(shapes: Tree, shardings: Shardings) -> Tree:
    """Return shapes with their shardings, as `Checkpoints.restore` takes them."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
