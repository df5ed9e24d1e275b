"""The flags of `diffjax generate`, and the options that they and a picture make together.

A picture of this command holds its options. With --from_image they take the place of the flags that
are not given.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags, logging

from diffjax import generate
from diffjax.cli.command_line import UsageError
from diffjax.cli.image_options import (
    CHOICES,
    DEFAULTS,
    LONGEST,
    PATHS,
    ImageOptions,
    OptionValue,
    make_options,
    read_png,
)

_SAMPLERS, _GRIDS = ", ".join(generate.SAMPLERS), ", ".join(generate.GRIDS)

flags.DEFINE_string(
    "model",
    None,
    "The model: a diffusers folder, a .safetensors file, or OWNER/NAME[@REVISION] on the Hub.",
)
flags.DEFINE_string(
    "tokenizer", None, "Folder of a CLIP tokenizer. Single files hold none and need it."
)
flags.DEFINE_string(
    "vae", None, "Folder or file of an autoencoder that replaces the one of the model."
)
flags.DEFINE_string("variant", None, "Part of the names of weight files, such as fp16.")
flags.DEFINE_enum(
    "dtype", DEFAULTS.dtype, CHOICES["dtype"], "Type of the numbers that the networks compute with."
)
flags.DEFINE_enum(
    "prediction",
    None,
    CHOICES["prediction"],
    "What a single file of SD 2 predicts; v_prediction if not set.",
)
flags.DEFINE_multi_string(
    "lora", [], "PATH or PATH:SCALE of an adapter, a file or a folder of peft; repeat it to add up."
)
flags.DEFINE_multi_string("concept", [], "FILE or FILE:WORD of a textual inversion.")
ALLOW_LEGACY_PICKLE = flags.DEFINE_bool(
    "allow_legacy_pickle",
    False,
    "Also read a --concept or --image_prompt that is a pickle; its code is not run.",
)
flags.DEFINE_multi_string(
    "prompt", [], "What the images show; repeat the flag for several prompts."
)
flags.DEFINE_string(
    "prompt_2", None, "Prompt of the second text encoder of XL; --prompt if not set."
)
flags.DEFINE_string("negative", None, "What the images should not show.")
flags.DEFINE_string("negative_2", None, "Negative prompt of the second text encoder of XL.")
flags.DEFINE_bool(
    "weighted", DEFAULTS.weighted, "Read weights in prompts, as in (word:1.3), of any length."
)
flags.DEFINE_integer(
    "clip_skip", DEFAULTS.clip_skip, "Number of last layers of the text encoder to leave out."
)
flags.DEFINE_string(
    "sampler", None, f"The sampler; that of the model if not set. One of {_SAMPLERS}."
)
flags.DEFINE_integer("steps", DEFAULTS.steps, "Number of steps of the sampler.")
flags.DEFINE_string("grid", None, f"How the noise levels of the steps are spaced: {_GRIDS}.")
flags.DEFINE_float("eta", None, "Stochasticity of the samplers ddim and tcd.")
flags.DEFINE_string(
    "timesteps", None, "Falling times of the training schedule to visit, such as 999,749,499,249."
)
flags.DEFINE_string("sigmas", None, "Falling levels sigma/alpha of the noise, such as 14.6,3.1,0.")
flags.DEFINE_float(
    "guidance", None, "Guidance scale; 7.5 if not set, or 5 for XL. A scale of 1 means none."
)
flags.DEFINE_float("rescale", DEFAULTS.rescale, "Guidance rescale, in [0, 1].")
flags.DEFINE_float("pag", DEFAULTS.pag, "Scale of perturbed-attention guidance, about 3; 0: none.")
flags.DEFINE_string(
    "pag_layers", DEFAULTS.pag_layers, "Attentions that --pag perturbs, with commas between them."
)
flags.DEFINE_float("pag_adaptive", DEFAULTS.pag_adaptive, "How fast --pag falls with the time.")
flags.DEFINE_string("freeu", None, "Factors B1,B2,S1,S2 of FreeU, such as 1.5,1.6,0.9,0.2.")
flags.DEFINE_integer("height", DEFAULTS.height, "Height in pixels; 0 means that of the model.")
flags.DEFINE_integer("width", DEFAULTS.width, "Width in pixels; 0 means that of the model.")
flags.DEFINE_string("init_image", None, "Image to start from, or to fill in where --mask is white.")
flags.DEFINE_string("mask", None, "Image that is white where --init_image is to be filled in.")
flags.DEFINE_integer(
    "mask_padding", None, "Fill in a crop around --mask alone, with so many pixels around it."
)
flags.DEFINE_float("strength", None, "Share of the steps that are run from --init_image.")
flags.DEFINE_float(
    "image_guidance", None, "Guidance scale of --init_image, for models that edit; 1.5 if not set."
)
flags.DEFINE_string(
    "depth", None, "Picture of the depth of --init_image, white where it is near, for depth models."
)
flags.DEFINE_integer(
    "noise_level", None, "Noise that --init_image gets, for upscalers; 20 if not set."
)
flags.DEFINE_multi_string(
    "control",
    [],
    "NET[#KIND]:IMAGE[:SCALE[:START:END]]: file or folder of a ControlNet, or folder of a "
    "T2I-Adapter; the kind of its image if it reads several; its image, its scale, and the shares "
    "of the steps between which it acts. Several add up.",
)
flags.DEFINE_enum(
    "balance",
    DEFAULTS.balance,
    CHOICES["balance"],
    "How --control weighs the prompt against its image.",
)
flags.DEFINE_multi_string(
    "image_prompt",
    [],
    "ADAPTER:IMAGE[:SCALE]: file or folder of an IP-Adapter with its image_encoder beside it, a "
    "picture that stands beside the prompt, and its scale. Several add up.",
)
flags.DEFINE_string("refiner", None, "Folder or file of the refiner of XL.")
flags.DEFINE_float(
    "refiner_start", DEFAULTS.refiner_start, "Share of the denoising that comes before --refiner."
)
flags.DEFINE_string("refiner_prompt", None, "Prompt of --refiner; --prompt if not set.")
flags.DEFINE_string("refiner_negative", None, "Negative prompt of --refiner.")
flags.DEFINE_float("refiner_guidance", None, "Guidance scale of --refiner; --guidance if not set.")
flags.DEFINE_string(
    "original_size", None, "HEIGHT,WIDTH before resizing, an input of XL; the size if not set."
)
flags.DEFINE_string("crop", None, "TOP,LEFT of the crop, an input of XL; 0,0 if not set.")
flags.DEFINE_string(
    "target_size", None, "HEIGHT,WIDTH after the crop, an input of XL; the size if not set."
)
flags.DEFINE_float("aesthetic", DEFAULTS.aesthetic, "Aesthetic score, an input of --refiner.")
flags.DEFINE_string("negative_original_size", None, "--original_size of the negative prompt.")
flags.DEFINE_string("negative_crop", None, "--crop of the negative prompt.")
flags.DEFINE_string("negative_target_size", None, "--target_size of the negative prompt.")
flags.DEFINE_float(
    "negative_aesthetic", DEFAULTS.negative_aesthetic, "--aesthetic of the negative prompt."
)
flags.DEFINE_integer("seed", DEFAULTS.seed, "Seed of the first image; image k has SEED + k.")
FROM_IMAGE = flags.DEFINE_string(
    "from_image", None, "Image made by this command, whose settings are used again."
)
TRUST_PATHS = flags.DEFINE_bool(
    "trust_paths",
    False,
    "Let --from_image name models and pictures of this machine to open.",
)

# Flags that mean nothing without another one.
_NEEDS = {
    "mask": "init_image",
    "mask_padding": "mask",
    "strength": "init_image",
    "image_guidance": "init_image",
    "depth": "init_image",
    "noise_level": "init_image",
    "pag_layers": "pag",
    "pag_adaptive": "pag",
    "refiner_start": "refiner",
    "refiner_prompt": "refiner",
    "refiner_negative": "refiner",
    "refiner_guidance": "refiner",
    "balance": "control",
}


def read_flags() -> ImageOptions:
    """Read the options from the flags alone."""
    return make_options(flags.FLAGS.flag_values_dict())


def read_options() -> ImageOptions:
    """Read the options from the flags; those that are not given come from --from_image.

    Raises:
        ConfigError: --model or --prompt is missing, a flag needs another one, or the picture holds
            no valid settings, or names files without --trust_paths.
    """
    values = read_flags().to_dict()
    if FROM_IMAGE.value:
        values |= _take_from_image(Path(FROM_IMAGE.value), trust=TRUST_PATHS.value)
    elif TRUST_PATHS.value:
        raise UsageError("--trust_paths needs --from_image")
    for name in PATHS:  # empty flags leave out those of a picture
        kept = values[name]
        values[name] = tuple(filter(None, kept)) if isinstance(kept, tuple) else kept or None
    for name in ("model", "prompt"):
        if not values[name]:
            raise UsageError(f"--{name} is needed, or --from_image")
    for name, other in _NEEDS.items():
        default = getattr(DEFAULTS, name)
        if not values[other] and values[name] != default:
            if flags.FLAGS[name].present:
                raise UsageError(f"--{name} needs --{other}")
            values[name] = default  # of a picture whose other flag is left out
    options = make_options(values)
    _check_length(options)
    return options


def _check_length(options: ImageOptions) -> None:
    """Check that the options fit into the text of a PNG.

    Raises:
        UsageError: a prompt is too long.
    """
    for prompt in options.prompt:
        one = dataclasses.replace(options, prompt=(prompt,))
        if len(json.dumps(one.to_dict())) > LONGEST - 100:
            raise UsageError("--prompt: a prompt and its settings may have 65,000 characters")


def _take_from_image(path: Path, *, trust: bool) -> dict[str, OptionValue]:
    """Take from a picture the options whose flags are not given, and log them.

    Args:
        trust: whether the picture may name files of this machine.

    Raises:
        ConfigError: the picture holds no options, or names files without ``trust``.
    """
    stored = read_png(path).to_dict()
    taken = {name: v for name, v in stored.items() if not flags.FLAGS[name].present}
    changed = {name: v for name, v in taken.items() if v != getattr(DEFAULTS, name)}
    foreign = {name: v for name, v in changed.items() if name in PATHS}
    if foreign and not trust:
        raise UsageError(
            f"{path} names files: {_format_flags(foreign)}. Give these flags yourself (empty ones "
            "leave them out), or --trust_paths to open the files that the picture names"
        )
    logging.info("from %s: %s", path, _format_flags(changed) or "defaults only")
    return taken


def _format_flags(values: dict[str, OptionValue]) -> str:
    """Format options as flags in ASCII, so that a picture cannot write to the terminal."""
    return " ".join(f"--{name}={json.dumps(value)[:200]}" for name, value in values.items())
