"""Optimizers and learning-rate schedules from a config section.

`OPTIMIZERS` wraps constructors of optax so that each takes ``lr`` and those options of the section
``optim`` that it has. `DECAYS` holds the decays of the learning rate.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.tree_util import KeyPath
from ml_collections import ConfigDict

from diffjax.types import Array, Config, Params, option_names, select_options, suggest

Optimizer: TypeAlias = optax.GradientTransformation
Section: TypeAlias = Config | ConfigDict  # config.optim, or a group of it


def _constant(lr: float, steps: int) -> optax.Schedule:
    """Keep the learning rate at ``lr``."""
    return optax.constant_schedule(lr)


def _cosine(
    lr: float, steps: int, lr_end: float = 0.0, decay_steps: int | None = None
) -> optax.Schedule:
    """Let the learning rate fall from ``lr`` to ``lr lr_end`` along half a cosine."""
    return optax.cosine_decay_schedule(lr, steps, lr_end)


def _linear(
    lr: float, steps: int, lr_end: float = 0.0, decay_steps: int | None = None
) -> optax.Schedule:
    """Let the learning rate fall from ``lr`` to ``lr lr_end`` along a line."""
    return optax.linear_schedule(lr, lr * lr_end, steps)


def _inverse_sqrt(
    lr: float, steps: int, warmup: int = 0, decay_steps: int | None = None
) -> optax.Schedule:
    """Let the learning rate of step n be ``lr / sqrt(max(n / decay_steps, 1))``.

    Karras et al. 2024 (arXiv:2312.02696), eq. 67. Steps are counted from the start of the warm-up.
    """
    flat = decay_steps or warmup + steps
    return lambda step: lr / jnp.sqrt(jnp.maximum((step + warmup) / flat, 1.0))


DECAYS: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "inverse_sqrt": _inverse_sqrt,
}


# Optimisers of optax that take a learning rate that changes, and need neither the value of the
# loss nor a line search: their update is a function of the gradient and the parameters.
_OF_OPTAX = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw"),
    *("adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw"),
    *("novograd", "optimistic_adam_v2", "optimistic_gradient_descent", "radam", "rmsprop"),
    *("sgd", "sign_sgd", "signum", "yogi"),
)
# Optimisers of optax.contrib, but those that evaluate at other parameters than they update.
_OF_CONTRIB = (
    *("acprop", "ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "madgrad", "muon"),
    *("prodigy", "simplified_ademamix"),
)
# Options of the section optim.
_OPTIONS = ("b1", "b2", "eps", "weight_decay", "momentum", "nesterov")


def _wrap(name: str, constructor: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Wrap a constructor of optax so that it takes ``lr`` and those of `_OPTIONS` that it has.

    The signature says which these are, with optax's defaults. Where optax's default is None, for
    no momentum, it is 0 here.
    """
    own = inspect.signature(constructor).parameters
    none = {key for key in _OPTIONS if key in own and own[key].default is None}
    defaults = {key: 0.0 if key in none else own[key].default for key in _OPTIONS if key in own}

    def construct(lr: optax.Schedule, **options: float) -> Optimizer:
        values = {**defaults, **options}
        if values.get("nesterov") and values.get("momentum") == 0.0:
            raise ValueError(f"optim.nesterov=True needs optim.momentum, which is 0 for {name!r}")
        given = {key: value for key, value in values.items() if value or key not in none}
        return constructor(learning_rate=lr, **given)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    construct.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("lr", kind)]
        + [inspect.Parameter(key, kind, default=value) for key, value in defaults.items()]
    )
    return construct


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    name: _wrap(name, getattr(module, name))
    for module, names in ((optax, _OF_OPTAX), (optax.contrib, _OF_CONTRIB))
    for name in names
}


def learning_rate(section: Section, steps: int) -> optax.Schedule:
    """Return the learning rate by step: a linear warm-up, then one of `DECAYS`.

    Args:
        section: ``lr``, ``warmup`` (steps), ``decay`` and ``lr_end`` (a fraction of lr; 0 if
            absent). ``decay_steps``, if given, is where the decay ends, or, of inverse_sqrt, where
            it begins. With ``lr_start``, a
            fraction of lr, step n of the warm-up has ``lr (lr_start + (1 - lr_start) n / warmup)``.
        steps: optimiser steps of the whole run, where the decay ends.

    Raises:
        ValueError: unknown decay, or a warm-up longer than the run's decay.
    """
    lr, warmup = section["lr"], section["warmup"]
    name = section["decay"]
    options = select_options("learning-rate decay", name, DECAYS, section)
    steps = options.get("decay_steps") or steps
    main = DECAYS[name](**{**options, "lr": lr, "steps": max(steps - warmup, 1)})
    if name != "constant" and warmup >= steps:
        raise ValueError(
            f"optim.warmup={warmup} must be less than train.steps={steps}: no step is left to "
            "decay in"
        )
    if not warmup:
        return main
    start = section.get("lr_start")
    if start is not None:
        return optax.join_schedules([optax.linear_schedule(lr * start, lr, warmup), main], [warmup])
    # The first update already moves: step n of the warm-up uses lr * (n + 1) / warmup.
    return optax.join_schedules(
        [optax.linear_schedule(lr / warmup, lr, max(warmup - 1, 1)), main], [warmup]
    )


