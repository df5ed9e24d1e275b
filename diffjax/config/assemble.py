"""Configs of the default tables, and older or partial ones that are completed from them."""

from __future__ import annotations

import abc
import ast
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_dict import placeholder
from ml_collections.config_flags import tuple_parser

from diffjax.config.defaults import DEFAULTS, FIRST_STAGE, OPTIONAL, OpenOption, SizeOption

Size = int | tuple[int, int]
# Sections that a first stage has not, or has of its own.
_OF_DIFFUSION = ("schedule", "parameterization", "times", "cond", "network", "loss")
_OF_ANY_NETWORK = ("name", "conditional", "dtype")
_SECTIONS_OF = {"controlnet": ("control",), "lora": ("model", "lora")}
# What runs did before a key was there, where that is not today's default.
_BEFORE = {"eval.best": ""}


class ImageSize(abc.ABC):  # noqa: B024 (its members are registered)
    """The type of ``data.image_size``: pixels on a side of a square, or (height, width)."""


for _kind in (int, tuple, list):
    ImageSize.register(_kind)


class _ImageSizeParser:
    """Reads ``64``, ``(40, 56)``, ``40,56`` and ``40x56`` from the command line."""

    syntactic_help = "a number of pixels, or (height,width)"

    def parse(self, argument: str | Size) -> Size:
        """
        Raises:
            ValueError: it is neither one number nor two.
        """
        if not isinstance(argument, str):
            return argument
        found = re.fullmatch(r"[\s(\[]*(\d+)(?:\s*[,x]\s*(\d+))?[\s,)\]]*", argument)
        if found is None:
            raise ValueError(
                f"{argument!r} is no size; give a number of pixels, such as 64, or height and "
                "width, such as (40,56)"
            )
        height, width = found.groups()
        return int(height) if width is None else (int(height), int(width))

    def flag_type(self) -> str:
        """What --help calls it."""
        return "number or (height,width)"


class _ListParser(tuple_parser.TupleParser):
    """Reads lists: ``1,2``, and texts without quotes too, such as ``to_q,to_k``."""

    def parse(self, argument: str | tuple[Any, ...] | None) -> tuple[Any, ...]:
        """The entries; text that is no Python is cut at its commas."""
        if isinstance(argument, str):
            try:
                ast.literal_eval(argument)
            except (ValueError, SyntaxError):
                bare = argument.strip().removeprefix("(").removesuffix(")")
                return tuple(filter(None, (part.strip(" '\"") for part in bare.split(","))))
        return super().parse(argument)


config_flags.register_flag_parser_for_type(ImageSize, _ImageSizeParser())
config_flags.register_flag_parser_for_type(tuple, _ListParser())


def make(values: Mapping[str, Any] | None = None, *, task: str = "diffusion") -> ConfigDict:
    """A config of the defaults, which are DDPM's.

    Args:
        values: other values by dotted key, such as ``{"network.channels": 64}``.
        task: diffusion, classifier, autoencoder, controlnet or lora.

    Raises:
        ConfigError: there is no such task or key, or a value is of another type.
    """
    names = ("diffusion", "classifier", "autoencoder", *_SECTIONS_OF)
    if task not in names:
        from diffjax.types import suggest

        known = ", ".join(names)
        _refuse(f"unknown task {task!r}; choose one of {known}{suggest(task, names)}")
    tables = dict(DEFAULTS)
    if task == "autoencoder":
        tables = {k: v for k, v in DEFAULTS.items() if k not in _OF_DIFFUSION} | dict(FIRST_STAGE)
    tables |= {name: OPTIONAL[name] for name in _SECTIONS_OF.get(task, ())}
    config = _build(tables)
    config.task = task
    for path, value in (values or {}).items():
        _set(config, path, value)
    return config


def make_section(name: str, **values: Any) -> ConfigDict:
    """One of the sections that not every config has: model, control or lora."""
    section = _build(OPTIONAL[name])
    section.update(values)
    return section


def complete(config: ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """Give a config, in place, the keys of the defaults that it lacks, and every option a type.

    A stored config has null for options that are open; afterwards they can be set to values of
    their own type. Keys that only the network of another name or a first stage has stay as they
    are.
    """
    out = config if isinstance(config, ConfigDict) else ConfigDict(dict(config))
    with out.unlocked():
        _fill(out, _select_tables(out), "")
    return out


def _select_tables(config: ConfigDict) -> dict[str, Any]:
    """The part of `DEFAULTS` that holds for a config."""
    tables = dict(DEFAULTS)
    if config.get("task") == "autoencoder":
        return {k: v for k, v in tables.items() if k not in _OF_DIFFUSION}
    network = config.get("network", {})
    if network.get("name", "unet") != DEFAULTS["network"]["name"]:
        tables["network"] = {k: DEFAULTS["network"][k] for k in _OF_ANY_NETWORK}
    return tables


def _fill(section: ConfigDict, defaults: Mapping[str, Any], prefix: str) -> None:
    for key, default in defaults.items():
        if key not in section:
            section[key] = _BEFORE.get(f"{prefix}{key}", _build(default))
        elif isinstance(default, Mapping):
            if isinstance(section[key], ConfigDict):
                _fill(section[key], default, f"{prefix}{key}.")
        elif _is_untyped(section, key, default):
            value = section[key]
            del section[key]
            section[key] = _build(default)
            section[key] = value


def _is_untyped(section: ConfigDict, key: str, default: Any) -> bool:
    """Whether a field would refuse values of the default's type: JSON has null, and 1 for 1.0."""
    kind, wanted = section.get_type(key), find_type(default)
    if kind is wanted:
        return False
    return kind is type(None) or (kind is int and wanted is float) or wanted is ImageSize


def find_type(default: Any) -> type:
    """The type of the values of an option, by its entry in a table of defaults."""
    if isinstance(default, OpenOption):
        return default.kind
    return ImageSize if isinstance(default, SizeOption) else type(default)


def _build(default: Any) -> Any:
    """A table as a ConfigDict, and an entry as its value or field."""
    if isinstance(default, Mapping):
        return ConfigDict({key: _build(value) for key, value in default.items()})
    if isinstance(default, OpenOption):
        return placeholder(default.kind)
    return make_size_field(default.pixels) if isinstance(default, SizeOption) else default


def make_size_field(size: Size) -> FieldReference:
    """A config field that takes one number or (height, width), in files and on the command line."""
    return FieldReference(size, field_type=ImageSize)


def explain_unknown(config: ConfigDict, path: str) -> str:
    """Why a config has no value at a dotted key, with the closest key; empty if it has one."""
    section: Any = config
    keys = path.split(".")
    for depth, key in enumerate(keys):
        where = "config" + "".join(f".{k}" for k in keys[:depth])
        if not isinstance(section, ConfigDict):
            return f"{where} is a value: it has no key {key!r}"
        if key not in section:
            from diffjax.types import suggest  # not before: it takes a second

            known = list(section)
            return f"unknown config key {path!r}; {where} has {', '.join(known)}" + suggest(
                key, known
            )
        section = section[key]
    return ""


def _set(config: ConfigDict, path: str, value: Any) -> None:
    """
    Raises:
        ConfigError: there is no such key, or the value is of another type.
    """
    if problem := explain_unknown(config, path):
        _refuse(problem)
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    try:
        section[key] = value
    except TypeError as error:
        _refuse(f"config.{path}={value!r}: {error}")


def _refuse(message: str) -> NoReturn:
    from diffjax.types import ConfigError  # not before: it takes a second

    raise ConfigError(message)
