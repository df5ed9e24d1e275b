"""Optimizers and learning-rate schedules from a config section."""

from __future__ import annotations

from typing import Any

import optax

from diffjax.types import build


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
    """Global-norm clip (``clip``, 0 for none) and Adam, AdamW or SGD.

    Raises:
        ValueError: unknown optimizer.
    """
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
