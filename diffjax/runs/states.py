"""The task, the model and the training state of a config, as descriptions or with parameters.

`build_task` and `build_model` need no data and no parameters. `make_abstract_state` gives the
shapes of the state, by which checkpoints are read and plans are made.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from diffjax.model import Model, make_model
from diffjax.model.condition import list_frozen_clips
from diffjax.model.image_prompt_condition import ENCODER, SECTION, make_image_encoder
from diffjax.nets.initialisation import describe_network
from diffjax.runs.batches import make_abstract_batch, read_image_shape
from diffjax.runs.exported import read_export
from diffjax.tasks import assemble_model, find_task_kind, make_task
from diffjax.tasks.alignment import refuse_alignment
from diffjax.tasks.objectives import OF_TARGETS
from diffjax.train import Checkpoints, State, init_state, make_optimizer
from diffjax.train.sharding import make_mesh, make_tree_sharding, with_sharding
from diffjax.train.snapshots import reconstruct
from diffjax.types import ConfigError, Frozen, Params, Task, refuse_config


def build_task(cfg: ConfigDict) -> Task:
    """Build the task of a config: what is trained, as a pure loss.

    Raises:
        ConfigError: the task is unknown, or its parts are wrong or do not fit together.
    """
    with refuse_config():
        make = find_task_kind(cfg).make
        refuse_alignment(cfg)
        if find_task_kind(cfg).trains_beside and cfg.cond.train_text:
            raise ConfigError(
                f"cond.train_text=True trains whole encoders with the network, and task={cfg.task} "
                "freezes both: set cond.train_text=False; adapters are lora.text_targets"
            )
        return make(cfg, read_image_shape(cfg), cfg.data.levels, cfg.data.num_classes)


def build_model(cfg: ConfigDict) -> Model:
    """Build the diffusion model that a config describes, without parameters.

    Raises:
        ConfigError: the task of the config trains no diffusion model, or its parts are wrong.
    """
    with refuse_config():
        if find_task_kind(cfg).assemble is None:
            raise ConfigError(f"this needs a diffusion model, but the task is {cfg.task!r}")
        return make_model(cfg, read_image_shape(cfg), cfg.data.levels, cfg.data.num_classes)


def assemble_trained(
    cfg: ConfigDict, state: State, frozen: Frozen | None, *, raw: bool = False
) -> Model:
    """Build the model of a config with the parameters that were trained.

    Args:
        state: of the training.
        frozen: parameters that the task reads but does not train, see `load_fixed_parts`.
        raw: whether to take the parameters of the last step in place of their average.

    Raises:
        ConfigError: the task of the config trains no diffusion model.
    """
    with refuse_config():
        params = state.params if raw else state.ema
        return assemble_model(cfg, read_image_shape(cfg), params, frozen, state.extra)


def make_run_mesh(cfg: ConfigDict) -> jax.sharding.Mesh:
    """Make the device mesh of a config.

    If the config was made for another number of devices, each device holds all parameters and takes
    a share of the batch; the log has a warning.
    """
    try:
        return make_mesh(cfg.mesh)
    except ValueError as error:
        logging.warning("%s; the batch is split over all of them instead", error)
        return make_mesh()


def make_abstract_state(cfg: ConfigDict, task: Task | None = None) -> State:
    """Describe the training state of a config by shapes and types, without memory for it.

    Args:
        task: of the config, if it has been built already.
    """
    task = task or build_task(cfg)
    optimizer = make_optimizer(cfg.optim, cfg.train.steps)
    beside = find_task_kind(cfg).trains_beside
    base = {**make_abstract_base(cfg), **make_abstract_encoders(cfg)} if beside else None
    init = partial(init_state, task, optimizer)
    return jax.eval_shape(init, jax.random.key(0), base, make_abstract_batch(cfg, 1))


def make_abstract_encoders(cfg: ConfigDict) -> dict[str, Params]:
    """Describe the frozen encoders of texts and pictures by shapes and types, by name."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = {name: describe_network(net, ids) for name, net in list_frozen_clips(cfg).items()}
    if vision := make_image_encoder(cfg):
        image = jax.ShapeDtypeStruct((1, vision.size, vision.size, 3), jnp.float32)
        made[ENCODER] = describe_network(vision, image)
    return made


def make_abstract_base(cfg: ConfigDict) -> dict[str, Params]:
    """Describe the frozen base of a ControlNet or of adapters by shapes and types.

    Returns:
        ``base``, the parameters, and ``statistics``, what the base measured of its data, if
        anything.
    """
    key, batch = jax.random.key(0), make_abstract_batch(cfg, 1)
    if SECTION in cfg:  # which is beside the base
        cfg = cfg.copy_and_resolve_references()
        with cfg.unlocked():
            del cfg[SECTION]
    plain = make_task(cfg, read_image_shape(cfg), cfg.data.levels, cfg.data.num_classes)
    params, extra = jax.eval_shape(lambda k, b: plain.init(k, None, b), key, batch)
    own = ("times", *OF_TARGETS)  # of the training, not of the data
    return join_base(params, {k: v for k, v in extra.items() if k not in own})


def join_base(params: Params, statistics: Params) -> dict[str, Params]:
    """Join a base and its statistics, if it has any, under the names by which tasks read them."""
    return {"base": params, **({"statistics": statistics} if statistics else {})}


def read_state(
    cfg: ConfigDict, where: Path, *, best: bool = False, ema_length: float | None = None
) -> State:
    """Read the trained state in a workdir or an exported file; that of the optimiser is left out.

    Args:
        where: a workdir, whose newest valid checkpoint is read, or a .safetensors file.
        best: whether to read the best state of the run in place of the last one.
        ema_length: relative length of the average, which is made of the run's snapshots if it was
            not kept (`diffjax.train.snapshots`); None for the average of the checkpoint.

    Raises:
        ConfigError: there is no checkpoint, or there are no snapshots to make the average of.
        ValueError: an exported file does not fit the config.
    """
    if where.suffix == ".safetensors":
        if ema_length is not None:
            raise ConfigError(
                f"ema_length={ema_length:g}: {where} holds one average; give the workdir of the run"
            )
        return read_export(where, make_abstract_state(cfg))
    steps = where / ("best" if best else "checkpoints")
    shapes = make_abstract_state(cfg)._replace(opt=None)._asdict()
    abstract = with_sharding(shapes, make_tree_sharding(shapes, make_run_mesh(cfg)))
    found = None
    if steps.is_dir():
        found = Checkpoints(steps).restore(abstract, parts=shapes.keys() - {"opt"})
    if found is None:
        raise ConfigError(f"there is no checkpoint in {steps}; train first with experiments.train")
    logging.info("using the checkpoint of step %d", found[0])
    state = State(**found[1])
    if ema_length is None:
        return state
    step, ema = reconstruct(where, abstract["ema"], found[0], ema_length)
    return state._replace(step=jnp.full_like(state.step, step), ema=ema)


def init_untrained(cfg: ConfigDict, frozen: dict[str, Params] | None = None) -> State:
    """Initialise the state before the first step, with another seed than that of training.

    Args:
        frozen: parameters that the task reads but does not train.
    """
    batch = {"image": jnp.zeros((1, *read_image_shape(cfg))), "label": jnp.zeros(1, jnp.int32)}
    optimizer, task = make_optimizer(cfg.optim, cfg.train.steps), build_task(cfg)
    key = jax.random.key(1)
    return jax.jit(lambda b, f: init_state(task, optimizer, key, f, b))(batch, frozen)
