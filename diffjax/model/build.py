"""From the sections of a config to the parts of a `Model`, and to the model.

Sections that are read here: ``network``, ``schedule``, ``parameterization``, ``cond``,
``autoencoder``, ``control`` and ``sample``. `diffjax.tasks` calls `make_model` for training, and
`diffjax.runs` calls `make_sampler` and `make_steering` for sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax import grids, guidance, parameterization, samplers, schedules
from diffjax.model.condition import make_condition
from diffjax.model.model import Model, tell_span
from diffjax.model.space import make_space
from diffjax.model.steering_options import PLAIN, LogProb, Steering, WeakModel
from diffjax.nets.dit import DiT
from diffjax.nets.edm2 import EDM2UNet
from diffjax.nets.refinenet import RefineNet
from diffjax.nets.unet import UNet
from diffjax.types import (
    ConfigError,
    Grid,
    Module,
    Parameterization,
    Rows,
    Sampler,
    Schedule,
    build,
    build_section,
    choose,
    option_names,
    refuse_config,
    select_options,
)

NETWORKS: dict[str, Callable[..., Module]] = {
    "unet": UNet,
    "dit": DiT,
    "refinenet": RefineNet,
    "edm2": EDM2UNet,
}


def split_section(part: ConfigDict) -> tuple[str, dict[str, Any]]:
    """Split a section into the name that it chooses and its options; lists become tuples."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}
    return str(options.pop("name")), options


def make_network(config: ConfigDict, out_channels: int, num_classes: int = 0) -> Module:
    """Make the Linen module that ``config.network`` describes.

    Args:
        out_channels: channels of its output, those of a learned variance included.
        num_classes: rows of the class embedding; 0 for a network without classes.

    Raises:
        ConfigError: norms are to know the noise level, but time is continuous.
        ValueError: unknown names or options; the message lists the choices.
    """
    name, options = split_section(config.network)
    options.pop("conditional", None)
    options.pop("head", None)  # of a classifier
    noise_levels = _count_levels(config) if options.pop("level_norms", False) else 0
    dtype = jnp.dtype(options.pop("dtype", "float32"))
    options.update(out_channels=out_channels, num_classes=num_classes, noise_levels=noise_levels)
    options["dtype"] = None if dtype == jnp.float32 else dtype
    # A section holds options of several networks, so that overriding the name alone works.
    others = {option for entry in NETWORKS.values() for option in option_names(entry)}
    takes = option_names(choose("network", name, NETWORKS))
    if "cond" in config and config.cond.get("span", False):
        options |= _embed_span(config, takes)
    options = {k: v for k, v in options.items() if k in takes or k not in others}
    network: Module = build("network", name, NETWORKS, options)
    return network


def _count_levels(config: ConfigDict) -> int:
    """Count the noise levels of a discrete schedule.

    Raises:
        ConfigError: time is continuous.
    """
    if steps := make_schedule(config).steps:
        return steps
    raise ConfigError(
        "network.level_norms tells norms the index of a noise level, but "
        f"schedule.name={config.schedule.name} has continuous time: choose a discrete schedule "
        "such as ve_discrete, or set network.level_norms=False"
    )


def _embed_span(config: ConfigDict, takes: list[str]) -> dict[str, int]:
    """Return the options of a network that is told how far a step goes (``cond.span``).

    Raises:
        ValueError: the network has no second time, or its place is taken by XL's numbers.
    """
    if "added_dim" not in takes:
        raise ValueError(
            f"cond.span=True needs a network with a second time, which network.name="
            f"{config.network.name} has not: set network.name=unet or dit"
        )
    if config.network.span_dim and not config.network.fourier_scale:
        return {"added_dim": 0}
    if config.network.added_dim or config.network.span_dim:
        raise ValueError(
            "cond.span=True adds one number to the time embedding, where the condition has others "
            "already, or Fourier features: set network.added_dim=0 and network.span_dim=0"
        )
    return {"added_dim": config.network.added_time_dim}


def make_schedule(config: ConfigDict) -> Schedule:
    """Make the noise schedule of ``config.schedule``.

    With ``zero_snr`` a discrete schedule is rescaled so that its last timestep is pure noise (Lin
    et al. 2023).

    Raises:
        ValueError: unknown names or options; the message lists the choices.
    """
    name, options = split_section(config.schedule)
    rescale = options.pop("zero_snr", False)
    schedule = build_section("schedule", name, schedules.SCHEDULES, options)
    return schedules.zero_terminal_snr(schedule) if rescale else schedule


