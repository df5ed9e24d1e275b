"""Open files and folders of adapters, and sort their tensors by layer.

Three families of names occur. Files of kohya's scripts and LyCORIS have keys such as
``lora_unet_..._to_q.lora_down.weight`` with an ``alpha`` beside them, in the names of diffusers or
of the original code. Files of diffusers have ``unet....lora_A.weight``. Folders of peft have
``base_model.model....lora_A.weight``, with alpha in adapter_config.json.

`adapters` computes what the tensors of a layer do to its weight, and `lora` merges them into
networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffjax.pretrained import peft_config
from diffjax.pretrained.adapters import (
    BIAS_ROLES,
    MAGNITUDES,
    WEIGHT_ROLES,
    Scaling,
    is_complete,
)
from diffjax.pretrained.files import (
    LORA_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    StrPath,
    Tensor,
    Weights,
    open_safetensors,
    resolve_inside,
)
from diffjax.pretrained.hub import download
from diffjax.pretrained.recognise import ADAPTER, describe_keys
from diffjax.types import Config, JsonObject
from diffjax.untrusted import name_some, parse_json, read_json

_METADATA = "lora_adapter_metadata"
_PEFT = "base_model.model."
_FACTORS = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}
_PLAIN = [
    *(role for kind in ("LoHa", "LoKr", "embedding", "difference", "norm")
      for role in WEIGHT_ROLES[kind]),
    *MAGNITUDES, "diff_b", "b_norm", "alpha",
]  # fmt: skip
# Keys of a layer, with the name that peft gave the adapter, if it did.
_LORA = re.compile(
    r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|mid|A|B)(?:\.([^.]+))?\.(weight|bias)"
)
_OTHER = re.compile(rf"(.+?)\.({'|'.join(_PLAIN)})(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
_SAVED = re.compile(r"(.+?)(?:\.base_layer|\.modules_to_save(?:\.([^.]+))?)?\.(weight|bias)")
# Adapters that are not read, by a part of their keys.
_UNREAD = {
    "oft_": "OFT",
    "boft_": "BOFT",
    "on_input": "(IA)^3",
    "ia3_": "(IA)^3",
    ".a1.": "GLoRA",
    ".b2.": "GLoRA",
    "lora_E": "AdaLoRA",
    "vera_": "VeRA",
    "bias_indices": "a sparse bias of early LyCORIS",
    "ip_adapter": "an IP-Adapter",
    "motion_modules": "a motion module of AnimateDiff",
    "trainable_tokens_delta": "trained tokens of peft",
    "lora_controlnet": "a Control-LoRA",
}


class Layer(NamedTuple):
    """What a file holds for one layer of a network.

    Attributes:
        module: name of the layer in the file, with dots or with underscores.
        tensors: unread tensors by role, see `diffjax.pretrained.adapters`.
        keys: key of each tensor in the file, by role.
        scaling: the factor of the change, without the user's scale.
    """

    module: str
    tensors: dict[str, Tensor]
    keys: dict[str, str]
    scaling: Scaling


class AdapterFile(NamedTuple):
    """An adapter whose file is open, but whose tensors are not read yet.

    Attributes:
        path: the .safetensors file.
        part: name of the folder of peft, which is that of the network in training scripts (``unet``
            or ``text_encoder``); None for single files.
        layers: what the file holds, by the name of the layer.
    """

    path: Path
    part: str | None
    layers: dict[str, Layer]


def read_tensor(file: Path, layer: Layer, role: str) -> np.ndarray:
    """Read a tensor of a layer in float32, or in float64 if it is stored so.

    Args:
        file: the file of the layer, for messages.
        layer: the layer.
        role: the role of the tensor, such as ``down``.

    Raises:
        ValueError: it holds values that are not finite.
    """
    value = layer.tensors[role].read()
    value = value.astype(np.float64 if value.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(value).all():
        raise ValueError(
            f"{layer.keys[role]} in {file} holds values that are not finite: the adapter is damaged"
        )
    return value


def open_adapter(path: StrPath) -> AdapterFile:
    """Open the adapter in a file, or in a folder of peft or diffusers.

    Only headers and configs are read.

    Args:
        path: a .safetensors file, or a folder with adapter_model.safetensors (peft) or
            pytorch_lora_weights.safetensors (diffusers), or a name on the Hub.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a pickle or damaged, holds several adapters, or has keys of a method
            that is not supported; the message names the method.
    """
    file, config = _find(download(path))
    weights = open_safetensors(file)
    settings = _read_settings(weights, config, file)
    found, strange = _sort(weights, settings)
    names = sorted({name for _, _, name in found.values() if name})
    if len(names) > 1:
        raise ValueError(
            f"{file} holds {len(names)} adapters, {name_some(names)}; save each in a file"
        )
    grouped: dict[str, dict[str, str]] = {}
    for key, (module, role, _) in found.items():
        if role in grouped.setdefault(module, {}):
            raise ValueError(f"{file} holds {role} of {module} twice")
        grouped[module][role] = key
    for keys in grouped.values():
        if set(keys) == {"alpha"} or not is_complete(set(keys)):
            strange += keys.values()
    if strange or not grouped:
        raise _explain_unread(file, strange)
    if not config and any(key.startswith(_PEFT) for key in weights):
        logging.warning(
            "%s is of peft, but there is no %s beside it: alpha is taken to be the rank",
            *(file, PEFT_CONFIG),
        )
    layers = {m: _read_layer(weights, m, keys, settings, file) for m, keys in grouped.items()}
    return AdapterFile(file, file.parent.name if config else None, layers)


def _find(path: Path) -> tuple[Path, Path | None]:
    """Find the weights of an adapter, and peft's config if there is one.

    Returns:
        The .safetensors file, and adapter_config.json or None.

    Raises:
        FileNotFoundError: a folder has no file of either library.
        ValueError: a folder has pickles only.
    """
    if not path.is_dir():
        config = path.parent / PEFT_CONFIG
        return path, config if path.name == PEFT_FILE and config.is_file() else None
    for name in (PEFT_FILE, LORA_FILE):
        if (path / name).exists():
            config = resolve_inside(path, PEFT_CONFIG)
            return resolve_inside(
                path, name
            ), config if name == PEFT_FILE and config.exists() else None
    there = sorted(p.name for p in path.iterdir())
    pickles = [name for name in there if name in ("adapter_model.bin", "pytorch_lora_weights.bin")]
    if pickles:
        raise ValueError(
            f"{path / pickles[0]} is a pickle, which can run code when it is read; save the "
            "adapter with safe_serialization=True"
        )
    raise FileNotFoundError(
        f"the folder {path} has neither {PEFT_FILE} nor {LORA_FILE}; it has "
        f"{name_some(there) or 'no files'}"
    )


class _Settings(NamedTuple):
    """The settings of peft that belong to a file.

    Attributes:
        whole: the config that holds for all layers.
        parts: configs by network, as diffusers stores them in the metadata of a file.
        where: where they were read, for messages.
    """

    whole: JsonObject
    parts: dict[str, JsonObject]
    where: str

    def find_config(self, module: str) -> tuple[Config, str]:
        """Return the config that holds for a module, and the module's name inside its network."""
        part, _, rest = module.partition(".")
        if part in self.parts:
            return self.parts[part], rest
        return self.whole, module.removeprefix(_PEFT)


