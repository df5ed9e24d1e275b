"""What lies at a path: the one resolver of runs, exported files and published models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from diffjax.types import ConfigError, Module, Params
from diffjax.untrusted import read_json

RUN, EXPORT, PIPELINE, COMPONENT, FILE = "run", "export", "pipeline", "component", "file"
# The tasks that train a part of a published model.
_TRAINED_BY = {"vae": ("autoencoder",), "classifier": ("classifier",)}
_NOT_OF_PART = ("discriminator.",)


class FoundWeights(NamedTuple):
    """Parameters that were found at a path.

    Attributes:
        state: state dict under diffusers' names.
        statistics: what a run measured of its data.
        network: the module, of published models.
        config: the config, of runs and exported files.
    """

    state: Mapping[str, Any]
    statistics: Mapping[str, Any]
    network: Module | None = None
    config: ConfigDict | None = None


def find_kind(where: StrPath) -> str:
    """`RUN`, `EXPORT`, `PIPELINE`, `COMPONENT` or `FILE`, by the files at a path.

    Raises:
        ConfigError: nothing is there, or something else.
        ValueError: the file that says it is damaged.
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
    """The parameters of a network at a path.

    Args:
        where: a workdir, an exported file, a folder of diffusers or transformers (of the network
            or of the whole model), or a single file of a whole model; or a name on the Hub.
        part: the network's folder in a whole model: unet, vae, text_encoder, text_encoder_2; or
            classifier, that of classifier guidance.

    Raises:
        ConfigError: there is none.
        ValueError: it is damaged, or not supported.
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


def fit(weights: FoundWeights, like: Params, said: str) -> Params:
    """Parameters of the shapes that a config asks for, on the host.

    Args:
        said: what the config describes, for the message: ``the vae in PATH is not ...``.

    Raises:
        ConfigError: they have other names or shapes, which are named.
    """
    try:
        found: Params = from_state_dict(weights.state, like)
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from error
    return jax.tree.map(np.asarray, found)
