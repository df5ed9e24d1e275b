"""Read and write all parts of a text-to-image model: diffusers folders and single files.

`load_components` is what `diffjax.load` and `diffjax.open` call. A folder has one subfolder for
each network, read by `models`, a scheduler, tokenizers, and model_index.json, which lists the
parts. A single file of the original code has networks only, read by `single_file`; its scheduler
follows from the family of the model, and the user names a tokenizer.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import jax.numpy as jnp
from absl import logging
from jax.typing import DTypeLike

from diffjax.pretrained.components import (
    DIFFUSERS,
    LOW_RES,
    TEXTS,
    Components,
    make_manifest,
    name_beside,
)
from diffjax.pretrained.config_specs import NETWORK, check_manifest
from diffjax.pretrained.files import (
    StrPath,
    Weights,
    find_weights_file,
    open_safetensors,
    resolve_inside,
)
from diffjax.pretrained.hub import download
from diffjax.pretrained.hub_files import NETWORKS, TOKENIZERS
from diffjax.pretrained.k_unet_configs import has_k_blocks
from diffjax.pretrained.models import Component, Sharding, load_model
from diffjax.pretrained.prompts import TextEncoder
from diffjax.pretrained.recognise import READ, describe_folder, name_family
from diffjax.pretrained.scheduler_kinds import KINDS
from diffjax.pretrained.single_file import FAMILIES, load_single_file, open_single_file
from diffjax.pretrained.tokenizers import (
    OPEN_CLIP_PAD,
    Tokenizer,
    load_tokenizer,
)
from diffjax.pretrained.vaes import choose_dtype, load_vae
from diffjax.types import Config, JsonObject
from diffjax.untrusted import check, read_json

_SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    timestep_spacing="leading",
    steps_offset=1,
    clip_sample=False,
)
# What the repository of each family has, since single files hold no scheduler.
_SCHEDULERS: dict[str, JsonObject] = {
    "v1": dict(_class_name="PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False),
    "v2": dict(_class_name="DDIMScheduler", set_alpha_to_one=False),
    "xl": dict(_class_name="EulerDiscreteScheduler"),
    "refiner": dict(_class_name="EulerDiscreteScheduler"),
}
_SAMPLE_SIZES = {"v1": 64, "v2": 96, "xl": 128, "refiner": 128}
_BASE_STEP = 875000  # the step of SD 2's 512-pixel base, by which diffusers knows it too


def load_components(
    path: StrPath,
    *,
    dtype: DTypeLike = jnp.float32,
    variant: str | None = None,
    tokenizer: StrPath | None = None,
    prediction: str | None = None,
    sharding: Sharding | None = None,
    vae: StrPath | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Components:
    """Load all parts of a model from a diffusers folder, or from a single .safetensors file.

    Args:
        path: the folder or the file, or a name on the Hub; so may tokenizer and vae be.
        dtype: type of weights and computation. The autoencoder stays float32 where its config says
            that it overflows in float16.
        variant: part of the file names in a folder, such as ``"fp16"``. If some networks have files
            of that name and others do not, the other files of the latter are read, with a warning.
        tokenizer: folder of a CLIP tokenizer. Single files need it, folders have their own.
        prediction: ``epsilon`` or ``v_prediction``, which overrides the scheduler's config. Single
            files of SD 2 seldom record it; they are assumed to be the 768-pixel model with
            v_prediction. With epsilon they are the 512-pixel base model.
        sharding: see `load_model`.
        vae: folder or file of an autoencoder in place of the model's own; see `load_vae`.
        revision, token, local_files_only: of names on the Hub; see `download`. The revision is
            that of ``path``.

    Raises:
        ConfigError: the Hub has no such model; see `download`.
        FileNotFoundError: a file is missing.
        ValueError: a part is missing or not supported, its weights do not fit, or the path holds
            something else; the message says what it is.
    """
    fetch = partial(download, token=token, local_files_only=local_files_only)
    parts = [name for name in NETWORKS if name != "vae" or vae is None]
    parts += ["scheduler", *(TOKENIZERS if tokenizer is None else ())]
    source = fetch(path, parts=parts, variant=variant, revision=revision)
    tokenizer = tokenizer and fetch(tokenizer, parts=TOKENIZERS)
    vae = vae and fetch(vae, parts=("vae",), variant=variant, fall_back=True)
    if source.is_dir():
        found = _load_folder(source, dtype, variant, tokenizer, sharding, vae)
    else:
        found = _load_file(source, dtype, tokenizer, prediction, sharding, vae)
    if prediction:
        found = found._replace(scheduler={**found.scheduler, "prediction_type": prediction})
    return found


def _load_folder(
    path: Path,
    dtype: DTypeLike,
    variant: str | None,
    tokenizer: StrPath | None,
    sharding: Sharding | None,
    vae: StrPath | None,
) -> Components:
    """Load the parts of a diffusers folder. All configs are checked before weights are read.

    Raises:
        FileNotFoundError, ValueError: see `load_components`.
    """
    manifest = _read_manifest(path, vae)
    texts = [name for name in TEXTS if _has_part(manifest, name)]
    names = ["unet", *(["vae"] if _has_part(manifest, "vae") else []), *texts]
    folders = {name: resolve_inside(path, name) for name in names}
    have = [name for name, folder in folders.items() if find_weights_file(folder, variant)]

    def model(name: str, kind: DTypeLike = dtype) -> Component:
        """Load one network, of the variant if there are files of it."""
        falls_back = bool(variant and have) and name not in have
        if falls_back:
            logging.warning("%s has no weights of variant %s; its others are read", name, variant)
        chosen = None if falls_back else variant
        return load_model(folders[name], variant=chosen, dtype=kind, sharding=sharding)

    def text(name: str) -> TextEncoder:
        """Load a text encoder and its tokenizer, which has its own folder (``tokenizer_2`` for
        the second).
        """
        own = resolve_inside(path, name.replace("text_encoder", "tokenizer"))
        if tokenizer is None and not own.is_dir():
            raise FileNotFoundError(
                f"{path} has no {own.name}: say where a tokenizer is (tokenizer=FOLDER)"
            )
        network = model(name)
        found = (
            load_tokenizer(own) if tokenizer is None else _load_tokenizer_for(network, tokenizer)
        )
        return _pair_encoder(found, network, own if tokenizer is None else tokenizer)

    unet_config = _read_config(folders["unet"])
    vae_config = _read_config(folders["vae"]) if "vae" in folders else None
    if vae is None:
        _check_channels(unet_config, vae_config or {})
        autoencoder = model("vae", choose_dtype(vae_config or {}, dtype))
    else:
        autoencoder = load_vae(
            vae, vae_config, unet_config, dtype=dtype, variant=variant, sharding=sharding
        )
        _check_channels(unet_config, autoencoder.config)
    parts = Components(
        model("unet"),
        autoencoder,
        {name: text(name) for name in texts},
        read_json(resolve_inside(resolve_inside(path, "scheduler"), "scheduler_config.json")),
        manifest,
        _read_low_res(path, manifest),
    )
    mended = TEXTS[1] not in texts and not has_k_blocks(unet_config)
    return _mend_scheduler(parts) if mended else parts


def _read_low_res(path: Path, manifest: Config) -> JsonObject | None:
    """The config of the scheduler of an upscaler's small images, or None."""
    if not _has_part(manifest, LOW_RES):
        return None
    return read_json(resolve_inside(resolve_inside(path, LOW_RES), "scheduler_config.json"))


