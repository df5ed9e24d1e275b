"""The compiled parts of a generation: the sampling loop with its denoiser, and the autoencoder.

A `Program` holds all that is fixed when the loop is compiled. It is a static argument of `jax.jit`,
so programs that compare equal share one compilation. Everything else (parameters, conditions,
scales by step, noise levels) is passed as arrays, and changing it compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import numpy as np

from diffjax import control, guidance, model
from diffjax.generate import images
from diffjax.generate.options import OF_DIFFUSERS, Control, Image, PerturbedAttention
from diffjax.generate.request import Request
from diffjax.model import ControlNetwork, Model, apply_control
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.autoencoder import Posterior
from diffjax.nets.controlnet import ControlNet
from diffjax.nets.unet import UNet
from diffjax.pretrained.schedulers import Scheduler, to_config
from diffjax.samplers import loop
from diffjax.types import Array, Denoiser, Module, Options, Params, Rows, Sampler, Tree

# The arrays that a program reads by name, see `advance`; each name has a type of its own.
Inputs: TypeAlias = dict[str, Any]

# Options of a scheduler that change what is compiled; all others are in the rows.
_DECODING = ("prediction_type", "variance_type", "sigma_data")
_BOUNDS = (
    *("clip_sample", "clip_sample_range"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed when the loop is compiled. Equal programs with arrays of equal shapes share it.

    Attributes:
        model: the model without its parameters. Only its network is compared.
        scheduler: only what is compiled of it is compared: the solver's functions, the prediction
            type and the bounds on x. Noise levels are in the rows.
        guided: ``no``, ``always`` or ``sometimes``, see `classify_guidance`.
        rescale: see `Guidance.rescale`.
        nets: ControlNets and adapters, each with the name of its balance.
        compiled: the values by which programs are compared in place of model and scheduler.
        perturbed: attentions that are the identity in the network which perturbed-attention
            guidance leads away from; empty without it.
        edits: the image beside the latents has a scale of guidance of its own.
    """

    model: Model = dataclasses.field(compare=False)
    scheduler: Scheduler = dataclasses.field(compare=False)
    guided: str
    rescale: float
    nets: tuple[tuple[ControlNet | T2IAdapter, str], ...]
    perturbed: tuple[str, ...] = ()
    edits: bool = False
    compiled: tuple = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        config, sampler = to_config(self.scheduler), self.scheduler.sampler
        bounded = config.get("clip_sample") or config.get("thresholding")
        keys = _DECODING + (_BOUNDS if bounded else ())
        name = self.scheduler.name if bounded else ""
        options = tuple((key, config.get(key)) for key in keys)
        key = (self.model.network, sampler.init, sampler.step, name, options)
        object.__setattr__(self, "compiled", key)

    @property
    def sampler(self) -> Sampler:
        """The solver."""
        return self.scheduler.sampler


@partial(jax.jit, static_argnums=0)
def advance(
    program: Program,
    inputs: Inputs,
    run: loop.Run,
    rows: Rows,
    first: int | Array,
    last: int | Array,
) -> loop.Run:
    """Run rows ``first`` to ``last - 1`` of the sampling loop in one compiled call.

    Args:
        program: what is fixed at compile time.
        inputs: ``params``, ``keys`` (B,) and ``cond``; with guidance ``null`` and ``scale``
            (rows,); for inpainting ``known``; with ControlNets their params, hints and strengths,
            see `plan_controls`; with low-rank adapters ``lora``, pairs of them and their scales;
            with perturbed attention its scales ``perturbed`` (rows,); with noise of the caller's
            ``noise`` (rows, B, h, w, C); with a scale of the image ``image_scale`` and ``empty``,
            the null condition without the image.
        run: the state before the first row.
        rows: the padded plan.
        first: index of the first row to run.
        last: index after the last row to run.
    """
    if "noise" in inputs:
        noise = loop.replay_noise(inputs["noise"])
    else:
        noise = loop.image_noise(inputs["keys"], run.z.shape[1:])

    def put_back(z: Array, row: Rows) -> Array:
        """Return z with the known pixels put back, as noisy as the state is after this row."""
        known = inputs["known"]
        i, mask = row.level.i, known["mask"]
        there = known["alpha"][i] * known["x"] + known["sigma"][i] * known["eps"]
        return (1 - mask) * there + mask * z

    return loop.advance(
        noise,
        build_denoiser(program, inputs),
        program.sampler,
        run,
        rows,
        first,
        last,
        on_step=put_back if "known" in inputs else None,
    )


