"""What an image of `diffjax generate` depends on, and how a PNG stores it.

A PNG holds the options as JSON in its text entry ``diffjax``. A picture may come from anyone, so
what it says is compared with the types and ranges that the flags have before anything uses it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import PIL.Image
from absl import logging
from PIL.PngImagePlugin import PngInfo

import diffjax
from diffjax import generate
from diffjax.control import BALANCES
from diffjax.generate.checks import read_number, read_whole, show
from diffjax.generate.request import LEVELS, SIDE, read_start, read_strength
from diffjax.types import ConfigError
from diffjax.untrusted import parse_json
from diffjax.writing import replace_file

# The entry of a PNG's text that holds the options as JSON.
ENTRY = "diffjax"  # of a PNG's text, as JSON
# The most characters of the options in a PNG.
LONGEST = 2**16
# The most bytes of a PNG that is read.
LARGEST_FILE = 2**28
# The most pixels of a PNG that holds its options behind its pixels.
MOST_PIXELS = 2**26

# What an option may be.
OptionValue = str | int | float | bool | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Everything that an image depends on; the fields are named as the flags are.

    The order of the fields is that of the JSON in a PNG. None, 0 and empty lists stand for flags
    that are not given: the model's own value is used, or nothing.

    Attributes:
        model, tokenizer, vae, variant, dtype, prediction: what is loaded, and in which type.
        lora, concept: adapters and textual inversions, as PATH or PATH:VALUE.
        prompt, prompt_2: texts for both encoders; the second is that of Stable Diffusion XL.
        negative, negative_2: texts of what the image should not show.
        weighted: whether ``(word:1.3)`` in a prompt is a weight.
        clip_skip: number of last layers of the text encoder to leave out.
        sampler, steps, grid, eta: how noise is removed.
        guidance: scale ``s = 1 + w``; 1 means none.
        rescale: share of guidance rescale, in [0, 1].
        height, width: in pixels; 0 for those of the model.
        init_image, mask, strength: the image to start from, where it is filled in, and the share
            of the steps that are run.
        control, balance: ControlNets as NET[#KIND]:IMAGE[:SCALE[:START:END]], and how they are
            weighed.
        refiner, refiner_start: the refiner of XL, and the share of the denoising before it.
        seed: of the noise, below 2^32.
        timesteps, sigmas: the steps themselves, as numbers with commas, see `generate.Sampling`.
        pag, pag_layers, pag_adaptive: perturbed-attention guidance, see
            `generate.PerturbedAttention`; the layers are names with commas.
        freeu: ``b1,b2,s1,s2``, see `generate.FreeU`.
        image_guidance: scale of the image, for models that edit by instruction.
        mask_padding: pixels around what is masked, to fill in a crop alone.
        depth: depth of ``init_image`` as a picture, for models that keep it.
        noise_level: of the small image, for upscalers.
        refiner_prompt, refiner_negative, refiner_guidance: for the refiner, in place of the
            model's.
        image_prompt: pictures beside the prompt, as ADAPTER:IMAGE[:SCALE].
        original_size, crop, target_size, aesthetic: what XL is conditioned on, as two numbers with
            a comma, see `generate.Size`; and the same for the negative prompt.
    """

    model: str | None = None
    tokenizer: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    prediction: str | None = None
    lora: tuple[str, ...] = ()
    concept: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    negative: str | None = None
    weighted: bool = False
    clip_skip: int = 0
    sampler: str | None = None
    steps: int = 50
    grid: str | None = None
    eta: float | None = None
    guidance: float | None = None
    rescale: float = 0.0
    height: int = 0
    width: int = 0
    init_image: str | None = None
    mask: str | None = None
    strength: float | None = None
    control: tuple[str, ...] = ()
    balance: str = "balanced"
    refiner: str | None = None
    refiner_start: float = 0.8
    seed: int = 0
    prompt_2: str | None = None
    negative_2: str | None = None
    vae: str | None = None
    timesteps: str | None = None
    sigmas: str | None = None
    pag: float = 0.0
    pag_layers: str = "mid_block"
    pag_adaptive: float = 0.0
    freeu: str | None = None
    image_guidance: float | None = None
    mask_padding: int | None = None
    depth: str | None = None
    noise_level: int | None = None
    refiner_prompt: str | None = None
    refiner_negative: str | None = None
    refiner_guidance: float | None = None
    original_size: str | None = None
    crop: str | None = None
    target_size: str | None = None
    aesthetic: float = 6.0
    negative_original_size: str | None = None
    negative_crop: str | None = None
    negative_target_size: str | None = None
    negative_aesthetic: float = 2.5
    image_prompt: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, OptionValue]:
        """Return the options by name, in their order."""
        return {name: getattr(self, name) for name in OPTION_NAMES}


