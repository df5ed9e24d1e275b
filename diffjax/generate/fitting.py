"""What of a request has to fit the model: samplers, refiners, control networks and adapters."""

from __future__ import annotations

from typing import Any, cast

import jax
import numpy as np

from diffjax import lora
from diffjax.generate.beside import ENLARGES
from diffjax.generate.checks import RequestError, check_name, refuse
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import (
    Guidance,
    PerturbedAttention,
    Refiner,
    Sampling,
    make_scheduler,
)
from diffjax.generate.request import Request
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.levels import take_level
from diffjax.nets.tiny_autoencoder import AutoencoderTiny
from diffjax.nets.unet import UNet
from diffjax.pretrained.components import HALF
from diffjax.pretrained.schedulers import Scheduler
from diffjax.types import PyTree, choose


def make_own_scheduler(pipe: LoadedModel, sampling: Sampling) -> Scheduler:
    """Make the scheduler of a request for a model, see `make_scheduler`.

    Raises:
        RequestError: the sampler does not have an option, a grid or a value that the request sets.
    """
    try:
        return make_scheduler(pipe.parts.scheduler, sampling)
    except ValueError as error:
        raise RequestError("sampler", str(error)) from error


def choose_scale(pipe: LoadedModel, guiding: Guidance) -> float:
    """The scale of guidance; without one that of diffusers' pipelines."""
    if guiding.scale is not None:
        return guiding.scale
    if pipe.beside in ENLARGES:
        return 9.0
    return 5.0 if pipe.is_xl else 7.5


def check_embedded_guidance(pipe: LoadedModel, guiding: Guidance) -> None:
    """
    Raises:
        RequestError: the scale of guidance is an input of the network, so that it cannot depend on
            the noise level, nor be rescaled.
    """
    if not pipe.parts.unet.net.guidance_dim:
        return
    for name, default in (("low", 0.0), ("high", np.inf), ("rescale", 0.0)):
        if (value := getattr(guiding, name)) != default:
            raise refuse(
                f"guidance.{name}",
                f"is {value:g}, but guidance is an input of this model (time_cond_proj_dim): "
                "there is no unguided prediction",
            )


def check_refiner(pipe: LoadedModel, refiner: Refiner) -> None:
    """Check that a refiner can go on from the latents and noise levels of the base model.

    Latents of another scale cannot be converted: their noise would be scaled with them, so that
    they would lie at no level of the refiner's steps.

    Raises:
        RequestError: the refiner has other latents, or was trained with other noise levels.
    """
    names = ["latent_channels", "factor"]
    vaes = [p.parts.vae.net for p in (pipe, refiner.pipe)]
    if not any(isinstance(vae, AutoencoderTiny) for vae in vaes):  # whose latents have the scale 1
        names += ["scaling_factor", "shift_factor", "latents_mean", "latents_std"]
    for name in names:
        ours, theirs = (getattr(vae, name) for vae in vaes)
        if ours != theirs:
            raise RequestError(
                "refiner",
                f"this pipeline cannot be refined by that one: the {name} of its latents is "
                f"{ours}, that of the refiner's {theirs}",
            )
    ours, theirs = (_compute_levels(p) for p in (pipe, refiner.pipe))
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-3):
        raise RequestError(
            "refiner",
            "this pipeline cannot be refined by that one: the noise levels that they were trained "
            "with differ (beta_schedule, beta_start and beta_end of their schedulers)",
        )


def _compute_levels(pipe: LoadedModel) -> np.ndarray:
    """Return ``sigma / alpha`` at nine times of the model's own schedule, to compare two models."""
    schedule = pipe.remember(
        ("scheduler", "own"), lambda: make_own_scheduler(pipe, Sampling())
    ).schedule
    times = np.linspace(schedule.span[0], schedule.span[1], 9)
    alpha, sigma = schedule.at(np.round(times) if schedule.steps else times)
    with np.errstate(divide="ignore"):
        return np.asarray(sigma) / np.asarray(alpha)


