"""Training an IP-Adapter beside a frozen base (Ye et al. 2023, section 3.2.2).

The loss is that of the base, ``E |raw(z, t, text, picture) - target|^2``, with the image itself as
the picture; text and picture are dropped each alone and both (``cond.drop``). The projection and
the keys and values of the pictures are trained; ``frozen["base"]``, the text encoders and
``frozen["image_encoder"]`` stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model import Model
from diffjax.model.image_prompt_condition import PROJECTION, SECTION
from diffjax.nets.image_prompts import copy_layers, join_layers
from diffjax.tasks.beside_task import train_beside
from diffjax.tasks.diffusion_task import make_task
from diffjax.types import Batch, Frozen, Params, Task

LAYERS = "layers"  # the entry with the keys and values of the pictures


def make_ip_adapter_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains an IP-Adapter; ``config.ip_adapter`` describes it.

    The parameters are ``{"image_proj": ..., "layers": ...}``. The layers begin as copies of those
    of the text, as the released code does.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.

    Raises:
        ValueError: as `make_task`; or the config has no section ``ip_adapter``, or (by ``init``)
            the network attends to no text.
    """
    if SECTION not in config:
        raise ValueError(f"task={SECTION} needs the section config.{SECTION}")
    inner = make_task(config, image_shape, levels, num_classes)

    def start(key: jax.Array, fresh: Params, frozen: Frozen) -> Params:
        layers = jax.tree.map(jnp.copy, copy_layers(frozen["base"]))
        return {PROJECTION: fresh[PROJECTION], LAYERS: layers}

    def join(params: Params, frozen: Frozen, batch: Batch) -> Params:
        return _join(params, frozen)

    return train_beside(inner, start, join)


def _join(params: Params, frozen: Mapping[str, Params]) -> Params:
    joined = join_layers(frozen["base"], params[LAYERS])
    return {**joined, PROJECTION: params[PROJECTION]}


def assemble_prompted(
    config: ConfigDict, model: Model, params: Params, frozen: Mapping[str, Params]
) -> Model:
    """Assemble the base and the IP-Adapter that was trained beside it.

    Args:
        model: the base, without parameters.
        params, frozen: what the task trained, and what it read.
    """
    return model._replace(params=_join(params, frozen))
