"""The settings of an image: the flags of experiments.generate, and what a PNG holds of them.

A picture may come from anyone. It may say prompts and numbers, which are checked as flags are, and
name files of this machine only where --trust_paths allows it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
from absl import flags, logging

from diffjax import generate
from diffjax.generate import RequestError
from diffjax.generate.checks import read_whole, show
from diffjax.generate.request import read_start, read_strength
from diffjax.untrusted import parse_json
from experiments import common

ENTRY = "diffjax"  # of a PNG's text, as JSON
# What an image depends on; the other flags say where, and how many at once.
SETTINGS = (
    *("model", "tokenizer", "variant", "dtype", "prediction", "lora", "concept", "prompt"),
    *("negative", "weighted", "clip_skip", "sampler", "steps", "grid", "eta", "guidance"),
    *("rescale", "height", "width", "init_image", "mask", "strength", "control"),
    *("balance", "refiner", "refiner_start", "seed", "prompt_2", "negative_2", "vae"),
)
# Those that name files.
PATHS = (
    *("model", "tokenizer", "vae", "lora", "concept", "init_image", "mask", "control", "refiner"),
)
LONGEST = 2**16  # characters of the settings in a PNG
FILE = 2**28  # bytes of a PNG
PIXELS = 2**26  # of a PNG that holds its settings behind its pixels
# Flags that mean nothing without another one.
_NEEDS = {
    "mask": "init_image",
    "strength": "init_image",
    "refiner_start": "refiner",
    "balance": "control",
}
Settings = dict[str, Any]

# By the type of a flag: the types of its values in JSON, and what they are called.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "a text"),
    "string enum": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "multi string": ((list,), "a list of texts"),
}
# The flags of a request's arguments, where they have another name.
_FLAGS = {
    "key": "seed",
    "guidance.scale": "guidance",
    "image": "init_image",
    "size": "height",
    "refiner.start": "refiner_start",
    "control.balance": "balance",
    "num": "batch_size",
}


def choose() -> Settings:
    """The flags, and for those that were not given what --from_image holds.

    Raises:
        UsageError: --model or --prompt is missing, or the picture holds no valid settings, or
            names files that it may not.
    """
    values = flags.FLAGS.flag_values_dict()
    out = {name: values[name] for name in SETTINGS}
    if values["from_image"]:
        out |= _take(Path(values["from_image"]), trust=values["trust_paths"])
    elif values["trust_paths"]:
        raise common.UsageError("--trust_paths needs --from_image")
    for name in PATHS:  # empty flags leave out those of a picture
        kept = out[name]
        out[name] = [one for one in kept if one] if isinstance(kept, list) else kept or None
    for name in ("model", "prompt"):
        if not out[name]:
            raise common.UsageError(f"--{name} is needed, or --from_image")
    for name, other in _NEEDS.items():
        if not out[other] and out[name] != flags.FLAGS[name].default:
            if flags.FLAGS[name].present:
                raise common.UsageError(f"--{name} needs --{other}")
            out[name] = flags.FLAGS[name].default  # of a picture whose other flag is left out
    if any(
        len(json.dumps({**out, "prompt": [prompt]})) > LONGEST - 100 for prompt in out["prompt"]
    ):
        raise common.UsageError("--prompt: a prompt and its settings may have 65,000 characters")
    return out


def _take(path: Path, *, trust: bool) -> Settings:
    """The settings of a picture for the flags that were not given; they are logged.

    Raises:
        UsageError: it holds none, or names files without ``trust``.
    """
    stored = read_settings(path)
    taken = {name: v for name, v in stored.items() if not flags.FLAGS[name].present}
    said = {name: v for name, v in taken.items() if v != flags.FLAGS[name].default}
    foreign = {name: v for name, v in said.items() if name in PATHS}
    if foreign and not trust:
        raise common.UsageError(
            f"{path} names files: {_show(foreign)}. Give these flags yourself (empty ones leave "
            "them out), or --trust_paths to open the files that the picture names"
        )
    logging.info("from %s: %s", path, _show(said) or "defaults only")
    return taken


def _show(values: Settings) -> str:
    """Settings as flags, in ASCII, so that a picture cannot write to the terminal."""
    return " ".join(f"--{name}={json.dumps(value)[:200]}" for name, value in values.items())


def read_settings(path: Path) -> Settings:
    """The settings in a PNG; what came later than it has its default.

    Raises:
        UsageError: there are none, or they are not what flags may be; the picture is named.
    """
    text = _read_text(path)
    try:
        found = parse_json(text, "the text")
    except ValueError as error:
        raise common.UsageError(f"{path}: its settings are no valid JSON: {error}") from error
    if unknown := sorted(found.keys() - {*SETTINGS, "version"}):
        logging.warning("%s: settings that are not known: %s", path, json.dumps(unknown)[:200])
    out = {}
    for name in SETTINGS:
        flag = flags.FLAGS[name]
        out[name] = found.get(name, flag.default)
        if name in found and (reason := _find_fault(flag, found[name])):
            raise common.UsageError(f"{path}: its setting {name} {reason}")
    try:
        read_numbers(out)
    except RequestError as error:
        flag = flag_of(error.argument)
        raise common.UsageError(f"{path}: its setting {flag} is wrong: {error}") from error
    return out


def read_numbers(chosen: Settings) -> generate.Request:
    """The request of the settings that name no file, without the texts of a second encoder.

    Raises:
        RequestError: a number lies outside of its range, or a name of a choice is not known.
    """
    read_whole("seed", chosen["seed"], 0, 2**32 - 1)
    read_strength(chosen["strength"])
    read_start(chosen["refiner_start"])
    return generate.Request(
        chosen["prompt"] or "",
        sampler=generate.Sampling(
            chosen["sampler"], chosen["steps"], chosen["grid"], eta=chosen["eta"]
        ),
        guidance=generate.Guidance(chosen["guidance"], chosen["negative"], chosen["rescale"]),
        size=generate.Size(chosen["height"], chosen["width"]),
        clip_skip=chosen["clip_skip"],
        weighted=chosen["weighted"],
    ).read()


def _read_text(path: Path) -> str:
    """The text of a PNG that holds the settings, without decoding more than is bounded.

    Raises:
        UsageError: it is no PNG, is damaged or too large, or has no such text.
    """
    try:
        if path.stat().st_size > FILE:
            raise common.UsageError(f"{path} has more than 2^28 bytes; no image from here has")
        with PIL.Image.open(path, formats=["PNG"]) as picture:
            text = picture.info.get(ENTRY)
            if text is None and picture.width * picture.height <= PIXELS:
                text = getattr(picture, "text", {}).get(ENTRY)  # behind the pixels
    except common.UsageError:
        raise
    except FileNotFoundError as error:
        raise common.UsageError(f"there is no file {path}") from error
    except PIL.UnidentifiedImageError as error:
        raise common.UsageError(f"{path} is no PNG, or a damaged one") from error
    # Pillow has no one class of errors for damaged files and for texts that expand too much.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise common.UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(text, str):
        raise common.UsageError(f"{path} holds no settings of experiments.generate")
    if len(text) > LONGEST:
        raise common.UsageError(f"{path}: its settings have more than 2^16 characters")
    return text


def _find_fault(flag: Any, value: Any) -> str:
    """Why a value cannot be that of a flag; empty if it can."""
    kinds, called = _KINDS[flag.flag_type()]
    if value is None:
        return "" if flag.default is None else f"must be {called}, got None"
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return f"must be {called}, got {show(value)}"
    if isinstance(value, list) and not all(isinstance(one, str) for one in value):
        return f"must be {called}, got {show(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be finite, got {value}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "is too large a number"
    texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    if any(not _is_unicode(text) for text in texts):
        return "holds what is no Unicode text"
    if flag.name in PATHS and any("\0" in text for text in texts):
        return "is no path of a file"
    if flag.name == "variant" and not re.fullmatch(r"[\w.-]+", value):
        return f"must be a part of a file's name, got {show(value)}"
    choices = getattr(flag.parser, "enum_values", None)
    if choices and value not in choices:
        return f"must be one of {', '.join(choices)}, got {show(value)}"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def name_flags() -> Iterator[None]:
    """Add the flag to errors of requests.

    Raises:
        UsageError: a request is refused inside.
    """
    try:
        yield
    except RequestError as error:
        raise common.UsageError(f"--{flag_of(error.argument)}: {error}") from error


def flag_of(argument: str) -> str:
    """The flag that sets an argument of a request, such as ``sampler.steps``."""
    name = re.sub(r"\[\d+\]", "", argument)
    first, _, last = name.partition(".")
    candidates = (_FLAGS.get(name), last, _FLAGS.get(first))
    return next((flag for flag in candidates if flag in (*SETTINGS, "batch_size")), first)
