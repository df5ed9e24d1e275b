"""Fine-tuning of published text-to-image models: the parts that it begins from.

A config with a section ``model`` begins from ``model.path``: a diffusers folder, a single
.safetensors file (with ``model.tokenizer``), the name of either on the Hub, or "random" for none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax.config import resolve
from diffjax.pretrained import configs, download
from diffjax.runs.locate import INDEX, fit, read_weights
from diffjax.runs.states import build_model
from diffjax.runs.tokens import RANDOM, find_model_path
from diffjax.tasks import task_kind
from diffjax.types import ConfigError, Module, Params
from diffjax.untrusted import read_json

FIRST = "conv_in.weight"
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
# Of configs of networks: what does not change what is computed, or is compared elsewhere.
_FREE = ("dropout", "in_channels", "eos_token_id", "architectures", "projection_dim")
_FREE_OF_VAE = ("scaling_factor", "shift_factor", "sample_size", "force_upcast")


def read_part(cfg: ConfigDict, name: str, net: Module, like: Params) -> Params:
    """Parameters of a part of the model that fine-tuning begins from, as the config describes it.

    Args:
        name: its folder: unet, vae, text_encoder or text_encoder_2.
        net: the network that the config describes.
        like: shapes of its parameters.

    Raises:
        ConfigError: there is no such model, or it is another one; what differs is named.
    """
    where = download(find_model_path(cfg), parts=(name,))
    if not where.exists():
        raise ConfigError(f"there is no {where} (config.model.path)")
    if where.is_dir() and not (where / INDEX).is_file():
        raise ConfigError(
            f"{where} has no {INDEX}: it is no diffusers folder of a whole model. A run of "
            "fine-tuning becomes one by experiments.export --out=FOLDER"
        )
    found = read_weights(where, name)
    state = dict(found.state)
    if name == "unet" and cfg.cond.concat:
        state[FIRST] = _widen(state[FIRST], like["conv_in"]["kernel"].shape[2])
    said = f"the {name} of {where} is not the one that the config describes"
    params = fit(found._replace(state=state), like, said)
    _refuse(where, name, find_differences(name, net, found.network))
    return params


def _widen(weight: np.ndarray, channels: int) -> np.ndarray:
    """The first convolution (out, in, 3, 3) with zeros for more channels of its input."""
    absent = max(0, channels - weight.shape[1])
    return np.pad(np.asarray(weight), ((0, 0), (0, absent), (0, 0), (0, 0)))


def _refuse(where: Path, name: str, differences: Sequence[str]) -> None:
    if differences:
        raise ConfigError(
            f"the {name} of {where} is not the one that the config describes: "
            f"{'; '.join(differences)}"
        )


def find_differences(name: str, net: Module, found: Module | None) -> list[str]:
    """What differs between the network of a config and one that was found, for a message."""
    free = _FREE + (_FREE_OF_VAE if name == "vae" else ())
    ours, theirs = (_spread_levels(configs.describe(one)) for one in (net, found))
    return [
        f"{key} is {theirs.get(key)!r}, and {ours.get(key)!r} in the config"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in free and ours.get(key) != theirs.get(key)
    ]


def _spread_levels(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's config with one value per level, where there may be one for all of them."""
    levels, out = len(config.get("block_out_channels", ())), dict(config)
    for key in ("attention_head_dim", "transformer_layers_per_block"):
        if isinstance(out.get(key), int):
            out[key] = [out[key]] * levels
    return out


def describe_noise(cfg: ConfigDict) -> dict[str, Any]:
    """How noise grows, in the words of diffusers' scheduler configs.

    Raises:
        ConfigError: diffusers has no such schedule.
    """
    schedule = resolve(cfg)["schedule"]
    if schedule["name"] not in ("linear", "scaled_linear"):
        raise ConfigError(
            f"config.schedule.name={schedule['name']!r} cannot be written for Stable Diffusion; "
            "choose linear or scaled_linear"
        )
    return {
        "num_train_timesteps": schedule["steps"],
        "beta_schedule": schedule["name"],
        "beta_start": schedule["beta_start"],
        "beta_end": schedule["beta_end"],
        "rescale_betas_zero_snr": schedule["zero_snr"],
    }


def check_noise(cfg: ConfigDict) -> None:
    """See that noise and latents are those that the model was trained with.

    A scale of latents that the config leaves open (0) becomes the model's.

    Raises:
        ConfigError: they are not; what differs is named.
    """
    where = download(find_model_path(cfg), parts=())
    if not (where / INDEX).is_file():
        return  # single files, and runs that begin with nothing, do not say
    scheduler = read_json(where / "scheduler" / "scheduler_config.json")
    vae = read_json(where / "vae" / "config.json")
    wanted = {
        "prediction_type": PREDICTIONS.get(cfg.parameterization.name, cfg.parameterization.name),
        **describe_noise(cfg),
    }
    defaults = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    found = {key: scheduler.get(key, defaults.get(key)) for key in wanted}
    found["scaling_factor"] = vae.get("scaling_factor", 0.18215)
    cfg.autoencoder.scale = cfg.autoencoder.scale or found["scaling_factor"]
    wanted["scaling_factor"] = cfg.autoencoder.scale
    differ = [f"{k} is {found[k]!r}, and {wanted[k]!r} in the config" for k in wanted
              if found[k] is not None and found[k] != wanted[k]]  # fmt: skip
    _refuse(where, "noise", differ)


def choose_initial(cfg: ConfigDict, like: Params) -> Callable[[], Params] | None:
    """What full fine-tuning begins with; None if the task has a beginning of its own.

    Args:
        like: shapes of the parameters.
    """
    path = find_model_path(cfg)
    if not path or path == RANDOM or task_kind(cfg).trains_beside:
        return None
    return lambda: read_part(cfg, "unet", build_model(cfg).network, like)
