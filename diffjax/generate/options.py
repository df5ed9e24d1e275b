"""The options of a request: samplers, guidance, images, controls, adapters, refiners and sizes.

A request names each of them by a `NamedTuple` with defaults. `request` turns short forms, such as a
number for the guidance scale, into these. `make_scheduler` turns a sampler into one of diffusers'
schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffjax.generate.loaded import LoadedModel
from diffjax.pretrained.components import TEXTS
from diffjax.pretrained.image_adapters import ImageAdapter
from diffjax.pretrained.models import Component
from diffjax.pretrained.prompts import Embedding, Prompt
from diffjax.pretrained.schedulers import INSTEAD, KINDS, Scheduler, load_scheduler, with_class
from diffjax.samplers.registry import REGISTRY
from diffjax.types import Array, Options, Params, choose, summarize

# Samplers that diffusers has a class for, by the names of `diffjax.samplers`: (class, options).
SAMPLERS: dict[str, tuple[str, Options]] = {
    name: (entry.scheduler, dict(entry.config))
    for name, entry in REGISTRY.items()
    if entry.scheduler
}
GRIDS: dict[str, Options] = {
    **{
        name: {f"use_{other}_sigmas": other == name for other in ("karras", "exponential", "beta")}
        for name in ("karras", "exponential", "beta")
    },
    **{name: {"timestep_spacing": name} for name in ("leading", "trailing", "linspace")},
}


# ---- what can be asked for ----------------------------------------------------------------------

Texts = str | Prompt | Sequence[str | Prompt]


class Sampling(NamedTuple):
    """Which sampler removes the noise, and in how many steps.

    Attributes:
        name: one of `SAMPLERS`, or the name of a scheduler class of diffusers. None is the model's
            own scheduler.
        steps: number of steps, in 1 to 10,000. Second-order samplers evaluate the network twice in
            a step.
        grid: one of `GRIDS`, which says where the steps lie. None is the spacing of the scheduler's
            config.
        options: other keys of scheduler_config.json and their values.
        eta: the noise of DDIM, from 0 for none to 1 for that of DDPM, or the gamma of TCD.
        timesteps: falling times of the training schedule to visit, in place of ``steps``, for
            samplers that take them.
        sigmas: falling levels ``sigma / alpha``, the last one included, likewise.
        start: fraction of the denoising that another run has done; the request's ``latents`` are
            what that run ended with.
        end: fraction of the denoising at which the run ends. Its latents are ``z / alpha``, data
            with noise, and ``output="latent"`` returns them.
    """

    name: str | None = None
    steps: int = 50
    grid: str | None = None
    options: Mapping[str, object] = {}
    eta: float | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    start: float = 0.0
    end: float = 1.0


class PerturbedAttention(NamedTuple):
    """Guidance away from a network whose self-attention is the identity (Ahn et al. 2024).

    ``scale (c - p)`` is added to the guided prediction; p is the conditional prediction with
    ``A = I`` in the self-attention ``A V`` of some layers.

    Attributes:
        scale: 0 for none; about 3.
        layers: names of attentions of the UNet, or beginnings of them, such as ``mid_block``,
            ``down_blocks.2`` or ``up_blocks.0.attentions.1``.
        adaptive: how fast the scale falls with the time t: ``max(0, scale - adaptive (1000 - t))``.
    """

    scale: float = 3.0
    layers: Sequence[str] = ("mid_block",)
    adaptive: float = 0.0


class FreeU(NamedTuple):
    """Other weights of backbone and skips in the first two blocks of the way up (Si et al. 2023).

    Attributes:
        b1, b2: factors of the first half of the channels that come from below, in each block.
        s1, s2: factors of the lowest frequencies of the skips. The published values are 1.5, 1.6,
            0.9 and 0.2 for Stable Diffusion 1.5, and b1 = 1.3, b2 = 1.4 with the same s for XL.
    """

    b1: float
    b2: float
    s1: float
    s2: float


class Guidance(NamedTuple):
    """Classifier-free guidance ``u + scale (c - u)`` of a conditional prediction c and an
    unconditional u.

    Attributes:
        scale: 1 or less turns guidance off. None is 5 for XL, 9 for upscalers and 7.5 for others.
        negative: the prompt of u: one for all prompts, one for each, or an embedding. None is an
            empty prompt, or for XL a zero embedding.
        rescale: how far the standard deviation of the guided prediction is brought back to that of
            c (Lin et al. 2023, eq. 15 and 16), in [0, 1].
        low: guide only where ``sigma / alpha`` is at least this (Kynkaanniemi et al. 2024).
        high: guide only where ``sigma / alpha`` is at most this.
        perturbed: a `PerturbedAttention`, or its scale, which is added at every step.
        image: scale of the image, at least 1, for models that edit by instruction: with the empty
            image as a third condition, ``e + image (u - e) + scale (c - u)`` (Brooks et al. 2023,
            eq. 3). 1.5 if None.
    """

    scale: float | None = None
    negative: Texts | Embedding | None = None
    rescale: float = 0.0
    low: float = 0.0
    high: float = np.inf
    perturbed: PerturbedAttention | float | None = None
    image: float | None = None


class Latents(NamedTuple):
    """Latents in place of pixels.

    `Image` takes a plain array of latents too, unless it could be a picture.

    Attributes:
        values: ([N,] h, w, C), multiplied by the autoencoder's scaling factor, as the UNet sees
            them.
    """

    values: Array


class Image(NamedTuple):
    """An image to start from (SDEdit, Meng et al. 2022), or to fill in where a mask is white.

    Attributes:
        pixels: PIL images, or arrays of uint8, uint16 or floats in [0, 1] with shape ([N,] H, W,
            C). C is 3 for RGB, 1 for grey, or 4 with alpha, which is composited on white. Or
            latents, as `Latents` or as floats ([N,] h, w, 4), some of which are below 0 and some
            larger than 1 in size.
        strength: share of the steps to run, in [0, 1]: at 1 the image is replaced by noise, at 0 it
            stays. None is diffusers' default: 0.8, or 1 with a mask; for XL 0.3 and 0.9999.
        mask: PIL images or arrays ([N,] H, W), white where the image is to be filled in: integers
            of 0 and 1 or of 0 and 255, bools, or floats in [0, 1].
        mask_padding: fill in a crop around the mask alone, with so many pixels around what is
            masked, at the size of the output, and paste it into the whole image. None for the whole
            image at once.
        depth: for models that keep the depth of an image: ([N,] H, W) floats, the nearer the
            larger, as MiDaS and DPT predict them.
        noise_level: for upscalers: a time of the noise that the small image gets; 20 if None.
    """

    pixels: object
    strength: float | None = None
    mask: object = None
    mask_padding: int | None = None
    depth: object = None
    noise_level: int | None = None

    def __repr__(self) -> str:
        return summarize(self)


# A scale of a `Control` that is the default of diffusers' pipelines.
OF_DIFFUSERS = "diffusers"


class Control(NamedTuple):
    """A ControlNet or T2I-Adapter with the image that steers it.

    Attributes:
        net: the network, from `diffjax.pretrained.load_model`.
        image: PIL images, uint8, uint16 or floats in [0, 1]. Inpainting ControlNets read -1 where
            they fill in. Images are composited on black and resized to the size of the output.
        scale: factor of the residuals that the network adds to the UNet. ``"diffusers"`` is the
            default of the pipelines there: 0.8 with an initial image, with a mask 0.5 (for XL 1),
            and else 1.
        start: fraction of the evaluations after which it begins to act, in [0, 1].
        end: fraction of the evaluations after which it stops, in [0, 1].
        balance: one of `diffjax.control.BALANCES`, which weighs the image against the prompt.
            ControlNets that pool their residuals (``global_pool_conditions``) always use ``guess``.
        kind: number of the kind of hint, for ControlNets that read several (union); or several
            numbers, with as many images in a list, which the network reads together.
    """

    net: Component
    image: object
    scale: float | str = 1.0
    start: float = 0.0
    end: float = 1.0
    balance: str = "balanced"
    kind: int | Sequence[int] | None = None

    def __repr__(self) -> str:
        return summarize(self)


class Lora(NamedTuple):
    """Low-rank adapters of the UNet and of text encoders that are added while the program runs,
    without a copy of the weights.

    Attributes:
        weights: the adapters by the name of the network, from `Pipeline.load_lora`; or those of the
            UNet alone, from `diffjax.pretrained.load_lora`.
        scale: factor of the change of weights: 1 as trained, 0 for no change.
    """

    weights: Params
    scale: float = 1.0

    def __repr__(self) -> str:
        return summarize(self)

    def by_network(self) -> dict[str, Params]:
        """The adapters by the name of the network, ``unet`` or that of a text encoder."""
        named = set(self.weights) <= {"unet", *TEXTS}
        return dict(self.weights) if named else {"unet": self.weights}


class ImagePrompt(NamedTuple):
    """A picture that stands beside the prompt, by an IP-Adapter (Ye et al. 2023).

    Attributes:
        adapter: from `Pipeline.load_image_adapter`.
        image: PIL images, uint8, uint16 or floats in [0, 1]: one for all images, one per prompt, or
            one per image. Their central square is seen.
        scale: factor of what the attentions read of it; 0 for nothing.
    """

    adapter: ImageAdapter
    image: object
    scale: float = 1.0

    def __repr__(self) -> str:
        return summarize(self)


class Refiner(NamedTuple):
    """A second model that does the last part of the denoising (Podell et al. 2023).

    Attributes:
        pipe: the pipeline of the second model.
        start: fraction of the denoising after which it takes over, between 0 and 1.
        prompt: what it is told, as many texts as the base model; the same if None.
        guidance: its `Guidance`, or its scale; that of the base model if None.
    """

    pipe: LoadedModel
    start: float = 0.8
    prompt: Texts | Embedding | None = None
    guidance: Guidance | float | None = None

    def __repr__(self) -> str:
        return summarize(self)


class Size(NamedTuple):
    """Size of the output in pixels, and the sizes that XL is conditioned on (Podell et al. 2023,
    section 2.2).

    Attributes:
        height: height of the output, to which images and masks are resized. 0 is that of the image,
            or the model's own.
        width: width of the output, with the same rule.
        original: (height, width) of the picture before it was resized; the size of the output if
            None.
        crop: (top, left) corner of the crop.
        target: (height, width) after the crop; the size of the output if None.
        aesthetic: aesthetic score, which a refiner is conditioned on in place of ``target``.
        negative_original, negative_crop, negative_target: the same for the negative prompt; as for
            the prompt if None.
        negative_aesthetic: aesthetic score for the negative prompt.
    """

    height: int = 0
    width: int = 0
    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None
    aesthetic: float = 6.0
    negative_original: tuple[int, int] | None = None
    negative_crop: tuple[int, int] | None = None
    negative_target: tuple[int, int] | None = None
    negative_aesthetic: float = 2.5

    def for_negative(self) -> Size:
        """Return the sizes that condition the negative prompt."""
        return self._replace(
            original=self.negative_original or self.original,
            crop=self.negative_crop or self.crop,
            target=self.negative_target or self.target,
            aesthetic=self.negative_aesthetic,
        )

    def to_time_ids(self, count: int) -> tuple[float, ...]:
        """Return the numbers that a network of XL is conditioned on.

        The base model reads original, crop and target size (6 numbers); the refiner reads original
        size, crop and aesthetic score (5 numbers).

        Args:
            count: how many numbers the network reads.

        Raises:
            ValueError: ``count`` is neither 5 nor 6.
        """
        if count not in (5, 6):
            raise ValueError(f"a network of XL takes 5 or 6 time ids, but this one takes {count}")
        here = (self.height, self.width)
        last = (self.aesthetic,) if count == 5 else self.target or here
        return (*(self.original or here), *self.crop, *last)


# Arguments of a request whose values have fields of their own.
RECORDS: dict[str, type] = {
    "sampler": Sampling,
    "guidance": Guidance,
    "image": Image,
    "control": Control,
    "lora": Lora,
    "refiner": Refiner,
    "size": Size,
    "image_prompt": ImagePrompt,
    "freeu": FreeU,
}


def find_sampler(name: str) -> tuple[str, Options]:
    """Look up a sampler by its short name, or a scheduler class of diffusers by its own name.

    Args:
        name: a key of `SAMPLERS`, or a class name with or without ``Scheduler`` at its end.

    Returns:
        The class name without ``Scheduler``, and the options that the sampler sets.

    Raises:
        ValueError: the name is unknown, or the class is not supported; then the message names a
            substitute.
    """
    kind = f"{name.removesuffix('Scheduler')}Scheduler"
    if kind in INSTEAD:
        raise ValueError(f"the sampler {name} is not supported: {INSTEAD[kind]}")
    if kind in KINDS:
        return name, {}
    if name[:1].isupper():
        choose("scheduler class", name, {key.removesuffix("Scheduler"): key for key in KINDS})
    return choose("sampler", name, SAMPLERS)


def make_scheduler(config: Options, sampling: Sampling) -> Scheduler:
    """Build the scheduler of a model, or another one with the same noise levels in its place.

    Args:
        config: the model's scheduler_config.json.
        sampling: the sampler that the request asks for. Keys of the config that the new class has
            carry over, as with ``from_config`` in diffusers.

    Raises:
        ValueError: the name, the grid or an option is unknown, or the scheduler class has no such
            option.
    """
    name, changes = find_sampler(sampling.name or config["_class_name"])
    known = KINDS[name.removesuffix("Scheduler") + "Scheduler"].defaults
    spaced = choose("grid", sampling.grid, GRIDS) if sampling.grid else {}
    asked = {**{key: v for key, v in spaced.items() if v or key in known}, **sampling.options}
    if wrong := sorted(key for key in asked if key not in known):
        raise ValueError(f"the sampler {name} has no {', '.join(wrong)}; it has {', '.join(known)}")
    if not sampling.name and not asked:
        return load_scheduler(config, eta=sampling.eta)
    return with_class(load_scheduler(config), name, {**changes, **asked}, eta=sampling.eta)
