"""The one function that finds out what lies at a path, and the one that reads weights from it.

A path may be the workdir of a run, an exported file, a folder of a whole diffusers model, a folder
of one network, or a single .safetensors file. `runs.open_model`, fine-tuning, the base of a
ControlNet and frozen parts all read weights through `read_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.config import read_config
from diffjax.config.store import NOTE
from diffjax.pretrained import download, load_model, load_single_file
from diffjax.pretrained.files import StrPath, open_safetensors
from diffjax.pretrained.hub_files import MANIFEST as INDEX
from diffjax.pretrained.state_dict import from_state_dict, to_state_dict
from diffjax.runs.states import read_state
from diffjax.types import Array, ConfigError, Module, Params, Statistics
from diffjax.untrusted import read_json

RUN, EXPORT, PIPELINE, COMPONENT, FILE = "run", "export", "pipeline", "component", "file"
# The tasks that train a part of a published model.
_TRAINED_BY = {"vae": ("autoencoder",), "classifier": ("classifier",)}
_NOT_OF_PART = ("discriminator.",)


class FoundWeights(NamedTuple):
    """Parameters that were found at a path, with what is known of them.

    Attributes:
        state: arrays by dotted name, as a state dict of diffusers has them.
        statistics: what a run measured of its data, such as ``latent_scale``; empty for others.
        network: the module of a published network; None for runs and exported files.
        config: the config of a run or an exported file; None for published networks.
    """

    state: Mapping[str, Array]
    statistics: Statistics
    network: Module | None = None
    config: ConfigDict | None = None


def find_kind(where: StrPath) -> str:
    """Find out what lies at a path, by the files that are there.

    Returns:
        `RUN` (a workdir), `EXPORT` (a file of `diffjax export`), `PIPELINE` (a folder of a whole
        diffusers model), `COMPONENT` (a folder of one network) or `FILE` (any other .safetensors).

    Raises:
        ConfigError: nothing is there, or something else.
        ValueError: config.json or the file is damaged.
    """
    path = Path(where)
    if path.suffix == ".safetensors" and path.is_file():
        return EXPORT if NOTE in open_safetensors(path).metadata else FILE
    if (path / INDEX).is_file():
        return PIPELINE
    if (path / "config.json").is_file():
        found = read_json(path / "config.json")
        return COMPONENT if {"_class_name", "architectures", "model_type"} & set(found) else RUN
    if not path.exists():
        raise ConfigError(f"there is no {where}")
    raise ConfigError(f"{where} is no workdir, diffusers folder or .safetensors file")


def read_weights(where: StrPath, part: str) -> FoundWeights:
    """Read the parameters of a network at a path.

    Args:
        where: a workdir, an exported file, a folder of diffusers or transformers (of the network
            or of the whole model), or a single file of a whole model; or a name on the Hub.
        part: the folder of the network in a whole model: unet, vae, text_encoder or
            text_encoder_2; or classifier, that of classifier guidance.

    Raises:
        ConfigError: there is no such network.
        ValueError: a file is damaged or not supported.
    """
    path = download(where, parts=(part,))
    kind = find_kind(path)
    if kind in (RUN, EXPORT):
        cfg = read_config(path)
        wanted = _TRAINED_BY.get(part)
        if wanted and cfg.task not in wanted:
            raise ConfigError(f"{where} holds a run of task {cfg.task!r}, no {part}")
        state = read_state(cfg, path)
        params = to_state_dict(state.ema)
        own = {k: v for k, v in params.items() if not k.startswith(_NOT_OF_PART)}
        return FoundWeights(own, state.extra, None, cfg)
    if kind == FILE:
        file = open_safetensors(path)
        if part == "vae" and any(key.startswith("decoder.") for key in file):
            own = {k: file[k] for k in file if not k.startswith((*_NOT_OF_PART, "extra"))}
            return FoundWeights(own, {})  # an autoencoder alone, under diffusers' names
        try:
            found = load_single_file(path, parts=[part])[part]
        except ValueError as error:
            raise ConfigError(f"{where} holds no {part} that can be used: {error}") from error
    else:
        found = load_model(path / part if kind == PIPELINE else path)
    return FoundWeights(to_state_dict(found.params), {}, found.net)


def fit_weights(weights: FoundWeights, like: Params, said: str) -> Params:
    """Arrange found weights as the tree of parameters that a config asks for, on the host.

    Args:
        weights: what `read_weights` found.
        like: the tree, with shapes as its leaves.
        said: start of the error message, such as ``the vae in PATH is not the one of the config``.

    Raises:
        ConfigError: names or shapes differ; the message lists them.
    """
    try:
        found: Params = from_state_dict(weights.state, like)
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from error
    return jax.tree.map(np.asarray, found)
