"""Parameter trees to and from PyTorch state dicts, in memory and as safetensors files.

Submodules carry the names that diffusers gives them, dots included, so the joined path of a
parameter *is* its key in the state dict. Only the leaves differ:

| here | state dict | axes |
|---|---|---|
| kernel of a convolution (H, W, I, O) | weight | (O, I, H, W) |
| kernel of a dense layer (I, O) | weight | (O, I) |
| scale of a norm, rows of an embedding | weight | the same |
| bias and everything else | the same | the same |

Layers that are scanned here are stacked on a first axis; in a state dict each has its own keys,
``transformer_blocks.0.`` and so on.

All readers of weights end here (`models.fill`, `files.load_safetensors`, adapters), and so do all
writers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike
from safetensors.numpy import save_file

from diffjax.types import Array, Params
from diffjax.untrusted import name_some
from diffjax.writing import replace_file

_RENAMED = ("kernel", "scale", "embedding")
# Modules whose layers are scanned: the first axis of their parameters counts the layers, whose
# number follows the name of the module in the key.
_STACKED = ("transformer_blocks", "encoder.layers", "encoder.layer")
# Constants that other libraries store beside the parameters.
_BUFFERS = ("position_ids", "num_batches_tracked")

Place = Callable[[str, np.ndarray], Array]
Leaf = Array | jax.ShapeDtypeStruct  # of a tree of parameters, or of one to be filled


class _Leaf(NamedTuple):
    """A leaf of a tree and its keys in the state dict.

    Attributes:
        keys: one key, or one per layer if the leaf is a stack of scanned layers.
        stacked: whether the first axis counts layers.
        kernel: whether the axes are those of a kernel, which the state dict has in another order.
        value: the array or its shape and type.
    """

    keys: tuple[str, ...]
    stacked: bool
    kernel: bool
    value: Leaf

    def find_outward_axes(self) -> tuple[int, ...]:
        """Return the axes that transpose one layer's (..., I, O) to (O, I, ...)."""
        axes = len(self.value.shape) - self.stacked
        return (axes - 1, axes - 2, *range(axes - 2)) if self.kernel else tuple(range(axes))

    def shape(self) -> tuple[int, ...]:
        """Return the shape of one layer in the state dict."""
        shape = self.value.shape[1:] if self.stacked else self.value.shape
        return tuple(shape[axis] for axis in self.find_outward_axes())


def _describe_leaf(path: tuple[object, ...], value: Leaf) -> _Leaf:
    """Return a leaf with its keys, by the path of names that leads to it.

    Raises:
        ValueError: the tree has something else than nested dicts.
    """
    if not path or not all(isinstance(part, jax.tree_util.DictKey) for part in path):
        raise ValueError(
            f"parameters must be nested dicts, but there is one at {jax.tree_util.keystr(path)!r}"
        )
    *modules, leaf = (str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))
    name = "weight" if leaf in _RENAMED else leaf
    stacks = [i for i, module in enumerate(modules) if module.endswith(_STACKED)]
    if not stacks:
        return _Leaf((".".join([*modules, name]),), False, leaf == "kernel", value)
    head, tail = ".".join(modules[: stacks[0] + 1]), ".".join([*modules[stacks[0] + 1 :], name])
    keys = tuple(f"{head}.{k}.{tail}" for k in range(value.shape[0]))
    return _Leaf(keys, True, leaf == "kernel", value)


def _name_leaves(params: Params) -> tuple[list[_Leaf], jax.tree_util.PyTreeDef]:
    """Return the leaves with their keys in the order of the tree, and the tree's structure.

    Raises:
        ValueError: two leaves would have the same key.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = [_describe_leaf(path, value) for path, value in leaves]
    counts = Counter(key for leaf in named for key in leaf.keys)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"several parameters would have the same key: {', '.join(sorted(twice))}")
    return named, structure


def list_state_shapes(like: Params) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tree's state dict by key, without reading the arrays.

    Args:
        like: a tree of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: as `to_state_dict`.
    """
    return {key: leaf.shape() for leaf in _name_leaves(like)[0] for key in leaf.keys}