def check_upscaler(pipe: LoadedModel, request: Request) -> None:
    """
    Raises:
        RequestError: the model is a latent upscaler, and the request changes its network.
    """
    if pipe.beside != HALF:
        return
    given = {
        "control": request.list_controls(),
        "image_prompt": request.list_image_prompts(),
        "freeu": request.freeu,
        "guidance.perturbed": request.read_guidance().perturbed,
        "refiner": request.read_refiner(),
    }
    for name, value in given.items():
        if value:
            raise refuse(name, "does not fit this model: a latent upscaler has a UNet of its own")


def check_controls(pipe: LoadedModel, request: Request) -> None:
    """Check that ControlNets and adapters were made for this UNet, by the widths of their layers.

    Raises:
        RequestError: one was made for another base model.
    """
    unet = pipe.parts.unet.net
    for k, one in enumerate(request.list_controls()):
        net = one.net.net
        ours, theirs = _describe_widths(unet), _describe_widths(getattr(net, "base", net))
        if isinstance(net, T2IAdapter):
            ours = {"widths of the levels": ours["widths of the levels"]}
        for name, value in ours.items():
            if theirs[name] and value != theirs[name]:  # 0: it takes no such condition
                raise RequestError(
                    f"control[{k}].net",
                    f"control[{k}].net is for another base: its {name} is {theirs[name]}, that of "
                    f"this model {value}",
                )


def check_adapters(pipe: LoadedModel, request: Request) -> None:
    """Check that low-rank adapters fit the layers of this UNet, by tracing the merge without
    computing.

    Raises:
        RequestError: an adapter has a layer that the UNet lacks, or a factor of another shape.
    """
    texts = {name: text.model for name, text in pipe.parts.texts.items()}
    networks = {"unet": pipe.parts.unet, **texts}
    for k, one in enumerate(request.list_loras()):
        for part, tree in one.by_network().items():
            try:
                if part not in networks:
                    raise ValueError(f"it has no {part}")
                jax.eval_shape(lora.merge, networks[part].params, tree, one.scale)
            except (ValueError, TypeError, KeyError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                raise RequestError(
                    f"lora[{k}].weights",
                    f"lora[{k}].weights do not fit this model: {reason}; take pipe.load_lora(path)",
                ) from error


def list_adapters(request: Request) -> dict[str, tuple[tuple[PyTree, float], ...]]:
    """The low-rank adapters of every network and their scales, by the network's name."""
    out: dict[str, tuple[tuple[PyTree, float], ...]] = {}
    for one in request.list_loras():
        for part, tree in one.by_network().items():
            out[part] = (*out.get(part, ()), (tree, float(one.scale)))
    return out


def check_perturbed(pipe: LoadedModel, guiding: Guidance) -> None:
    """
    Raises:
        RequestError: there is no attention of a name.
    """
    perturbed = cast(PerturbedAttention | None, guiding.perturbed)
    if perturbed is None:
        return
    names = [name for name in pipe.parts.unet.params if ".attentions." in name]
    known = dict.fromkeys([*(name.rpartition(".attentions.")[0] for name in names), *names])
    for k, layer in enumerate(perturbed.layers):
        where = f"guidance.perturbed.layers[{k}]"
        check_name(where, layer, lambda name: choose("attention", name, known))


def _describe_widths(net: UNet | T2IAdapter) -> dict[str, Any]:
    """Return the numbers in which a network and its ControlNet or adapter must agree, by their
    names.
    """
    if isinstance(net, T2IAdapter):
        return {"widths of the levels": tuple(net.widths)}
    return {
        "widths of the levels": tuple(int(net.channels * m) for m in net.multipliers),
        "blocks per level": tuple(
            take_level("blocks", net.blocks, i) for i in range(len(net.multipliers))
        ),
        "width of the text": net.context_dim,
        "added condition": net.added_dim,
    }
