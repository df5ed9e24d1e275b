"""Training of the classifier of classifier guidance, on noisy images (Dhariwal & Nichol 2021).

Sections that are read here: ``network`` (of the UNet whose encoder it is), ``schedule``, ``times``
and ``autoencoder``, of whose latents it is then a classifier (Rombach et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model import make_network, make_schedule
from diffjax.model.space import Space, make_space
from diffjax.model.steering_options import LogProb
from diffjax.nets.initialisation import init_network, initialise
from diffjax.nets.noisy_classifier import NoisyClassifier
from diffjax.nets.unet import require_unet
from diffjax.tasks.diffusion_task import make_times
from diffjax.types import (
    Array,
    ConfigError,
    Frozen,
    Level,
    LossAndState,
    Params,
    Statistics,
    Task,
    mix,
)


def make_noisy_classifier(config: ConfigDict, classes: int) -> NoisyClassifier:
    """Make the network of a config: the encoder of its UNet with a head of classes.

    Raises:
        ConfigError: the scale of latents is left to be measured.
        ValueError: there are fewer than two classes, or an option is unknown.
    """
    if classes < 2:
        raise ValueError(f"a classifier needs labelled data, but there are {classes} classes")
    if "autoencoder" in config and not config.autoencoder.scale:
        raise ConfigError(
            "a classifier of latents needs the scale of the latents that it is to guide: set "
            "config.autoencoder.scale to that of the diffusion model"
        )
    network = make_network(config, config.data.channels)
    base = require_unet(network, "a classifier of noisy images")
    head = config.network.get("head", "dense")
    return NoisyClassifier(base, classes, base.head_channels or 64, head)


def make_noisy_classifier_task(
    config: ConfigDict, image_shape: tuple[int, int, int], levels: int = 256, num_classes: int = 0
) -> Task:
    """Make the task that trains a classifier of noisy images.

    The loss is the cross-entropy ``-log p(label | z, t)`` of ``z = alpha x + sigma eps`` at random
    times, with x an image or its latents.

    Args:
        config: see above.
        image_shape: (H, W, C) of the data.
        levels: not used; all tasks have this argument.
        num_classes: number of classes.

    Raises:
        ValueError: as `make_noisy_classifier`.
    """
    schedule = make_schedule(config)
    times = make_times(config, schedule)
    network = make_noisy_classifier(config, num_classes)
    space = make_space(config, image_shape)

    def init(
        key: jax.Array, frozen: Frozen, batch: Mapping[str, Array]
    ) -> tuple[Params, Statistics]:
        found = batch["image"].shape[1:] if "image" in batch else image_shape  # stored latents
        if tuple(found) != tuple(image_shape):
            raise ValueError(f"images of shape {image_shape} expected, got {found}")
        z = jnp.zeros((1, *space.shape))
        made = init_network(network, key, z, jnp.zeros(1))["params"]
        params = initialise(made, network.base.initialisation, key)
        return params, {"times": times.init(), **space.extra}

    def loss(
        params: Params,
        frozen: Frozen,
        extra: Statistics,
        key: jax.Array,
        step: Array,
        batch: Mapping[str, Array],
    ) -> LossAndState:
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x, label = _enter(space, frozen, extra, key, batch), batch["label"]
        t, importance = times.draw(time_key, extra["times"], x.shape[0])
        level = Level(t, *schedule.at(t))
        eps = jax.random.normal(noise_key, x.shape)
        z = mix(x, eps, level)
        rngs = {"dropout": dropout_key}
        logits = cast(Array, network.apply({"params": params}, z, t, train=True, rngs=rngs))
        values = -_pick_log_prob(logits, label)
        history = times.update(extra["times"], t, jax.lax.stop_gradient(values))
        total = (importance * values).mean()
        accuracy = (logits.argmax(-1) == label).mean()
        return total, ({**extra, "times": history}, {"loss": total, "accuracy": accuracy})

    return Task(init, loss)


def _enter(
    space: Space, frozen: Frozen, extra: Statistics, key: jax.Array, batch: Mapping[str, Array]
) -> Array:
    """Take the images of a batch into the space of the classifier; its scale is known."""
    return space.enter(frozen, extra, jax.random.fold_in(key, 1), batch)[0]


def make_classifier_log_prob(network: NoisyClassifier) -> LogProb:
    """Make the log-likelihood by which a trained classifier guides sampling, see `model.Steering`.

    Returns:
        ``(params, z, level, label (B,)) -> log p(label | z) (B,)``.
    """

    def log_prob(params: Params, z: Array, level: Level, label: Array) -> Array:
        t = jnp.broadcast_to(jnp.asarray(level.t, jnp.float32), z.shape[:1])
        logits = cast(Array, network.apply({"params": params}, z, t))
        return _pick_log_prob(logits, label)

    return log_prob


def _pick_log_prob(logits: Array, label: Array) -> Array:
    """Pick ``log p(label)`` (B,) from logits (B, classes)."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
