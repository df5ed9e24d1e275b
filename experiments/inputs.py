"""What the batches of a config hold: their shapes, and random ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import data
from diffjax.model.condition import ENCODERS, added_shapes, embedding_shapes
from experiments import common, controlled


def _texts(cfg: ConfigDict) -> dict[str, ConfigDict]:
    """The text encoders' sections, by the name of their token ids."""
    part = cfg.get("cond", {})
    return {entry: part[entry] for entry in ENCODERS if part.get(entry)}


def _vectors(cfg: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Shapes of what the network is told that is no token."""
    kind = cfg.get("cond", {}).get("context", "")
    if kind == "clip_xl":
        return {"time_ids": added_shapes(cfg)["time_ids"]}
    return embedding_shapes(cfg) if kind == "given" else {}


def buckets_of(cfg: ConfigDict) -> data.Buckets | None:
    """Aspect ratios that the images are cropped to; None for squares."""
    step = cfg.data.get("bucket_step", 0)
    return data.Buckets(step, cfg.data.bucket_ratio) if step else None


def abstract_batch(cfg: ConfigDict, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch of ``size`` examples."""
    shapes: dict[str, Any] = {"image": common.image_shape(cfg), **_vectors(cfg)}
    if cfg.task == "controlnet":
        shapes["hint"] = controlled.hint_shape(cfg)
    batch = {k: jax.ShapeDtypeStruct((size, *v), jnp.float32) for k, v in shapes.items()}
    numbers = {"label": (), **{k: (text.positions,) for k, text in _texts(cfg).items()}}
    return batch | {k: jax.ShapeDtypeStruct((size, *v), jnp.int32) for k, v in numbers.items()}


def noise(cfg: ConfigDict, count: int = 64) -> data.Source:
    """Random images of a config's shape, for smoke runs that need no data set."""
    rng, classes = np.random.default_rng(0), cfg.data.num_classes
    source = data.from_arrays(
        rng.integers(0, cfg.data.levels, (count, *common.image_shape(cfg)), np.uint8),
        rng.integers(0, max(classes, 1), count),
        num_classes=classes,
        levels=cfg.data.levels,
    )
    drawn = {
        name: rng.integers(0, text.vocabulary, (count, text.positions), np.int32)
        for name, text in _texts(cfg).items()
    }
    for name, shape in _vectors(cfg).items():
        drawn[name] = rng.standard_normal((count, *shape)).astype("f4")
    if not drawn:
        return source
    return dataclasses.replace(
        source, more=lambda indices: {k: v[indices] for k, v in drawn.items()}
    )
