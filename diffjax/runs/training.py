"""What a config trains: its task, model, mesh and state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from diffjax.model import Model, make_model
from diffjax.runs.batches import abstract_batch, read_image_shape
from diffjax.tasks import assemble_model, task_kind
from diffjax.train import Checkpoints, State, init_state, make_optimizer
from diffjax.train.sharding import make_mesh, tree_sharding, with_sharding
from diffjax.types import ConfigError, Params, PyTree, Task, refuse_config

Frozen = Mapping[str, Params]


def build_task(cfg: ConfigDict) -> Task:
    """The task of a config.

    Raises:
        ConfigError: the task is unknown, or its parts are wrong or do not fit together.
    """
    with refuse_config():
        make = task_kind(cfg).make
        return make(cfg, read_image_shape(cfg), cfg.data.levels, cfg.data.num_classes)


def build_model(cfg: ConfigDict) -> Model:
    """The diffusion model that a config describes, without parameters.

    Raises:
        ConfigError: the config is of another task, or its parts are wrong.
    """
    with refuse_config():
        if task_kind(cfg).assemble is None:
            raise ConfigError(f"this needs a diffusion model, but the task is {cfg.task!r}")
        return make_model(cfg, read_image_shape(cfg), cfg.data.levels, cfg.data.num_classes)


def assemble_trained(cfg: ConfigDict, state: State, frozen: Frozen | None) -> Model:
    """The model of a config with what was trained, averaged.

    Args:
        frozen: what the task reads but does not train.

    Raises:
        ConfigError: the config is of a task that trains no diffusion model.
    """
    with refuse_config():
        return assemble_model(cfg, read_image_shape(cfg), state.ema, frozen, state.extra)


def choose_mesh(cfg: ConfigDict) -> jax.sharding.Mesh:
    """The mesh of a config; all devices hold a share of the images where it was for other ones."""
    try:
        return make_mesh(cfg.mesh)
    except ValueError as error:
        logging.warning("%s; the batch is split over all of them instead", error)
        return make_mesh()


def abstract_state(cfg: ConfigDict, task: Task, base: PyTree = None) -> State:
    """Shapes of the training state, without memory.

    Args:
        base: shapes of what a task that trains beside a base reads of it.
    """
    init = partial(init_state, task, make_optimizer(cfg.optim, cfg.train.steps))
    return jax.eval_shape(init, jax.random.key(0), base, abstract_batch(cfg, 1))


def restore_state(cfg: ConfigDict, steps: Path, shapes: State) -> State:
    """The newest valid checkpoint of a folder of checkpoints, without the optimiser's state.

    Args:
        shapes: those of `abstract_state`.

    Raises:
        ConfigError: there is none.
    """
    wanted = shapes._replace(opt=None)._asdict()
    placed = with_sharding(wanted, tree_sharding(wanted, choose_mesh(cfg)))
    parts = wanted.keys() - {"opt"}
    found = Checkpoints(steps).restore(placed, parts=parts) if steps.is_dir() else None
    if found is None:
        raise ConfigError(f"there is no checkpoint in {steps}; train first with experiments.train")
    logging.info("using the checkpoint of step %d", found[0])
    return State(**found[1])


def init_untrained(cfg: ConfigDict, task: Task, frozen: Frozen | None = None) -> State:
    """The state before the first step, with weights from another seed.

    Args:
        frozen: what the task reads but does not train.
    """
    batch = {"image": jnp.zeros((1, *read_image_shape(cfg))), "label": jnp.zeros(1, jnp.int32)}
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    key = jax.random.key(1)
    state: State = jax.jit(lambda b, f: init_state(task, optimizer, key, f, b))(batch, frozen)
    return state
