"""A request, and how each of its arguments is read.

Every argument has short forms: a number of steps or a name for the sampler, a number for the
guidance, pixels for the image, and so on. The functions here turn them into the options of
`diffjax.generate.options`, or raise a `RequestError` that names the argument. They need no model;
`stages` compares the result with the model that runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from diffjax import control as controlling
from diffjax.generate.checks import (
    LARGEST,
    RequestError,
    is_mapping_of_text,
    is_whole,
    read_flag,
    read_floats,
    read_number,
    read_pair,
    read_several,
    read_text,
    read_whole,
    refuse,
    show,
)
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import (
    GRIDS,
    Control,
    Guidance,
    Image,
    Lora,
    Refiner,
    Sampling,
    Size,
    Texts,
    find_sampler,
)
from diffjax.pretrained.models import Component
from diffjax.pretrained.pipelines import Components
from diffjax.pretrained.prompts import Embedding, Prompt
from diffjax.types import Array, choose, summarize

STEPS = 10_000  # more than any schedule has
SIDE = 2**16  # pixels
LAYERS = 2**16  # of a text encoder

Prompts = tuple[str | Prompt, ...]


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
        latents: initial standard normal noise (B, h, w, 4) in place of that of the key.
        clip_skip: layers of the text encoder to leave out. The negative prompt uses all layers.
        weighted: whether brackets in prompts are weights, and prompts may be longer than a chunk;
            see `diffjax.pretrained.tokenizers`.
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
        )

    def list_prompts(self) -> Prompts | Embedding:
        """Return the prompts as a tuple, or their embedding.

        Raises:
            RequestError: a prompt is not a text, or there is none.
        """
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

    def read_refiner(self) -> Refiner | None:
        """Return the refiner with all of its options; see `read_refiner`."""
        return read_refiner(self.refiner)

    def read_size(self) -> Size:
        """Return the size with all of its options; see `read_size`."""
        return read_size(self.size)


# ---- texts --------------------------------------------------------------------------------------


def read_prompts(name: str, value: object) -> Prompts | Embedding:
    """Read prompts as a tuple of texts, or as an embedding.

    Args:
        name: the argument, for messages.
        value: a text, a `Prompt`, a list, tuple or array of them, or an `Embedding`.

    Raises:
        RequestError: the list is empty, or has an entry that is not a text.
    """
    if isinstance(value, Embedding):
        return _read_embedding(name, value)
    if isinstance(value, str | Prompt):
        return (_read_prompt(name, value),)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "UO":
        value = value.tolist()
    if isinstance(value, Request):
        raise refuse(name, "is a Request: run it with pipe.steps(request)")
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        known = "a text, a list of texts, or an Embedding"
        hint = ": wrap it, Embedding(array)" if hasattr(value, "dtype") else ""
        raise refuse(name, f"must be {known}, got {show(value)}{hint}")
    if not value:
        raise RequestError(name, f"there is no prompt: {name} is an empty list")
    return tuple(_read_prompt(f"{name}[{k}]", one) for k, one in enumerate(value))


def _read_prompt(name: str, value: object) -> str | Prompt:
    """Read one prompt, which may have a text for each of XL's encoders.

    Raises:
        RequestError: it is not a text, or is an embedding among texts.
    """
    if isinstance(value, Prompt):
        first, second = value
        return Prompt(read_text(f"{name}.first", first), read_text(f"{name}.second", second))
    if isinstance(value, Embedding):
        raise refuse(name, "is an Embedding among texts: embed all prompts, pipe.embed([...])")
    return read_text(name, value)


def _read_embedding(name: str, value: Embedding) -> Embedding:
    """Read an embedding with context (B, M, D) and pooled (B, P) or None, of finite floats.

    Raises:
        RequestError: an array has another shape or type, or they differ in their number of rows.
    """
    context = read_floats(f"{name}.context", value.context, "(B, M, D)")
    if value.pooled is None:
        return Embedding(context)
    pooled = read_floats(f"{name}.pooled", value.pooled, "(B, P)")
    if len(pooled) != len(context):
        raise refuse(f"{name}.pooled", f"has {len(pooled)} rows, but context {len(context)}")
    return Embedding(context, pooled)


# ---- numbers and names --------------------------------------------------------------------------


def read_sampling(value: object) -> Sampling:
    """Read a sampler from a `Sampling`, its name, or its number of steps.

    Raises:
        RequestError: the value is something else, the name or the grid is unknown, the options are
            not a mapping, or the steps or eta are out of range. Whether the sampler has the options
            is checked with the model.
    """
    if value is None:
        return Sampling()
    if isinstance(value, str):
        value = Sampling(value)
    elif is_whole(value):
        value = Sampling(steps=value)
    if not isinstance(value, Sampling):
        known = "a name, a whole number of steps, or Sampling(name, steps)"
        raise refuse("sampler", f"must be {known}, got {show(value)}")
    if value.name is not None:
        _choose("sampler.name", value.name, find_sampler)
    if value.grid is not None:
        _choose("sampler.grid", value.grid, lambda name: choose("grid", name, GRIDS))
    if not is_mapping_of_text(value.options):
        example = "{'lower_order_final': False}"
        raise refuse(
            "sampler.options", f"must be a dict such as {example}, got {show(value.options)}"
        )
    eta = value.eta
    # Lists in place of arrays: what is made for options is remembered by their repr.
    options = {key: getattr(v, "tolist", lambda v=v: v)() for key, v in value.options.items()}
    return value._replace(
        options=options,
        steps=read_whole("sampler.steps", value.steps, 1, STEPS),
        eta=None if eta is None else read_number("sampler.eta", eta, 0),
    )


def _choose(name: str, value: object, find: Callable[[str], object]) -> None:
    """Check that ``find`` knows a name.

    Raises:
        RequestError: the value is not a text, or ``find`` raised a ValueError.
    """
    text = read_text(name, value)
    try:
        find(text)
    except ValueError as error:
        raise RequestError(name, str(error)) from error


def read_guidance(value: object) -> Guidance:
    """Read guidance from a `Guidance`, or from its scale.

    Raises:
        RequestError: the value is something else, a number is out of range, or low is above high.
    """
    if value is None:
        return Guidance()
    name = "guidance.scale"
    if not isinstance(value, Guidance):
        name, value = "guidance", Guidance(value)  # type: ignore[arg-type]  # checked below
    if value.scale is not None:
        kind = "one number" if name == "guidance.scale" else "one number or a Guidance(scale)"
        read_number(name, value.scale, 0, kind=kind)
    low = read_number("guidance.low", value.low, 0)
    high = read_number("guidance.high", value.high, 0, np.inf)
    if low > high:
        raise refuse("guidance.low", f"must be at most guidance.high, got {low:g} and {high:g}")
    negative = value.negative
    if negative is not None:
        negative = read_prompts("guidance.negative", negative)
    return Guidance(
        None if value.scale is None else read_number(name, value.scale),
        negative,
        read_number("guidance.rescale", value.rescale, 0, 1),
        low,
        high,
    )


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
    return given._replace(strength=read_strength(given.strength))


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
    if value is None or number or isinstance(value, dict | set | Image | Control | Component):
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
    _refuse_no_picture(f"{name}.image", value.image)
    start = read_number(f"{name}.start", value.start, 0, 1)
    end = read_number(f"{name}.end", value.end, 0, 1)
    if start >= end:
        raise refuse(f"{name}.start", f"must be below end, got {start:g} to {end:g}")
    _choose(
        f"{name}.balance",
        value.balance,
        lambda balance: choose("balance", balance, controlling.BALANCES),
    )
    named = isinstance(value.scale, str) and value.scale == "diffusers"
    scale = value.scale if named else read_number(f"{name}.scale", value.scale)
    return value._replace(scale=scale, start=start, end=end)


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


def read_refiner(value: object) -> Refiner | None:
    """Read a refiner from a `Refiner`, or from its pipeline, or raise a `RequestError`."""
    if value is None:
        return None
    given = value if isinstance(value, Refiner) else Refiner(value)  # type: ignore[arg-type]
    if not isinstance(getattr(given.pipe, "parts", None), Components):
        example = "Refiner(diffjax.load(path), start)"
        raise refuse("refiner", f"must be a pipeline or {example}, got {show(given.pipe)}")
    return given._replace(start=read_start(given.start))


def read_start(value: object) -> float:
    """Read the fraction at which a `Refiner` takes over.

    Raises:
        RequestError: it is not a number above 0 and below 1.
    """
    start = read_number("refiner.start", value)
    if not 0 < start < 1:
        raise refuse("refiner.start", f"must lie between 0 and 1, got {start:g}")
    return start