def _read_settings(weights: Weights, config: Path | None, file: Path) -> _Settings:
    """Read adapter_config.json, or the same settings from the metadata of a file of diffusers.

    diffusers stores them as JSON under ``lora_adapter_metadata``, with keys such as
    ``unet.lora_alpha``.

    Raises:
        ValueError: a setting is not supported, see `peft_config.check_config`.
    """
    if config is not None:
        whole = read_json(config)
        peft_config.check_config(whole, str(config))
        return _Settings(whole, {}, str(config))
    where = f"{_METADATA} of {file}"
    stored = parse_json(weights.metadata.get(_METADATA) or "{}", where)
    parts: dict[str, JsonObject] = {}
    for key, value in stored.items():
        part, dot, name = key.partition(".")
        parts.setdefault(part if dot else "", {})[name if dot else key] = value
    for part, config_of_part in parts.items():
        peft_config.check_config(config_of_part, f"{where} ({part})" if part else where)
    return _Settings(parts.pop("", {}), parts, where)


def _sort(
    weights: Iterable[str], settings: _Settings
) -> tuple[dict[str, tuple[str, str, str | None]], list[str]]:
    """Split the keys of a file into those of adapters and those that are unknown.

    Returns:
        Module, role and adapter's name (or None) by key, and the list of unknown keys.
    """
    found: dict[str, tuple[str, str, str | None]] = {}
    strange = []
    for key in weights:
        if m := _LORA.fullmatch(key):
            role = _FACTORS[m[2]] if m[4] == "weight" else f"{_FACTORS[m[2]]}_bias"
            known = role != "mid_bias" and role != "down_bias"
            found[key] = (m[1], role, m[3])
        elif m := _OTHER.fullmatch(key):
            known = True
            found[key] = (m[1], m[2], m[3])
        elif m := _SAVED.fullmatch(key):
            config, module = settings.find_config(m[1])
            known = peft_config.replaces(config, module, m[3])
            found[key] = (m[1], m[3], m[2])
        else:
            known = False
        if not known:
            found.pop(key, None)
            strange.append(key)
    return found, strange