def iterate_state(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the keys and arrays of `to_state_dict` one by one, so that one array is in memory at a
    time.

    Raises:
        ValueError: as `to_state_dict`.
    """
    for leaf in _name_leaves(params)[0]:
        value = np.asarray(leaf.value)
        for key, layer in zip(leaf.keys, value if leaf.stacked else value[None], strict=True):
            yield key, np.ascontiguousarray(layer.transpose(leaf.find_outward_axes()))


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """Return the state dict of a tree of parameters, with torch's names and axes.

    Args:
        params: nested dicts of arrays, as in ``variables["params"]``.

    Raises:
        ValueError: two parameters have the same joined path, as in {a: {b}} and {a.b}.
    """
    return dict(iterate_state(params))


def from_state_dict(
    state: Mapping[str, ArrayLike], like: Params, *, place: Place | None = None
) -> Params:
    """Return a tree of parameters that is filled from a state dict.

    Arrays are looked up one by one, so that a mapping which reads a file streams it.

    Args:
        state: arrays (or CPU tensors) by key, which are cast to the types of ``like``. Constants
            that are not parameters (``position_ids``, ``num_batches_tracked``) are skipped.
        like: a tree of arrays or ``jax.ShapeDtypeStruct`` with the structure, shapes and types to
            fill.
        place: ``(key, array) -> leaf``, called for each parameter at once, for example to put it on
            devices. Stacked layers come under the key of the first.

    Raises:
        ValueError: keys are missing or unexpected, a shape differs, a weight has another kind of
            numbers (integers for floats), is not finite or too large for its type, or paths of
            ``like`` are not unique.
    """
    named, structure = _name_leaves(like)
    found = {key for key in state if not key.endswith(_BUFFERS)}
    _check_keys(found, {key for leaf in named for key in leaf.keys})
    leaves = []
    for leaf in named:
        value = _fill_leaf(leaf, state)
        leaves.append(value if place is None else place(leaf.keys[0], value))
    return jax.tree_util.tree_unflatten(structure, leaves)


def _fill_leaf(leaf: _Leaf, state: Mapping[str, ArrayLike]) -> np.ndarray:
    """Return the array of a leaf, filled from a state dict and cast layer by layer.

    Raises:
        ValueError: see `_check_value`, or a value overflows the leaf's type.
    """
    out: np.ndarray | None = None
    for place, key in enumerate(leaf.keys):
        value = _check_value(key, np.asarray(state[key]), leaf)
        if out is None:  # reserved once a first array of the right shape is there
            out = np.empty(leaf.value.shape, leaf.value.dtype)
        layer = out[place] if leaf.stacked else out
        with np.errstate(over="ignore"):
            layer.transpose(leaf.find_outward_axes())[...] = value
        if not np.isfinite(layer).all():
            raise ValueError(
                f"{key} holds values that are too large for {out.dtype}, up to "
                f"{np.abs(value).max():g}; load it as float32 or bfloat16"
            )
    return np.empty(leaf.value.shape, leaf.value.dtype) if out is None else out


def _check_value(key: str, value: np.ndarray, leaf: _Leaf) -> np.ndarray:
    """Return an array of a state dict, after checking that it fits a leaf.

    Raises:
        ValueError: its shape or kind of numbers differs, or it is not finite.
    """
    if value.shape != leaf.shape():
        raise ValueError(f"{key} has shape {value.shape}, but the network needs {leaf.shape()}")
    if _name_kind(value.dtype) != _name_kind(leaf.value.dtype):
        raise ValueError(
            f"{key} holds numbers of type {value.dtype}, but the network needs {leaf.value.dtype}"
        )
    if not np.isfinite(value).all():
        raise ValueError(f"{key} holds values that are not finite; the weights are damaged")
    return value


def _name_kind(dtype: DTypeLike) -> str:
    """Return the kind of numbers of a type: floats, integers, complex or others. bfloat16 is of
    floats.
    """
    kinds = {"floats": np.floating, "integers": np.integer, "complex": np.complexfloating}
    return next((k for k, v in kinds.items() if jax.dtypes.issubdtype(dtype, v)), "others")


def _check_keys(found: set[str], wanted: set[str]) -> None:
    """Compare the keys of a state dict with those that a network needs.

    Raises:
        ValueError: some are missing or unexpected; the message names the first ten of each.
    """
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing: {name_some(missing, 10)}")
    if unexpected:
        problems.append(f"{len(unexpected)} keys are unexpected: {name_some(unexpected, 10)}")
    if problems:
        raise ValueError(f"the weights do not fit this network; {'; '.join(problems)}")


def save_safetensors(
    path: str | os.PathLike[str], params: Params, metadata: Mapping[str, str] | None = None
) -> None:
    """Write parameters as a safetensors file that diffusers reads, all of it or nothing.

    Args:
        path: the file.
        params: nested dicts of arrays.
        metadata: texts by name, for the header.

    Raises:
        ValueError: joined paths are not unique.
    """
    with replace_file(path) as partial:
        # Readers of torch look for the format entry.
        save_file(to_state_dict(params), partial, {"format": "pt", **(metadata or {})})


def change_leaves(
    params: Params, changes: Mapping[str, Callable[[np.ndarray], np.ndarray]]
) -> Params:
    """Return parameters with some arrays changed, computed in float32 and stored in their own
    types.

    Args:
        params: a tree of arrays. Leaves that do not change are not copied.
        changes: ``old -> new`` by key of the state dict and in its axes.
    """
    named, structure = _name_leaves(params)
    return jax.tree_util.tree_unflatten(structure, [_change_leaf(leaf, changes) for leaf in named])


def _change_leaf(leaf: _Leaf, changes: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> Leaf:
    """Return the array of a leaf with the changes of its keys, on the devices where it was."""
    if not any(key in changes for key in leaf.keys):
        return leaf.value
    out = np.array(leaf.value)
    for key, layer in zip(leaf.keys, out if leaf.stacked else out[None], strict=True):
        if key in changes:
            part = layer.transpose(leaf.find_outward_axes())
            part[...] = changes[key](part.astype(np.float32))
    sharding = getattr(leaf.value, "sharding", None)
    return out if sharding is None else jax.device_put(out, sharding)
