"""Optimizers and learning-rate schedules from a config section."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from diffjax.types import PyTree, option_names, select_options, suggest


def _constant(lr: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(lr)


def _cosine(lr: float, steps: int, lr_end: float = 0.0) -> optax.Schedule:
    return optax.cosine_decay_schedule(lr, steps, lr_end)


def _linear(lr: float, steps: int, lr_end: float = 0.0) -> optax.Schedule:
    return optax.linear_schedule(lr, lr * lr_end, steps)


DECAYS: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}


def _adam(
    lr: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    return optax.adam(lr, b1=b1, b2=b2, eps=eps)


def _adamw(
    lr: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    return optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def _sgd(lr: optax.Schedule, momentum: float = 0.0) -> optax.GradientTransformation:
    return optax.sgd(lr, momentum=momentum or None)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def learning_rate(section: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up over ``warmup`` steps, then ``constant``, ``cosine`` or ``linear`` decay.

    Args:
        section: ``lr``, ``warmup``, ``decay`` and ``lr_end`` (a fraction of lr; 0 if not given).
        steps: optimiser steps of the whole run, where the decay ends.

    Raises:
        ValueError: unknown decay, or a warm-up longer than the run's decay.
    """
    lr, warmup = section["lr"], section["warmup"]
    name = section["decay"]
    options = select_options("learning-rate decay", name, DECAYS, section)
    main = DECAYS[name](**{**options, "lr": lr, "steps": max(steps - warmup, 1)})
    if name != "constant" and warmup >= steps:
        raise ValueError(f"optim.warmup={warmup} leaves nothing of train.steps={steps} to decay in")
    if not warmup:
        return main
    # The first update already moves: step n of the warm-up uses lr * (n + 1) / warmup.
    return optax.join_schedules(
        [optax.linear_schedule(lr / warmup, lr, max(warmup - 1, 1)), main], [warmup]
    )


def make_optimizer(section: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """Global-norm clip (``clip``, 0 for none) and Adam, AdamW or SGD; several of them by group.

    ``section.groups``, if there, maps a name to ``match``, a regular expression for the beginning
    of dotted parameter paths, and to options that differ from the section's. A parameter belongs
    to the first group that matches, or to none; each group is clipped by its own norm.

    Raises:
        ValueError: unknown optimizer, or (when it meets the parameters) a group without any.
    """
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


_REST = ""  # parameters of no group


def _labels(tree: PyTree, patterns: dict[str, re.Pattern[str]]) -> PyTree:
    """The group of every leaf."""

    def group(path: Any, leaf: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return next((g for g, pattern in patterns.items() if pattern.match(name)), _REST)

    labels = jax.tree_util.tree_map_with_path(group, tree)
    for name in sorted(set(patterns) - set(jax.tree.leaves(labels))):
        raise ValueError(
            f"optim.groups.{name}: no parameter path begins like {patterns[name].pattern!r}"
        )
    return labels


# Keys of the section that are no options of a decay or an optimiser.
_OTHERS = {"name", "decay", "lr", "warmup", "clip", "groups", "match"}


def _make_one(
    section: Mapping[str, Any], steps: int, where: str = "optim"
) -> optax.GradientTransformation:
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