def build_denoiser(program: Program, inputs: Inputs) -> Denoiser:
    """Build the model's denoiser with adapters, controls and guidance, and bound x as the scheduler
    does.

    Args:
        program: what is fixed at compile time.
        inputs: see `advance`.
    """
    own = program.model._replace(
        params=inputs["params"], adapters=tuple(inputs.get("lora", ())), controls=()
    )
    controls, guided = _apply_controls(program, inputs), program.guided != "no"
    combine: guidance.Combine = guidance.cfg
    if program.edits:
        blind = model.denoiser(own, inputs["empty"], controls=controls)
        combine = guidance.add_contrast(blind, inputs["image_scale"] - 1, of_null=True)
    if program.perturbed:
        other = cast(UNet, own.network).clone(identity_attention=program.perturbed)
        weak = model.denoiser(own._replace(network=other), inputs["cond"], controls=controls)
        combine = guidance.add_contrast(weak, guidance.per_evaluation(inputs["perturbed"]), combine)
    if program.rescale:
        combine = guidance.rescale(own.parameterization, program.rescale, combine)
    denoise = model.denoiser(
        own,
        inputs["cond"],
        null=inputs["null"] if guided else None,
        scale=inputs["scale"] if guided else None,
        controls=controls,
        combine=combine,
        always=program.guided == "always" or bool(program.perturbed) or program.edits,
    )
    if program.perturbed and not guided:
        scale = guidance.per_evaluation(1 + inputs["perturbed"])
        denoise = guidance.contrast(denoise, weak, scale)
    return program.scheduler.bound(denoise)


def _apply_controls(program: Program, inputs: Inputs) -> list[control.AppliedControl]:
    """Return the ControlNets of a program with their arrays, for `diffjax.model.denoiser`."""
    return [
        apply_control(
            ControlNetwork(net, given.get("params")),
            program.model.parameterization,
            given["hint"],
            guidance.per_evaluation(given["strength"]),
            control.BALANCES[balance],
        )
        for (net, balance), given in zip(program.nets, inputs.get("controls", ()), strict=True)
    ]


def read_hints(request: Request, size: tuple[int, int]) -> list[Tree]:
    """Read the images of ControlNets at the size of the output.

    Args:
        request: the request with its controls.
        size: (height, width) of the output in pixels.

    Returns:
        For each control an array (1 or B, H, W, C), where B counts images; for ControlNets that
        read several kinds a dict, see `UnionControlNet`.

    Raises:
        RequestError: an image cannot be read, or there is neither one nor one per prompt or image.
    """
    hints: list[Tree] = []
    for k, one in enumerate(request.list_controls()):
        name, channels = f"control[{k}].image", one.net.net.hint_channels
        given: Any = (one.image,) if one.kind is None else one.image
        read = [_read_hint(request, name, image, channels, size) for image in given]
        if one.kind is None:
            hints.append(read[0])
            continue
        together = np.stack(np.broadcast_arrays(*read), axis=1)
        kinds = np.asarray(one.kind, np.int32)[None]
        hints.append({"images": together, "kinds": kinds, "scales": np.ones(kinds.shape, "f4")})
    return hints


def _read_hint(
    request: Request, name: str, image: object, channels: int, size: tuple[int, int]
) -> np.ndarray:
    """Read one image of a ControlNet, (1 or B, H, W, C); see `read_hints`.

    Raises:
        RequestError: it cannot be read, or there is neither one nor one per prompt or image.
    """
    options: Options = dict(channels=channels, latents=0, size=size, low=-1)
    hint: np.ndarray = images.read_picture(name, images.read_images, image, **options)[0]
    if len(hint) == 1:
        return hint
    count = (request.num, request.count_images(), "control image")
    return images.read_picture(name, images.repeat_for_images, hint, *count)


def _find_scale(one: Control, image: Image | None, *, xl: bool) -> float:
    """Return the scale of a control; ``"diffusers"`` is the default of the pipelines there.

    These are 0.8 for image-to-image, 0.5 for inpainting, and 1 for XL's inpainting and from noise.
    """
    if one.scale != OF_DIFFUSERS:
        return float(one.scale)
    if image is None:
        return 1.0
    if image.mask is None:
        return 0.8
    return 1.0 if xl else 0.5


