"""Optimizers and learning-rate schedules from a config section."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import jax
import optax

from diffjax.types import PyTree, build


def learning_rate(section: Any, steps: int) -> optax.Schedule:
    """Linear warm-up over ``warmup`` steps, then ``constant``, ``cosine`` or ``linear`` decay.

    Args:
        section: ``lr``, ``warmup``, ``decay`` and ``lr_end`` (a fraction of lr).
        steps: optimiser steps of the whole run, where the decay ends.

    Raises:
        ValueError: unknown decay, or a warm-up longer than the run's decay.
    """
    lr, warmup = section.lr, section.warmup
    after = max(steps - warmup, 1)
    decays = {
        "constant": lambda: optax.constant_schedule(lr),
        "cosine": lambda: optax.cosine_decay_schedule(lr, after, section.lr_end),
        "linear": lambda: optax.linear_schedule(lr, lr * section.lr_end, after),
    }
    main = build("learning-rate decay", section.decay, decays)
    if section.decay != "constant" and warmup >= steps:
        raise ValueError(f"optim.warmup={warmup} leaves nothing of train.steps={steps} to decay in")
    if not warmup:
        return main
    # The first update already moves: step n of the warm-up uses lr * (n + 1) / warmup.
    return optax.join_schedules(
        [optax.linear_schedule(lr / warmup, lr, max(warmup - 1, 1)), main], [warmup]
    )


def make_optimizer(section: Any, steps: int) -> optax.GradientTransformation:
    """Global-norm clip (``clip``, 0 for none) and Adam, AdamW or SGD; several of them by group.

    ``section.groups``, if there, maps a name to ``match``, a regular expression for the beginning
    of dotted parameter paths, and to options that differ from the section's. A parameter belongs
    to the first group that matches, or to none; each group is clipped by its own norm.

    Raises:
        ValueError: unknown optimizer, or (when it meets the parameters) a group without any.
    """
    groups = dict(section.get("groups", None) or {})
    if not groups:
        return _one_optimizer(section, steps)
    merged = {
        name: _one_optimizer(SimpleNamespace(**{**dict(section), **dict(own)}), steps)
        for name, own in groups.items()
    }
    patterns = {name: re.compile(own["match"]) for name, own in groups.items()}
    return optax.multi_transform(
        {_REST: _one_optimizer(section, steps), **merged}, lambda tree: _labels(tree, patterns)
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


def _one_optimizer(section: Any, steps: int) -> optax.GradientTransformation:
    schedule = learning_rate(section, steps)
    moments = {"b1": section.b1, "b2": section.b2, "eps": section.eps}
    table = {
        "adam": lambda: optax.adam(schedule, **moments),
        "adamw": lambda: optax.adamw(schedule, **moments, weight_decay=section.weight_decay),
        "sgd": lambda: optax.sgd(schedule),
    }
    optimizer = build("optimizer", section.name, table)
    return (
        optax.chain(optax.clip_by_global_norm(section.clip), optimizer)
        if section.clip
        else optimizer
    )
