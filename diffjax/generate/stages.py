"""Turn a request into stages: runs of the one sampling loop, with a model and maybe its refiner.

A stage is made in two steps. `plan` works on the host and raises every error that a request can
cause; `Plan.build` then encodes texts and images. `make_stages` plans all stages before it builds
the first, so a wrong request costs no time on the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from absl import logging

from diffjax import guidance
from diffjax.generate import conditions, program, scene
from diffjax.generate.beside import HALF, INSTRUCTION
from diffjax.generate.checks import RequestError, refuse
from diffjax.generate.crops import Crop
from diffjax.generate.fitting import (
    check_adapters,
    check_controls,
    check_embedded_guidance,
    check_perturbed,
    check_refiner,
    check_upscaler,
    choose_scale,
    list_adapters,
    make_own_scheduler,
)
from diffjax.generate.keys import make_keys
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import (
    PerturbedAttention,
    Refiner,
    Sampling,
)
from diffjax.generate.program import Program
from diffjax.generate.prompt_images import embed_image_prompts, read_prompt_pictures
from diffjax.generate.request import Request
from diffjax.model.published import choose_parameterization, make_published_model
from diffjax.nets.image_prompts import join_layers
from diffjax.parameterization import check_levels
from diffjax.pretrained.schedulers import Scheduler
from diffjax.samplers import loop
from diffjax.types import Array, Grid, Rows, Tree, summarize

ROWS = 1024  # plans are padded to multiples of it, so that their length is no part of a program
CONTINUED = 2**31 - 1  # folded into the keys of a run that goes on from another


class Stage(NamedTuple):
    """One run of the sampling loop, ready to be executed.

    Attributes:
        program: what is compiled.
        inputs: the arrays that the program reads, see `program.advance`.
        rows: the plan, padded to a multiple of `ROWS`.
        length: number of rows to run.
        z: state (B, h, w, C) to begin with, unless another stage went before.
        ends: whether the run ends at the data.
        crop: what its images are a part of, or None.
        kept: image (B, H, W, 3) in [-1, 1] and mask of what is filled in, for decoders that read
            them; empty for others.
    """

    program: Program
    inputs: program.Inputs
    rows: Rows
    length: int
    z: Array
    ends: bool = True
    crop: Crop | None = None
    kept: tuple[np.ndarray, ...] = ()

    def __repr__(self) -> str:
        return summarize(self)

    def begin(self, before: Array | None) -> loop.Run:
        """Begin the run from z, or from where the stage before it ended.

        Args:
            before: what `end` of the stage before returned, or None for the first stage.
        """
        z = self.z if before is None else before * self.rows.level.alpha[0]
        return loop.begin(self.program.sampler, z, self.rows, watch=True)

    def advance(self, run: loop.Run, rows: Rows, first: int | Array, last: int | Array) -> loop.Run:
        """Run rows ``first`` to ``last - 1``."""
        return program.advance(self.program, self.inputs, run, rows, first, last)

    def end(self, run: loop.Run) -> Array:
        """Return ``z / alpha`` at the end of the run, a measure that does not depend on the
        scheduler's scale.
        """
        return run.z / self.rows.next.alpha[self.length - 1]

    def finish(self, run: loop.Run) -> Array:
        """The latents of a run that is done: those of images, or what another one begins from."""
        return run.z if self.ends else self.end(run)


class Plan(NamedTuple):
    """A stage before anything is computed. Whatever could be refused has been checked.

    Attributes:
        pipe: the model that runs it.
        request: the request in full.
        layout: size, image and mask.
        scheduler: noise levels and solver.
        init_std: standard deviation of the initial noise.
        rows: the plan, padded to a multiple of `ROWS`.
        length: number of rows to run.
        scales: guidance scale by row, (rows,).
        guided: ``no``, ``always`` or ``sometimes``, see `program.classify_guidance`.
        hints: images of ControlNets, see `program.read_hints`.
        pictures: of image prompts, see `prompt_images.read_prompt_pictures`.
        start: fraction of the denoising at which it begins.
        end: fraction of the denoising at which it ends, 1 for the data.
    """

    pipe: LoadedModel
    request: Request
    layout: scene.SceneLayout
    scheduler: Scheduler
    init_std: float
    rows: Rows
    length: int
    scales: np.ndarray
    guided: str
    hints: list[Tree]
    pictures: list[np.ndarray]
    start: float
    end: float

    def build(self) -> Stage:
        """Encode texts and images, draw the noise, and gather the inputs of the program."""
        pipe, request, rows, length = self.pipe, self.request, self.rows, self.length
        unet, handed_over = pipe.parts.unet, request.latents if self.start else None
        if self.start:  # other noise than that of the run before
            keys = program.fold_keys(make_keys(request.key, request.count_images()), CONTINUED)
            request = dataclasses.replace(request, key=keys, latents=None)
        view, ends = scene.make_scene(pipe, request, self.layout), self.end == 1
        guiding, guided = request.read_guidance(), self.guided != "no"
        cond, null = conditions.make_conditions(pipe, request, view.size, guided=guided)
        params = join_layers(
            unet.params, *(one.adapter.layers for one in request.list_image_prompts())
        )
        cond |= embed_image_prompts(request, self.pictures, hidden=False)
        inputs: program.Inputs = {"params": params, "keys": view.keys, "cond": cond}
        if adapters := list_adapters(request).get("unet"):
            inputs["lora"] = list(adapters)
        if guided:
            null |= embed_image_prompts(request, self.pictures, hidden=True)
            inputs |= {"null": null, "scale": self.scales}
        for name, value in (("concat", view.concat), ("label", view.label)):
            if value is not None:
                cond[name] = null[name] = value
        if edits := guided and pipe.beside == INSTRUCTION:
            inputs["empty"] = {**null, "concat": jnp.zeros_like(cast(Array, view.concat))}
            inputs["image_scale"] = np.float32(1.5 if guiding.image is None else guiding.image)
        if view.known is not None:
            inputs["known"] = view.known | program.find_known_levels(rows, length, ends)
        nets, inputs["controls"] = program.plan_controls(
            request, rows, length, self.hints, xl=pipe.is_xl
        )
        if request.step_noise is not None:
            inputs["noise"] = jnp.asarray(request.step_noise, jnp.float32)
        perturbed = cast(PerturbedAttention | None, guiding.perturbed)
        if perturbed is not None:
            inputs["perturbed"] = program.scale_perturbed(rows, perturbed)
        made = Program(
            make_published_model(pipe.parts, self.scheduler),
            self.scheduler,
            self.guided,
            guiding.rescale if guided else 0.0,
            nets,
            tuple(perturbed.layers) if perturbed else (),
            edits,
        )
        if handed_over is None:
            z = view.begin(rows, self.init_std)
        else:
            z = jnp.asarray(rows.level.alpha[0] * handed_over)
        kept = scene.find_kept(pipe, self.layout)
        return Stage(made, inputs, rows, length, z, ends, self.layout.crop, kept)


def plan(
    pipe: LoadedModel,
    request: Request,
    shape: tuple[int, int] | None = None,
    start: float = 0.0,
    end: float = 1.0,
) -> Plan:
    """Check a request and plan its run, or its part between two fractions of the denoising.

    Args:
        pipe: the model.
        request: the request, read in full.
        shape: (h, w) of the latents, if they come from another stage.
        start: fraction of the denoising at which this run begins, for a refiner.
        end: fraction at which it ends, for a base model with a refiner.

    Raises:
        RequestError: something does not fit the model.
    """
    guiding, layout = request.read_guidance(), scene.lay_out(pipe, request, shape)
    if pipe.beside == HALF and guiding.scale == 0:  # as in diffusers: the prompt has no effect
        request = dataclasses.replace(
            request, prompt=("",) * (request.count_images() // request.num)
        )
    scheduler, grid, rows = _plan_rows(pipe, request.read_sampler(), layout, start, end)
    try:
        check_levels(choose_parameterization(pipe.parts, scheduler), rows.level)
    except ValueError as error:
        raise RequestError("sampler", str(error)) from error
    length = len(rows.level.t)
    padded = loop.pad(rows, -(-length // ROWS) * ROWS)
    scale = choose_scale(pipe, guiding)
    scales = guidance.interval(padded, scale, low=guiding.low, high=guiding.high)
    embedded = bool(pipe.parts.unet.net.guidance_dim)
    guided = "no" if embedded else program.classify_guidance(scales[:length], scale)
    if guided == "no" and scale > 1 and not embedded:
        logging.warning(
            "no step is guided: none has a noise over signal between guidance.low=%g and "
            "guidance.high=%g",
            guiding.low,
            guiding.high,
        )
    conditions.check_conditions(pipe, request, guided=guided != "no")
    check_upscaler(pipe, request)
    check_controls(pipe, request)
    check_adapters(pipe, request)
    check_perturbed(pipe, guiding)
    check_embedded_guidance(pipe, guiding)
    if guiding.image is not None and pipe.beside != INSTRUCTION:
        raise refuse("guidance.image", "is for models that edit images by instruction")
    hints = program.read_hints(request, layout.size[:2])
    pictures = read_prompt_pictures(pipe, request)
    planned = (pipe, request, layout, scheduler, grid.init_std, padded, length, scales, guided)
    return Plan(*planned, hints, pictures, start, end)


def _plan_rows(
    pipe: LoadedModel,
    sampling: Sampling,
    layout: scene.SceneLayout,
    start: float,
    end: float,
) -> tuple[Scheduler, Grid, Rows]:
    """The scheduler of a run, and the levels that it visits between two fractions.

    Raises:
        RequestError: the sampler does not take what is asked for, or no step is left.
    """
    lists = {name: getattr(sampling, name) for name in ("timesteps", "sigmas")}
    given = [name for name, values in lists.items() if values is not None]
    own = sampling._replace(steps=0, timesteps=None, sigmas=None, start=0.0, end=1.0)
    scheduler = pipe.remember(("scheduler", repr(own)), lambda: make_own_scheduler(pipe, own))
    steps = None if given else sampling.steps
    try:
        grid = scheduler.grid(steps, **lists, strength=layout.strength, start=start)
        return scheduler, grid, scheduler.rows(grid, end)
    except ValueError as error:
        name = "image.strength" if layout.strength < 1 else f"sampler.{(*given, 'steps')[0]}"
        raise RequestError(name, str(error)) from error


def make_stages(pipe: LoadedModel, request: Request) -> list[tuple[LoadedModel, Stage]]:
    """Check the whole request, then build its stages, each with the pipeline that runs it.

    Raises:
        RequestError: an argument is wrong, or does not fit the model. Errors of the second stage
            start with ``refiner:``.
    """
    request = request.read()
    sampling, refiner = request.read_sampler(), request.read_refiner()
    _check_handover(request)
    if refiner is None:
        plans = [plan(pipe, request, None, sampling.start, sampling.end)]
    else:
        check_refiner(pipe, refiner)
        first = plan(pipe, request, None, sampling.start, refiner.start)
        shape = first.layout.latent_sides(pipe.parts.vae.net.factor)
        plans = [first, _plan_refiner(request, refiner, shape, sampling.end)]
    return [(one.pipe, one.build()) for one in _share_noise(request, plans)]


def _plan_refiner(request: Request, refiner: Refiner, shape: tuple[int, int], end: float) -> Plan:
    """
    Raises:
        RequestError: something does not fit the refiner's model.
    """
    own: dict[str, Any] = {
        name: value
        for name, value in (("prompt", refiner.prompt), ("guidance", refiner.guidance))
        if value is not None
    }
    rest = dataclasses.replace(
        request,
        control=(),
        lora=(),
        refiner=None,
        latents=None,
        freeu=None,
        image_prompt=(),
        **own,
    )
    if (there := rest.count_images()) != (wanted := request.count_images()):
        counts = f"{wanted // request.num} prompts, but the refiner has {there // request.num}"
        raise RequestError("refiner.prompt", f"there are {counts}")
    try:
        return plan(refiner.pipe, rest, shape, refiner.start, end)
    except RequestError as error:
        where = "refiner." if error.argument.partition(".")[0] in own else ""
        raise RequestError(f"{where}{error.argument}", f"refiner: {error}") from error


def _share_noise(request: Request, plans: list[Plan]) -> list[Plan]:
    """Give every run its part of the noise that the caller gave.

    Raises:
        RequestError: it has another number of entries than there are evaluations, or other shapes.
    """
    noise = request.step_noise
    if noise is None:
        return plans
    parts = plans[0].pipe.parts
    sides = plans[0].layout.latent_sides(parts.vae.net.factor)
    total = sum(one.length for one in plans)
    wanted = (total, request.count_images(), *sides, parts.vae.net.latent_channels)
    if np.shape(noise) != wanted:
        raise refuse(
            "step_noise",
            f"must be {wanted}, one entry for each of {total} evaluations of the network, "
            f"got {np.shape(noise)}",
        )
    cuts = np.split(np.asarray(noise), np.cumsum([one.length for one in plans])[:-1])
    return [
        one._replace(request=dataclasses.replace(one.request, step_noise=part))
        for one, part in zip(plans, cuts, strict=True)
    ]


def _check_handover(request: Request) -> None:
    """
    Raises:
        RequestError: a run that goes on from another one lacks its latents, or is told a strength;
            or a refiner does not take over between start and end.
    """
    sampling, image, refiner = (
        request.read_sampler(),
        request.read_image(),
        request.read_refiner(),
    )
    if sampling.start and request.latents is None:
        raise refuse(
            "latents",
            f"is missing: sampler.start={sampling.start:g} continues what a run with "
            f"sampler.end={sampling.start:g} and output='latent' returned",
        )
    if sampling.start and image is not None and image.strength is not None:
        raise refuse("image.strength", "has no meaning with sampler.start, which says what is left")
    if refiner is not None and not sampling.start < refiner.start < sampling.end:
        raise refuse(
            "refiner.start",
            f"must lie between sampler.start={sampling.start:g} and "
            f"sampler.end={sampling.end:g}, got {refiner.start:g}",
        )