def make_optimizer(section: Section, steps: int) -> Optimizer:
    """Make the optimiser of a section: clip by the global norm, then one of `OPTIMIZERS`.

    With ``section.unit_kernels`` the kernels that it leads to have magnitude 1, see
    `keep_unit_kernels`.

    ``section.groups``, if there, maps a name to ``match``, a regular expression for the beginning
    of dotted parameter paths, and to options that differ from the section's. A parameter belongs
    to the first group that matches, or to none; each group is clipped by its own norm.

    Args:
        section: ``config.optim``, with ``name``, ``clip`` (0 for none) and the options of the
            optimiser and of `learning_rate`.
        steps: optimiser steps of the whole run.

    Raises:
        ValueError: unknown optimizer or key, or (when it meets the parameters) a group without any.
    """
    optimizer = _make_groups(section, steps)
    return keep_unit_kernels(optimizer) if section.get("unit_kernels", False) else optimizer


def _make_groups(section: Section, steps: int) -> Optimizer:
    """Make the optimiser of a section, with those of its groups."""
    groups = dict(section.get("groups", None) or {})
    if not groups:
        return _make_one(section, steps)
    merged = {
        name: _make_one({**dict(section), **dict(own)}, steps, f"optim.groups.{name}")
        for name, own in groups.items()
    }
    patterns = {name: re.compile(own["match"]) for name, own in groups.items()}
    return optax.multi_transform(
        {_REST: _make_one(section, steps), **merged}, lambda tree: _labels(tree, patterns)
    )


def keep_unit_kernels(optimizer: Optimizer) -> Optimizer:
    """Let an optimiser lead to kernels of magnitude 1, the root of the mean square of each output.

    This is the forced weight normalisation of Karras et al. 2024, section 2.3, for networks that
    divide their kernels by this magnitude themselves (`diffjax.nets.magnitude`): their output does
    not change, but kernels, which would grow, and the effective learning rate, which would fall,
    stay as they are. Outputs are the last axis of a kernel; other parameters are left alone.
    """

    def update(
        grads: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        updates, state = optimizer.update(grads, state, params)
        return jax.tree_util.tree_map_with_path(_lead_to_unit, updates, params), state

    return optax.GradientTransformation(optimizer.init, update)


def _lead_to_unit(path: KeyPath, update: Array, value: Array) -> Array:
    """Change the update of a kernel so that the kernel has magnitude 1 afterwards."""
    if jax.tree_util.keystr(path[-1:], simple=True) != "kernel" or value.ndim < 2:
        return update
    new = value + update
    square = jnp.mean(jnp.square(new), axis=range(value.ndim - 1), keepdims=True)
    return new / jnp.sqrt(jnp.maximum(square, 1e-30)) - value


_REST = ""  # parameters of no group


def _labels(tree: Params, patterns: dict[str, re.Pattern[str]]) -> Params:
    """Return the name of the group of every leaf.

    Raises:
        ValueError: a group has no leaf.
    """

    def group(path: KeyPath, leaf: object) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return next((g for g, pattern in patterns.items() if pattern.match(name)), _REST)

    labels = jax.tree_util.tree_map_with_path(group, tree)
    for name in sorted(set(patterns) - set(jax.tree.leaves(labels))):
        raise ValueError(
            f"optim.groups.{name}: no parameter path begins like {patterns[name].pattern!r}"
        )
    return labels


# Keys of the section that are not options of a decay or an optimiser.
_OTHERS = {
    *("name", "decay", "lr", "lr_start", "warmup", "clip", "groups", "match", "unit_kernels"),
}


def _make_one(section: Section, steps: int, where: str = "optim") -> Optimizer:
    """Make the optimiser of a section without groups.

    Args:
        section: the options.
        steps: optimiser steps of the whole run.
        where: path of the section in the config, for messages.

    Raises:
        ValueError: unknown optimiser, decay or key.
    """
    tables = (*OPTIMIZERS.values(), *DECAYS.values())
    known = _OTHERS.union(*map(option_names, tables)) - {"steps"}
    for key in section:
        if key not in known:
            raise ValueError(f"unknown key {where}.{key}{suggest(key, known)}")
    name = section["name"]
    options = select_options("optimizer", name, OPTIMIZERS, section)
    optimizer = OPTIMIZERS[name](**{**options, "lr": learning_rate(section, steps)})
    clip = section["clip"]
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer
