"""What can be asked of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from diffjax.generate.loaded import LoadedModel
from diffjax.pretrained.models import Component
from diffjax.pretrained.pipelines import TEXTS
from diffjax.pretrained.prompts import Embedding, Prompt
from diffjax.pretrained.schedulers import INSTEAD, KINDS, Scheduler, load_scheduler, with_class
from diffjax.types import PyTree, choose, summarize

# Short names of diffusers' schedulers: (class, options).
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIM", {}),
    "ddpm": ("DDPM", {}),
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "lms": ("LMSDiscrete", {}),
    "euler": ("EulerDiscrete", {}),
    "euler_ancestral": ("EulerAncestralDiscrete", {}),
    "heun": ("HeunDiscrete", {}),
    "dpm2": ("KDPM2Discrete", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscrete", {}),
    "dpmpp_2m": ("DPMSolverMultistep", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_3m": ("DPMSolverMultistep", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpmpp_2m_sde": (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ),
    "dpmpp_2s": ("DPMSolverSinglestep", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "deis": ("DEISMultistep", {"algorithm_type": "deis"}),
    "unipc": ("UniPCMultistep", {}),
    "sa_solver": ("SASolver", {}),
    "lcm": ("LCM", {}),
    "tcd": ("TCD", {}),
}
GRIDS: dict[str, dict[str, Any]] = {
    **{
        name: {f"use_{other}_sigmas": other == name for other in ("karras", "exponential", "beta")}
        for name in ("karras", "exponential", "beta")
    },
    **{name: {"timestep_spacing": name} for name in ("leading", "trailing", "linspace")},
}


# ---- what can be asked for ----------------------------------------------------------------------

Texts = str | Prompt | Sequence[str | Prompt]


class Sampling(NamedTuple):
    """How the noise is removed.

    Attributes:
        name: one of `SAMPLERS`, or a scheduler class of diffusers; the model's own if None.
        steps: number of steps.
        grid: one of `GRIDS`, where they lie; the model's own if None.
        options: options of the scheduler config.
        eta: of DDIM, or gamma of TCD.
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
    options: Mapping[str, Any] = {}
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
    """Classifier-free guidance ``u + scale (c - u)``.

    Attributes:
        scale: 1 or less: none. 5 for XL and 7.5 for others if None.
        negative: the prompt of u, one or as many as prompts, or its embedding. None is an empty
            prompt, or for XL a zero embedding.
        rescale: share of the conditional spread brought back (Lin et al. 2023), in [0, 1].
        low, high: guide only where ``low <= sigma / alpha <= high`` (Kynkaanniemi et al. 2024).
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
    """Latents in place of pixels, whatever their values.

    Attributes:
        values: ([N,] h, w, 4), scaled as the network sees them.
    """

    values: Any


class Image(NamedTuple):
    """An image to start from, or to fill in.

    Attributes:
        pixels: PIL image(s), uint8, uint16 or floats in [0, 1] of shape ([N,] H, W, C), C being 3
            for RGB, 1 for grey or 4 with alpha, composited on white; or latents, as `Latents` or
            as floats ([N,] h, w, 4) some of which are below 0 and some larger than 1 in size.
        strength: share of the steps that are run. If None: 0.8, with a mask 1; for XL 0.3 and
            0.9999.
        mask: PIL image(s) or array ([N,] H, W), white where the image is to be filled in; integers
            of 0 and 1, or 0 and 255, bool, or floats in [0, 1].
        mask_padding: fill in a crop around the mask alone, with so many pixels around what is
            masked, at the size of the output, and paste it into the whole image. None for the whole
            image at once.
        depth: for models that keep the depth of an image: ([N,] H, W) floats, the nearer the
            larger, as MiDaS and DPT predict them.
        noise_level: for upscalers: a time of the noise that the small image gets; 20 if None.
    """

    pixels: Any
    strength: float | None = None
    mask: Any = None
    mask_padding: int | None = None
    depth: Any = None
    noise_level: int | None = None

    def __repr__(self) -> str:
        return summarize(self)


class Control(NamedTuple):
    """A ControlNet or T2I-Adapter, and its image.

    Attributes:
        net: the network.
        image: PIL image(s), uint8, uint16 or floats in [0, 1], and -1 where inpainting ControlNets
            are to fill in; composited on black and brought to the size of the output.
        scale: factor of its residuals.
        start, end: the part of the evaluations in which it acts.
        balance: one of `diffjax.control.BALANCES`, such as ``guess``, which ControlNets that pool
            their residuals (``global_pool_conditions``) always have.
    """

    net: Component
    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    balance: str = "balanced"

    def __repr__(self) -> str:
        return summarize(self)


class Lora(NamedTuple):
    """Low-rank adapters of the UNet, and of text encoders, added when the program runs.

    Attributes:
        weights: from `Pipeline.load_lora`, by the name of the network; or of the UNet alone, from
            `diffjax.pretrained.load_lora`.
        scale: 1 as they were trained, 0 for none of them.
    """

    weights: PyTree
    scale: float = 1.0

    def __repr__(self) -> str:
        return summarize(self)

    def by_network(self) -> dict[str, PyTree]:
        """The adapters by the name of the network, ``unet`` or that of a text encoder."""
        named = set(self.weights) <= {"unet", *TEXTS}
        return dict(self.weights) if named else {"unet": self.weights}


class Refiner(NamedTuple):
    """A second model that does the last part of the denoising (Podell et al. 2023).

    Attributes:
        pipe: its pipeline.
        start: fraction of the denoising after which it takes over.
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
    """Size of the output, and the sizes that XL is conditioned on (its micro-conditioning).

    Attributes:
        height, width: of the output, in pixels, to which images and masks are brought; one that is
            0 is that of the image, or the model's own.
        original, target: (height, width); that of the output if None.
        crop: (top, left).
        aesthetic: aesthetic score that conditions a refiner.
        negative_*: the same for the negative prompt; as for the prompt if None.
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
        """Return the size that goes with the negative prompt."""
        return self._replace(
            original=self.negative_original or self.original,
            crop=self.negative_crop or self.crop,
            target=self.negative_target or self.target,
            aesthetic=self.negative_aesthetic,
        )

    def to_time_ids(self, count: int) -> tuple[float, ...]:
        """Return the time ids of a network: 6 of XL's base, 5 of its refiner.

        Raises:
            ValueError: the network takes another number of them.
        """
        if count not in (5, 6):
            raise ValueError(f"a network of XL takes 5 or 6 time ids, but this one takes {count}")
        here = (self.height, self.width)
        last = (self.aesthetic,) if count == 5 else self.target or here
        return (*(self.original or here), *self.crop, *last)


def find_sampler(name: str) -> tuple[str, dict[str, Any]]:
    """The scheduler class of a sampler's name, or of a class of diffusers, and what it changes.

    Raises:
        ValueError: the name is unknown, or the class is not supported.
    """
    kind = f"{name.removesuffix('Scheduler')}Scheduler"
    if kind in INSTEAD:
        raise ValueError(f"the sampler {name} is not supported: {INSTEAD[kind]}")
    if kind in KINDS:
        return name, {}
    if name[:1].isupper():
        choose("scheduler class", name, {key.removesuffix("Scheduler"): key for key in KINDS})
    return cast(tuple[str, dict[str, Any]], choose("sampler", name, SAMPLERS))


def make_scheduler(config: Mapping[str, Any], sampling: Sampling) -> Scheduler:
    """The scheduler of a model, or another one in its place.

    Raises:
        ValueError: the name, the grid or an option is unknown, or of no use to this scheduler.
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
