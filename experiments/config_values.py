"""What the values of a stored config may be: our own config.json, and those in exported files.

The sections are built by name, which checks their options. Here is what holds for every value
before: types that configs have, finite numbers, sizes that a network can have.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.base import base
from diffjax.untrusted import (
    FLAG,
    Spec,
    check,
    either,
    exactly,
    integer,
    is_finite,
    listed,
    name_some,
    number,
    show,
    text,
)

_MOST = 2**40
_COUNT = integer(1, 64)
_WIDTH = integer(1, 2**17)
_NAME = text(128)
# By the end of the dotted key.
SPECS: dict[str, Spec] = {
    "task": exactly("diffusion", "autoencoder", "controlnet", "lora", "classifier"),
    "data.name": _NAME,
    # 0 of a run on files of one's own: as they are
    "data.image_size": either(integer(0, 2**16), listed(integer(1, 2**16), 2)),
    "data.channels": integer(0, 64),
    "data.batch_size": integer(1, 2**24),
    "network.name": _NAME,
    "network.remat": either(FLAG, _NAME),  # older configs say whether, newer ones what
    "network.channels": _WIDTH,
    "network.multipliers": listed(number(0, 1024, above=True), 8),
    "network.blocks": _COUNT,
    "network.depth": Spec(
        "a whole number in 0 .. 128, or a list of them",
        lambda v: all(map(integer(0, 128).holds, v if isinstance(v, list | tuple) else [v])),
    ),
    "network.dropout": number(0, 1),
    "network.norm_groups": _WIDTH,
    "network.norm_eps": number(0, 1, above=True),
    "autoencoder.channels": _WIDTH,
    "autoencoder.multipliers": listed(number(0, 1024, above=True), 8),
    "autoencoder.blocks": _COUNT,
    "autoencoder.scale": number(0, 1e6),
    "network.downsample_padding": integer(0, 1),
    "data.threads": integer(0, 4096),
    "data.prefetch": integer(0, 4096),
    "eval.num": integer(0, 2**40),
    "sample.num": integer(0, 2**40),
    "sample.batch_size": integer(1, 2**24),
    "schedule.name": _NAME,
    "schedule.steps": integer(1, 100_000),
    "parameterization.name": _NAME,
    "train.steps": integer(0, 10**9),
    "sample.steps": Spec(
        "a whole number in 0 .. 100000, or null",
        lambda v: v is None or integer(0, 100_000).holds(v),
    ),
}
# What the configs of all versions have.
_NEEDED = (
    *("task", "seed", "data.name", "data.split", "data.image_size", "data.channels", "data.levels"),
    *("data.num_classes", "data.batch_size", "network.name", "network.channels", "optim.name"),
    *("network.multipliers", "network.blocks", "network.attention_levels", "network.norm_groups"),
    *("optim.lr", "optim.warmup", "optim.decay", "ema.decay", "train.steps", "sample.sampler"),
    *("sample.grid", "sample.steps", "sample.guidance", "mesh.data"),
)
_NEEDED_TO_DIFFUSE = (
    *("schedule.name", "parameterization.name", "loss.name", "loss.weight", "cond.drop"),
    "cond.null",
)


def check_values(config: dict[str, Any], where: object) -> None:
    """Compare a stored config with the table, and every other number with what is finite.

    Raises:
        ValueError: a value is wrong, or a part that every config has is missing.
    """
    flat = dict(_flatten(config))
    check(flat, {key: spec for key, spec in SPECS.items() if key in flat}, where)
    for key, value in flat.items():
        if not _is_plain(value):
            raise ValueError(
                f"{where}: {name_some([key])} is {show(value)}, which is no value of a config: "
                "they are finite numbers, text, true, false, null and lists of these"
            )
    for key, kind in _list_types(base()):
        if inner := [name for name in flat if name.startswith(f"{key}.")]:
            raise ValueError(f"{where}: {key} is a section with {name_some(inner)}, not a value")
        if key in flat and key not in SPECS and not _is_alike(flat[key], kind):
            raise ValueError(
                f"{where}: {key} is {show(flat[key])}, but must be of type {kind.__name__}"
            )
    if wrong := [key for key in base() if not isinstance(base()[key], str | int) and key in flat]:
        raise ValueError(f"{where}: {wrong[0]} is {show(flat[wrong[0]])}, but must be a section")
    needed = [*_NEEDED, *(_NEEDED_TO_DIFFUSE if flat.get("task") == "diffusion" else ())]
    if missing := [key for key in needed if key not in flat]:
        raise ValueError(f"{where} is no config of a run: it lacks {name_some(missing)}")


def _flatten(config: dict[str, Any], prefix: str = "") -> Any:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _list_types(config: ConfigDict, prefix: str = "") -> Any:
    """(dotted key, type) of every option; those that are not set have a type too."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _list_types(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config.get_type(key)


def _is_alike(value: Any, kind: type) -> bool:
    """Whether a value is of a type, as far as JSON tells types apart; null is of all."""
    if value is None or kind is type(None):
        return True
    if kind in (bool, str):
        return type(value) is kind
    if kind in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, list | tuple)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, bool | str | None):
        return True
    return is_finite(value) and abs(value) <= _MOST