def _has_part(manifest: Config, name: str) -> bool:
    """Return whether model_index.json has a part that is not null."""
    entry = manifest.get(name)
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def _read_manifest(path: Path, vae: StrPath | None) -> JsonObject:
    """Read the model_index.json of a text-to-image model.

    Args:
        path: the folder.
        vae: the autoencoder that the user chose; the folder needs none then.

    Raises:
        FileNotFoundError: there is no model_index.json; the message says what the folder is.
        ValueError: the model is of a family that is not supported, or lacks a part.
    """
    if not (path / "model_index.json").exists():
        raise FileNotFoundError(f"there is no model_index.json: {path} {describe_folder(path)}")
    manifest = read_json(resolve_inside(path, "model_index.json"))
    check_manifest(manifest, path / "model_index.json")
    kind = manifest.get("_class_name")
    if isinstance(kind, str) and (family := name_family(kind)):
        raise ValueError(f"{path} is a model of {family} ({kind}), which is not supported; {READ}")
    needed = ["unet", "scheduler", *(["vae"] if vae is None else [])]
    absent = [name for name in needed if not _has_part(manifest, name)]
    if absent or not any(_has_part(manifest, name) for name in TEXTS):
        raise ValueError(
            f"{path} ({kind}) is no text-to-image model: it lacks {', '.join(absent or TEXTS[:1])}"
        )
    return manifest


def _read_config(folder: Path) -> JsonObject:
    """Read the config of a network, and check the types and ranges of its values.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: a value has a wrong type or range.
    """
    file = resolve_inside(folder, "config.json")
    config = read_json(file)
    # What may be null depends on the class, which says so when the network is built.
    check({key: value for key, value in config.items() if value is not None}, NETWORK, file)
    return config


def _pair_encoder(tokenizer: Tokenizer, model: Component, folder: StrPath) -> TextEncoder:
    """Pair a text encoder with its tokenizer.

    Args:
        tokenizer: the tokenizer.
        model: the text encoder.
        folder: the folder of the tokenizer, for messages.

    Raises:
        ValueError: the tokenizer has ids beyond the embeddings of the encoder, or texts of more
            tokens than it has positions.
    """
    most = max(tokenizer.backend.get_vocab().values())
    if most >= model.net.vocabulary or tokenizer.length > model.net.positions:
        raise ValueError(
            f"the tokenizer in {folder} has ids up to {most} and texts of {tokenizer.length} "
            f"tokens, but the text encoder has {model.net.vocabulary} embeddings and "
            f"{model.net.positions} positions"
        )
    return TextEncoder(tokenizer, model)


