"""Files and folders of adapters: whose keys they hold, and what is said beside them.

Files of kohya's scripts and LyCORIS (``lora_unet_..._to_q.lora_down.weight`` with an ``alpha``, in
the names of diffusers or of the single-file layout) and of diffusers (``unet....lora_A.weight``),
and folders of peft, whose adapter_config.json holds alpha.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    """What a file holds for one layer.

    Attributes:
        module: the name of the layer in the file.
        tensors: by role, see `diffjax.pretrained.adapters`.
        keys: of the tensors in the file.
        scaling: of the adapter.
    """

    module: str
    tensors: dict[str, Tensor]
    keys: dict[str, str]
    scaling: Scaling


class AdapterFile(NamedTuple):
    """An adapter.

    Attributes:
        path: the file that was read.
        part: the network that it is for, where its folder is called so.
        layers: by module.
    """

    path: Path
    part: str | None
    layers: dict[str, Layer]


def read_tensor(file: Path, layer: Layer, role: str) -> np.ndarray:
    """A tensor of a layer in float32, or float64 if it is stored so.

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
    """The adapter in a file, in a folder of peft or diffusers, or of a name on the Hub.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a pickle or damaged, or holds something that is not read.
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
    """(weights, peft's config or None) of a path."""
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
    """What a config of peft says, whole or by network."""

    whole: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    where: str

    def of(self, module: str) -> tuple[Mapping[str, Any], str]:
        """The config of a module's network, and the module's name in that network."""
        part, _, rest = module.partition(".")
        if part in self.parts:
            return self.parts[part], rest
        return self.whole, module.removeprefix(_PEFT)


def _read_settings(weights: Weights, config: Path | None, file: Path) -> _Settings:
    """Read adapter_config.json, or what diffusers keeps of it in a file's metadata."""
    if config is not None:
        whole = read_json(config)
        peft_config.check_config(whole, str(config))
        return _Settings(whole, {}, str(config))
    where = f"{_METADATA} of {file}"
    stored = parse_json(weights.metadata.get(_METADATA) or "{}", where)
    parts: dict[str, dict[str, Any]] = {}
    for key, value in stored.items():
        part, dot, name = key.partition(".")
        parts.setdefault(part if dot else "", {})[name if dot else key] = value
    for part, said in parts.items():
        peft_config.check_config(said, f"{where} ({part})" if part else where)
    return _Settings(parts.pop("", {}), parts, where)


def _sort(
    weights: Iterable[str], settings: _Settings
) -> tuple[dict[str, tuple[str, str, str | None]], list[str]]:
    """(module, role, adapter's name) by key, and the keys that belong to nothing that is read."""
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
            config, module = settings.of(m[1])
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
    """Gather the tensors of a layer and its scaling, which the file or the config gives."""
    config, name = settings.of(module)
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
    """Return the error for a file with keys that are not read."""
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
    """Whether a layer's bias is changed."""
    return any(role in layer.tensors for role in (*BIAS_ROLES, "bias"))


def changes_weight(layer: Layer) -> bool:
    """Whether a layer's weight is changed."""
    return any(role not in (*BIAS_ROLES, "bias") for role in layer.tensors)


def is_low_rank(layer: Layer) -> bool:
    """Whether a layer has a LoRA and nothing else."""
    return set(layer.tensors) == {"down", "up"}
