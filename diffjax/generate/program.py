"""What of a generation is compiled: the loop with its denoiser, and the autoencoder's halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import control, guidance, lora
from diffjax.generate import images
from diffjax.generate.request import Request
from diffjax.nets.adapter import T2IAdapter
from diffjax.pretrained.schedulers import Scheduler, to_config
from diffjax.samplers import loop
from diffjax.types import (
    Array,
    Cond,
    Denoiser,
    Level,
    Prediction,
    PyTree,
    Rows,
    Sampler,
    expand,
)

# Options of a scheduler that change what is compiled; all others are in the rows.
_DECODING = ("prediction_type", "variance_type", "sigma_data")
_BOUNDS = (
    *("clip_sample", "clip_sample_range"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed when the loop is compiled; equal programs with arrays of equal shapes share it.

    Attributes:
        net: the UNet.
        scheduler: compared by what of it is compiled only.
        guided: ``no``, ``always``, or ``sometimes`` (see `how_guided`).
        rescale: of the guidance.
        nets: ControlNets and adapters, and how each is balanced with the prompt.
    """

    net: Any
    scheduler: Scheduler = dataclasses.field(compare=False)
    guided: str
    rescale: float
    nets: tuple[tuple[Any, str], ...]
    compiled: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        config, sampler = to_config(self.scheduler), self.scheduler.sampler
        bounded = config.get("clip_sample") or config.get("thresholding")
        keys = _DECODING + (_BOUNDS if bounded else ())
        name = self.scheduler.name if bounded else ""
        options = tuple((key, config.get(key)) for key in keys)
        object.__setattr__(self, "compiled", (sampler.init, sampler.step, name, options))

    @property
    def sampler(self) -> Sampler:
        """The solver."""
        return self.scheduler.sampler


@partial(jax.jit, static_argnums=0)
def advance(
    program: Program, inputs: PyTree, run: loop.Run, rows: Rows, first: Any, last: Any
) -> loop.Run:
    """`loop.advance` of a program; ``inputs`` are the arrays that it is given.

    Args:
        inputs: params, keys and cond; with guidance null and scale (rows,); for inpainting known;
            with ControlNets their params, hints and strengths, see `controls`; with low-rank
            adapters lora, pairs of these and their scales.
    """
    for adapters, scale in inputs.get("lora", ()):
        inputs = {**inputs, "params": lora.merge(inputs["params"], adapters, scale)}
    noise = loop.image_noise(inputs["keys"], run.z.shape[1:])
    known = inputs.get("known")

    def put_back(z: Array, row: Rows) -> Array:
        """Known pixels, as noisy as the state is now."""
        i, mask = row.level.i, known["mask"]
        there = known["alpha"][i] * known["x"] + known["sigma"][i] * known["eps"]
        return (1 - mask) * there + mask * z

    return loop.advance(
        noise,
        denoiser(program, inputs),
        program.sampler,
        run,
        rows,
        first,
        last,
        on_step=None if known is None else put_back,
    )


def denoiser(program: Program, inputs: PyTree) -> Denoiser:
    """The network, guided and bounded."""
    parameterization = program.scheduler.parameterization

    def conditional(z: Array, level: Level, cond: Cond) -> Prediction:
        scaled, t = _told(program, z, level)
        raw = program.net.apply({"params": inputs["params"]}, scaled, t, cond)
        return parameterization.decode(raw, z, level)

    at_work = _controls(program, inputs)
    if program.guided == "no":
        steered = control.control(conditional, at_work)
        return program.scheduler.bound(lambda z, level: steered(z, level, inputs["cond"]))
    combine: guidance.Combine = guidance.cfg
    if program.rescale:
        combine = guidance.rescaled(parameterization, program.rescale)
    guided = control.guide(
        conditional,
        at_work,
        inputs["cond"],
        inputs["null"],
        guidance.per_evaluation(inputs["scale"]),
        combine=combine,
        always=program.guided == "always",
    )
    return program.scheduler.bound(guided)


def _told(program: Program, z: Array, level: Level) -> tuple[Array, Array]:
    """z as the networks expect it scaled, and the times (B,): of the UNet and of its controls."""
    scale = program.scheduler.parameterization.scale_in(level)
    return z * expand(jnp.asarray(scale), z), jnp.broadcast_to(level.t, z.shape[:1])


