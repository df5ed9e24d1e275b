"""The picture that an IP-Adapter reads beside the text (Ye et al. 2023), as part of a condition.

In training it is the image of the batch itself. The encoder is ``frozen["image_encoder"]``; the
projection, ``params["image_proj"]``, is trained with the layers of the UNet.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model.channel_conditions import Part
from diffjax.nets.image_prompts import PROJECTIONS, embed_images
from diffjax.nets.vision import CLIPVision
from diffjax.types import (
    IMAGE_PROMPTS,
    Array,
    Batch,
    Frozen,
    Params,
    Statistics,
    build,
    choose,
    option_names,
)

SECTION = "ip_adapter"  # of a config, and the task that trains one
ENCODER, PROJECTION = "image_encoder", "image_proj"  # entries of the parameters
PICTURE = "picture"  # the entry of a raw condition


def make_image_encoder(config: ConfigDict) -> CLIPVision | None:
    """Make the image encoder that ``config.ip_adapter.vision`` describes; None without a section.

    Raises:
        ValueError: unknown options.
    """
    if SECTION not in config:
        return None
    options = dict(config[SECTION].vision)
    net: CLIPVision = build("image encoder", "clip", {"clip": CLIPVision}, options)
    return net


def make_projection(config: ConfigDict) -> Any:
    """Make the projection of ``config.ip_adapter``, as wide as the context of the network.

    Raises:
        ValueError: an unknown kind.
    """
    section = config[SECTION]
    make = choose("IP-Adapter", section.kind, PROJECTIONS)
    options = {"width": config.network.context_dim, "tokens": section.tokens}
    options |= {"heads": section.heads, "features": section.features, "layers": section.layers}
    return make(**{k: v for k, v in options.items() if k in option_names(make)})


def make_image_prompt_part(config: ConfigDict) -> Part:
    """Make the part of the picture.

    ``seen`` (B,) is 0 for pictures that are not to be seen; see `embed_images`.

    Raises:
        ValueError: unknown names or options.
    """
    encoder, projection = make_image_encoder(config), make_projection(config)
    assert encoder is not None
    hidden = (1, 1, encoder.features) if projection.reads_hidden else (1, encoder.projection)

    def take(batch: Batch, key: jax.Array) -> dict[str, Array]:
        return {"image": batch["image"], "seen": jnp.ones(len(batch["image"]))}

    def null(raw: dict[str, Array]) -> dict[str, Array]:
        return {**raw, "seen": jnp.zeros_like(raw["seen"])}

    def init(key: jax.Array) -> dict[str, Params]:
        found: Any = projection.init(jax.random.fold_in(key, 7), jnp.zeros(hidden))
        return {PROJECTION: found["params"]}

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Any]:
        given = params[PROJECTION], raw["image"], raw["seen"]
        tokens = embed_images(encoder, projection, frozen[ENCODER], *given)
        return {IMAGE_PROMPTS: ({"tokens": tokens, "scale": jnp.ones(len(tokens))},)}

    tokens = {"tokens": jnp.zeros((1, 1, config.network.context_dim)), "scale": jnp.ones(1)}
    return Part(PICTURE, take, null, encode, {IMAGE_PROMPTS: (tokens,)}, ("image",), init)
