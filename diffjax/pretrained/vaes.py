"""The autoencoder of a model from a folder or file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

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
from diffjax.untrusted import naming

_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


def load_vae(
    path: StrPath,
    like: Mapping[str, Any] | None,
    unet: Mapping[str, Any],
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    sharding: Sharding | None = None,
) -> Component:
    """An autoencoder to be used with a model.

    The scale of latents is the model's: its UNet was trained with it. Files seldom say one; a
    config that says another is of another family of models.

    Args:
        path: a folder with config.json, or of a whole model; or a .safetensors file, with
            config.json beside it if it is in diffusers' names.
        like: the config of the model's own autoencoder, if there is one.
        unet: the config of the model's UNet.
        dtype: see `choose_dtype`.
        variant: read files of it, if there are any.

    Raises:
        FileNotFoundError, ValueError: see `load_model`; or the channels or the scale of its latents
            are not those of the model.
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


def choose_dtype(config: Mapping[str, Any], dtype: Any) -> Any:
    """Choose the type of an autoencoder: float32 if its config says that float16 overflows."""
    overflows = config.get("force_upcast", True) and dtype == jnp.float16
    return jnp.float32 if overflows else dtype


def open_vae(path: Path, variant: str | None = None) -> Part:
    """Open the config and the weights of an autoencoder; single files have no latent scale.

    Raises:
        FileNotFoundError, ValueError: there is none.
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


def _check_class(config: Mapping[str, Any]) -> None:
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"config.json is of {name}; an {' or '.join(_CLASSES)} is needed")


def _set_scale(
    config: Mapping[str, Any], like: Mapping[str, Any] | None, unet: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config with the model's latent scale, or its family's without a model's config.

    A tiny autoencoder has latents as the UNet sees them, and keeps its scale.
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
