"""Parameter trees to and from PyTorch state dicts, in memory and as safetensors files.

Submodules carry the names that diffusers gives them, dots included, so the joined path of a
parameter *is* its key in the state dict. Only the leaves differ:

| here | state dict | axes |
|---|---|---|
| kernel of a convolution (H, W, I, O) | weight | (O, I, H, W) |
| kernel of a dense layer (I, O) | weight | (O, I) |
| scale of a norm, rows of an embedding | weight | the same |
| bias and everything else | the same | the same |
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diffjax.types import PyTree

_RENAMED = ("kernel", "scale", "embedding")
_SHOWN = 5
_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_HEADER = 9  # length of the header in 8 bytes, then its opening brace


def _name(path: tuple[Any, ...]) -> tuple[str, bool]:
    """(key in the state dict, whether the leaf is a kernel) of a path in a tree."""
    if not path or not all(isinstance(part, jax.tree_util.DictKey) for part in path):
        raise ValueError(
            f"parameters must be nested dicts, but there is one at {jax.tree_util.keystr(path)!r}"
        )
    *modules, leaf = (str(part.key) for part in path)
    return ".".join([*modules, "weight" if leaf in _RENAMED else leaf]), leaf == "kernel"


def _named(params: PyTree) -> tuple[list[tuple[str, bool, Any]], Any]:
    """[(key, whether a kernel, leaf)] in the order of the tree, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = [(*_name(path), leaf) for path, leaf in leaves]
    counts = Counter(key for key, _, _ in named)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"several parameters would have the same key: {_some(twice)}")
    return named, structure


def _some(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _outward(axes: int) -> tuple[int, ...]:
    """Axes that turn (..., I, O) into (O, I, ...)."""
    return (axes - 1, axes - 2, *range(axes - 2))


def _inward(axes: int) -> tuple[int, ...]:
    return (*range(2, axes), 1, 0)


def to_state_dict(params: PyTree) -> dict[str, np.ndarray]:
    """The state dict of a tree of parameters: nested dicts, as in ``variables["params"]``.

    Raises:
        ValueError: two parameters have the same joined path, as in {a: {b}} and {a.b}.
    """
    state = {}
    for key, kernel, leaf in _named(params)[0]:
        value = np.asarray(leaf)
        if kernel:
            value = value.transpose(_outward(value.ndim))
        state[key] = np.ascontiguousarray(value)
    return state


def from_state_dict(state: Mapping[str, Any], like: PyTree) -> PyTree:
    """The tree shaped and typed as ``like`` that a state dict describes.

    Args:
        state: arrays (or CPU tensors) by key; half precision is converted to the type of ``like``.
        like: tree of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: keys are missing or unexpected, a shape differs, or joined paths of ``like``
            are not unique.
    """
    named, structure = _named(like)
    _check_keys(set(state), {key for key, _, _ in named})
    leaves = []
    for key, kernel, leaf in named:
        value = np.asarray(state[key])
        wanted = tuple(leaf.shape)
        if kernel:
            wanted = tuple(wanted[axis] for axis in _outward(len(wanted)))
        if value.shape != wanted:
            raise ValueError(f"{key} has shape {value.shape}, but the network needs {wanted}")
        if kernel:
            value = value.transpose(_inward(value.ndim))
        leaves.append(np.array(value, leaf.dtype, order="C"))
    return jax.tree_util.tree_unflatten(structure, leaves)


def _check_keys(found: set[str], wanted: set[str]) -> None:
    missing, unexpected = wanted - found, found - wanted
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing: {_some(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} keys are unexpected: {_some(unexpected)}")
    if problems:
        raise ValueError(f"the weights do not fit this network; {'; '.join(problems)}")


def save_safetensors(
    path: str | os.PathLike[str], params: PyTree, metadata: Mapping[str, str] | None = None
) -> None:
    """Write parameters as a safetensors file that diffusers reads, all of it or nothing.

    Raises:
        ValueError: joined paths are not unique.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # Readers of torch look for the format entry.
        save_file(to_state_dict(params), partial, {"format": "pt", **(metadata or {})})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load_safetensors(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """The tree shaped and typed as ``like`` in a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle, or damaged, or does not fit ``like``.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    _refuse_pickle(source)
    try:
        state = load_file(source)
    except SafetensorError as error:
        raise ValueError(
            f"{source} is no complete safetensors file ({error}); copy or download it again"
        ) from error
    return from_state_dict(state, like)


def _refuse_pickle(source: Path) -> None:
    """Reading a pickle can run any code, so no file that looks like one is opened as weights."""
    with source.open("rb") as file:
        head = file.read(_HEADER)
    pickled = head.startswith((b"PK\x03\x04", b"\x80")) and not head.endswith(b"{")
    if pickled or source.suffix in _PICKLE_SUFFIXES:
        raise ValueError(
            f"{source} is a pickle, which can run code when it is read; use the .safetensors file "
            "of the same weights, or convert it once with the safetensors library"
        )
