"""Fine-tuning of published text-to-image models: the parameters that training begins with.

A config with a section ``model`` begins with the model at ``model.path``: a diffusers folder, a
single .safetensors file (with ``model.tokenizer``), the name of either on the Hub, or "random" for
untrained parameters. The config describes the networks; what is found is compared with that
description, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffjax.config import resolve
from diffjax.model.condition import ENCODERS, make_clips
from diffjax.pretrained import configs, download
from diffjax.runs.concepts import choose_rows
from diffjax.runs.locate import INDEX, fit_weights, read_weights
from diffjax.runs.states import build_model
from diffjax.runs.tokens import RANDOM, find_model_path, make_tokenizers
from diffjax.tasks import find_task_kind
from diffjax.types import Array, ConfigError, JsonObject, Module, Params
from diffjax.untrusted import read_json

FIRST = "conv_in.weight"
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
# Of configs of networks: what does not change what is computed, or is compared elsewhere.
_FREE = ("dropout", "in_channels", "eos_token_id", "architectures", "projection_dim")
_FREE_OF_VAE = ("scaling_factor", "shift_factor", "sample_size", "force_upcast")


def read_part(cfg: ConfigDict, name: str, net: Module, like: Params) -> Params:
    """Read the parameters of one part of the model that fine-tuning begins with.

    The first convolution of the UNet is widened by zeros if the config joins channels to z
    (``cond.concat``), as inpainting models are made from text-to-image models.

    Args:
        name: the folder of the part: unet, vae, text_encoder or text_encoder_2.
        net: the network that the config describes.
        like: shapes of its parameters.

    Returns:
        Parameters of these shapes, on the host.

    Raises:
        ConfigError: there is no such model, or it differs from the config; the message says in
            what.
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
    params = fit_weights(found._replace(state=state), like, said)
    _refuse(where, name, find_differences(name, net, found.network))
    return params


def _widen(weight: Array, channels: int) -> np.ndarray:
    """Append zeros to a first convolution (out, in, 3, 3) for ``channels`` input channels."""
    absent = max(0, channels - weight.shape[1])
    return np.pad(np.asarray(weight), ((0, 0), (0, absent), (0, 0), (0, 0)))


def _refuse(where: Path, name: str, differences: Sequence[str]) -> None:
    """Raise an error that lists how a part of a model differs from the config, if it does.

    Raises:
        ConfigError: there are differences.
    """
    if differences:
        raise ConfigError(
            f"the {name} of {where} is not the one that the config describes: "
            f"{'; '.join(differences)}"
        )


def find_differences(name: str, net: Module, found: Module | None) -> list[str]:
    """List how a network that was found differs from the one that a config describes.

    Options that change nothing that is computed, or that other checks compare, are left out.

    Args:
        name: the folder of the part; ``vae`` has more such options.
        net: the network of the config.
        found: the network that was read from the files.

    Returns:
        A phrase for each option that differs, for a message; empty if none does.
    """
    free = _FREE + (_FREE_OF_VAE if name == "vae" else ())
    ours, theirs = (_spread_levels(configs.describe(one)) for one in (net, found))
    return [
        f"{key} is {theirs.get(key)!r}, and {ours.get(key)!r} in the config"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in free and ours.get(key) != theirs.get(key)
    ]


def _spread_levels(config: JsonObject) -> JsonObject:
    """Write options that may be one number for all levels of a network as one number per level."""
    levels, out = len(config.get("block_out_channels", ())), dict(config)
    for key in ("attention_head_dim", "transformer_layers_per_block"):
        if isinstance(out.get(key), int):
            out[key] = [out[key]] * levels
    return out


def describe_noise(cfg: ConfigDict) -> JsonObject:
    """Describe the noise schedule of a config with the keys of diffusers' scheduler configs.

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
    """Check that noise, prediction and latent scale are those of the published model.

    A latent scale that the config leaves open (``autoencoder.scale=0``) is set to that of the
    model. Single files and untrained models say nothing of these, and are not checked.

    Raises:
        ConfigError: they differ; the message says in what.
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


def choose_initial(
    cfg: ConfigDict,
    like: Params,
    frozen: Mapping[str, Params] | None = None,
    folder: Path | None = None,
) -> Callable[[], Params] | None:
    """Choose how full fine-tuning, or the learning of a word, gets its first parameters.

    Args:
        like: shapes of the parameters that are trained.
        frozen: parameters that the task reads but does not train.
        folder: workdir, which keeps tokenizers.

    Returns:
        A function that reads the UNet of ``config.model.path``, and the text encoders that are
        trained with it. None if the task initialises its parameters itself: without a published
        model, or if it trains adapters or a ControlNet.
    """
    path, kind = find_model_path(cfg), find_task_kind(cfg)
    if kind.learns_word:
        return choose_rows(cfg, make_tokenizers(cfg, folder), frozen or {})
    if not path or path == RANDOM or kind.trains_beside:
        return None
    unet, encoders = split_encoders(like)
    nets = make_clips(cfg)

    def read() -> Params:
        found = {name: read_part(cfg, name, nets[name], encoders[name]) for name in encoders}
        return {**read_part(cfg, "unet", build_model(cfg).network, unet), **found}

    return read


def split_encoders(params: Params) -> tuple[Params, dict[str, Params]]:
    """Split what was trained into the UNet and, by name, the text encoders beside it."""
    names = tuple(ENCODERS.values())
    unet = {k: v for k, v in params.items() if k not in names}
    return unet, {k: params[k] for k in names if k in params}
