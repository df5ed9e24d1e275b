"""Fine-tuning of published text-to-image models: their parts, and the result.

A config with a section ``model`` begins from ``model.path``: a diffusers folder, a single
.safetensors file (with ``model.tokenizer``), or "random" for none.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax.config import resolve
from diffjax.model.condition import ENCODERS, make_clips
from diffjax.pretrained import configs, load_model, load_single_file, save_model
from diffjax.pretrained.files import write_json
from diffjax.pretrained.lora import LORA_FILE, save_lora
from diffjax.pretrained.models import Model
from diffjax.pretrained.pipelines import (
    Components,
    load_components,
    make_manifest,
    save_components,
)
from diffjax.pretrained.prompts import TextEncoder
from diffjax.pretrained.state_dict import from_state_dict, to_state_dict
from diffjax.runs.tokens import RANDOM, make_tokenizers
from diffjax.runs.tokens import find_model_path as model_path
from diffjax.tasks.lora import scale_of
from diffjax.train import State
from diffjax.untrusted import read_json
from experiments import common

INDEX = "model_index.json"
FIRST = "conv_in.weight"
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
# Of configs of networks: what does not change what is computed, or is compared elsewhere.
_FREE = ("dropout", "in_channels", "eos_token_id", "architectures", "projection_dim")
_FREE_OF_VAE = ("scaling_factor", "shift_factor", "sample_size", "force_upcast")


# ---- parts ---------------------------------------------------------------------------------------


def part(cfg: ConfigDict, name: str, net: Any, like: Any) -> Any:
    """Parameters of a part of the model, as the config describes it.

    Args:
        name: its folder: unet, vae, text_encoder or text_encoder_2.
        net: the network that the config describes.
        like: shapes of its parameters.

    Raises:
        UsageError: there is no such model, or it is another one; what differs is named.
    """
    where = Path(model_path(cfg))
    found = _read(where, name)
    state = to_state_dict(found.params)
    if name == "unet" and cfg.cond.concat:
        state[FIRST] = _widened(state[FIRST], like["conv_in"]["kernel"].shape[2])
    try:
        found_params = from_state_dict(state, like)
    except ValueError as error:
        raise common.UsageError(
            f"the {name} of {where} is not the one that the config describes: {error}"
        ) from error
    _refuse(where, name, differences(name, net, found.net))
    return jax.tree.map(np.asarray, found_params)


def _widened(weight: np.ndarray, channels: int) -> np.ndarray:
    """The first convolution (out, in, 3, 3), told more channels that it does not mind yet."""
    absent = max(0, channels - weight.shape[1])
    return np.pad(np.asarray(weight), ((0, 0), (0, absent), (0, 0), (0, 0)))


def _read(where: Path, name: str) -> Model:
    if where.is_dir() and not (where / INDEX).is_file():
        raise common.UsageError(
            f"{where} has no {INDEX}: it is no diffusers folder of a whole model. A run of "
            "fine-tuning becomes one by experiments.export --out=FOLDER"
        )
    if not where.exists():
        raise common.UsageError(f"there is no {where} (config.model.path)")
    return load_model(where / name) if where.is_dir() else _from_file(where, name)


def _from_file(where: Path, name: str) -> Model:
    try:
        return load_single_file(where, parts=[name])[name]
    except ValueError as error:
        raise common.UsageError(f"{where} holds no {name} that can be used: {error}") from error


def _refuse(where: Path, name: str, differences: Sequence[str]) -> None:
    if differences:
        raise common.UsageError(
            f"the {name} of {where} is not the one that the config describes: "
            f"{'; '.join(differences)}"
        )


def differences(name: str, net: Any, found: Any) -> list[str]:
    """What differs between the network of a config and one that was found, for a message."""
    free = _FREE + (_FREE_OF_VAE if name == "vae" else ())
    ours, theirs = (_comparable(configs.describe(one)) for one in (net, found))
    return [
        f"{key} is {theirs.get(key)!r}, and {ours.get(key)!r} in the config"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in free and ours.get(key) != theirs.get(key)
    ]


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """With one value per level, where a config may have one for all of them."""
    levels, out = len(config.get("block_out_channels", ())), dict(config)
    for key in ("attention_head_dim", "transformer_layers_per_block"):
        if isinstance(out.get(key), int):
            out[key] = [out[key]] * levels
    return out


def _noise_of(cfg: ConfigDict) -> dict[str, Any]:
    """How noise grows, in the words of diffusers' scheduler configs.

    Raises:
        UsageError: diffusers has no such schedule.
    """
    schedule = resolve(cfg)["schedule"]
    if schedule["name"] not in ("linear", "scaled_linear"):
        raise common.UsageError(
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


def check(cfg: ConfigDict) -> None:
    """See that noise and latents are those that the model was trained with.

    A scale of latents that the config leaves open (0) becomes the model's.

    Raises:
        UsageError: they are not; what differs is named.
    """
    where = Path(model_path(cfg))
    if not (where / INDEX).is_file():
        return  # single files, and runs that begin with nothing, do not say
    scheduler = read_json(where / "scheduler" / "scheduler_config.json")
    vae = read_json(where / "vae" / "config.json")
    wanted = {
        "prediction_type": PREDICTIONS.get(cfg.parameterization.name, cfg.parameterization.name),
        **_noise_of(cfg),
    }
    defaults = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    found = {key: scheduler.get(key, defaults.get(key)) for key in wanted}
    found["scaling_factor"] = vae.get("scaling_factor", 0.18215)
    cfg.autoencoder.scale = cfg.autoencoder.scale or found["scaling_factor"]
    wanted["scaling_factor"] = cfg.autoencoder.scale
    differ = [f"{k} is {found[k]!r}, and {wanted[k]!r} in the config" for k in wanted
              if found[k] is not None and found[k] != wanted[k]]  # fmt: skip
    _refuse(where, "noise", differ)


def initial(cfg: ConfigDict, like: Any) -> Callable[[], Any] | None:
    """What full fine-tuning begins with; None if the task has a beginning of its own.

    Args:
        like: shapes of the parameters.
    """
    path = model_path(cfg)
    if not path or path == RANDOM or cfg.task != "diffusion":
        return None
    return lambda: part(cfg, "unet", common.model_of(cfg).network, like)


# ---- the result ----------------------------------------------------------------------------------


def save(cfg: ConfigDict, state: State, given: Mapping[str, Any], out: Path) -> None:
    """Write what was trained for diffusers: a whole model, or the file of an adapter.

    Args:
        given: what was frozen.
        out: folder.

    Raises:
        UsageError: the model that the other parts come from is not there any more.
    """
    if cfg.task == "lora":
        out.mkdir(parents=True, exist_ok=True)
        save_lora(out / LORA_FILE, state.ema, scale=scale_of(cfg.lora))
        return
    where = model_path(cfg)
    if where == RANDOM:
        save_components(out, _own(cfg, state, given))
    elif not Path(where).exists():
        raise common.UsageError(f"{where} (config.model.path) is needed for the other parts")
    elif Path(where).is_dir():
        _copy_with(Path(where), state.ema, out)
    else:
        parts = load_components(where, tokenizer=cfg.model.tokenizer or None)
        config = parts.unet.config | {"in_channels": _channels(state.ema)}
        parts = parts._replace(unet=parts.unet._replace(params=state.ema, config=config))
        save_components(out, parts._replace(manifest=make_manifest(parts)))


def _channels(unet: Any) -> int:
    """How many a UNet is given: the latents', and those of what it fills in."""
    return int(unet["conv_in"]["kernel"].shape[2])


