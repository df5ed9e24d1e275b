"""Pictures that stand beside the prompt: read on the host, then embedded by their IP-Adapters."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.generate import images
from diffjax.generate.checks import RequestError
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.request import Request
from diffjax.nets.image_prompts import copy_layers, embed_images
from diffjax.types import IMAGE_PROMPTS, Array

_embed = partial(jax.jit, static_argnums=(0, 1))(embed_images)


def read_prompt_pictures(pipe: LoadedModel, request: Request) -> list[np.ndarray]:
    """Read the pictures of image prompts, and check that their adapters are for this UNet.

    Returns:
        For each image prompt an array (1 or B, H, W, 3) in [0, 1].

    Raises:
        RequestError: a picture cannot be read, there is neither one nor one per prompt or image, or
            an adapter is for another UNet.
    """
    found = []
    for k, one in enumerate(request.list_image_prompts()):
        where, params = f"image_prompt[{k}]", pipe.parts.unet.params
        try:
            ours = jax.eval_shape(copy_layers, params)
        except ValueError as error:
            raise RequestError(f"{where}.adapter", f"{where}.adapter: {error}") from error
        ours, theirs = (jax.tree.map(jnp.shape, tree) for tree in (ours, one.adapter.layers))
        if ours != theirs:
            raise RequestError(
                f"{where}.adapter",
                f"{where}.adapter is for another UNet: load it by pipe.load_image_adapter(path)",
            )
        name = f"{where}.image"
        picture = images.read_picture(name, images.read_images, one.image, latents=0)[0]
        if len(picture) > 1:
            counts = (request.num, request.count_images(), "picture")
            picture = images.read_picture(name, images.repeat_for_images, picture, *counts)
        found.append(picture)
    return found


def embed_image_prompts(
    request: Request, pictures: list[np.ndarray], *, hidden: bool
) -> dict[str, Any]:
    """Embed the pictures of image prompts, as the attentions of the UNet read them.

    Args:
        request: with as many image prompts as there are pictures.
        pictures: from `read_prompt_pictures`.
        hidden: whether nothing is to be seen of them, for the unguided half.

    Returns:
        ``image_prompts``, or nothing if there are none.
    """
    entries, count = [], request.count_images()
    for one, picture in zip(request.list_image_prompts(), pictures, strict=True):
        adapter, rows = one.adapter, picture[:1] if hidden else picture
        tokens: Array = _embed(
            adapter.encoder.net,
            adapter.projection,
            adapter.encoder.params,
            adapter.params,
            2 * rows - 1,
            np.full(len(rows), not hidden, np.float32),
        )
        tokens = jnp.repeat(tokens, count // len(rows), axis=0)
        entries.append({"tokens": tokens, "scale": jnp.full(count, one.scale, jnp.float32)})
    return {IMAGE_PROMPTS: tuple(entries)} if entries else {}
