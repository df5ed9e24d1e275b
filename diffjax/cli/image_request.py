"""From the options of an image to the pipeline that draws it and the request that it is given.

`make_request` checks all that can be checked without a model, so that wrong flags are reported
before minutes of loading. `load_pipeline` and `add_networks` load; `generate_images` draws.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.typing import DTypeLike
from tqdm import tqdm

from diffjax import generate
from diffjax.cli.image_options import (
    ImageOptions,
    find_request_flag,
    make_plain_request,
)
from diffjax.cli.path_arguments import (
    parse_concept,
    parse_control,
    parse_image_prompt,
    parse_lora,
)
from diffjax.data import pictures
from diffjax.pretrained import download, load_model, load_single_file
from diffjax.pretrained.files import find_weights_file
from diffjax.pretrained.models import Component
from diffjax.types import ConfigError

# The flags that set what messages of the library name.
_LOADING_FLAGS = {
    "variant=": "--variant",
    "variant out": "--variant",
    "tokenizer=": "--tokenizer",
    "argument vae": "--vae",
    "with_lora": "--lora",
    "with_concept": "--concept",
    "a ControlNet": "--control",
    "allow_legacy_pickle": "--allow_legacy_pickle",
}


@contextlib.contextmanager
def name_request_flags() -> Iterator[None]:
    """Put the flag in front of errors about an argument of a request.

    Raises:
        ConfigError: in place of a RequestError in the context.
    """
    try:
        yield
    except generate.RequestError as error:
        raise ConfigError(f"--{find_request_flag(error.argument)}: {error}") from error


@contextlib.contextmanager
def _name_loading_flags() -> Iterator[None]:
    """Append to errors of the library the flags that set the arguments they name.

    Raises:
        FileNotFoundError, ValueError: those of the context, with the flags.
    """
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        named = {flag for argument, flag in _LOADING_FLAGS.items() if argument in str(error)}
        if not named:
            raise
        raise type(error)(f"{error} (here: {', '.join(sorted(named))})") from error


def load_pipeline(
    options: ImageOptions, path: str, *, allow_legacy_pickle: bool = False
) -> generate.Pipeline:
    """Load the pipeline of a model, with the adapters and learned words of the options.

    Args:
        path: a diffusers folder or a single file; that of the model or of the refiner.
        allow_legacy_pickle: whether a learned word may be read from a pickle.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not what it has to be.
    """
    with _name_loading_flags():
        pipe = generate.load(
            path,
            dtype=jnp.dtype(options.dtype),
            variant=options.variant,
            tokenizer=options.tokenizer,
            prediction=options.prediction,
            vae=options.vae or None,
        )
        for file, scale in map(parse_lora, options.lora):
            pipe = pipe.with_lora(file, scale=scale)
        for file, word in map(parse_concept, options.concept):
            pipe = pipe.with_concept(file, name=word, allow_legacy_pickle=allow_legacy_pickle)
    return pipe


def load_control(path: str, dtype: DTypeLike, variant: str | None = None) -> Component:
    """Load a ControlNet or T2I-Adapter from a diffusers folder, or a ControlNet from a single file.

    Args:
        path: the folder or file, or a name on the Hub.
        dtype: in which the network computes.
        variant: that of the model; a folder that has no weights of the variant is read without.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not what it has to be.
    """
    found = download(path, variant=variant, fall_back=True)
    if found.is_dir():
        return load_model(
            found, dtype=dtype, variant=variant if find_weights_file(found, variant) else None
        )
    return load_single_file(found, parts=["controlnet"], dtype=dtype)["controlnet"]


def make_request(options: ImageOptions) -> generate.Request:
    """Make the request without seeds and networks, checked as far as it can be without a model.

    Raises:
        ConfigError: an option is wrong; the message names its flag.
    """
    image = None
    if options.init_image:
        mask = _open_picture("mask", options.mask) if options.mask else None
        picture = _open_picture("init_image", options.init_image)
        depth = (
            np.asarray(_open_picture("depth", options.depth).convert("F"))
            if options.depth
            else None
        )
        image = generate.Image(
            *(picture, options.strength, mask, options.mask_padding, depth, options.noise_level)
        )
    # These raise an error if a value is wrong; it is parsed again when it is loaded.
    for text in options.control:
        parse_control(text)
    for text in options.lora:
        parse_lora(text)
    for text in options.concept:
        parse_concept(text)
    for text in options.image_prompt:
        parse_image_prompt(text)
    negative = None
    if options.negative is not None or options.negative_2 is not None:
        negative = _join_texts(options.negative or "", options.negative_2)
    with name_request_flags():
        plain = make_plain_request(options)
        return dataclasses.replace(
            plain,
            prompt=[_join_texts(prompt, options.prompt_2) for prompt in options.prompt],
            guidance=plain.read_guidance()._replace(negative=negative),
            image=image,
        ).read()


def add_networks(
    request: generate.Request,
    options: ImageOptions,
    pipe: generate.Pipeline,
    *,
    allow_legacy_pickle: bool = False,
) -> generate.Request:
    """Add the refiner, the ControlNets and the IP-Adapters of the options to a request.

    Args:
        pipe: the pipeline that IP-Adapters are for.

    Raises:
        ConfigError: the image of a --control or --image_prompt cannot be read.
        FileNotFoundError, ValueError: a network is missing, or is not what it has to be.
    """
    refiner = None
    if options.refiner:
        # Adapters and words are those of the model, not of its refiner.
        plain = dataclasses.replace(options, lora=(), concept=())
        pipe = load_pipeline(plain, options.refiner, allow_legacy_pickle=allow_legacy_pickle)
        guidance = None
        if options.refiner_guidance is not None or options.refiner_negative is not None:
            scale = options.refiner_guidance
            guidance = request.read_guidance()._replace(
                scale=options.guidance if scale is None else scale,
                negative=options.refiner_negative or options.negative,
            )
        told = options.refiner_prompt
        refiner = generate.Refiner(pipe, options.refiner_start, told, guidance)
    dtype = jnp.dtype(options.dtype)
    controls = []
    for net, image, scale, start, end, kind in map(parse_control, options.control):
        model = load_control(net, dtype, options.variant)
        picture = _open_picture("control", image)
        controls.append(generate.Control(model, picture, scale, start, end, options.balance, kind))
    prompts = []
    for path, image, scale in map(parse_image_prompt, options.image_prompt):
        picture = _open_picture("image_prompt", image)
        try:
            adapter = pipe.load_image_adapter(path, allow_legacy_pickle=allow_legacy_pickle)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--image_prompt: {error}") from error
        prompts.append(generate.ImagePrompt(adapter, picture, scale))
    return dataclasses.replace(request, refiner=refiner, control=controls, image_prompt=prompts)


def generate_images(
    pipe: generate.Pipeline, request: generate.Request, images: Sequence[ImageOptions]
) -> list[PIL.Image.Image]:
    """Generate the images of a batch, each with its prompt and seed; a bar shows the steps.

    Args:
        images: options of each image; prompts and seeds are read.

    Raises:
        ConfigError: the request does not fit the model; the message names the flag.
    """
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    fields["prompt"] = [_join_texts(one.prompt[0], one.prompt_2) for one in images]
    fields["key"] = np.array([one.seed for one in images])
    refiner = request.read_refiner()
    if refiner is not None and refiner.prompt is not None:
        told = [str(images[0].refiner_prompt)] * len(images)
        fields["refiner"] = refiner._replace(prompt=told)
    with name_request_flags(), tqdm(desc="steps", leave=False) as bar:

        def show_progress(progress: generate.Progress) -> None:
            bar.total = progress.count
            bar.update()

        return pipe(fields.pop("prompt"), **fields, callback=show_progress)


def _open_picture(flag: str, path: str) -> PIL.Image.Image:
    """Open the picture of a flag.

    Raises:
        ConfigError: the file is missing, damaged or too large; the message names the flag.
    """
    try:
        return pictures.open_image(path)
    except OSError as error:
        raise ConfigError(f"--{flag}: {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"--{flag}: {error}") from error


def _join_texts(first: str, second: str | None) -> str | generate.Prompt:
    """Join the texts for both encoders of XL, if the second one has a text of its own."""
    return first if second is None else generate.Prompt(first, second)
