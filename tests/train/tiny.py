"""A model small enough to train in milliseconds, with everything a real one has."""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import base
from diffjax.types import Task


def make_task(
    *, random: bool = True, nan_at: int | None = None, width: int = 3, until: int = 0
) -> Task:
    """A linear map of images to themselves, with noise; ``extra`` counts the images seen."""

    def init(key, frozen, batch):
        size = batch["image"][0].size
        w = jax.random.normal(key, (size, width)) / size**0.5
        return {"net": {"w": w, "b": jnp.zeros(size)}}, {"seen": jnp.zeros((), jnp.int32)}

    def loss(params, frozen, extra, key, step, batch):
        x = batch["image"].reshape(batch["image"].shape[0], -1)
        z = x + random * 0.1 * jax.random.normal(key, x.shape)
        if frozen is not None:
            z = z + frozen["base"]["shift"]
        w, b = params["net"]["w"], params["net"]["b"]
        value = jnp.mean((z @ w @ w.T + b - x) ** 2)
        if nan_at is not None:
            bad = (step >= nan_at - 1) & (step < max(until, nan_at))
            value = jnp.where(bad, jnp.nan, value)
        seen = extra["seen"] + x.shape[0]
        return value, ({"seen": seen}, {"loss": value, "bias": jnp.mean(b)})

    return Task(init, loss)


def make_config(**train):
    """A config of 12 steps, with learning-rate decay, clipping and averaging."""
    config = base()
    config.optim.update(lr=0.05, warmup=3, decay="cosine", clip=0.5)
    config.ema.update(decay=0.9, warmup=True)
    config.train.update(steps=12, log_every=3, checkpoint_every=4, sample_every=0, keep=2)
    config.train.update(train)
    return config


def batch_at(step: int, *, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([1, step])
    return {"image": rng.normal(size=(size, 2, 2, 1)).astype(np.float32)}


def batches(step: int, sharding) -> Iterator:
    while True:
        yield jax.device_put(batch_at(step), sharding)
        step += 1


def batches_that(act, *, at: int):
    """Batches that call ``act`` when the batch of step ``at`` (from 2) is asked for."""

    def start(step: int, sharding) -> Iterator:
        for number, batch in enumerate(batches(step, sharding), step + 1):
            if number == at:
                act()
            yield batch

    return start


def send(signum: int):
    return lambda: os.kill(os.getpid(), signum)


def assert_same(a, b) -> None:
    """Bit-equal trees of equal structure."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
