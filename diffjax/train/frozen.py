"""Weights that a task reads but does not train, stored once under the hash of their content.

A checkpoint holds the hash alone, so that the text encoders or the base of a ControlNet are not
written again with every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from diffjax.train import hosts
from diffjax.train.sealed_files import CheckpointError, seal, verify
from diffjax.types import Params, Tree

WEIGHTS = "weights"
WeightsT = TypeVar("WeightsT")


def hash_content(tree: Tree) -> str:
    """Return the SHA-256 of names, shapes, types and bits of the leaves; "" if there are none.

    It does not depend on the devices of the leaves, nor on the order of dictionaries.

    Args:
        tree: a pytree of arrays, or None.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    if not flat:
        return ""
    digest = hashlib.sha256()
    for path, leaf in flat:
        value = np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(json.dumps([name, list(value.shape), str(value.dtype)]).encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_once(folder: Path, digest: str, tree: Params | None) -> None:
    """Store a tree under its hash, unless an intact copy is there.

    Args:
        folder: of all frozen weights of a workdir.
        digest: from `hash_content`; with "" nothing is written.
        tree: the weights, placed on the devices.

    Raises:
        CheckpointError: it cannot be written.
    """
    folder = folder.absolute()  # Orbax needs absolute paths
    target = folder / digest
    if not digest or hosts.agree("frozen weights", str(_is_intact(target))) == "True":
        return
    partial = folder / f"{digest}.partial"
    try:
        if hosts.is_writer():
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        hosts.barrier("room for frozen weights")
        ocp.save_checkpointables(partial, {WEIGHTS: tree})
        if hosts.is_writer():
            seal(partial)
            partial.rename(target)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise CheckpointError(
            f"the frozen weights could not be written to {folder}: {reason}"
        ) from error


def _is_intact(folder: Path) -> bool:
    """Return whether a folder agrees with its manifest; damage is a warning."""
    if not folder.is_dir():
        return False
    try:
        verify(folder)
    except CheckpointError as error:
        logging.warning("writing the frozen weights again: %s", error)
        return False
    return True


def read(folder: Path, digest: str, abstract: WeightsT) -> WeightsT:
    """Read the weights that are stored under a hash.

    Args:
        folder: of all frozen weights of a workdir.
        digest: from `hash_content`.
        abstract: tree of `jax.ShapeDtypeStruct`, with shardings.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    folder = folder.absolute()
    if not (folder / digest).is_dir():
        raise CheckpointError(f"{folder} has no frozen weights {digest}")
    verify(folder / digest)
    return ocp.load_checkpointables(folder / digest, {WEIGHTS: abstract})[WEIGHTS]
