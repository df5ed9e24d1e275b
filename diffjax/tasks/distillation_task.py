"""Training that starts from a trained model, and may ask it: distillation and tuning.

The base is ``frozen["base"]``. What is trained begins as a copy of it, and losses that need a
teacher find it there (`diffjax.tasks.objectives.Drawn.teacher`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax import parameterization
from diffjax.tasks.beside_task import train_beside
from diffjax.tasks.diffusion_task import make_task
from diffjax.types import Task, select_options


def make_distillation_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains a copy of a base with the loss of the config.

    ``config.distil`` has ``base`` and ``parameterization``, what the base predicts if that is not
    what the student does.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.

    Raises:
        ValueError: as `make_task`.
    """
    name, table = config.distil.parameterization, parameterization.PARAMETERIZATIONS
    teacher = None
    if name:
        options = select_options("parameterization", name, table, config.parameterization)
        teacher = parameterization.make(name, options)
    inner = make_task(config, image_shape, levels, num_classes, teacher=teacher)
    return train_beside(
        inner,
        lambda key, fresh, frozen: jax.tree.map(jnp.copy, frozen["base"]),
        lambda params, frozen, batch: params,
    )