def _read_layer(
    weights: Weights, module: str, keys: dict[str, str], settings: _Settings, file: Path
) -> Layer:
    """Gather the tensors of a layer and its scaling.

    An ``alpha`` in the file goes before that of the config, as in kohya's scripts.

    Raises:
        ValueError: alpha is not one finite number, or the config asks for DoRA and the file has no
            magnitudes.
    """
    config, name = settings.find_config(module)
    tensors = {role: weights.tensors[key] for role, key in keys.items()}
    if config.get("use_dora") and "up" in keys and not set(MAGNITUDES) & set(keys):
        raise ValueError(f"{settings.where} has use_dora, but {module} has no magnitudes in {file}")
    if "alpha" not in keys:
        return Layer(module, tensors, keys, peft_config.read_scaling(config, name, settings.where))
    alpha = weights[keys["alpha"]]
    if alpha.size != 1 or not np.isfinite(alpha).all():
        raise ValueError(f"{keys['alpha']} in {file} must be one finite number, got {alpha}")
    del tensors["alpha"]
    return Layer(module, tensors, keys, Scaling(float(alpha.item())))


def _explain_unread(file: Path, strange: list[str]) -> ValueError:
    """Return the error for a file with unknown keys: it names what the file is, if its keys
    show that.
    """
    if not strange:
        return ValueError(f"{file} holds no adapter: it has no keys")
    kinds = {kind for part, kind in _UNREAD.items() if any(part in key for key in strange)}
    described = describe_keys(strange)
    if described and not kinds and described != ADAPTER:
        return ValueError(f"{file} is not a low-rank adapter, but {described}")
    what = f" ({', '.join(sorted(kinds))})" if kinds else ""
    return ValueError(
        f"{file} is not a low-rank adapter that can be read: {len(strange)} of its keys are "
        f"unknown{what} or lack others, such as {name_some(sorted(strange))}"
    )


def changes_bias(layer: Layer) -> bool:
    """Return whether a layer's tensors change its bias."""
    return any(role in layer.tensors for role in (*BIAS_ROLES, "bias"))


def changes_weight(layer: Layer) -> bool:
    """Return whether a layer's tensors change its weight."""
    return any(role not in (*BIAS_ROLES, "bias") for role in layer.tensors)


def is_low_rank(layer: Layer) -> bool:
    """Return whether a layer has the two factors of a LoRA and nothing else, so that it need
    not be merged.
    """
    return set(layer.tensors) == {"down", "up"}
