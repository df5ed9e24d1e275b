"""A request, and how each of its arguments is read.

Every argument has short forms: a number of steps or a name for the sampler, a number for the
guidance, pixels for the image, and so on. The functions here turn them into the options of
`diffjax.generate.options`, or raise a `RequestError` that names the argument. They need no model;
`stages` compares the result with the model that runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from diffjax import control as controlling
from diffjax.generate.checks import (
    LARGEST,
    RequestError,
    check_name,
    is_mapping_of_text,
    is_whole,
    read_flag,
    read_floats,
    read_number,
    read_pair,
    read_several,
    read_whole,
    refuse,
    show,
)
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import (
    Control,
    FreeU,
    Guidance,
    Image,
    ImagePrompt,
    Lora,
    Refiner,
    Sampling,
    Size,
    Texts,
)
from diffjax.generate.sampling import read_sampling
from diffjax.generate.steering import read_freeu, read_guidance
from diffjax.generate.texts import Prompts, read_prompts
from diffjax.pretrained.components import Components
from diffjax.pretrained.image_adapters import ImageAdapter
from diffjax.pretrained.models import Component
from diffjax.pretrained.prompts import Embedding
from diffjax.types import Array, choose, summarize

SIDE = 2**16  # pixels
LAYERS = 2**16  # of a text encoder
LEVELS = 10_000  # of the noise of an upscaler


@dataclasses.dataclass(frozen=True, repr=False)
class Request:
    """All that determines the images of a generation.

    Attributes:
        prompt: one text, several, or embeddings. A `Prompt` has a text for each of XL's two
            encoders.
        key: a seed or a key, into which the number of each image is folded; or one per image.
        sampler: a `Sampling`, its name, or its number of steps.
        guidance: a `Guidance`, or its scale.
        image: the image to start from, or to fill in: an `Image`, or its pixels.
        control: ControlNets and T2I-Adapters, whose residuals are added up. One may stand for a
            list.
        lora: low-rank adapters, which are added up. A refiner gets none of them.
        refiner: a second model for the last part of the denoising: a `Refiner`, or its pipeline.
        size: a `Size`, (height, width), or one number for both, in pixels.
        num: images per prompt.
        latents: initial standard normal noise (B, h, w, 4) in place of that of the key; with
            ``sampler.start`` what another run ended with.
        clip_skip: layers of the text encoder to leave out. The negative prompt uses all layers.
        weighted: whether brackets in prompts are weights, and prompts may be longer than a chunk;
            see `diffjax.pretrained.tokenizers`.
        step_noise: noise (evaluations, B, h, w, 4) of the sampler in place of that of the key: one
            entry for each evaluation of the network, those of a refiner last.
        freeu: other weights of backbone and skips. A refiner gets none.
        image_prompt: pictures that stand beside the prompt; one may stand for a list. A refiner
            gets none of them.
    """

    prompt: Texts | Embedding
    key: object = 0
    sampler: Sampling | str | int | None = None
    guidance: Guidance | float | None = None
    image: object = None
    control: Sequence[Control] | Control = ()
    lora: Sequence[Lora] | Lora = ()
    refiner: Refiner | LoadedModel | None = None
    size: Size | Sequence[int] | int | None = None
    num: int = 1
    latents: Array | None = None
    clip_skip: int = 0
    weighted: bool = False
    step_noise: Array | None = None
    freeu: FreeU | None = None
    image_prompt: Sequence[ImagePrompt] | ImagePrompt = ()

    def __repr__(self) -> str:
        return summarize(self)

    def read(self) -> Request:
        """Return the request with every argument in its full form, checked as far as no model is
        needed.

        Raises:
            RequestError: an argument has another type, lies outside its range, is not finite, or
                names something unknown.
        """
        latents = self.latents
        if latents is not None:
            latents = read_floats("latents", latents, "(B, h, w, channels)")
        noise = self.step_noise
        if noise is not None:
            noise = read_floats("step_noise", noise, "(evaluations, B, h, w, channels)")
        return Request(
            self.list_prompts(),
            self.key,
            self.read_sampler(),
            self.read_guidance(),
            self.read_image(),
            self.list_controls(),
            self.list_loras(),
            self.read_refiner(),
            self.read_size(),
            read_whole("num", self.num, 1),
            latents,
            read_whole("clip_skip", self.clip_skip, 0, LAYERS),
            read_flag("weighted", self.weighted),
            noise,
            read_freeu(self.freeu),
            self.list_image_prompts(),
        )

    def list_prompts(self) -> Prompts | Embedding:
        """Return the prompts as a tuple, or their embedding.

        Raises:
            RequestError: a prompt is not a text, or there is none.
        """
        if isinstance(self.prompt, Request):
            raise refuse("prompt", "is a Request: run it with pipe.steps(request)")
        return read_prompts("prompt", self.prompt)

    def count_images(self) -> int:
        """Return the number of images: ``num`` for each prompt."""
        prompts = self.list_prompts()
        each = read_whole("num", self.num, 1)
        return each * len(prompts.context if isinstance(prompts, Embedding) else prompts)

    def read_sampler(self) -> Sampling:
        """Return the sampler with all of its options; see `read_sampling`."""
        return read_sampling(self.sampler)

    def read_guidance(self) -> Guidance:
        """Return the guidance with all of its options; see `read_guidance`."""
        return read_guidance(self.guidance)

    def read_image(self) -> Image | None:
        """Return the image to start from with all of its options; see `read_image`."""
        return read_image(self.image)

    def list_controls(self) -> tuple[Control, ...]:
        """Return the ControlNets as a tuple.

        Raises:
            RequestError: an entry is not a `Control`, or one of its numbers is out of range.
        """
        several = read_several("control", self.control, Control, "Control(net, image)")
        return tuple(_read_control(f"control[{k}]", one) for k, one in enumerate(several))

    def list_loras(self) -> tuple[Lora, ...]:
        """Return the adapters as a tuple.

        Raises:
            RequestError: an entry is not a `Lora`, or its scale is not finite.
        """
        example = "Lora(pipe.load_lora(path), scale)"
        several = read_several("lora", self.lora, Lora, example)
        return tuple(_read_lora(f"lora[{k}]", one) for k, one in enumerate(several))

    def list_image_prompts(self) -> tuple[ImagePrompt, ...]:
        """Return the image prompts as a tuple.

        Raises:
            RequestError: an entry is not an `ImagePrompt`, or has no picture or a wrong scale.
        """
        example = "ImagePrompt(pipe.load_image_adapter(path), image, scale)"
        several = read_several("image_prompt", self.image_prompt, ImagePrompt, example)
        return tuple(_read_image_prompt(f"image_prompt[{k}]", one) for k, one in enumerate(several))

    def read_refiner(self) -> Refiner | None:
        """Return the refiner with all of its options; see `read_refiner`."""
        return read_refiner(self.refiner)

    def read_size(self) -> Size:
        """Return the size with all of its options; see `read_size`."""
        return read_size(self.size)


# ---- sizes ------------------------------------------------------------------------------------


def read_size(value: object) -> Size:
    """Read a size from a `Size`, one number of pixels, or (height, width).

    Raises:
        RequestError: the value is something else, or a number is out of range.
    """
    if value is None:
        return Size()
    if is_whole(value):
        side = read_whole("size", value, 1, SIDE)
        return Size(side, side)
    if not isinstance(value, Size):
        if isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1:
            return Size(*read_pair("size", value, 1, SIDE))
        known = "a number of pixels, (height, width), or Size(height, width)"
        raise refuse("size", f"must be {known}, got {show(value)}")
    changes: dict[str, Any] = {}
    for name, part in value._asdict().items():
        where = f"size.{name}"
        if name in ("height", "width"):
            changes[name] = read_whole(where, part, 0, SIDE)
        elif name.endswith("aesthetic"):
            changes[name] = read_number(where, part)
        elif part is not None or name == "crop":
            changes[name] = read_pair(where, part, 0 if name.endswith("crop") else 1, SIDE)
    return value._replace(**changes)


# ---- pictures, networks and adapters ------------------------------------------------------------


def read_image(value: object) -> Image | None:
    """Read an image from an `Image`, or from its pixels.

    Pixels and masks are only checked to be possible pictures here; `images` reads them, because the
    channels of latents depend on the model.

    Raises:
        RequestError: the value cannot be a picture, or the strength is out of range.
    """
    if value is None:
        return None
    name = "image.pixels" if isinstance(value, Image) else "image"
    given = value if isinstance(value, Image) else Image(value)
    _refuse_no_picture(name, given.pixels)
    if given.mask is not None:
        _refuse_no_picture("image.mask", given.mask)
    padding = given.mask_padding
    if padding is not None:
        padding = read_whole("image.mask_padding", padding, 0, SIDE)
        if given.mask is None:
            raise refuse("image.mask_padding", "needs a mask: Image(pixels, mask=mask)")
    level = given.noise_level
    if level is not None:
        level = read_whole("image.noise_level", level, 0, LEVELS)
    return given._replace(
        strength=read_strength(given.strength), mask_padding=padding, noise_level=level
    )


def read_strength(value: object) -> float | None:
    """Read the strength of an `Image`, in [0, 1]; None means the default."""
    return None if value is None else read_number("image.strength", value, 0, 1)


def _refuse_no_picture(name: str, value: object) -> None:
    """Raise an error for a value that can be neither a picture nor an array, such as a path.

    Raises:
        RequestError: the value is one of these; the message says how to open a file or bytes.
    """
    if isinstance(value, str | PurePath):
        raise refuse(name, f"must be a picture, got {show(value)}: open it, PIL.Image.open(path)")
    if isinstance(value, bytes):
        raise refuse(name, "must be a picture, got bytes: open it, PIL.Image.open(io.BytesIO(...))")
    number = isinstance(value, int | float | complex | np.generic)
    other = dict | set | Image | Control | ImagePrompt | Component
    if value is None or number or isinstance(value, other):
        raise refuse(name, f"must be a picture or an array, got {show(value)}")


def _read_control(name: str, value: Control) -> Control:
    """Check the network, image and numbers of a `Control`.

    Raises:
        RequestError: the network takes no hint, the image is not a picture, the window is empty,
            the balance is unknown, or a number is out of range.
    """
    net = value.net
    if not isinstance(net, Component) or not hasattr(net.net, "hint_channels"):
        hint = "a ControlNet or T2I-Adapter from diffjax.pretrained.load_model(folder)"
        raise refuse(f"{name}.net", f"must be {hint}, got {show(net)}")
    value = _read_kinds(name, value)
    start = read_number(f"{name}.start", value.start, 0, 1)
    end = read_number(f"{name}.end", value.end, 0, 1)
    if start >= end:
        raise refuse(f"{name}.start", f"must be below end, got {start:g} to {end:g}")
    check_name(
        f"{name}.balance",
        value.balance,
        lambda balance: choose("balance", balance, controlling.BALANCES),
    )
    named = isinstance(value.scale, str) and value.scale == "diffusers"
    kind = "one number or 'diffusers'"
    scale = value.scale if named else read_number(f"{name}.scale", value.scale, kind=kind)
    return value._replace(scale=scale, start=start, end=end)


def _read_kinds(name: str, value: Control) -> Control:
    """Check the images of a `Control`, and their kinds if the network reads several.

    Returns:
        The same, with images and kinds as tuples if there are kinds.

    Raises:
        RequestError: an image is no picture, a kind is needed or of no use, there is no such kind,
            or there are not as many kinds as images.
    """
    kinds, there = value.kind, getattr(value.net.net, "kinds", 0)
    if not there:
        if kinds is not None:
            raise refuse(f"{name}.kind", f"is of no use: {name}.net reads one kind of hint")
        _refuse_no_picture(f"{name}.image", value.image)
        return value
    if kinds is None:
        raise refuse(f"{name}.kind", f"must be one of 0 .. {there - 1}, the kinds of {name}.net")
    several = isinstance(kinds, list | tuple)
    numbers = tuple(kinds) if isinstance(kinds, list | tuple) else (kinds,)
    images: Any = value.image if several else (value.image,)
    if not isinstance(images, list | tuple) or len(images) != len(numbers) or not numbers:
        raise refuse(f"{name}.image", f"must be a list of {len(numbers)}, one for each kind")
    for image in images:
        _refuse_no_picture(f"{name}.image", image)
    numbers = tuple(read_whole(f"{name}.kind", one, 0, there - 1) for one in numbers)
    return value._replace(image=tuple(images), kind=numbers)


def _read_lora(name: str, value: Lora) -> Lora:
    """Check that the weights of a `Lora` are a tree of adapters and that its scale is finite.

    Raises:
        RequestError: they are not.
    """
    if not is_mapping_of_text(value.weights) or not value.weights:
        raise refuse(
            f"{name}.weights", f"must come from pipe.load_lora(path), got {show(value.weights)}"
        )
    return value._replace(scale=read_number(f"{name}.scale", value.scale, -LARGEST))


def _read_image_prompt(name: str, value: ImagePrompt) -> ImagePrompt:
    """Check the adapter, the picture and the scale of an `ImagePrompt`.

    Raises:
        RequestError: one of them is something else.
    """
    if not isinstance(value.adapter, ImageAdapter):
        hint = f"must come from pipe.load_image_adapter(path), got {show(value.adapter)}"
        raise refuse(f"{name}.adapter", hint)
    _refuse_no_picture(f"{name}.image", value.image)
    return value._replace(scale=read_number(f"{name}.scale", value.scale, -LARGEST))


def read_refiner(value: object) -> Refiner | None:
    """Read a refiner from a `Refiner`, or from its pipeline, or raise a `RequestError`."""
    if value is None:
        return None
    given = value if isinstance(value, Refiner) else Refiner(value)  # type: ignore[arg-type]
    if not isinstance(getattr(given.pipe, "parts", None), Components):
        example = "Refiner(diffjax.load(path), start)"
        raise refuse("refiner", f"must be a pipeline or {example}, got {show(given.pipe)}")
    prompt, guidance = given.prompt, given.guidance
    return given._replace(
        start=read_start(given.start),
        prompt=None if prompt is None else read_prompts("refiner.prompt", prompt),
        guidance=None if guidance is None else _read_refiner_guidance(guidance),
    )


def _read_refiner_guidance(value: Any) -> Guidance:
    """
    Raises:
        RequestError: see `read_guidance`; it names the argument of the refiner.
    """
    try:
        return read_guidance(value)
    except RequestError as error:
        raise RequestError(f"refiner.{error.argument}", f"refiner.{error}") from error


def read_start(value: object) -> float:
    """Read the fraction at which a `Refiner` takes over.

    Raises:
        RequestError: it is not a number above 0 and below 1.
    """
    start = read_number("refiner.start", value)
    if not 0 < start < 1:
        raise refuse("refiner.start", f"must lie between 0 and 1, got {start:g}")
    return start
