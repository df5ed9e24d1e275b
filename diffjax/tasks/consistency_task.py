"""Latent consistency distillation into low-rank adapters (Luo et al. 2023 a, b; LCM-LoRA).

The student f is the frozen base with adapters. A guided DDIM step of the base leads from a timestep
t of a grid to the one before, s, and the student is to say the same of both ends:

``E d(f(z_t, t), stop_gradient f(z_s, s))``, with ``f(z, t) = c_skip(t) z + c_out(t) x_hat(z, t)``,
``z_s = alpha_s x_w + sigma_s eps_w`` and ``x_w = x_c + w (x_c - x_u)`` of the base, eps_w likewise.
The distance d is pseudo-Huber, ``sqrt(|a - b|^2 + c^2) - c`` by element.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax import guidance, lora
from diffjax.losses import draw_noise
from diffjax.model import Model, encode, make_model, predict
from diffjax.samplers.consistency import weigh_boundary
from diffjax.tasks.lora_task import compute_scale, make_lora_task
from diffjax.types import (
    Array,
    Batch,
    Cond,
    Frozen,
    Level,
    LossAndState,
    Params,
    Statistics,
    Task,
    expand,
    mix,
)


def make_consistency_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains adapters with which the sampler ``lcm`` needs a few steps.

    ``config.consistency`` has ``steps`` of the grid, ``low`` and ``high`` of the guidance scale
    w, ``huber`` and ``timestep_scaling``; ``config.lora`` the adapters.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.

    Raises:
        ValueError: as `make_lora_task`, a schedule without timesteps, or a condition that cannot be
            guided.
    """
    model = make_model(config, image_shape, levels, num_classes)
    section, factor = config.consistency, compute_scale(config.lora)
    total = model.schedule.steps
    if total is None or not 1 <= section.steps <= total:
        raise ValueError(
            f"consistency.steps={section.steps} must be from 1 to the timesteps of the schedule, "
            f"{total}"
        )
    if not model.condition.guided:
        raise ValueError("task=consistency distils guidance, and needs a condition, such as a text")
    inner = make_lora_task(config, image_shape, levels, num_classes)

    def loss(
        params: Params,
        frozen: Frozen,
        extra: Statistics,
        key: jax.Array,
        step: Array,
        batch: Batch,
    ) -> LossAndState:
        x, extra = model.space.enter(frozen, extra, jax.random.fold_in(key, 5), batch)
        teacher = model._replace(params=frozen["base"], frozen=frozen, statistics=extra)
        student = teacher._replace(params=lora.merge(frozen["base"], params, factor))
        raw = model.condition.take(batch, key)
        conds = encode(teacher, raw), encode(teacher, model.condition.null(raw))
        value = measure_inconsistency(student, teacher, section, x, conds, key)
        return value, (extra, {"loss": value})

    return Task(inner.init, loss)


def measure_inconsistency(
    student: Model,
    teacher: Model,
    section: ConfigDict,
    x: Array,
    conds: tuple[Cond, Cond],
    key: jax.Array,
) -> Array:
    """Measure how far a student differs at both ends of a random guided step of its teacher.

    Args:
        student, teacher: with parameters.
        section: ``config.consistency``.
        x: data (B, h, w, C).
        conds: encoded condition, and the one that says nothing.
        key: of timesteps, noise and guidance scales.

    Returns:
        The mean pseudo-Huber distance, ().
    """
    time_key, noise_key, scale_key = jax.random.split(key, 3)
    skip = (teacher.schedule.steps or 0) // section.steps
    place = jax.random.randint(time_key, x.shape[:1], 1, section.steps + 1)
    t = (place * skip - 1).astype(jnp.float32)
    above, below = (_find_level(teacher, at) for at in (t, jnp.maximum(t - skip, 0)))
    eps, _ = draw_noise(noise_key, x.shape)
    z = mix(x, eps, above)
    scale = jax.random.uniform(scale_key, t.shape, minval=section.low, maxval=section.high)
    lower = _step_guided(teacher, z, (above, below), conds, scale)
    options = section.timestep_scaling
    target = jax.lax.stop_gradient(_apply(student, lower, below, conds[0], options))
    error = _apply(student, z, above, conds[0], options, train=True) - target
    return (jnp.sqrt(error**2 + section.huber**2) - section.huber).mean()


def _find_level(model: Model, t: Array) -> Level:
    return Level(t, *model.schedule.at(t))


def _step_guided(
    teacher: Model,
    z: Array,
    levels: tuple[Level, Level],
    conds: tuple[Cond, Cond],
    scale: Array,
) -> Array:
    """Step by DDIM from one level to another, with a guidance scale w for each image.

    ``x_c + w (x_c - x_u)`` is guidance of scale ``1 + w`` in the terms of `diffjax.guidance`.
    """
    said, silent = (predict(teacher, z, levels[0], cond)[1] for cond in conds)
    guided = guidance.cfg(said, silent, 1 + scale, z, levels[0])
    return mix(guided.x, guided.eps, levels[1])


def _apply(
    student: Model, z: Array, level: Level, cond: Cond, scaling: float, *, train: bool = False
) -> Array:
    """Evaluate the consistency function, ``c_skip z + c_out x_hat``."""
    skip, out = weigh_boundary(level.t, timestep_scaling=scaling)
    x = predict(student, z, level, cond, train=train)[1].x
    return expand(skip, z) * z + expand(out, z) * x
