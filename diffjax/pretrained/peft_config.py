"""Read adapter_config.json of peft: the scaling of each layer, and settings that are not supported.

peft stores many methods under the same file names. A setting that would change the result and is
not implemented is an error, so that an adapter is never applied in part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from diffjax.pretrained.adapters import Scaling
from diffjax.types import Config

KINDS = ("LORA", "LOHA", "LOKR")
# Settings that say where adapters are, how they were trained, or what the tensors show by
# themselves. Whatever else a config sets may change the result.
_SEEN = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "peft_version", "r", "target_modules", "exclude_modules", "rank_pattern"),
    *("lora_alpha", "alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "lora_dropout", "rank_dropout"),
    *("module_dropout", "rank_dropout_scale", "init_weights", "init_lora_weights"),
    *("runtime_config", "megatron_core", "use_effective_conv2d", "decompose_both"),
    *("decompose_factor", "corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    *("ensure_weight_tying", "qalora_group_size", "velora_config"),
    # It is about layers of GPT-2 that store their kernels the other way round: there are none here.
    "fan_in_fan_out",
}
# The other ways to begin change the weights of the base model too.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
_PATTERNS = ("alpha_pattern", "rank_pattern")
_SWITCHES = ("use_rslora", "use_dora", "lora_bias")
_BIASES = ("none", "all", "lora_only")


def check_config(config: Config, where: str) -> None:
    """Check that a config has no setting that changes the result and is not supported.

    Args:
        config: adapter_config.json, or the same settings from a file's metadata.
        where: where they were read, for messages.

    Raises:
        ValueError: the method or a setting is not supported, or a value has a wrong type; the
            message names it.
    """
    kind = str(config.get("peft_type") or KINDS[0]).rpartition(".")[2].upper()
    if kind not in KINDS:
        raise ValueError(
            f"{where} is of peft_type {kind}, which is not read; {', '.join(KINDS)} are"
        )
    begun = config.get("init_lora_weights")
    if not any(begun is one or begun == one for one in _BEGINNINGS):
        raise ValueError(
            f"{where} has init_lora_weights={begun!r}, which changes the base model's weights too; "
            "convert the adapter to a plain LoRA with peft, as its documentation of that method "
            "tells"
        )
    _check_types(config, where)
    strange = {k: v for k, v in config.items() if k not in _SEEN and v not in (None, False, [], {})}
    if strange:
        settings = ", ".join(f"{key}={value!r}" for key, value in list(strange.items())[:3])
        raise ValueError(f"{where} has settings that are not read: {settings}")


def _check_types(config: Config, where: str) -> None:
    """Check the types of the settings that are read.

    Raises:
        ValueError: one has another type.
    """

    def check(keys: tuple[str, ...], wanted: str, fits: Callable[[object], bool]) -> None:
        for key in keys:
            value = config.get(key)
            if value is not None and not fits(value):
                raise ValueError(f"{key} in {where} must be {wanted}, got {value!r}")

    check(_PATTERNS, "an object", lambda value: isinstance(value, dict))
    check(_SWITCHES, "true or false", lambda value: isinstance(value, bool))
    check(("bias",), f"one of {', '.join(_BIASES)}", lambda value: value in _BIASES)
    check(
        ("modules_to_save",),
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    )


def read_scaling(config: Config, module: str, where: str) -> Scaling:
    """Return the scaling of a module: its alpha and its rank, with the patterns that override them.

    Args:
        config: the settings of the module's network.
        module: dotted name of the layer in its network.
        where: where the settings were read, for messages.

    Raises:
        ValueError: alpha or rank is not a positive number, or a pattern is not the name of a layer.
    """
    alpha = _match_pattern(config, "alpha_pattern", module, where)
    if alpha is None:
        alpha = config.get("lora_alpha", config.get("alpha"))
    rank = _match_pattern(config, "rank_pattern", module, where)
    rank = config.get("r") if rank is None else rank
    return Scaling(
        None if alpha is None else float(_read_number(alpha, "alpha", where)),
        None if rank is None else _read_whole(rank, where),
        bool(config.get("use_rslora")),
    )


def replaces(config: Config, module: str, leaf: str) -> bool:
    """Return whether a file may hold a trained weight or bias of this module in place of the base
    model's.

    That is so for biases with ``bias`` of "all" or "lora_only", and for modules in
    ``modules_to_save``.
    """
    if leaf == "bias" and config.get("bias") in ("all", "lora_only"):
        return True
    # What is saved may be a module with layers in it.
    return any(f".{name}." in f".{module}." for name in config.get("modules_to_save") or ())


def _match_pattern(config: Config, key: str, module: str, where: str) -> object:
    """Return the value of the first pattern that equals the module's name or its end, or None.

    peft takes patterns as regular expressions; only names of layers are supported, since an
    expression from a file could take any time.

    Raises:
        ValueError: a pattern is more than a name.
    """
    for name, value in (config.get(key) or {}).items():
        if not re.fullmatch(r"\^?[\w.]+\$?", name):
            raise ValueError(f"{key} in {where} must hold names of layers, not {name!r}")
        plain = name.strip("^$")
        if module == plain or (not name.startswith("^") and module.endswith(f".{plain}")):
            return value
    return None


def _read_number(value: object, name: str, where: str) -> float:
    """Return a positive finite number.

    Raises:
        ValueError: the value is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} in {where} must be a positive number, got {value!r}")
    return value


def _read_whole(value: object, where: str) -> int:
    """Return a rank as an int.

    Raises:
        ValueError: it is not a positive whole number.
    """
    number = _read_number(value, "r", where)
    if number != int(number):
        raise ValueError(f"r in {where} must be a whole number, got {value!r}")
    return int(number)