def plan_controls(
    request: Request, rows: Rows, count: int, hints: Sequence[Tree], *, xl: bool
) -> tuple[tuple[tuple[ControlNet | T2IAdapter, str], ...], list[Inputs]]:
    """Plan when and how strongly ControlNets and T2I-Adapters act.

    A T2I-Adapter does not depend on z, so its hint is replaced by the features that it makes of it,
    and the loop needs none of its parameters.

    Args:
        request: the request with its controls.
        rows: the padded plan.
        count: rows that are run.
        hints: see `read_hints`.

        xl: whether the model is one of Stable Diffusion XL.

    Returns:
        The networks with the names of their balances, and for each its params, hint and strength
            (rows,), which is 0 outside of its window.
    """
    nets, given = [], []
    for one, hint in zip(request.list_controls(), hints, strict=True):
        scale = _find_scale(one, request.read_image(), xl=xl)
        # Means over all pixels only make sense on the conditional half, as in diffusers.
        balance = "guess" if getattr(one.net.net, "pool", False) else one.balance
        strength = np.zeros(len(rows.level.t), np.float32)
        if isinstance(hint, dict) and hint["kinds"].shape[1] > 1:  # hints are scaled themselves
            hint, scale = {**hint, "scales": np.full_like(hint["scales"], scale)}, 1.0
        strength[:count] = scale * control.window(count, one.start, one.end)
        nets.append((one.net.net, balance))
        network = ControlNetwork(one.net.net, one.net.params)
        one_given: dict[str, Tree] = {"hint": hint, "strength": strength}
        if network.is_adapter:
            one_given["hint"] = _prepare_hint(one.net.net, one.net.params, hint)
        else:
            one_given["params"] = one.net.params
        given.append(one_given)
    return tuple(nets), given


@partial(jax.jit, static_argnums=0)
def _prepare_hint(net: T2IAdapter, params: Params, hint: Array) -> Tree:
    return ControlNetwork(net, params).prepare_hint(hint)


def classify_guidance(scales: np.ndarray, scale: float) -> str:
    """Say whether no step is guided (``no``), each step (``always``) or a part of them
    (``sometimes``).

    Args:
        scales: guidance scale of every evaluation; 1 where guidance is off.
        scale: the scale that the request asks for.
    """
    if scale <= 1 or (scales == 1).all():
        return "no"
    return "sometimes" if (scales == 1).any() else "always"


def scale_perturbed(rows: Rows, perturbed: PerturbedAttention) -> np.ndarray:
    """Scale of perturbed-attention guidance by row (rows,), float32."""
    fallen = perturbed.adaptive * (1000 - np.asarray(rows.level.t, np.float64))
    return np.maximum(perturbed.scale - fallen, 0).astype(np.float32)


def find_known_levels(rows: Rows, count: int, to_the_end: bool) -> dict[str, np.ndarray]:
    """Find the noise levels of known pixels after every row: those of the next state.

    Args:
        rows: the padded plan.
        count: rows that are run.
        to_the_end: whether the run ends at the data. Then known pixels are clean after the last
            row.

    Returns:
        ``alpha`` and ``sigma``, each (rows,).
    """
    alpha, sigma = np.array(rows.next.alpha), np.array(rows.next.sigma)
    if to_the_end:
        alpha[count - 1], sigma[count - 1] = 1, 0
    return {"alpha": alpha, "sigma": sigma}


@partial(jax.jit, static_argnums=(1, 2))
def draw_noise(keys: jax.Array, shape: tuple[int, ...], k: int) -> Array:
    """Return draw ``k`` of standard normal noise ``(B, *shape)``, with row b drawn from key b."""
    return loop.image_noise(keys, shape)(0, k)


@jax.jit
def fold_keys(keys: jax.Array, data: int) -> jax.Array:
    """Fold a number into every key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


@partial(jax.jit, static_argnums=0)
def encode_posterior(net: Module, params: Params, pixels: Array) -> Posterior:
    """Return the autoencoder's posterior for images (B, H, W, 3) in [-1, 1]."""
    return net.apply({"params": params}, pixels, method="encode")


@partial(jax.jit, static_argnums=0)
def decode(net: Module, params: Params, z: Array, *kept: Array) -> Array:
    """Decode latents (B, h, w, C), without scaling factor, to images (B, H, W, 3) in [-1, 1].

    Args:
        kept: an image in [-1, 1] and a mask, for `AsymmetricAutoencoderKL`.
    """
    return net.apply({"params": params}, z, *kept, method="decode")
