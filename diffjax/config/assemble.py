"""Configs made of the default tables, and older or partial configs completed from them."""

from __future__ import annotations

import abc
import ast
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, cast

from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_dict import placeholder
from ml_collections.config_flags import tuple_parser

from diffjax.config.defaults import DEFAULTS
from diffjax.config.first_stage_defaults import FIRST_STAGE
from diffjax.config.open_options import OpenOption, SizeOption
from diffjax.config.optional_sections import OPTIONAL

if TYPE_CHECKING:
    from diffjax.types import Config  # not before: it takes a second

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
    """Reads a size from the command line: ``64``, ``(40, 56)``, ``40,56`` or ``40x56``."""

    syntactic_help = "a number of pixels, or (height,width)"

    def parse(self, argument: str | Size) -> Size:
        """Parse a size; a value that is no text is returned as it is.

        Raises:
            ValueError: the text is neither one whole number nor two.
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
        """Return the name of the type in --help."""
        return "number or (height,width)"


class _ListParser(tuple_parser.TupleParser):
    """Reads lists from the command line: ``1,2``, and texts without quotes: ``to_q,to_k``."""

    def parse(self, argument: str | tuple[object, ...] | None) -> tuple[object, ...]:
        """Parse a list; a text that is no Python literal is split at its commas."""
        if isinstance(argument, str):
            try:
                ast.literal_eval(argument)
            except (ValueError, SyntaxError):
                bare = argument.strip().removeprefix("(").removesuffix(")")
                return tuple(filter(None, (part.strip(" '\"") for part in bare.split(","))))
        return super().parse(argument)


config_flags.register_flag_parser_for_type(ImageSize, _ImageSizeParser())
config_flags.register_flag_parser_for_type(tuple, _ListParser())


def make(values: Mapping[str, object] | None = None, *, task: str = "diffusion") -> ConfigDict:
    """Make a config of the defaults, which are those of DDPM (Ho et al. 2020).

    Args:
        values: other values by dotted key, such as ``{"network.channels": 64}``.
        task: diffusion, classifier, autoencoder, controlnet or lora.

    Returns:
        The config, with the sections that the task has.

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
    config = cast(ConfigDict, _build(tables))
    config.task = task
    for path, value in (values or {}).items():
        _set(config, path, value)
    return config


def make_section(name: str, **values: object) -> ConfigDict:
    """Make one of the sections that not every config has: ``model``, ``control`` or ``lora``.

    Args:
        name: of the section.
        values: other values than the defaults, by key.
    """
    section = cast(ConfigDict, _build(OPTIONAL[name]))
    section.update(values)
    return section


def complete(config: ConfigDict | Config) -> ConfigDict:
    """Add the keys of the defaults that a config lacks, in place, and give every option its type.

    A stored config has null for options that are open, and 1 for 1.0; afterwards they can be set to
    values of their own type. Keys that only another network or a first stage has are not touched.

    Returns:
        The same config, or a new one if a plain mapping was passed.
    """
    out = config if isinstance(config, ConfigDict) else ConfigDict(dict(config))
    with out.unlocked():
        _fill(out, _select_tables(out), "")
    return out


def _select_tables(config: ConfigDict) -> Config:
    """Select the part of `DEFAULTS` that holds for the task and the network of a config."""
    tables = dict(DEFAULTS)
    if config.get("task") == "autoencoder":
        return {k: v for k, v in tables.items() if k not in _OF_DIFFUSION}
    network = config.get("network", {})
    if network.get("name", "unet") != DEFAULTS["network"]["name"]:
        tables["network"] = {k: DEFAULTS["network"][k] for k in _OF_ANY_NETWORK}
    return tables


def _fill(section: ConfigDict, defaults: Config, prefix: str) -> None:
    """Add the keys of a table that a section lacks, and set the types of those that it has.

    Args:
        prefix: dotted key of the section, with a dot at its end; empty for the whole config.
    """
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


def _is_untyped(section: ConfigDict, key: str, default: object) -> bool:
    """Whether a field refuses values of the default's type, because JSON stored another one."""
    kind, wanted = section.get_type(key), find_type(default)
    if kind is wanted:
        return False
    return kind is type(None) or (kind is int and wanted is float) or wanted is ImageSize


def find_type(default: object) -> type:
    """Find the type of an option's values, by its entry in a table of defaults."""
    if isinstance(default, OpenOption):
        return default.kind
    return ImageSize if isinstance(default, SizeOption) else type(default)


def _build(default: object) -> object:
    """Build a table as a ConfigDict, and an entry as the value or field that it stands for."""
    if isinstance(default, Mapping):
        return ConfigDict({key: _build(value) for key, value in default.items()})
    if isinstance(default, OpenOption):
        return placeholder(default.kind)
    return make_size_field(default.pixels) if isinstance(default, SizeOption) else default


def make_size_field(size: Size) -> FieldReference:
    """Make a config field that takes a number of pixels or (height, width), also as a flag.

    Args:
        size: its value at first.
    """
    return FieldReference(size, field_type=ImageSize)


def explain_unknown(config: ConfigDict, path: str) -> str:
    """Explain why a config has no value at a dotted key, and name the closest key.

    Returns:
        A sentence for a message; empty if the config has such a value.
    """
    section: object = config
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


def _set(config: ConfigDict, path: str, value: object) -> None:
    """Set the value at a dotted key.

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
    """Raise a ConfigError, whose class takes a second to import."""
    from diffjax.types import ConfigError  # not before: it takes a second

    raise ConfigError(message)