# Names of the options, in their order.
OPTION_NAMES = tuple(field.name for field in dataclasses.fields(ImageOptions))
# The options that nobody has set.
DEFAULTS = ImageOptions()
# The options that name files of this machine.
PATHS = (
    *("model", "tokenizer", "vae", "lora", "concept", "init_image", "mask", "depth", "control"),
    *("refiner", "image_prompt"),
)
# What some options may be; samplers and grids are checked by the request.
CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "prediction": ("epsilon", "v_prediction"),
    "balance": tuple(sorted(BALANCES)),
}

# The flags that set arguments of a request, where they have other names.
_REQUEST_FLAGS = {
    "key": "seed",
    "guidance.scale": "guidance",
    "image": "init_image",
    "size": "height",
    "refiner.start": "refiner_start",
    "control.balance": "balance",
    "num": "batch_size",
    "guidance.perturbed": "pag",
    "guidance.perturbed.scale": "pag",
    "guidance.perturbed.layers": "pag_layers",
    "guidance.perturbed.adaptive": "pag_adaptive",
    "guidance.image": "image_guidance",
    "refiner.prompt": "refiner_prompt",
    "refiner.guidance": "refiner_guidance",
    "refiner.guidance.scale": "refiner_guidance",
    "refiner.guidance.negative": "refiner_negative",
    "size.original": "original_size",
    "size.target": "target_size",
    "size.negative_original": "negative_original_size",
    "size.negative_target": "negative_target_size",
}
# By the type of an option: the types of its values in JSON, and what messages call them.
_JSON_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    tuple[str, ...]: ((list,), "a list of texts"),
}