def _copy_with(where: Path, unet: Any, out: Path) -> None:
    """A folder of diffusers with another UNet; the other parts are copied as they are."""
    if out.resolve() == where.resolve():
        raise common.UsageError(f"{out} is the folder that the model came from")
    parts = [name for name in read_json(where / INDEX) if (where / name).is_dir()]
    for name in parts:
        if name != "unet":
            shutil.copytree(where / name, out / name, dirs_exist_ok=True)
    config, channels = read_json(where / "unet" / "config.json"), _channels(unet)
    widened = channels != config.get("in_channels", 4)
    config |= {"in_channels": channels} if widened else {}
    save_model(out / "unet", configs.build(config), unet, config=config)
    shutil.copy(where / INDEX, out / INDEX)
    if widened:
        index = read_json(where / INDEX)
        kind = index["_class_name"].removesuffix("Pipeline")
        write_json(out / INDEX, {**index, "_class_name": f"{kind}InpaintPipeline"})


def _own(cfg: ConfigDict, state: State, given: Mapping[str, Any]) -> Components:
    """The parts of a model that began here."""
    diffusion, nets = common.model_of(cfg), make_clips(cfg)
    vae = diffusion.space.net.clone(scaling_factor=float(state.extra["latent_scale"]))
    height, width, _ = diffusion.space.shape
    texts = {
        ENCODERS[entry]: TextEncoder(one, _model(nets[ENCODERS[entry]], given[ENCODERS[entry]]))
        for entry, one in make_tokenizers(cfg, common.run_folder()).items()
    }
    unet = _model(diffusion.network, state.ema)
    sides = height if height == width else [height, width]
    unet.config.update(sample_size=sides, in_channels=_channels(state.ema))
    scheduler = dict(
        _class_name="DDIMScheduler",
        **_noise_of(cfg),
        prediction_type=PREDICTIONS[cfg.parameterization.name],
        # Leading steps leave out the last timestep, which zero terminal SNR is about.
        timestep_spacing="trailing" if cfg.schedule.zero_snr else "leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    parts = Components(unet, _model(vae, given["autoencoder"]), texts, scheduler, {})
    return parts._replace(manifest=make_manifest(parts))


def _model(net: Any, params: Any) -> Model:
    return Model(net, params, configs.describe(net))


def summary(cfg: ConfigDict, out: Path) -> None:
    """Say how the result is used."""
    if cfg.task == "lora":
        logging.info("an adapter in %s; experiments.generate --lora=%s", out, out / LORA_FILE)
    else:
        logging.info("a model in %s; experiments.generate --model=%s", out, out)