def _check_channels(unet: Config, vae: Config) -> None:
    """Check that a UNet reads latents alone, or latents with a mask and masked latents.

    Args:
        unet: its config.
        vae: the config of the autoencoder.

    Raises:
        ValueError: it reads other channels, as depth models, upscalers and InstructPix2Pix do.
    """
    name_beside(unet, vae.get("latent_channels", 4))


def _mend_scheduler(parts: Components) -> Components:
    """Correct the scheduler of outdated configs of Stable Diffusion 1 and 2, as diffusers'
    pipelines do.

    The first configs were written before these options existed, and mean other values than their
    defaults. A warning names what was changed.
    """
    inpaints = "Inpaint" in parts.manifest.get("_class_name", "")
    wanted = {"steps_offset": 1} | (
        {"skip_prk_steps": True} if inpaints else {"clip_sample": False}
    )
    kind = KINDS.get(parts.scheduler.get("_class_name", ""))
    options = {**kind.defaults, **parts.scheduler} if kind else parts.scheduler
    changes = {key: v for key, v in wanted.items() if options.get(key, v) != v}
    unet, version = parts.unet, parts.unet.config.get("_diffusers_version", DIFFUSERS)
    side = unet.config.get("sample_size")
    sized = {}
    if [int(n) for n in re.findall(r"\d+", version)[:2]] < [0, 9] and isinstance(side, int):
        sized = {"sample_size": 64} if side < 64 else {}
    if changes or sized:
        shown = ", ".join(f"{key}={value}" for key, value in {**changes, **sized}.items())
        logging.warning("configs of this model are outdated; as in diffusers, %s", shown)
    return parts._replace(
        scheduler={**parts.scheduler, **changes},
        unet=unet._replace(config={**unet.config, **sized}),
    )


def _load_file(
    path: Path,
    dtype: DTypeLike,
    tokenizer: StrPath | None,
    prediction: str | None,
    sharding: Sharding | None,
    vae: StrPath | None,
) -> Components:
    """Load the parts of a single file. The scheduler and the image size follow from its family.

    Raises:
        FileNotFoundError, ValueError: see `load_components`.
    """
    family, found = open_single_file(path, vae=vae is None)
    if tokenizer is None:
        raise ValueError(
            f"{path.name} holds no tokenizer: say where one is (tokenizer=FOLDER, with "
            "tokenizer.json or vocab.json and merges.txt)"
        )
    if vae is not None:
        scale = {"scaling_factor": FAMILIES[family].scale}
        autoencoder = load_vae(vae, scale, found["unet"].config, dtype=dtype, sharding=sharding)
    _check_channels(
        found["unet"].config, found["vae"].config if vae is None else autoencoder.config
    )
    names = [name for name in ("unet", *TEXTS) if name in found]  # maybe a ControlNet is there too
    models = load_single_file(path, parts=names, dtype=dtype, sharding=sharding)
    if vae is None:
        vae_dtype = choose_dtype(found["vae"].config, dtype)
        own = load_single_file(path, parts=["vae"], dtype=vae_dtype, sharding=sharding)
        autoencoder = own["vae"]
    texts = {}
    for name in (name for name in TEXTS if name in models):
        texts[name] = _pair_encoder(
            _load_tokenizer_for(models[name], tokenizer), models[name], tokenizer
        )
    unet = models["unet"]
    scheduler = _derive_scheduler(open_safetensors(path), family, unet.config["in_channels"])
    base = family == "v2" and (prediction or scheduler["prediction_type"]) == "epsilon"
    unet.config["sample_size"] = _SAMPLE_SIZES["v1" if base else family]
    parts = Components(unet, autoencoder, texts, scheduler, {})
    return parts._replace(manifest=make_manifest(parts))


def _load_tokenizer_for(model: Component, folder: StrPath) -> Tokenizer:
    """Load a tokenizer from another folder than its text encoder's.

    OpenCLIP, which has the activation gelu, pads with another token than CLIP.
    """
    open_clip = model.net.activation == "gelu"
    return load_tokenizer(folder, pad=OPEN_CLIP_PAD if open_clip else None)


def _derive_scheduler(weights: Weights, family: str, channels: int) -> JsonObject:
    """Derive the scheduler's config from a file's family and from its keys that are not weights.

    Files mark v-prediction with the key ``v_pred``, and zero terminal SNR with ``ztsnr``.

    Args:
        weights: the file.
        family: see `single_file.find_family`.
        channels: channels of the UNet's input.
    """
    config = {**_SCHEDULE, **_SCHEDULERS[family]}
    base = "global_step" in weights and weights["global_step"].item() == _BASE_STEP
    guess = family == "v2" and channels == 4 and not base
    config["prediction_type"] = "v_prediction" if guess or "v_pred" in weights else "epsilon"
    if {"v_pred", "ztsnr"} <= set(weights):
        # No signal is left at the last time, which has to be visited (Lin et al. 2023). PNDM does
        # not know of it.
        config |= dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        config["_class_name"] = config["_class_name"].replace("PNDM", "DDIM")
    return config
