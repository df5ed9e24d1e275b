"""A trained model in one file: averaged weights as safetensors, with the config that made them.

The weights carry diffusers' names. The statistics of the task (a measured latent scale, batch-norm
averages) follow under keys that begin with ``extra``, and what the model reads but does not train,
such as the autoencoder of latent diffusion, under ``frozen.``. The config and the step are in the
metadata of the file. The state of the optimiser and the base of a ControlNet are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from diffjax.config.store import NOTE
from diffjax.pretrained.files import open_safetensors
from diffjax.pretrained.state_dict import from_state_dict, to_state_dict
from diffjax.train import State
from diffjax.types import Params, Statistics
from diffjax.untrusted import naming, show
from diffjax.writing import replace_file

_STEP, _FROZEN = "diffjax.step", "frozen."


def _list_extra_keys(extra: Statistics) -> list[str]:
    """List the keys that statistics have in a file, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_flatten_with_path(extra)[0]
    return ["extra" + jax.tree_util.keystr(path) for path, _ in paths]


def write_export(path: Path, cfg: ConfigDict, state: State, frozen: Params | None = None) -> None:
    """Write the averaged weights and the config to a file, as a whole or not at all.

    Args:
        path: of the .safetensors file; its folder is made if need be.
        state: of the training; its average, statistics and step are written.
        frozen: parameters that the model reads but does not train, if the file is to hold them.

    Raises:
        OSError: the file cannot be written.
    """
    extra = dict(zip(_list_extra_keys(state.extra), jax.tree.leaves(state.extra), strict=True))
    tensors = {**to_state_dict(state.ema), **{k: np.asarray(v) for k, v in extra.items()}}
    tensors |= {f"{_FROZEN}{key}": value for key, value in to_state_dict(frozen or {}).items()}
    notes = {"format": "pt", NOTE: json.dumps(cfg.to_dict()), _STEP: str(int(state.step))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial:
        save_file(tensors, partial, notes)


def read_export(path: Path, like: State) -> State:
    """Read the state in a file of `write_export`; it has no state of an optimiser.

    Args:
        like: shapes of the state that the config asks for, see `runs.make_abstract_state`.

    Returns:
        A state whose parameters and average are both the averaged weights of the file.

    Raises:
        ValueError: weights or statistics are missing, unexpected, not finite or of another shape.
    """
    file = open_safetensors(path)
    keys = _list_extra_keys(like.extra)
    if missing := [key for key in keys if key not in file]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which the config asks for")
    leaves = []
    for key, wanted in zip(keys, jax.tree.leaves(like.extra), strict=True):
        value = file[key]
        if value.shape != wanted.shape or not np.isfinite(value).all():
            raise ValueError(
                f"{path} holds {key} of shape {value.shape} or with values that are not finite; "
                f"the config asks for shape {wanted.shape}"
            )
        leaves.append(jax.numpy.asarray(value))
    extra = jax.tree.unflatten(jax.tree.structure(like.extra), leaves)
    params = {key: file[key] for key in file if not key.startswith(("extra", _FROZEN))}
    with naming(path):
        ema = jax.tree.map(jax.numpy.asarray, from_state_dict(params, like.ema))
    step = np.asarray(_read_step(file.metadata.get(_STEP, "0"), path), np.int32)
    return State(step, ema, ema, None, extra)


def _read_step(text: str, path: Path) -> int:
    """Read the step in the metadata of a file, which anybody may have written.

    Raises:
        ValueError: it is no number.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{path} says that it is of step {show(text)}, which is no number")
    return int(text)


def read_exported_parts(path: Path, like: Params) -> Params:
    """Read the frozen parameters in a file of `write_export`.

    Args:
        like: their shapes, see `runs.make_abstract_fixed_parts`.

    Raises:
        ValueError: weights are missing, unexpected or of another shape.
    """
    file = open_safetensors(path)
    state = {k.removeprefix(_FROZEN): file[k] for k in file if k.startswith(_FROZEN)}
    with naming(path):
        return jax.tree.map(jax.numpy.asarray, from_state_dict(state, like))
