"""Textual inversion (Gal et al. 2022): a new word is learned, and nothing else.

``min_v E |raw(z, t, cond(v)) - target|^2`` over the embeddings v of the word (section 4.1). The
rows v join the frozen table of token embeddings, whose last ids they have; UNet and text encoders
are ``frozen["base"]`` and ``frozen["text_encoder"]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model import Model
from diffjax.model.condition import TABLE, make_clips
from diffjax.tasks.beside_task import train_beside
from diffjax.tasks.diffusion_task import make_task
from diffjax.types import Frozen, Params, Task

ROWS = "embedding"  # the entry with the rows of a text encoder


def make_concept_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that learns a word; ``config.concept`` has ``word``, ``initial``, ``vectors``.

    The parameters are ``{"text_encoder": {"embedding": (vectors, D)}}``, and for Stable Diffusion
    XL the same of its second encoder. They begin at the mean of the table unless the caller has
    others, see `diffjax.runs.concepts`.

    Args:
        config, image_shape, levels, num_classes: see `diffjax.model.make_model`.

    Raises:
        ValueError: as `make_task`, or the config has no frozen text encoder.
    """
    names, count = tuple(make_clips(config)), config.concept.vectors
    if not names or count < 1:
        raise ValueError(
            "task=concept learns a word of frozen text encoders: it needs cond.context=clip or "
            f"clip_xl and concept.vectors of at least 1, got {config.cond.context!r} and {count}"
        )
    inner = make_task(config, image_shape, levels, num_classes)

    def start(key: jax.Array, fresh: Params, frozen: Frozen) -> Params:
        tables = {name: frozen[name][TABLE]["embedding"] for name in names}
        return {k: {ROWS: jnp.tile(v.mean(0, jnp.float32), (count, 1))} for k, v in tables.items()}

    return train_beside(inner, start, lambda params, frozen, _: join_rows(params, frozen))


def join_rows(params: Params, frozen: Frozen) -> Params:
    """Join the rows of the word to the tables of the text encoders, beside the base."""

    def extend(name: str) -> Params:
        table = frozen[name][TABLE]["embedding"]
        rows = params[name][ROWS].astype(table.dtype)
        return {**frozen[name], TABLE: {"embedding": jnp.concatenate([table, rows])}}

    return {**frozen["base"], **{name: extend(name) for name in params}}


def assemble_with_word(
    config: ConfigDict, model: Model, params: Params, frozen: Mapping[str, Params]
) -> Model:
    """Assemble the base whose text encoders know the word.

    Args:
        model: the base, without parameters.
        params, frozen: what the task trained, and what it read.
    """
    return model._replace(params=join_rows(params, frozen))
