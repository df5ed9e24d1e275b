"""What of a generation is compiled: the loop with its denoiser, and the autoencoder's halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from diffjax import control, guidance, model
from diffjax.generate import images
from diffjax.generate.options import PerturbedAttention
from diffjax.generate.request import Request
from diffjax.model import ControlNetwork, Model, apply_control
from diffjax.nets.unet import UNet
from diffjax.pretrained.schedulers import Scheduler, to_config
from diffjax.samplers import loop
from diffjax.types import Array, Denoiser, Params, PyTree, Rows, Sampler

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
        model: without parameters; of it the network is compared.
        scheduler: compared by what of it is compiled only.
        guided: ``no``, ``always``, or ``sometimes`` (see `classify_guidance`).
        rescale: of the guidance.
        nets: ControlNets and adapters, and how each is balanced with the prompt.
        perturbed: attentions that are the identity in the network which perturbed-attention
            guidance leads away from; empty without it.
        edits: the image beside the latents has a scale of guidance of its own.
    """

    model: Model = dataclasses.field(compare=False)
    scheduler: Scheduler = dataclasses.field(compare=False)
    guided: str
    rescale: float
    nets: tuple[tuple[Any, str], ...]
    perturbed: tuple[str, ...] = ()
    edits: bool = False
    compiled: Any = dataclasses.field(init=False)

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
    program: Program, inputs: PyTree, run: loop.Run, rows: Rows, first: Any, last: Any
) -> loop.Run:
    """`loop.advance` of a program; ``inputs`` are the arrays that it is given.

    Args:
        inputs: params, keys and cond; with guidance null and scale (rows,); for inpainting known;
            with ControlNets their params, hints and strengths, see `plan_controls`; with low-rank
            adapters lora, pairs of these and their scales; with perturbed attention its scales
            (rows,); with noise of the caller's noise (rows, B, h, w, C); with an image of its own
            scale image_scale and empty, the null condition without it.
    """
    if "noise" in inputs:
        noise = loop.given_noise(inputs["noise"])
    else:
        noise = loop.image_noise(inputs["keys"], run.z.shape[1:])
    known = inputs.get("known")

    def put_back(z: Array, row: Rows) -> Array:
        """Known pixels, as noisy as the state is now."""
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
        on_step=None if known is None else put_back,
    )


def build_denoiser(program: Program, inputs: PyTree) -> Denoiser:
    """The model's denoiser, guided and bounded as the program says."""
    own = program.model._replace(
        params=inputs["params"], adapters=tuple(inputs.get("lora", ())), controls=()
    )
    controls, guided = _apply_controls(program, inputs), program.guided != "no"
    combine: guidance.Combine = guidance.cfg
    extra: guidance.Scale | None = None
    if program.edits:
        blind = model.denoiser(own, inputs["empty"], controls=controls)
        combine = guidance.contrasted(blind, inputs["image_scale"] - 1, of_null=True)
    if program.perturbed:
        other = cast(UNet, own.network).clone(identity_attention=program.perturbed)
        weak = model.denoiser(own._replace(network=other), inputs["cond"], controls=controls)
        extra = guidance.per_evaluation(inputs["perturbed"])
        combine = guidance.contrasted(weak, extra, combine)
    if program.rescale:
        combine = guidance.rescaled(own.parameterization, program.rescale, combine)
    denoise = model.denoiser(
        own,
        inputs["cond"],
        null=inputs["null"] if guided else None,
        scale=inputs["scale"] if guided else None,
        controls=controls,
        combine=combine,
        always=program.guided == "always" or bool(program.perturbed) or program.edits,
    )
    if extra is not None and not guided:
        denoise = guidance.contrast(denoise, weak, lambda level: 1 + extra(level))
    return program.scheduler.bound(denoise)


def _apply_controls(program: Program, inputs: PyTree) -> list[control.AppliedControl]:
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


def read_hints(request: Request, size: tuple[int, int]) -> list[np.ndarray]:
    """The images of ControlNets at the size of the output, one or one for each image.

    Raises:
        RequestError: one of them cannot be read, or there is another number of them.
    """
    hints = []
    for k, one in enumerate(request.list_controls()):
        name, channels = f"control[{k}].image", one.net.net.hint_channels
        options: dict[str, Any] = dict(channels=channels, latents=0, size=size, low=-1)
        hint = images.read_picture(name, images.read_images, one.image, **options)[0]
        if len(hint) > 1:
            hint = images.read_picture(
                name,
                images.repeat_for_images,
                hint,
                request.num,
                request.count_images(),
                "control image",
            )
        hints.append(hint)
    return hints


def plan_controls(
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
    for one, hint in zip(request.list_controls(), hints, strict=True):
        # Means over all pixels only make sense on the conditional half, as in diffusers.
        balance = "guess" if getattr(one.net.net, "pool", False) else one.balance
        strength = np.zeros(len(rows.level.t), np.float32)
        strength[:count] = one.scale * control.window(count, one.start, one.end)
        nets.append((one.net.net, balance))
        network = ControlNetwork(one.net.net, one.net.params)
        one_given = {"hint": hint, "strength": strength}
        if network.is_adapter:
            one_given["hint"] = _prepare_hint(one.net.net, one.net.params, hint)
        else:
            one_given["params"] = one.net.params
        given.append(one_given)
    return tuple(nets), given


@partial(jax.jit, static_argnums=0)
def _prepare_hint(net: Any, params: Params, hint: Array) -> Any:
    return ControlNetwork(net, params).prepare_hint(hint)


def classify_guidance(scales: np.ndarray, scale: float) -> str:
    """``no`` for a scale of at most 1, else whether guidance acts ``always`` or ``sometimes``."""
    if scale <= 1 or (scales == 1).all():
        return "no"
    return "sometimes" if (scales == 1).any() else "always"


def scale_perturbed(rows: Rows, perturbed: PerturbedAttention) -> np.ndarray:
    """Scale of perturbed-attention guidance by row (rows,), float32."""
    fallen = perturbed.adaptive * (1000 - np.asarray(rows.level.t, np.float64))
    return np.maximum(perturbed.scale - fallen, 0).astype(np.float32)


def find_known_levels(rows: Rows, count: int, to_the_end: bool) -> dict[str, np.ndarray]:
    """(alpha, sigma) of known pixels after every row: those of the next one, at last clean."""
    alpha, sigma = np.array(rows.next.alpha), np.array(rows.next.sigma)
    if to_the_end:
        alpha[count - 1], sigma[count - 1] = 1, 0
    return {"alpha": alpha, "sigma": sigma}


@partial(jax.jit, static_argnums=(1, 2))
def draw_noise(keys: jax.Array, shape: tuple[int, ...], k: int) -> Array:
    """Return draw ``k`` of standard noise (B, *shape), a row per key."""
    return loop.image_noise(keys, shape)(0, k)


@jax.jit
def fold_keys(keys: jax.Array, data: Any) -> jax.Array:
    """Fold a number into every key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


@partial(jax.jit, static_argnums=0)
def encode_posterior(net: Any, params: PyTree, pixels: Array) -> Any:
    """Return the posterior of images (B, H, W, 3) in [-1, 1]."""
    return net.apply({"params": params}, pixels, method="encode")


@partial(jax.jit, static_argnums=0)
def decode(net: Any, params: PyTree, z: Array) -> Array:
    """Decode latents (B, h, w, C) to images (B, H, W, 3) in [-1, 1]."""
    return net.apply({"params": params}, z, method="decode")
