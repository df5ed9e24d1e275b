"""Load an autoencoder from a folder or a file of its own, to use with a model.

Better decoders for Stable Diffusion are published apart from its other parts. `pipelines` loads one
in place of the model's own if the user names it.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffjax.pretrained.files import (
    StrPath,
    find_weights_file,
    open_folder,
    open_safetensors,
    read_json,
    resolve_inside,
)
from diffjax.pretrained.models import Component, Sharding, fill
from diffjax.pretrained.recognise import describe_keys
from diffjax.pretrained.single_file import AUTOENCODER, FAMILIES
from diffjax.pretrained.single_file_parts import Part, build_autoencoder_part, select_below
from diffjax.types import Config, JsonObject
from diffjax.untrusted import naming

_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel")


def load_vae(
    path: StrPath,
    like: Config | None,
    unet: Config,
    *,
    dtype: DTypeLike = jnp.float32,
    variant: str | None = None,
    sharding: Sharding | None = None,
) -> Component:
    """Load an autoencoder to be used with a model, and check that their latents agree.

    The scale of latents is the model's, since its UNet was trained with it. Files seldom record a
    scale. A config with another scale is of another family of models.

    Args:
        path: a folder with config.json, or of a whole model; or a .safetensors file, with
            config.json beside it if its keys are diffusers' names.
        like: the config of the model's own autoencoder, if there is one.
        unet: the config of the model's UNet.
        dtype: type of weights and computation; see `choose_dtype`.
        variant: part of the file names, such as ``"fp16"``, used if there are such files.
        sharding: see `load_model`.

    Raises:
        FileNotFoundError, ValueError: see `load_model`. Also, the latents have other channels or
            another scale than those of the model.
    """
    with naming(f"the autoencoder {path}"):
        config, weights = open_vae(Path(path), variant)
        config = _set_scale(config, like, unet)
        channels, wanted = config.get("latent_channels", 4), unet.get("out_channels", 4)
        if channels != wanted:
            raise ValueError(
                f"its latents have {channels} channels, but the UNet was trained on {wanted}"
            )
        return fill(config, weights, choose_dtype(config, dtype), sharding)


def choose_dtype(config: Config, dtype: DTypeLike) -> DTypeLike:
    """Choose the type of an autoencoder: float32 if ``force_upcast`` says that float16
    overflows.
    """
    overflows = config.get("force_upcast", True) and dtype == jnp.float16
    return jnp.float32 if overflows else dtype


def open_vae(path: Path, variant: str | None = None) -> Part:
    """Open the config and the weights of an autoencoder. Single files have no scale of latents.

    Args:
        path: see `load_vae`.
        variant: see `load_vae`.

    Raises:
        FileNotFoundError: there are no weights, or no config.json beside a file that needs one.
        ValueError: the file or folder holds something else.
    """
    if path.is_dir():
        whole = not (path / "config.json").exists() and (path / "vae").is_dir()
        folder = resolve_inside(path, "vae") if whole else path
        config = read_json(resolve_inside(folder, "config.json"))
        _check_class(config)
        chosen = variant if find_weights_file(folder, variant) else None
        return Part(config, open_folder(folder, variant=chosen))
    weights = open_safetensors(path)
    if any(key.startswith(("encoder.down_blocks.", "encoder.layers.")) for key in weights):
        beside = path.parent / "config.json"
        if not beside.is_file():
            raise FileNotFoundError(
                f"a file in diffusers' names needs its config.json beside it: there is no {beside}"
            )
        config = read_json(beside)
        _check_class(config)
        return Part(config, weights)
    if any(key.startswith(AUTOENCODER) for key in weights):
        weights = select_below(weights, AUTOENCODER)
    elif "encoder.conv_in.weight" not in weights:
        raise ValueError(f"this is {describe_keys(weights.keys()) or 'no autoencoder'}")
    return build_autoencoder_part(weights, scale=None)


def _check_class(config: Config) -> None:
    """Check that a config is of an autoencoder.

    Raises:
        ValueError: it is of another class.
    """
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"config.json is of {name}; an {' or '.join(_CLASSES)} is needed")


def _set_scale(config: Config, like: Config | None, unet: Config) -> JsonObject:
    """Return a config with the scale and shift of the model's latents.

    Without a config of the model's own autoencoder, they are those of its family, which XL's UNet
    shows by its added embedding. A tiny autoencoder has latents as the UNet sees them, and keeps
    its scale.

    Raises:
        ValueError: the config has another scale or shift than the model.
    """
    out = dict(config)
    if config.get("_class_name") == "AutoencoderTiny":
        return out
    family = "xl" if unet.get("addition_embed_type") else "v1"
    defaults = {"scaling_factor": FAMILIES[family].scale, "shift_factor": None}
    for key, default in (defaults | dict.fromkeys(("latents_mean", "latents_std"))).items():
        own = config.get(key)
        if like is None:
            out[key] = default if own is None else own
            continue
        # A config that leaves the scale out means diffusers' default.
        wanted = like.get(key, FAMILIES["v1"].scale if key == "scaling_factor" else None)
        if own is not None and own != wanted:
            raise ValueError(
                f"its {key} is {own}, but that of the model is {wanted}: it is of another family "
                "of models"
            )
        out[key] = wanted
    return out
