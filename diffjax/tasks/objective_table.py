"""The table of objectives by ``config.loss.name``. A new one is one function and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from diffjax import losses
from diffjax.model import Model
from diffjax.model.build import split_section
from diffjax.tasks.alignment import Alignment
from diffjax.tasks.consistency import make_consistency
from diffjax.tasks.few_steps import make_mean_flow, make_progressive, make_reflow, make_shortcut
from diffjax.tasks.objectives import (
    Measure,
    Objective,
    make_hybrid,
    make_vlb,
    measure_aligned,
    measure_one_level,
    measure_simple,
)
from diffjax.types import Array, build_section, choose, option_names, select_options

# Constructors take those of `PARTS` that they name; their other arguments are options of the
# section ``loss``.
OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "simple": lambda measure: measure_one_level(measure),
    "vlb": make_vlb,
    "hybrid": make_hybrid,
    "consistency": make_consistency,
    "mean_flow": make_mean_flow,
    "shortcut": make_shortcut,
    "progressive": make_progressive,
    "reflow": make_reflow,
}
# The model, the optimiser steps of the training, and the simple loss.
PARTS = ("model", "steps", "measure")
# Settings of ``loss`` that have a value in every config, this one if nobody decides: those of the
# simple loss, which objectives read that take ``measure``, those that are arguments of an
# objective, and how images and noise are paired.
OF_MEASURE = {"weight": "simple", "distance": "l2", "reduction": "mean"}
OF_SOME = {"variance": "fixedsmall", "vlb_weight": 1e-3}
UNPAIRED = ("reflow",)  # these make their own pairs


def make_noise(config: ConfigDict) -> Callable[..., tuple[Array, Array]]:
    """Make the function that draws the noise of ``config.loss``, see `losses.draw_noise`.

    Raises:
        ValueError: noise that is not N(0, I) with a loss that has the variational bound.
    """
    changed = {k: config.loss.get(k, 0.0) for k in ("noise_offset", "input_perturbation")}
    if config.loss.name in ("vlb", "hybrid") and any(changed.values()):
        raise ValueError(
            f"loss.name={config.loss.name!r} has the variational bound, which holds for noise "
            f"N(0, I) alone: set {' and '.join(f'loss.{k}=0' for k, v in changed.items() if v)}, "
            "or loss.name=simple"
        )
    return partial(
        losses.draw_noise,
        offset=changed["noise_offset"],
        perturbation=changed["input_perturbation"],
    )


def make_objective(
    config: ConfigDict, model: Model, alignment: Alignment | None = None
) -> Objective:
    """Make the objective of ``config.loss``.

    Args:
        alignment: the term that ``loss.name=simple`` gets beside its own, if any.

    Raises:
        ValueError: an unknown objective or option, or a model that it is not for.
    """
    name, options = split_section(config.loss)
    make = choose("loss", name, OBJECTIVES)
    _refuse_unread(name, options)
    if options.get("perceptual_weights") and not compares_pictures(config):
        raise ValueError(
            "loss.perceptual_weights is read by loss.name=consistency with loss.metric=lpips alone"
        )
    measure = _make_measure(config, model)
    if alignment is not None:
        return measure_aligned(measure, alignment)
    parts = {"model": model, "steps": config.train.steps, "measure": measure}
    taken = option_names(make)
    given = select_options("loss", name, OBJECTIVES, options)
    return make(**given, **{k: v for k, v in parts.items() if k in taken})


def list_read(name: str) -> set[str]:
    """Return which settings an objective reads, of those that every config has a value for."""
    taken = set(option_names(OBJECTIVES[name]))
    read = taken & set(OF_SOME) | (set(OF_MEASURE) if "measure" in taken else set())
    return read | ({"pairing"} if name not in UNPAIRED else set())


def _refuse_unread(name: str, options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a setting that the objective does not read has been changed."""
    usual = {**OF_MEASURE, **OF_SOME, "pairing": "independent"}
    for key, value in usual.items():
        if key in list_read(name) or options.get(key, value) == value:
            continue
        others = ", ".join(other for other in OBJECTIVES if key in list_read(other))
        raise ValueError(
            f"loss.name={name!r} does not read loss.{key}, which is {options[key]!r}: set "
            f"loss.{key}={value!r}, or a loss.name that reads it ({others})"
        )


def compares_pictures(config: ConfigDict) -> bool:
    """Return whether a loss reads LPIPS among the frozen parts."""
    loss = config.loss
    return bool(loss.get("name") == "consistency" and loss.get("metric") == "lpips")


def _make_measure(config: ConfigDict, model: Model) -> Measure:
    """Make the weighted distance at one level that ``config.loss`` describes.

    Raises:
        ValueError: an unknown weight, distance or reduction.
    """
    _, options = split_section(config.loss)
    error = choose("loss distance", options.pop("distance", "l2"), losses.ERRORS)
    reduction = options.pop("reduction", "mean")
    weight = options.pop("weight", "simple")
    # One key for one quantity: the network's sigma_data is the weight's.
    options["sigma_data"] = config.parameterization.sigma_data
    options["schedule"] = model.schedule
    known = {option for make in losses.WEIGHTS.values() for option in option_names(make)}
    others = {option for make in OBJECTIVES.values() for option in option_names(make)}
    read_elsewhere = others | {"noise_offset", "input_perturbation", "pairing", "uncertainty"}
    read_elsewhere |= {"perceptual_weights"}
    options = {k: v for k, v in options.items() if k in known or k not in read_elsewhere}
    made = build_section("loss weight", weight, losses.WEIGHTS, options)
    return measure_simple(model, made, error, reduction)
