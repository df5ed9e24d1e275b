"""Turn a request into stages: runs of the one sampling loop, with a model and maybe its refiner.

A stage is made in two steps. `plan` works on the host and raises every error that a request can
cause; `Plan.build` then encodes texts and images. `make_stages` plans all stages before it builds
the first, so a wrong request costs no time on the device.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from diffjax import guidance, lora
from diffjax.generate import conditions, program, scene
from diffjax.generate.checks import RequestError
from diffjax.generate.keys import make_keys
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import Refiner, Sampling, make_scheduler
from diffjax.generate.program import Program
from diffjax.generate.request import Request
from diffjax.model.published import make_published_model
from diffjax.nets.adapter import T2IAdapter
from diffjax.nets.unet import UNet
from diffjax.parameterization import check_levels
from diffjax.pretrained.schedulers import Scheduler
from diffjax.samplers import loop
from diffjax.types import Array, Rows, summarize

ROWS = 1024  # plans are padded to multiples of it, so that their length is no part of a program
REFINER = 2**31 - 1  # folded into the keys of a refiner


class Stage(NamedTuple):
    """One run of the sampling loop, ready to be executed.

    Attributes:
        program: what is compiled.
        inputs: the arrays that the program reads, see `program.advance`.
        rows: the plan, padded to a multiple of `ROWS`.
        length: number of rows to run.
        z: state (B, h, w, C) to begin with, unless another stage went before.
    """

    program: Program
    inputs: program.Inputs
    rows: Rows
    length: int
    z: Array

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
        ends: whether the run ends at the data; False if a refiner goes on.
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
    hints: list[np.ndarray]
    ends: bool

    def build(self) -> Stage:
        """Encode texts and images, draw the noise, and gather the inputs of the program."""
        pipe, request, rows, length = self.pipe, self.request, self.rows, self.length
        view, unet = scene.make_scene(pipe, request, self.layout), pipe.parts.unet
        guided = self.guided != "no"
        cond, null = conditions.make_conditions(pipe, request, view.size, guided=guided)
        inputs: program.Inputs = {"params": unet.params, "keys": view.keys, "cond": cond}
        if adapters := request.list_loras():
            inputs["lora"] = [(one.weights, float(one.scale)) for one in adapters]
        if guided:
            inputs |= {"null": null, "scale": self.scales}
        if view.concat is not None:
            cond["concat"] = null["concat"] = view.concat
        if view.known is not None:
            inputs["known"] = view.known | program.find_known_levels(rows, length, self.ends)
        nets, inputs["controls"] = program.plan_controls(
            request, rows, length, self.hints, xl=pipe.is_xl
        )
        rescale = request.read_guidance().rescale if guided else 0.0
        own = make_published_model(pipe.parts, self.scheduler)
        made = Program(own, self.scheduler, self.guided, rescale, nets)
        return Stage(made, inputs, rows, length, view.begin(rows, self.init_std))


def plan(
    pipe: LoadedModel,
    request: Request,
    shape: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
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
    sampling, guiding = request.read_sampler(), request.read_guidance()
    layout = scene.lay_out(pipe, request, shape)
    scheduler = pipe.remember(
        ("scheduler", repr(sampling._replace(steps=0))),
        lambda: _make_own_scheduler(pipe, sampling),
    )
    try:
        grid = scheduler.grid(sampling.steps, strength=layout.strength, start=start)
        rows = scheduler.rows(grid, end)
    except ValueError as error:
        name = "image.strength" if layout.strength < 1 else "sampler.steps"
        raise RequestError(name, str(error)) from error
    try:
        check_levels(scheduler.parameterization, rows.level)
    except ValueError as error:
        raise RequestError("sampler", str(error)) from error
    length = len(rows.level.t)
    padded = loop.pad(rows, -(-length // ROWS) * ROWS)
    scale = (5.0 if pipe.is_xl else 7.5) if guiding.scale is None else guiding.scale
    scales = guidance.interval(padded, scale, low=guiding.low, high=guiding.high)
    guided = program.classify_guidance(scales[:length], scale)
    if guided == "no" and scale > 1:
        logging.warning(
            "no step is guided: none has a noise over signal between guidance.low=%g and "
            "guidance.high=%g",
            guiding.low,
            guiding.high,
        )
    conditions.check_conditions(pipe, request, guided=guided != "no")
    _check_controls(pipe, request)
    _check_adapters(pipe, request)
    hints = program.read_hints(request, layout.size[:2])
    return Plan(
        pipe,
        request,
        layout,
        scheduler,
        grid.init_std,
        padded,
        length,
        scales,
        guided,
        hints,
        end is None,
    )


def _make_own_scheduler(pipe: LoadedModel, sampling: Sampling) -> Scheduler:
    """Make the scheduler of a request for a model, see `make_scheduler`.

    Raises:
        RequestError: the sampler does not have an option, a grid or a value that the request sets.
    """
    try:
        return make_scheduler(pipe.parts.scheduler, sampling)
    except ValueError as error:
        raise RequestError("sampler", str(error)) from error


def make_stages(pipe: LoadedModel, request: Request) -> list[tuple[LoadedModel, Stage]]:
    """Check the whole request, then build its stages, each with the pipeline that runs it.

    Raises:
        RequestError: an argument is wrong, or does not fit the model. Errors of the second stage
            start with ``refiner:``.
    """
    request = request.read()
    refiner = request.read_refiner()
    if refiner is None:
        return [(pipe, plan(pipe, request).build())]
    _check_refiner(pipe, refiner)
    first = plan(pipe, request, end=refiner.start)
    rest = dataclasses.replace(request, control=(), lora=(), refiner=None, latents=None)
    shape = first.layout.latent_sides(pipe.parts.vae.net.factor)
    try:
        second = plan(refiner.pipe, rest, shape, refiner.start)
    except RequestError as error:
        raise RequestError(error.argument, f"refiner: {error}") from error
    # Other noise than that of the base model.
    keys = program.fold_keys(make_keys(request.key, request.count_images()), REFINER)
    second = second._replace(request=dataclasses.replace(rest, key=keys))
    return [(pipe, first.build()), (refiner.pipe, second.build())]


# ---- networks that do not belong together -------------------------------------------------------


def _check_refiner(pipe: LoadedModel, refiner: Refiner) -> None:
    """Check that a refiner can go on from the latents and noise levels of the base model.

    Latents of another scale cannot be converted: their noise would be scaled with them, so that
    they would lie at no level of the refiner's steps.

    Raises:
        RequestError: the refiner has other latents, or was trained with other noise levels.
    """
    for name in ("latent_channels", "factor", "scaling_factor", "shift_factor"):
        ours, theirs = (getattr(p.parts.vae.net, name) for p in (pipe, refiner.pipe))
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
        ("scheduler", "own"), lambda: _make_own_scheduler(pipe, Sampling())
    ).schedule
    times = np.linspace(schedule.span[0], schedule.span[1], 9)
    alpha, sigma = schedule.at(np.round(times) if schedule.steps else times)
    with np.errstate(divide="ignore"):
        return np.asarray(sigma) / np.asarray(alpha)


def _check_controls(pipe: LoadedModel, request: Request) -> None:
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


def _check_adapters(pipe: LoadedModel, request: Request) -> None:
    """Check that low-rank adapters fit the layers of this UNet, by tracing the merge without
    computing.

    Raises:
        RequestError: an adapter has a layer that the UNet lacks, or a factor of another shape.
    """
    for k, one in enumerate(request.list_loras()):
        try:
            jax.eval_shape(lora.merge, pipe.parts.unet.params, one.weights, one.scale)
        except (ValueError, TypeError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise RequestError(
                f"lora[{k}].weights",
                f"lora[{k}].weights do not fit this model: {reason}; take pipe.load_lora(path)",
            ) from error


def _describe_widths(net: UNet | T2IAdapter) -> dict[str, object]:
    """Return the numbers in which a network and its ControlNet or adapter must agree, by their
    names.
    """
    if isinstance(net, T2IAdapter):
        return {"widths of the levels": tuple(net.widths)}
    return {
        "widths of the levels": tuple(int(net.channels * m) for m in net.multipliers),
        "blocks per level": net.blocks,
        "width of the text": net.context_dim,
        "added condition": net.added_dim,
    }
