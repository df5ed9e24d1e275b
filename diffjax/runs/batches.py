"""What the batches of a config hold: their shapes, random ones, and those of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import data
from diffjax.model.condition import ENCODERS, added_shapes, embedding_shapes
from diffjax.runs.hints import hint_shape, make_hints
from diffjax.tasks import task_kind
from diffjax.train.loop import Batches
from diffjax.train.sharding import find_host_share
from diffjax.types import ConfigError

NOISE = "noise"  # the name of the data of smoke runs


def read_image_shape(cfg: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of a config's data.

    Raises:
        ConfigError: ``config.data.image_size`` is neither a number of pixels nor (height, width).
    """
    try:
        height, width = data.sides(cfg.data.image_size)
    except ValueError as error:
        raise ConfigError(f"config.data.{error}") from error
    return height, width, cfg.data.channels


def _texts(cfg: ConfigDict) -> dict[str, ConfigDict]:
    """The text encoders' sections, by the name of their token ids."""
    part = cfg.get("cond", {})  # which a first stage has not
    return {entry: part[entry] for entry in ENCODERS if part.get(entry)}


def _vectors(cfg: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Shapes of what the network is told that is no token."""
    kind = cfg.cond.context if "cond" in cfg else ""
    if kind == "clip_xl":
        return {"time_ids": added_shapes(cfg)["time_ids"]}
    return embedding_shapes(cfg) if kind == "given" else {}


def make_buckets(cfg: ConfigDict) -> data.Buckets | None:
    """Aspect ratios that the images are cropped to; None for squares."""
    step = cfg.data.bucket_step
    return data.Buckets(step, cfg.data.bucket_ratio) if step else None


def abstract_batch(cfg: ConfigDict, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch of ``size`` examples."""
    shapes: dict[str, tuple[int, ...]] = {"image": read_image_shape(cfg), **_vectors(cfg)}
    if task_kind(cfg).takes_hints:
        shapes["hint"] = hint_shape(cfg, shapes["image"])
    batch = {k: jax.ShapeDtypeStruct((size, *v), jnp.float32) for k, v in shapes.items()}
    numbers = {"label": (), **{k: (text.positions,) for k, text in _texts(cfg).items()}}
    return batch | {k: jax.ShapeDtypeStruct((size, *v), jnp.int32) for k, v in numbers.items()}


def make_noise(cfg: ConfigDict, count: int = 64) -> data.Source:
    """Random images of a config's shape, for smoke runs that need no data set."""
    rng, classes = np.random.default_rng(0), cfg.data.num_classes
    source = data.from_arrays(
        rng.integers(0, cfg.data.levels, (count, *read_image_shape(cfg)), np.uint8),
        rng.integers(0, max(classes, 1), count),
        num_classes=classes,
        levels=cfg.data.levels,
    )
    drawn: dict[str, np.ndarray] = {
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


def start_batches(cfg: ConfigDict, source: data.Source) -> Batches:
    """``(step, sharding) -> iterator`` of training batches, placed on the devices ahead of use."""
    hints = make_hints(cfg) if task_kind(cfg).takes_hints else None
    crop = data.make_crop(cfg.data.crop, cfg.data.crop_share)

    def start(step: int, sharding: jax.sharding.Sharding) -> Iterator[dict[str, Any]]:
        part, parts = find_host_share(sharding, cfg.data.batch_size)
        host = data.batches(
            source,
            batch_size=cfg.data.batch_size,
            seed=cfg.seed,
            step=step,
            # An augmentation flips by itself, and says so to the network.
            flip=cfg.data.flip and not cfg.data.augment,
            crop=crop,
            hints=hints,
            num_threads=cfg.data.threads,
            prefetch=cfg.data.prefetch,
            process_index=part,
            process_count=parts,
        )
        return data.device_prefetch(host, sharding)

    return start
