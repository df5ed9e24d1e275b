"""REPA: tokens of a transformer are brought close to features of a frozen encoder.

With h the tokens after block k of the noisy image, y the features of the clean one, and a trained
projection p, the loss gets the term ``-weight mean_n cos(p(h_n), y_n)`` (Yu et al. 2024, eq. 8).
Section ``align`` of a config describes it. The projection is an entry of the parameters that models
do not read; the encoder is ``frozen["feature_encoder"]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model import Model
from diffjax.nets.dinov2 import DINOv2, dinov2_input
from diffjax.nets.dit import DiT
from diffjax.nets.projector import Projector
from diffjax.types import Array, ConfigError, Frozen, Params, build

SECTION = "align"  # of a config
ENCODER, PROJECTOR = "feature_encoder", "projectors.0"  # entries of the parameters


class Alignment(NamedTuple):
    """The term of the loss.

    Attributes:
        encoder: gives the features.
        projector: takes tokens to the features' size.
        block: number of blocks before the tokens that are compared.
        weight: factor on the term.
        patch: of the transformer.
        channels: width of its tokens.
    """

    encoder: DINOv2
    projector: Projector
    block: int
    weight: float
    patch: int
    channels: int

    def init(self, key: jax.Array) -> Params:
        """Initialise the projection."""
        tokens = jnp.zeros((1, 1, self.channels))
        return cast(Params, self.projector.init(key, tokens)["params"])

    def encode(
        self, frozen: Frozen, batch: Mapping[str, Array], shape: tuple[int, ...]
    ) -> jax.Array:
        """Return features (B, N, K) of the clean images of a batch, one for each token.

        They are resized so that a patch of the encoder shows what a token stands for.

        Args:
            frozen: with the parameters of the encoder.
            batch: with ``image`` (B, H, W, 1 or 3).
            shape: (B, h, w, C) of what the transformer sees.
        """
        rows, columns = (side // self.patch * self.encoder.patch for side in shape[1:3])
        x = dinov2_input(batch["image"], (rows, columns))
        found = self.encoder.apply({"params": frozen[ENCODER]}, x)
        return jax.lax.stop_gradient(cast(jax.Array, found))

    def measure(self, params: Params, tokens: Array, features: Array) -> jax.Array:
        """Return the mean negative cosine (B,), in -1 .. 1.

        Args:
            params: with the projection.
            tokens: (B, N, D).
            features: (B, N, K).
        """
        projected = self.projector.apply({"params": params[PROJECTOR]}, tokens)
        return -(normalise(cast(Array, projected)) * normalise(features)).sum(-1).mean(-1)


def normalise(x: Array) -> jax.Array:
    """Return vectors (..., K) divided by their lengths, in float32; 0 stays 0."""
    x = jnp.asarray(x, jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


def make_feature_encoder(config: ConfigDict) -> DINOv2 | None:
    """Make the encoder of ``config.align.vision``, without parameters; None if nothing reads it.

    Raises:
        ValueError: unknown options.
    """
    if SECTION not in config or not config[SECTION].weight:
        return None
    options = dict(config[SECTION].vision)
    return build("feature encoder", "dinov2", {"dinov2": DINOv2}, options)


def make_alignment(config: ConfigDict, model: Model) -> Alignment | None:
    """Make the term that ``config.align`` describes; None without it or with the weight 0.

    Args:
        model: that is trained.

    Raises:
        ConfigError: see `refuse_alignment`; or the network has no such block.
        ValueError: unknown options of the encoder.
    """
    refuse_alignment(config)
    encoder = make_feature_encoder(config)
    if encoder is None:
        return None
    net, section = model.network, config[SECTION]
    assert isinstance(net, DiT)
    if not 1 <= section.block <= net.blocks:
        raise ConfigError(
            f"config.align.block={section.block} must lie in 1 .. {net.blocks}, the blocks of the "
            "transformer (config.network.blocks)"
        )
    return Alignment(
        encoder.clone(dtype=net.dtype),
        Projector(encoder.features, section.width, net.dtype),
        section.block,
        section.weight,
        net.patch,
        net.channels,
    )


def refuse_alignment(config: ConfigDict) -> None:
    """Refuse the section ``align`` where it has no effect, or no images to read.

    Raises:
        ConfigError: the task, network, loss or augmentation is another than REPA is for, or the
            data are stored latents.
    """
    if SECTION not in config:
        return
    wanted: dict[str, tuple[object, ...]]
    wanted = {"task": ("diffusion",), "network.name": ("dit",), "loss.name": ("simple",)}
    if config.task == "diffusion":
        # Augmentation moves what the transformer sees; the encoder reads grey or RGB images.
        wanted |= {"data.augment": (0.0,), "data.channels": (3, 1), "loss.uncertainty": (False,)}
    for path, values in wanted.items():
        section, _, key = path.rpartition(".")
        found = (config[section] if section else config).get(key)
        if found not in values:
            raise ConfigError(
                "config.align compares the tokens of a transformer in the simple loss, which "
                f"needs {path}={' or '.join(map(str, values))}, and {path} is {found!r}: change "
                "it, or take the section align out of the config"
            )
    if config.data.name == "latents":
        raise ConfigError(
            "config.align reads the images themselves, and data.name=latents has only latents that "
            "were stored beforehand: train on the data that they were made of, or take the section "
            "align out of the config"
        )