def _controls(program: Program, inputs: PyTree) -> list[control.Control]:
    def at_work(net: Any, balance: str, given: PyTree) -> control.Control:
        strength = guidance.per_evaluation(given["strength"])
        chosen = control.BALANCES[balance]
        if isinstance(net, T2IAdapter):
            return control.Control(control.made, given["hint"], strength, chosen, "adapter")

        def residuals(z: Array, level: Level, cond: Cond) -> control.Residuals:
            scaled, t = _told(program, z, level)
            return net.apply({"params": given["params"]}, scaled, t, cond)

        return control.Control(residuals, given["hint"], strength, chosen)

    given = inputs.get("controls", ())
    return [at_work(*net, one) for net, one in zip(program.nets, given, strict=True)]


def read_hints(request: Request, size: tuple[int, int]) -> list[np.ndarray]:
    """The images of ControlNets at the size of the output, one or one for each image.

    Raises:
        RequestError: one of them cannot be read, or there is another number of them.
    """
    hints = []
    for k, one in enumerate(request.controls()):
        name, channels = f"control[{k}].image", one.net.net.hint_channels
        options: dict[str, Any] = dict(channels=channels, latents=0, size=size, low=-1)
        hint = images.read_picture(name, images.read, one.image, **options)[0]
        if len(hint) > 1:
            hint = images.read_picture(
                name, images.spread, hint, request.num, request.count(), "control image"
            )
        hints.append(hint)
    return hints


def controls(
    request: Request, rows: Rows, count: int, hints: Sequence[np.ndarray]
) -> tuple[tuple[tuple[Any, str], ...], list[PyTree]]:
    """ControlNets with their balances, and their params, hints and strengths by row.

    The hint of an adapter is the features that it makes of it, without params.

    Args:
        rows: padded plan.
        count: rows that are run.
        hints: see `read_hints`.
    """
    nets, given = [], []
    for one, hint in zip(request.controls(), hints, strict=True):
        # Means over all pixels only make sense on the conditional half, as in diffusers.
        balance = "guess" if getattr(one.net.net, "pool", False) else one.balance
        strength = np.zeros(len(rows.level.t), np.float32)
        strength[:count] = one.scale * control.window(count, one.start, one.end)
        nets.append((one.net.net, balance))
        if isinstance(one.net.net, T2IAdapter):
            features = _features(one.net.net, one.net.params, hint)
            given.append({"hint": features, "strength": strength})
        else:
            given.append({"params": one.net.params, "hint": hint, "strength": strength})
    return tuple(nets), given


@partial(jax.jit, static_argnums=0)
def _features(net: T2IAdapter, params: PyTree, hint: Array) -> list[Array]:
    return cast(list[Array], net.apply({"params": params}, hint))


def how_guided(scales: np.ndarray, scale: float) -> str:
    """``no`` for a scale of at most 1, else whether guidance acts ``always`` or ``sometimes``."""
    if scale <= 1 or (scales == 1).all():
        return "no"
    return "sometimes" if (scales == 1).any() else "always"


def known_levels(rows: Rows, count: int, to_the_end: bool) -> dict[str, np.ndarray]:
    """(alpha, sigma) of known pixels after every row: those of the next one, at last clean."""
    alpha, sigma = np.array(rows.next.alpha), np.array(rows.next.sigma)
    if to_the_end:
        alpha[count - 1], sigma[count - 1] = 1, 0
    return {"alpha": alpha, "sigma": sigma}


@partial(jax.jit, static_argnums=(1, 2))
def draw(keys: jax.Array, shape: tuple[int, ...], k: int) -> Array:
    """Draw k of the first evaluation, one image per key."""
    return loop.image_noise(keys, shape)(0, k)


@jax.jit
def fold(keys: jax.Array, data: Any) -> jax.Array:
    """Other keys, one for each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


@partial(jax.jit, static_argnums=0)
def posterior(net: Any, params: PyTree, pixels: Array) -> Any:
    """What an autoencoder makes of images in [-1, 1]."""
    return net.apply({"params": params}, pixels, method="encode")


@partial(jax.jit, static_argnums=0)
def decode(net: Any, params: PyTree, z: Array) -> Array:
    """Images of latents."""
    return net.apply({"params": params}, z, method="decode")
