"""Training of the classifier that classifier guidance asks, on noisy images.

Config sections read here: ``network`` (of the UNet whose encoder it is), ``schedule`` and
``times``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model import make_network, make_schedule
from diffjax.model.model import LogProb
from diffjax.nets.initialisation import initialise
from diffjax.nets.noisy_classifier import NoisyClassifier
from diffjax.nets.unet import UNet
from diffjax.tasks.diffusion import make_times
from diffjax.types import Array, Frozen, Level, Params, PyTree, Statistics, Task, expand


def make_noisy_classifier(config: ConfigDict, classes: int) -> NoisyClassifier:
    """The network of a config.

    Raises:
        ValueError: there are no classes to find, or options nobody knows.
    """
    if classes < 2:
        raise ValueError(f"a classifier needs labelled data, but there are {classes} classes")
    base = cast(UNet, make_network(config, config.data.channels))
    return NoisyClassifier(base, classes, head=config.network.get("head", "dense"))


def make_noisy_classifier_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Cross-entropy of the class of ``z = alpha x + sigma eps`` at random times.

    ``levels`` is of no account.
    """
    schedule = make_schedule(config)
    times = make_times(config, schedule)
    network = make_noisy_classifier(config, num_classes)

    def init(key: jax.Array, frozen: Frozen, batch: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        image = batch["image"]
        if tuple(image.shape[1:]) != tuple(image_shape):
            raise ValueError(f"images of shape {image_shape} expected, got {image.shape[1:]}")
        made = network.init(key, image, jnp.zeros(image.shape[0]))["params"]
        params = initialise(made, network.base.initialisation, key)
        return params, {"times": times.init()}

    def loss(
        params: Params,
        frozen: Frozen,
        extra: Statistics,
        key: jax.Array,
        step: Array,
        batch: Mapping[str, Array],
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        x, label = batch["image"], batch["label"]
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, importance = times.draw(time_key, extra["times"], x.shape[0])
        level = Level(t, *schedule.at(t))
        eps = jax.random.normal(noise_key, x.shape)
        z = expand(level.alpha, x) * x + expand(level.sigma, x) * eps
        rngs = {"dropout": dropout_key}
        logits = cast(Array, network.apply({"params": params}, z, t, train=True, rngs=rngs))
        values = -_pick(logits, label)
        history = times.update(extra["times"], t, jax.lax.stop_gradient(values))
        total = (importance * values).mean()
        accuracy = (logits.argmax(-1) == label).mean()
        return total, ({"times": history}, {"loss": total, "accuracy": accuracy})

    return Task(init, loss)


def log_prob(network: NoisyClassifier) -> LogProb:
    """What a trained classifier tells `diffjax.tasks.make_task`."""

    def of(params: Params, z: Array, level: Level, label: Array) -> Array:
        t = jnp.broadcast_to(jnp.asarray(level.t, jnp.float32), z.shape[:1])
        logits = cast(Array, network.apply({"params": params}, z, t))
        return _pick(logits, label)

    return of


def _pick(logits: Array, label: Array) -> Array:
    """log p(label) (B,)."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
