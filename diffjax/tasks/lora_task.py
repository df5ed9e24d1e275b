"""Fine-tuning by low-rank adapters (Hu et al. 2021): ``W + (alpha / r) B A`` with W frozen.

``frozen["base"]`` holds the parameters of the network, which are no argument of the gradient. What
is trained, averaged and kept in checkpoints are the adapters alone. Those of text encoders have the
name of the encoder, ``params["text_encoder"]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from diffjax import lora
from diffjax.model import Model
from diffjax.model.condition import ENCODERS, make_clips
from diffjax.tasks.beside_task import train_beside
from diffjax.tasks.diffusion_task import make_task
from diffjax.types import Batch, Frozen, Params, Task


def compute_scale(section: ConfigDict) -> float:
    """Compute the factor ``alpha / r`` of a section ``lora``.

    Raises:
        ValueError: the rank r is not positive.
    """
    if section.rank < 1:
        raise ValueError(f"config.lora.rank must be at least 1, got {section.rank}")
    return section.alpha / section.rank


def make_lora_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains adapters; ``config.lora`` has ``rank``, ``alpha`` and ``targets``.

    With ``text_targets`` the published text encoders get adapters too. The other sections are those
    of the network. ``frozen["statistics"]``, if there, is what the base measured of its data.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.

    Raises:
        ValueError: as `make_task`, a rank below 1, or (by ``init``) unknown targets, listing those
            that there are.
    """
    section, factor = config.lora, compute_scale(config.lora)
    inner = make_task(config, image_shape, levels, num_classes)
    names = tuple(make_clips(config)) if section.text_targets else ()
    if section.text_targets and not names:
        raise ValueError("lora.text_targets needs published text encoders: cond.context=clip")

    def start(key: jax.Array, fresh: Params, frozen: Frozen) -> Params:
        targets = tuple(section.targets)
        adapters = lora.init(key, frozen["base"], rank=section.rank, targets=targets)
        targets = tuple(section.text_targets)
        texts = {
            name: lora.init(
                jax.random.fold_in(key, k), frozen[name], rank=section.rank, targets=targets
            )
            for k, name in enumerate(names)
        }
        return {**adapters, **texts}

    def join(params: Params, frozen: Frozen, batch: Batch) -> Params:
        return lora.merge(_join_encoders(params, frozen), params, factor)

    return train_beside(inner, start, join)


def _join_encoders(params: Params, frozen: Mapping[str, Params]) -> Params:
    """Join the base and the text encoders that have adapters."""
    return {**frozen["base"], **{k: frozen[k] for k in ENCODERS.values() if k in params}}


def assemble_adapted(
    config: ConfigDict, model: Model, params: Params, frozen: Mapping[str, Params]
) -> Model:
    """Assemble the base and the adapters that were trained; calling the model merges them.

    Args:
        model: the base, without parameters.
        params, frozen: what the task trained, and what it read.
    """
    scale = compute_scale(config.lora)
    return model._replace(params=_join_encoders(params, frozen), adapters=((params, scale),))
