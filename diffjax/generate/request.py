"""A request, and how each of its arguments is read: understood, or refused by its name."""

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
    Lora,
    Refiner,
    Sampling,
    Size,
    Texts,
)
from diffjax.generate.sampling import read_sampling
from diffjax.generate.steering import read_freeu, read_guidance
from diffjax.generate.texts import Prompts, read_prompts
from diffjax.pretrained.models import Component
from diffjax.pretrained.pipelines import Components
from diffjax.pretrained.prompts import Embedding
from diffjax.types import Array, choose, summarize

SIDE = 2**16  # pixels
LAYERS = 2**16  # of a text encoder


@dataclasses.dataclass(frozen=True, repr=False)
class Request:
    """Everything about a generation but what becomes of it.

    Attributes:
        prompt: one, several, or embeddings; a `Prompt` tells XL's two encoders different texts.
        key: seed or key, from which every image has its own by its number; or one per image.
        sampler: a `Sampling`, or a name, or a number of steps.
        guidance: a `Guidance`, or its scale.
        image: what to start from, or to fill in: an `Image`, or its pixels.
        control: ControlNets, whose residuals are added up; one may stand for a list.
        lora: low-rank adapters, which are added up; a refiner gets none.
        refiner: a second model for the last part: a `Refiner`, or its pipeline.
        size: a `Size`, or (height, width), or one number.
        num: images per prompt.
        latents: initial noise (B, h, w, 4) in place of that of the key; with ``sampler.start`` what
            another run ended with.
        clip_skip: layers of the text encoder left out; the negative prompt takes them all.
        weighted: prompts have weights, and may be long; see `diffjax.pretrained.tokenizers`.
        step_noise: noise (evaluations, B, h, w, 4) of the sampler in place of that of the key; one
            entry for each evaluation of the network, those of a refiner last.
        freeu: other weights of backbone and skips; a refiner gets none.
    """

    prompt: Texts | Embedding
    key: Any = 0
    sampler: Sampling | str | int | None = None
    guidance: Guidance | float | None = None
    image: Any = None
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

    def __repr__(self) -> str:
        return summarize(self)

    def read(self) -> Request:
        """Return the request with all arguments in full, checked without a model.

        Raises:
            RequestError: an argument has another type, lies outside of its range, is not finite,
                or is a name that is not known.
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
        )

    def list_prompts(self) -> Prompts | Embedding:
        """Return the prompts as a tuple, or their embedding.

        Raises:
            RequestError: they are no texts, or there are none.
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
            RequestError: an entry is no `Control`, or one of its numbers is out of range.
        """
        several = read_several("control", self.control, Control, "Control(net, image)")
        return tuple(_read_control(f"control[{k}]", one) for k, one in enumerate(several))

    def list_loras(self) -> tuple[Lora, ...]:
        """Return the adapters as a tuple.

        Raises:
            RequestError: an entry is no `Lora`, or its scale is out of range.
        """
        example = "Lora(pipe.load_lora(path), scale)"
        several = read_several("lora", self.lora, Lora, example)
        return tuple(_read_lora(f"lora[{k}]", one) for k, one in enumerate(several))

    def read_refiner(self) -> Refiner | None:
        """Return the refiner with all of its options; see `read_refiner`."""
        return read_refiner(self.refiner)

    def read_size(self) -> Size:
        """Return the size with all of its options; see `read_size`."""
        return read_size(self.size)


# ---- sizes ------------------------------------------------------------------------------------


def read_size(value: Any) -> Size:
    """A `Size` from a number of pixels or (height, width), with what it holds checked.

    Raises:
        RequestError: it is something else, or a part of it is wrong.
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


def read_image(value: Any) -> Image | None:
    """An `Image`, also from its pixels; pixels and masks themselves are read with the model.

    Raises:
        RequestError: it is something else, or the strength is none.
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
        level = read_whole("image.noise_level", level, 0, 10_000)
    return given._replace(
        strength=read_strength(given.strength), mask_padding=padding, noise_level=level
    )


def read_strength(value: Any) -> float | None:
    """The strength of an `Image`; None is the default.

    Raises:
        RequestError: it is no number in [0, 1].
    """
    return None if value is None else read_number("image.strength", value, 0, 1)


def _refuse_no_picture(name: str, value: Any) -> None:
    """
    Raises:
        RequestError: a value can be no picture and no array.
    """
    if isinstance(value, str | PurePath):
        raise refuse(name, f"must be a picture, got {show(value)}: open it, PIL.Image.open(path)")
    if isinstance(value, bytes):
        raise refuse(name, "must be a picture, got bytes: open it, PIL.Image.open(io.BytesIO(...))")
    number = isinstance(value, int | float | complex | np.generic)
    if value is None or number or isinstance(value, dict | set | Image | Control | Component):
        raise refuse(name, f"must be a picture or an array, got {show(value)}")


def _read_control(name: str, value: Control) -> Control:
    net = value.net
    if not isinstance(net, Component) or not hasattr(net.net, "hint_channels"):
        hint = "a ControlNet or T2I-Adapter from diffjax.pretrained.load_model(folder)"
        raise refuse(f"{name}.net", f"must be {hint}, got {show(net)}")
    _refuse_no_picture(f"{name}.image", value.image)
    start = read_number(f"{name}.start", value.start, 0, 1)
    end = read_number(f"{name}.end", value.end, 0, 1)
    if start >= end:
        raise refuse(f"{name}.start", f"must be below end, got {start:g} to {end:g}")
    check_name(
        f"{name}.balance",
        value.balance,
        lambda balance: choose("balance", balance, controlling.BALANCES),
    )
    scale = read_number(f"{name}.scale", value.scale)
    return value._replace(scale=scale, start=start, end=end)


def _read_lora(name: str, value: Lora) -> Lora:
    if not is_mapping_of_text(value.weights) or not value.weights:
        raise refuse(
            f"{name}.weights", f"must come from pipe.load_lora(path), got {show(value.weights)}"
        )
    return value._replace(scale=read_number(f"{name}.scale", value.scale, -LARGEST))


def read_refiner(value: Any) -> Refiner | None:
    """A `Refiner`, also from its pipeline.

    Raises:
        RequestError: it is something else, or it starts at no fraction between 0 and 1.
    """
    if value is None:
        return None
    given = value if isinstance(value, Refiner) else Refiner(value)
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


def read_start(value: Any) -> float:
    """The start of a `Refiner`.

    Raises:
        RequestError: it is no number between 0 and 1, these left out.
    """
    start = read_number("refiner.start", value)
    if not 0 < start < 1:
        raise refuse("refiner.start", f"must lie between 0 and 1, got {start:g}")
    return start