def make_parameterization(config: ConfigDict, grid: Grid | None) -> Parameterization:
    """Make the parameterization of ``config.parameterization``.

    Args:
        grid: every timestep of a discrete schedule, which ``mean`` needs.

    Raises:
        ValueError: unknown names or options; the message lists the choices.
    """
    name, options = split_section(config.parameterization)
    learned = options.pop("learned_variance", False)
    table = {**parameterization.PARAMETERIZATIONS, "mean": parameterization.mean}
    options = select_options("parameterization", name, table, options)
    return parameterization.make(name, options, learned_variance=learned, grid=grid)


def make_model(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    levels: int = 256,
    num_classes: int = 0,
) -> Model:
    """Make the model that a config describes, without parameters.

    Args:
        image_shape: (H, W, C) of the data.
        levels: number of grey values of the data.
        num_classes: classes of the data. The network uses them if ``config.network.conditional`` is
            true or ``config.cond.context`` is ``label``.

    Raises:
        ValueError: unknown names or options; the message lists the choices.
    """
    schedule = make_schedule(config)
    grid = grids.full(schedule) if schedule.steps is not None else None
    param = make_parameterization(config, grid)
    space = make_space(config, image_shape)
    condition = make_condition(config, space, num_classes)
    classes = num_classes if config.network.conditional else 0
    dropped, row = _read_dropping(config, classes)
    span_scale = config.network.time_scale if config.cond.get("span", False) else 0.0
    if span_scale:
        condition = condition._replace(example=tell_span(condition.example, 0.0, 1))
    return Model(
        schedule=schedule,
        parameterization=param,
        network=make_network(config, space.shape[-1] * param.channels, classes + row),
        space=space,
        condition=condition,
        statistics=space.extra,
        grid=grid,
        levels=levels,
        num_classes=classes or (num_classes if "label" in condition.names else 0),
        drop=dropped,
        span_scale=span_scale,
    )


def make_sampler(config: ConfigDict, model: Model) -> tuple[Sampler, Rows]:
    """Make the solver of ``config.sample`` and its plan for the schedule of a model.

    Returns:
        The sampler and the rows of its plan, one for each network evaluation.

    Raises:
        ConfigError: a name or an option is wrong, or does not fit the model.
    """
    section = config.sample
    with refuse_config():
        options = select_options("sampler", section.sampler, samplers.SAMPLERS, section)
        sampler = samplers.make(section.sampler, options)
        options = select_options("grid", section.grid, grids.GRIDS, section)
        steps = options.pop("steps")
        rows = sampler.plan(grids.make(section.grid, model.schedule, steps, options))
        parameterization.check_levels(model.parameterization, rows.level)
    return sampler, rows


def make_steering(
    config: ConfigDict, classifier: LogProb | None = None, guide: WeakModel | None = None
) -> Steering:
    """Make the part of ``config.sample`` that is fixed when the loop is compiled.

    Args:
        classifier: log-likelihood that guides in place of the null condition, or None.
        guide: a worse version of the model that does so, or None.
    """
    section = config.sample
    balance = config.control.balance if "control" in config else PLAIN.balance
    return Steering(
        section.guidance_rescale,
        section.guidance_sequential,
        section.clip,
        balance,
        classifier,
        rule=section.guidance_rule,
        rule_options=_read_rule_options(section),
        zero_steps=section.zero_steps,
        guide=guide,
        skip=tuple(section.skip_blocks),
        skip_scale=section.skip_scale,
        skip_range=(section.guidance_low, section.guidance_high),
    )


# Where the options of the rules of guidance are in ``config.sample``.
RULE_OPTIONS = {
    "channels": "guidance_channels",
    "eta": "apg_eta",
    "norm_limit": "apg_norm",
    "low": "fdg_low",
}


def _read_rule_options(section: ConfigDict) -> tuple[tuple[str, float], ...]:
    """Read the options of ``sample.guidance_rule`` that are set.

    Raises:
        ConfigError: there is no such rule.
    """
    with refuse_config():
        known = option_names(choose("guidance rule", section.guidance_rule, guidance.RULES))
    keys = ((k, v) for k, v in RULE_OPTIONS.items() if k in known)
    return tuple((k, section[v]) for k, v in keys if section.get(v) is not None)


def _read_dropping(config: ConfigDict, classes: int) -> tuple[float, int]:
    """Read how training drops the condition, for classifier-free guidance.

    Returns:
        The probability of dropping, and the number of rows that the class embedding has for the
        null
        condition: 1 if it is learned, else 0.

    Raises:
        ValueError: the probability is outside of [0, 1), or the kind of null condition is unknown.
    """
    part = config.cond
    choose("null condition", part.null, {"learned": 0, "zero": 0})
    if not 0 <= part.drop < 1:
        raise ValueError(f"config.cond.drop must lie in [0, 1), got {part.drop}")
    return part.drop, int(classes > 0 and part.drop > 0 and part.null == "learned")
