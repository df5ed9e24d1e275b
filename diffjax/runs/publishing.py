"""Trained models as folders that diffusers reads: a whole model, a ControlNet, or adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax.model import make_control_network
from diffjax.model.condition import ENCODERS, make_clips
from diffjax.model.image_prompt_condition import ENCODER, PROJECTION, make_image_encoder
from diffjax.nets.autoencoder import AutoencoderKL
from diffjax.pretrained import configs, download, save_image_adapter, save_model
from diffjax.pretrained.components import Components, make_manifest, save_components
from diffjax.pretrained.files import write_json
from diffjax.pretrained.image_adapters import ADAPTER_FILE
from diffjax.pretrained.lora_files import LORA_FILE, save_lora
from diffjax.pretrained.models import Component
from diffjax.pretrained.pipelines import load_components
from diffjax.pretrained.prompts import TextEncoder
from diffjax.pretrained.tokenizers import Tokenizer
from diffjax.runs.concepts import WORD_FILE, save_word
from diffjax.runs.finetuning import PREDICTIONS, describe_noise, split_encoders
from diffjax.runs.locate import INDEX
from diffjax.runs.states import build_model
from diffjax.runs.tokens import RANDOM, find_model_path, make_tokenizers
from diffjax.tasks import find_task_kind
from diffjax.tasks.controlnet_task import join_network
from diffjax.tasks.ip_adapter_task import LAYERS
from diffjax.tasks.lora_task import compute_scale
from diffjax.train import State
from diffjax.types import ConfigError, Module, Params
from diffjax.untrusted import read_json


def is_publishable(cfg: ConfigDict) -> bool:
    """Whether diffusers has a folder format for what a config trains."""
    return find_task_kind(cfg).takes_hints or "model" in cfg


def publish(
    cfg: ConfigDict,
    state: State,
    frozen: dict[str, Params] | None,
    out: Path,
    *,
    folder: Path | None = None,
) -> str:
    """Write what was trained as a folder of diffusers.

    Args:
        state: of the training; the average is written.
        frozen: parameters that the task reads but does not train; not needed for ControlNets
            without adapters.
        out: the folder to write.
        folder: workdir of the run, which keeps its tokenizers.

    Returns:
        A sentence that says what was written and how it is used, for the log.

    Raises:
        ConfigError: diffusers has no such network, or the model that the other parts come from is
            not there any more.
    """
    task = find_task_kind(cfg)
    if task.takes_hints:
        kind = save_control_network(cfg, state.ema, out, (frozen or {}).get("base", {}))
        return f"a {kind} in {out}; diffjax generate --control={out}:IMAGE"
    if task.learns_word:
        out.mkdir(parents=True, exist_ok=True)
        save_word(out / WORD_FILE, state.ema, cfg.concept.word)
        return f"a word in {out}; diffjax generate --concept={out / WORD_FILE}:{cfg.concept.word}"
    if task.reads_pictures:
        assert frozen is not None
        out.mkdir(parents=True, exist_ok=True)
        layers, projection = state.ema[LAYERS], state.ema[PROJECTION]
        save_image_adapter(out / ADAPTER_FILE, frozen["base"], projection, layers)
        save_model(out / ENCODER, make_image_encoder(cfg), frozen[ENCODER])
        return f"an IP-Adapter in {out}; diffjax generate --image_prompt={out}:IMAGE"
    if task.trains_beside and not task.trains_copy:
        out.mkdir(parents=True, exist_ok=True)
        save_lora(out / LORA_FILE, state.ema, scale=compute_scale(cfg.lora))
        return f"an adapter in {out}; diffjax generate --lora={out / LORA_FILE}"
    _save_whole(cfg, state, frozen or {}, out, folder)
    return f"a model in {out}; diffjax generate --model={out}"


def save_control_network(cfg: ConfigDict, params: Params, out: Path, base: Params) -> str:
    """Write a trained ControlNet or T2I-Adapter as a folder of diffusers.

    Args:
        params: what the task trained, see `tasks.controlnet_task`. Adapters are merged.
        base: parameters of the base, which are read only if there are adapters.

    Returns:
        The name of its class in diffusers.

    Raises:
        ConfigError: diffusers has no such ControlNet.
    """
    model = build_model(cfg)
    net = make_control_network(cfg.control, model.network).net
    try:
        described = configs.describe(net, in_channels=model.space.shape[-1])
    except ValueError as error:
        raise ConfigError(f"{error}; an --out=FILE.safetensors keeps it") from error
    if "decoder" in params:
        logging.warning("the base's decoder, which was trained too, is not in %s", out)
    save_model(out, net, join_network(cfg, params, base), config=described)
    return str(described["_class_name"])


def _save_whole(
    cfg: ConfigDict, state: State, frozen: dict[str, Params], out: Path, folder: Path | None
) -> None:
    """Write a whole text-to-image model: the trained UNet beside the other parts.

    Raises:
        ConfigError: ``model.path`` is not there any more, or is the folder to write.
    """
    named = find_model_path(cfg)
    where = named if named == RANDOM else str(download(named))
    if where == RANDOM:
        save_components(out, _gather_parts(cfg, state, frozen, folder))
    elif not Path(where).exists():
        raise ConfigError(f"{where} (config.model.path) is needed for the other parts")
    elif Path(where).is_dir():
        _copy_with(cfg, Path(where), state.ema, out)
    else:
        parts = load_components(where, tokenizer=cfg.model.tokenizer or None)
        unet, encoders = split_encoders(state.ema)
        config = parts.unet.config | {"in_channels": _count_channels(unet)}
        texts = {
            name: text._replace(model=text.model._replace(params=encoders[name]))
            if name in encoders
            else text
            for name, text in parts.texts.items()
        }
        parts = parts._replace(unet=parts.unet._replace(params=unet, config=config), texts=texts)
        save_components(out, parts._replace(manifest=make_manifest(parts)))


def _count_channels(unet: Params) -> int:
    """Count the channels that a UNet reads: those of the latents, and of what is joined to them."""
    return int(unet["conv_in"]["kernel"].shape[2])


def _copy_with(cfg: ConfigDict, where: Path, params: Params, out: Path) -> None:
    """Copy a folder of diffusers with what was trained in it; the other parts stay as they are.

    Args:
        params: of the UNet and, if they were trained too, of text encoders by name.

    Raises:
        ConfigError: the folder would be copied onto itself.
    """
    if out.resolve() == where.resolve():
        raise ConfigError(f"{out} is the folder that the model came from")
    unet, encoders = split_encoders(params)
    parts = [name for name in read_json(where / INDEX) if (where / name).is_dir()]
    for name in parts:
        if name in encoders:
            described = read_json(where / name / "config.json")
            net = configs.build(described)
            save_model(out / name, net, encoders[name], config=described)
        elif name != "unet":
            shutil.copytree(where / name, out / name, dirs_exist_ok=True)
    config, channels = read_json(where / "unet" / "config.json"), _count_channels(unet)
    widened = channels != config.get("in_channels", 4)
    config |= {"in_channels": channels} if widened else {}
    save_model(out / "unet", configs.build(config), unet, config=config)
    shutil.copy(where / INDEX, out / INDEX)
    if widened:
        index = read_json(where / INDEX)
        kind = index["_class_name"].removesuffix("Pipeline")
        does = "InstructPix2Pix" if cfg.cond.concat == "edit" else "Inpaint"
        write_json(out / INDEX, {**index, "_class_name": f"{kind}{does}Pipeline"})


def _gather_parts(
    cfg: ConfigDict, state: State, frozen: dict[str, Params], folder: Path | None
) -> Components:
    """Gather the parts of a model that was trained without a published one.

    The scheduler is DDIM's, with the noise schedule and the prediction of the config.
    """
    model, nets = build_model(cfg), make_clips(cfg)
    assert isinstance(model.space.net, AutoencoderKL)
    std = model.space.net.latents_std or 1.0  # the scale has been divided by it
    scale = float(np.mean(np.asarray(state.extra["latent_scale"]) * np.asarray(std)))
    vae = model.space.net.clone(scaling_factor=scale)
    height, width, _ = model.space.shape
    trained, encoders = split_encoders(state.ema)
    encoders = {**frozen, **encoders}
    texts = {
        ENCODERS[entry]: TextEncoder(
            one, _describe(nets[ENCODERS[entry]], encoders[ENCODERS[entry]])
        )
        for entry, one in make_tokenizers(cfg, folder).items()
        if isinstance(one, Tokenizer)
    }
    unet = _describe(model.network, trained)
    sides = height if height == width else [height, width]
    unet.config.update(sample_size=sides, in_channels=_count_channels(trained))
    scheduler = dict(
        _class_name="DDIMScheduler",
        **describe_noise(cfg),
        prediction_type=PREDICTIONS[cfg.parameterization.name],
        # Leading steps leave out the last timestep, which zero terminal SNR is about.
        timestep_spacing="trailing" if cfg.schedule.zero_snr else "leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    parts = Components(unet, _describe(vae, frozen["autoencoder"]), texts, scheduler, {})
    return parts._replace(manifest=make_manifest(parts))


def _describe(net: Module, params: Params) -> Component:
    """Join a network, its parameters and its description in diffusers' terms."""
    return Component(net, params, configs.describe(net))
