"""The batches of a config: their shapes, random ones for smoke runs, and those that training reads.

`make_abstract_batch` says what a batch holds before any data are read; the trainer compiles its
step for these shapes. `start_batches` turns a data set (`runs.sources`) into the stream of batches
that `diffjax.train.train` asks for, step by step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import data
from diffjax.model.condition import ENCODERS, list_added_shapes, list_embedding_shapes
from diffjax.model.space import make_space
from diffjax.runs.hints import make_hints, read_hint_shape
from diffjax.tasks import find_task_kind
from diffjax.train.sharding import find_host_share
from diffjax.train.training_loop import Batches
from diffjax.types import Batch, ConfigError

NOISE = "noise"  # the name of the data of smoke runs


def read_image_shape(cfg: ConfigDict) -> tuple[int, int, int]:
    """Read the shape (H, W, C) of the images from ``config.data``.

    Raises:
        ConfigError: ``config.data.image_size`` is neither a number of pixels nor (height, width).
    """
    try:
        height, width = data.sides(cfg.data.image_size)
    except ValueError as error:
        raise ConfigError(f"config.data.{error}") from error
    return height, width, cfg.data.channels


def _select_texts(cfg: ConfigDict) -> dict[str, ConfigDict]:
    """Select the sections of the text encoders, keyed by the entry of a batch with their token ids.

    A config without a section ``cond`` (an autoencoder) has none.
    """
    part = cfg.get("cond", {})  # which a first stage has not
    return {entry: part[entry] for entry in ENCODERS if part.get(entry)}


def _list_vector_shapes(cfg: ConfigDict) -> dict[str, tuple[int, ...]]:
    """List the shapes, per image, of the float entries of a batch besides the image and the hint.

    These are the size embeddings of Stable Diffusion XL (``time_ids``), or the embeddings that were
    made beforehand (``cond.context=given``), the weights of losses (``weight``) with prior
    preservation, and the picture before an edit (``hint``). Keys are the entries of a batch.
    """
    kind = cfg.cond.context if "cond" in cfg else ""
    more: dict[str, tuple[int, ...]] = {"weight": ()} if has_prior(cfg) else {}
    if "cond" in cfg and cfg.cond.concat == "edit":
        more["hint"] = read_image_shape(cfg)
    if kind == "clip_xl":
        return {"time_ids": list_added_shapes(cfg)["time_ids"], **more}
    return {**(list_embedding_shapes(cfg) if kind == "given" else {}), **more}


def has_prior(cfg: ConfigDict) -> bool:
    """Whether a config trains on pictures of the kind too (prior preservation, DreamBooth)."""
    return "prior" in cfg and cfg.prior.weight > 0


def make_buckets(cfg: ConfigDict) -> data.Buckets | None:
    """Make the aspect-ratio buckets that images are cropped to; None if there is one size."""
    step = cfg.data.bucket_step
    return data.Buckets(step, cfg.data.bucket_ratio) if step else None


def make_degradation(cfg: ConfigDict) -> data.Degradation | None:
    """Make what turns images into the small pictures that super-resolution starts from.

    They are as large as the latents. None without ``config.data.degradation``: the model averages.

    Raises:
        ConfigError: an unknown degradation, or one whose pictures no condition reads.
    """
    name = cfg.data.degradation
    if name == "none":
        return None
    if cfg.get("cond", {}).get("concat") != "superres":
        raise ConfigError(
            f"config.data.degradation={name!r} makes small pictures that nothing reads: set "
            "config.cond.concat=superres, or config.data.degradation=none"
        )
    shape = read_image_shape(cfg)
    try:
        return data.make_degradation(name, shape[0] // make_space(cfg, shape).shape[0])
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def make_abstract_batch(cfg: ConfigDict, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe a training batch by the shapes and types of its entries, without data.

    Args:
        size: number of examples B.

    Returns:
        ``image`` (B, H, W, C) float32; ``label`` (B,) int32; token ids (B, M) int32 for each text
        encoder; the float entries of the condition; ``hint`` if the task takes hints; and ``low``,
        small pictures, if images are degraded.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "image": read_image_shape(cfg),
        **_list_vector_shapes(cfg),
    }
    if find_task_kind(cfg).takes_hints:
        shapes["hint"] = read_hint_shape(cfg, shapes["image"])
    if degradation := make_degradation(cfg):
        height, width, channels = shapes["image"]
        factor = degradation.factor
        shapes["low"] = (height // factor, width // factor, channels)
    batch = {k: jax.ShapeDtypeStruct((size, *v), jnp.float32) for k, v in shapes.items()}
    numbers = {"label": (), **{k: (text.positions,) for k, text in _select_texts(cfg).items()}}
    return batch | {k: jax.ShapeDtypeStruct((size, *v), jnp.int32) for k, v in numbers.items()}


def make_noise(cfg: ConfigDict, count: int = 64) -> data.Source:
    """Make a data set of random images in the shapes of a config, for runs that need no real data.

    Images are uniform over the grey levels, labels over the classes and token ids over the
    vocabulary; embeddings are standard normal. The seed is fixed, so every call returns the same.

    Args:
        count: number of images.
    """
    rng, classes = np.random.default_rng(0), cfg.data.num_classes
    source = data.from_arrays(
        rng.integers(0, cfg.data.levels, (count, *read_image_shape(cfg)), np.uint8),
        rng.integers(0, max(classes, 1), count),
        num_classes=classes,
        levels=cfg.data.levels,
    )
    drawn: dict[str, np.ndarray] = {
        name: rng.integers(0, text.vocabulary, (count, text.positions), np.int32)
        for name, text in _select_texts(cfg).items()
    }
    for name, shape in _list_vector_shapes(cfg).items():
        drawn[name] = rng.standard_normal((count, *shape)).astype("f4")
    if not drawn:
        return source
    return dataclasses.replace(
        source, more=lambda indices: {k: v[indices] for k, v in drawn.items()}
    )


def start_batches(cfg: ConfigDict, source: data.Source) -> Batches:
    """Make the function that the trainer calls to get its batches.

    Args:
        source: the training data, see `runs.load_source`.

    Returns:
        ``(step, sharding) -> iterator`` of batches from that step on. A batch is a function of
        ``(config.seed, step)``. Each process reads its own share, and batches are placed on the
        devices before they are needed.
    """
    hints = make_hints(cfg) if find_task_kind(cfg).takes_hints else None
    crop = data.make_crop(cfg.data.crop, cfg.data.crop_share, cfg.data.resize)
    degradation = make_degradation(cfg)

    def start(step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        part, parts = find_host_share(sharding, cfg.data.batch_size)
        host: Iterator[Batch] = data.batches(
            source,
            batch_size=cfg.data.batch_size,
            seed=cfg.seed,
            step=step,
            # An augmentation flips by itself, and says so to the network.
            flip=cfg.data.flip and not cfg.data.augment,
            crop=crop,
            degradation=degradation,
            hints=hints,
            num_threads=cfg.data.threads,
            prefetch=cfg.data.prefetch,
            process_index=part,
            process_count=parts,
        )
        return data.device_prefetch(host, sharding)

    return start
