"""Conditions that are pictures, joined to the channels of z, and what a part of a condition is.

`diffjax.model.condition` has the table of them, and joins parts to a `Condition`. Each constructor
here takes the config and the space of the model, and makes one part: what is taken from a batch,
and the channels ``cond["concat"]`` (B, h, w, C) that it becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model.space import Space
from diffjax.types import Array, Batch, Frozen, Params, Statistics, expand

HOLE = (0.25, 0.75)  # sides of the rectangles that inpainting is trained on, of the image's
EDIT = "edit"  # the picture that InstructPix2Pix changes
WHOLE = 0.25  # share of the images that are all hole, in the training of Stable Diffusion's


class Part(NamedTuple):
    """One entry of a raw condition, and how it is encoded; the fields are those of `Condition`.

    Attributes:
        name: of the entry.
        needs: entries of a batch that `take` reads.
    """

    name: str
    take: Callable[[Batch, jax.Array], Any]
    null: Callable[[Any], Any]
    encode: Callable[[Params, Frozen, Statistics, Any], dict[str, Array]]
    example: Mapping[str, Any]
    needs: tuple[str, ...]
    init: Callable[[jax.Array], dict[str, Params]] = lambda key: {}


def pass_through(name: str) -> Callable[..., dict[str, Array]]:
    """Make an `encode` that passes a raw entry to the network, under a name."""
    return lambda params, frozen, extra, value: {name: value}


def average_area(images: Array, shape: tuple[int, int, int]) -> Array:
    """Average images (B, H, W, C) over blocks, to the height and width of ``shape`` (h, w, ...).

    H and W must be multiples of h and w.
    """
    b, height, width, c = images.shape
    h, w, _ = shape
    return images.reshape(b, h, height // h, w, width // w, c).mean((2, 4))


def _make_superres_part(config: ConfigDict, space: Space) -> Part:
    """Make the part of a small image, of the size of z.

    It is ``batch["low"]`` if the data degrade images (``data.degradation``), else their average.
    """
    degrades = config.data.degradation != "none"

    def take(batch: Batch, key: jax.Array) -> Array:
        return batch["low"] if degrades else average_area(batch["image"], space.shape)

    return Part(
        "low",
        take,
        lambda low: low,
        pass_through("concat"),
        {"concat": jnp.zeros((1, *space.shape[:2], config.data.channels))},
        ("low",) if degrades else ("image",),
    )


def draw_holes(key: jax.Array, images: Array) -> Array:
    """Draw rectangles of ones, one for each image, with random sides and places.

    Sides are uniform over the shares `HOLE` of those of the image, and places over all that fit.

    Args:
        images: (B, H, W, C), for their sizes.

    Returns:
        (B, H, W, 1) float32: 1 inside of the rectangle, 0 outside.
    """
    b, height, width, _ = images.shape
    u = jax.random.uniform(key, (4, b, 1, 1))
    sides = HOLE[0] + (HOLE[1] - HOLE[0]) * u[:2]
    starts = u[2:] * (1 - sides)
    y, x = (jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width
    rows = (y[:, None] >= starts[0]) & (y[:, None] < starts[0] + sides[0])
    columns = (x >= starts[1]) & (x < starts[1] + sides[1])
    return (rows & columns)[..., None].astype(jnp.float32)


def _cut_hole(images: Array, hole: Array) -> dict[str, Array]:
    """Cut a hole into images, and keep both."""
    return {"image": images * (1 - hole), "hole": hole}


def _make_inpaint_part(config: ConfigDict, space: Space) -> Part:
    """Make the part of an image with a hole: the encoded image, then the averaged hole."""

    def take(batch: Batch, key: jax.Array) -> dict[str, Array]:
        return _cut_hole(batch["image"], draw_holes(jax.random.fold_in(key, 4), batch["image"]))

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Array]:
        seen = space.encode(frozen, extra, raw["image"])
        return {"concat": jnp.concatenate([seen, average_area(raw["hole"], space.shape)], axis=-1)}

    h, w, c = space.shape
    return Part(
        "hole", take, lambda raw: raw, encode, {"concat": jnp.zeros((1, h, w, c + 1))}, ("image",)
    )


def _make_fill_part(config: ConfigDict, space: Space) -> Part:
    """Make the part of an image with a hole as Stable Diffusion's inpainting has it.

    The hole comes first, with the values at the top left pixel of each latent, and then the encoded
    image. In a share `WHOLE` of the images the hole is the whole image.
    """
    factor = space.net.factor if space.net else 1

    def take(batch: Batch, key: jax.Array) -> dict[str, Array]:
        hole = draw_holes(jax.random.fold_in(key, 4), batch["image"])
        whole = jax.random.bernoulli(jax.random.fold_in(key, 6), WHOLE, (len(hole), 1, 1, 1))
        return _cut_hole(batch["image"], jnp.maximum(hole, whole))

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Array]:
        seen = space.encode(frozen, extra, raw["image"])
        return {"concat": jnp.concatenate([raw["hole"][:, ::factor, ::factor], seen], axis=-1)}

    return _make_inpaint_part(config, space)._replace(take=take, encode=encode)


def _make_map_part(config: ConfigDict, space: Space) -> Part:
    """Make the part of a semantic map: the share that each class has of each pixel of z."""
    classes = config.cond.map_classes

    def take(batch: Batch, key: jax.Array) -> Array:
        return average_area(jax.nn.one_hot(batch["mask"], classes), space.shape)

    shape = (1, *space.shape[:2], classes)
    return Part(
        "map",
        take,
        lambda value: value,
        pass_through("concat"),
        {"concat": jnp.zeros(shape)},
        ("mask",),
    )


def _make_edit_part(config: ConfigDict, space: Space) -> Part:
    """Make the part of the picture before an edit (Brooks et al. 2022), ``batch["hint"]``.

    Its latents are the mean of the posterior, not scaled, as diffusers has them; zeros stand for no
    picture. ``seen`` (B,) is 0 for those that training hides, see `condition._drop_apart`.
    """

    def take(batch: Batch, key: jax.Array) -> dict[str, Array]:
        return {"image": 2 * batch["hint"] - 1, "seen": jnp.ones(len(batch["hint"]))}

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Array]:
        before = space.read(frozen, raw["image"])
        return {"concat": before * expand(raw["seen"], before)}

    example = {"concat": jnp.zeros((1, *space.shape))}
    return Part(EDIT, take, lambda raw: raw, encode, example, ("hint",))


CONCATS = {
    EDIT: _make_edit_part,
    "superres": _make_superres_part,
    "inpaint": _make_inpaint_part,
    "fill": _make_fill_part,
    "map": _make_map_part,
}