def _remove_none(hint: Any) -> Any:
    """Remove None from a type: ``str`` of ``str | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


# The type of each option, without None.
_TYPES = {name: _remove_none(hint) for name, hint in get_type_hints(ImageOptions).items()}


def save_png(picture: PIL.Image.Image, path: Path, options: ImageOptions) -> None:
    """Write a PNG with its options. A file of that name is there as a whole or not at all.

    Args:
        picture: the image.
        path: of the PNG.
        options: stored as JSON in the text entry `ENTRY`, with the version of diffjax.

    Raises:
        OSError: the file cannot be written.
    """
    info = PngInfo()
    stored = {**options.to_dict(), "version": diffjax.__version__}
    info.add_text(ENTRY, json.dumps(stored))
    with replace_file(path) as partial:
        picture.save(partial, "PNG", pnginfo=info)


def read_png(path: Path) -> ImageOptions:
    """Read the options in a PNG. Options that the PNG does not have get their defaults.

    The picture may come from anyone: its values are checked as flags are.

    Raises:
        ConfigError: the PNG holds no options, or values that its flags would not take. The
            message names the file.
    """
    text = _read_text(path)
    try:
        found = parse_json(text, "the text")
    except ValueError as error:
        raise ConfigError(f"{path}: its settings are no valid JSON: {error}") from error
    if unknown := sorted(found.keys() - {*OPTION_NAMES, "version"}):
        logging.warning("%s: settings that are not known: %s", path, json.dumps(unknown)[:200])
    for name in OPTION_NAMES:
        if name in found and (fault := find_fault(name, found[name])):
            raise ConfigError(f"{path}: its setting {name} {fault}")
    options = make_options(found)
    try:
        make_plain_request(options)
    except generate.RequestError as error:
        flag = find_request_flag(error.argument)
        raise ConfigError(f"{path}: its setting {flag} is wrong: {error}") from error
    return options


def make_plain_request(options: ImageOptions) -> generate.Request:
    """Make the request of the options that name no file, without the texts of a second encoder.

    Raises:
        RequestError: a number is out of range, or a name is no choice.
    """
    read_whole("seed", options.seed, 0, 2**32 - 1)
    read_strength(options.strength)
    read_start(options.refiner_start)
    if options.mask_padding is not None:
        read_whole("image.mask_padding", options.mask_padding, 0, SIDE)
    if options.noise_level is not None:
        read_whole("image.noise_level", options.noise_level, 0, LEVELS)
    if options.refiner_guidance is not None:
        read_number("refiner.guidance", options.refiner_guidance, 0)
    factors = read_numbers("freeu", options.freeu, 4)
    return generate.Request(
        list(options.prompt) or "",
        sampler=generate.Sampling(
            *(options.sampler, options.steps, options.grid),
            eta=options.eta,
            timesteps=read_numbers("sampler.timesteps", options.timesteps),
            sigmas=read_numbers("sampler.sigmas", options.sigmas),
        ),
        guidance=generate.Guidance(
            *(options.guidance, options.negative, options.rescale),
            perturbed=generate.PerturbedAttention(
                options.pag, options.pag_layers.split(","), options.pag_adaptive
            ),
            image=options.image_guidance,
        ),
        size=_make_size(options),
        clip_skip=options.clip_skip,
        weighted=options.weighted,
        freeu=None if factors is None else generate.FreeU(*factors),
    ).read()


def _make_size(options: ImageOptions) -> generate.Size:
    """Make the size, with what XL is conditioned on.

    Raises:
        RequestError: a text does not hold two whole numbers.
    """

    def pair(argument: str, text: str | None) -> tuple[int, int] | None:
        numbers = read_numbers(f"size.{argument}", text, 2)
        return None if numbers is None else (int(numbers[0]), int(numbers[1]))

    return generate.Size(
        options.height,
        options.width,
        original=pair("original", options.original_size),
        crop=pair("crop", options.crop) or (0, 0),
        target=pair("target", options.target_size),
        aesthetic=options.aesthetic,
        negative_original=pair("negative_original", options.negative_original_size),
        negative_crop=pair("negative_crop", options.negative_crop),
        negative_target=pair("negative_target", options.negative_target_size),
        negative_aesthetic=options.negative_aesthetic,
    )


def read_numbers(argument: str, text: str | None, count: int = 0) -> tuple[float, ...] | None:
    """Read numbers with commas between them; None stays None.

    Args:
        argument: of the request, for the message.
        text: such as ``999,749.5,0``; those of sizes are whole numbers.
        count: how many there must be; 0 for any number.

    Raises:
        RequestError: the text holds something else.
    """
    if text is None:
        return None
    kind: type = int if argument.startswith("size.") else float
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (count and len(numbers) != count):
        wanted = f"{count} " if count else ""
        whole = "whole " if kind is int else ""
        hint = f"{wanted}{whole}numbers with commas between them"
        raise generate.RequestError(argument, f"{argument} must be {hint}, got {show(text)}")
    return numbers


def find_request_flag(argument: str) -> str:
    """Find the flag that sets an argument of a request.

    Args:
        argument: as errors of the library name it, such as ``sampler.steps`` or
            ``control[0].scale``.

    Returns:
        The name of the flag without dashes; the argument itself if no flag sets it.
    """
    name = re.sub(r"\[\d+\]", "", argument)
    first, _, last = name.partition(".")
    candidates = (_REQUEST_FLAGS.get(name), last, _REQUEST_FLAGS.get(first))
    return next((flag for flag in candidates if flag in (*OPTION_NAMES, "batch_size")), first)


def make_options(values: Mapping[str, object]) -> ImageOptions:
    """Make options of values by name. Other names are left out, and lists become tuples."""
    known: dict[str, Any] = {name: values[name] for name in OPTION_NAMES if name in values}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return ImageOptions(**{**known, **lists})


def _read_text(path: Path) -> str:
    """Read the text entry of a PNG, without decoding more than the bounds allow.

    Raises:
        ConfigError: the file is no PNG, is damaged or too large, or has no such entry.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path} has more than 2^28 bytes; no image from here has")
        with PIL.Image.open(path, formats=["PNG"]) as picture:
            text = picture.info.get(ENTRY)
            if text is None and picture.width * picture.height <= MOST_PIXELS:
                text = getattr(picture, "text", {}).get(ENTRY)  # behind the pixels
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}") from error
    except PIL.UnidentifiedImageError as error:
        raise ConfigError(f"{path} is no PNG, or a damaged one") from error
    # Pillow has no one class of errors for damaged files and for texts that expand too much.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(text, str):
        raise ConfigError(f"{path} holds no settings of diffjax generate")
    if len(text) > LONGEST:
        raise ConfigError(f"{path}: its settings have more than 2^16 characters")
    return text


def find_fault(name: str, value: object) -> str:
    """Explain why a value read from JSON cannot be that of an option.

    Args:
        name: of the option.

    Returns:
        The end of a sentence that begins with the option; empty if the value can be that of it.
    """
    accepted, called = _JSON_TYPES[_TYPES[name]]
    if value is None:
        return "" if getattr(DEFAULTS, name) is None else f"must be {called}, got None"
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        return f"must be {called}, got {show(value)}"
    if isinstance(value, list) and not all(isinstance(one, str) for one in value):
        return f"must be {called}, got {show(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be finite, got {value}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "is too large a number"
    if isinstance(value, str | list):
        return _find_fault_of_text(name, [value] if isinstance(value, str) else value)
    return ""


def _find_fault_of_text(name: str, texts: list[str]) -> str:
    """Explain why texts cannot be those of an option; empty if they can."""
    if not all(map(_is_unicode, texts)):
        return "holds what is no Unicode text"
    if name in PATHS and any("\0" in text for text in texts):
        return "is no path of a file"
    if name == "variant" and not re.fullmatch(r"[\w.-]+", texts[0]):
        return f"must be a part of a file's name, got {show(texts[0])}"
    if name in CHOICES and texts[0] not in CHOICES[name]:
        return f"must be one of {', '.join(CHOICES[name])}, got {show(texts[0])}"
    return ""


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded in UTF-8: JSON may hold halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
