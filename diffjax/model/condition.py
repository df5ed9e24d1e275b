"""What a diffusion model is told: made from a batch, dropped for guidance, encoded for the network.

| ``cond.context`` | the network sees |
|---|---|
| (empty) | the label, if ``network.conditional``, as part of the time embedding |
| label | a learned token per class that it attends to (LDM's class-conditional ImageNet) |
| text | the tokens of a transformer trained with it (LDM's text-to-image) |
| clip | the tokens of a frozen CLIP text encoder, ``frozen["text_encoder"]`` |
| clip_xl | those of two (``frozen["text_encoder_2"]``), and XL's added vectors |
| given | embeddings made beforehand: tokens ``batch["context"]``, and for XL more (`EMBEDDINGS`) |

| ``cond.concat`` | joined to the channels of z |
|---|---|
| superres | the image shrunk to the size of z (area average) |
| inpaint | the image with a hole, encoded, and the hole |
| fill | the hole, and the image with it, encoded: as Stable Diffusion's inpainting has them |
| map | one channel per class of ``batch["mask"]``, its share of each pixel of z |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax.model.space import Space
from diffjax.nets.text import CLIPText, TextTransformer
from diffjax.types import Array, Cond, Frozen, Params, PyTree, Statistics, build, choose

Batch = Mapping[str, Array]
HOLE = (0.25, 0.75)  # sides of the rectangles that inpainting is trained on, of the image's
WHOLE = 0.25  # share of the images that are all hole, in the training of Stable Diffusion's


class Condition(NamedTuple):
    """How a model is conditioned. A raw condition is a dict of (B, ...) arrays, or None.

    Attributes:
        take: ``(batch, key) -> raw condition``; None if there is no condition at all.
        null: ``raw -> raw`` that says nothing; what is joined to the channels stays.
        init: ``key -> `` parameters to train beside those of the network.
        encode: ``(params, frozen, extra, raw) -> `` what the network reads.
        example: what the network reads, of batch size 1, for its initialisation.
        guided: whether `null` says less than the condition.
        names: entries of a raw condition.
        needs: entries of a batch beside ``label`` that `take` reads.
    """

    take: Callable[[Batch, jax.Array], Cond]
    null: Callable[[Cond], Cond]
    init: Callable[[jax.Array], dict[str, PyTree]]
    encode: Callable[[Params, Frozen, Statistics, Cond], Cond]
    example: Cond
    guided: bool
    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class _Part(NamedTuple):
    """One entry of a raw condition, and what it becomes."""

    name: str
    take: Callable[[Batch, jax.Array], Any]
    null: Callable[[Any], Any]
    encode: Callable[[Params, Frozen, Statistics, Any], dict[str, Array]]
    example: Mapping[str, Array]
    needs: tuple[str, ...]
    init: Callable[[jax.Array], dict[str, PyTree]] = lambda key: {}


def make_condition(config: ConfigDict, space: Space, num_classes: int) -> Condition:
    """The condition that a config describes; see the tables above.

    Args:
        num_classes: classes of the data.

    Raises:
        ValueError: an unknown kind, or one that these data cannot have.
    """
    context, concat = config.cond.context, config.cond.concat
    choose("context", context, {"": 0, **_CONTEXTS})
    choose("concatenation", concat, {"": 0, **_CONCATS})
    parts = []
    if config.network.conditional and num_classes:
        parts.append(_label(num_classes))
    if context:
        parts.append(_CONTEXTS[context](config, num_classes))
    guided = bool(parts)
    if concat:
        parts.append(_CONCATS[concat](config, space))
    return _join(parts, guided)


def _join(parts: list[_Part], guided: bool) -> Condition:
    def take(batch: Batch, key: jax.Array) -> Cond:
        return {p.name: p.take(batch, key) for p in parts} or None

    def null(raw: Cond) -> Cond:
        return {p.name: p.null((raw or {})[p.name]) for p in parts} or None

    def init(key: jax.Array) -> dict[str, PyTree]:
        return {k: v for p in parts for k, v in p.init(key).items()}

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Cond) -> Cond:
        encoded = [p.encode(params, frozen, extra, (raw or {})[p.name]) for p in parts]
        return {k: v for part in encoded for k, v in part.items()} or None

    example = {k: v for p in parts for k, v in p.example.items()} or None
    needs = tuple(n for p in parts for n in p.needs)
    names = tuple(p.name for p in parts)
    return Condition(take, null, init, encode, example, guided, names, needs)


UNCONDITIONAL = _join([], False)  # that of a network that is given z and t alone


def make_label_condition(classes: int) -> Condition:
    """The class of an image as ``cond["label"]`` (B,), int32; ``classes`` means none of them."""
    return _join([_label(classes)], True)


def _same(name: str) -> Callable[..., dict[str, Array]]:
    return lambda params, frozen, extra, value: {name: value}


def _label(classes: int) -> _Part:
    return _Part(
        "label",
        lambda batch, key: batch["label"],
        lambda label: jnp.full_like(label, classes),
        _same("label"),
        {"label": jnp.zeros(1, jnp.int32)},
        (),
    )


# ---- tokens -------------------------------------------------------------------------------------


def _label_token(config: ConfigDict, classes: int) -> _Part:
    if not classes:
        raise ValueError("cond.context=label needs data with classes: set data.num_classes")
    width = config.network.context_dim

    def init(key: jax.Array) -> dict[str, PyTree]:
        table = jax.random.normal(jax.random.fold_in(key, 3), (classes + 1, width))
        return {"label_encoder": {"embedding": table}}

    def encode(params: Params, frozen: Frozen, extra: Statistics, label: Array) -> dict[str, Array]:
        return {"context": params["label_encoder"]["embedding"][label][:, None]}

    example = {"context": jnp.zeros((1, 1, width))}
    return _label(classes)._replace(encode=encode, example=example, init=init)


def _text(config: ConfigDict, classes: int) -> _Part:
    section, width = config.cond, config.network.context_dim
    options = dict(section.get("text", None) or {})
    net = build("text encoder", "text", {"text": TextTransformer}, {**options, "features": width})

    def init(key: jax.Array) -> dict[str, PyTree]:
        ids = jnp.zeros((1, net.positions), jnp.int32)
        variables: Any = net.init(jax.random.fold_in(key, 3), ids)
        return {"text_encoder": variables["params"]}

    def encode(params: Params, frozen: Frozen, extra: Statistics, ids: Array) -> dict[str, Array]:
        tokens: Any = net.apply({"params": params["text_encoder"]}, ids)
        return {"context": tokens}

    return _tokens(width, encode)._replace(init=init)


ENCODERS = {"text": "text_encoder", "text_2": "text_encoder_2"}  # by section and entry of a batch


def make_clips(config: ConfigDict) -> dict[str, CLIPText]:
    """The frozen text encoders of a config, by their names in diffusers' folders.

    ``cond.text`` describes the first and ``cond.text_2`` that of XL. One alone is as wide as the
    network's context.

    Raises:
        ValueError: unknown options.
    """
    kind = config.cond.context if "cond" in config else ""  # which a first stage has not
    if kind not in ("clip", "clip_xl"):
        return {}
    made = {}
    for section in ("text",) if kind == "clip" else ENCODERS:
        options = dict(config.cond.get(section, None) or {})
        if kind == "clip":
            options["features"] = config.network.context_dim
        made[ENCODERS[section]] = build("text encoder", "clip", {"clip": CLIPText}, options)
    return made


def _clip(config: ConfigDict, classes: int) -> _Part:
    empty = tuple(config.cond.empty) or (0,)
    return _read_clip(make_clips(config)["text_encoder"], config.network.context_dim, empty)


def _read_clip(net: CLIPText, width: int, empty: tuple[int, ...]) -> _Part:
    """The tokens of one encoder, ``frozen["text_encoder"]``; ``empty`` are ids of no text."""

    def null(ids: Array) -> Array:
        some = jnp.arange(ids.shape[1])
        row = jnp.asarray(empty, ids.dtype)[jnp.minimum(some, len(empty) - 1)]
        return jnp.broadcast_to(row, ids.shape)

    def encode(params: Params, frozen: Frozen, extra: Statistics, ids: Array) -> dict[str, Array]:
        out: Any = net.apply({"params": frozen["text_encoder"]}, ids)
        return {"context": jax.lax.stop_gradient(out.last)}

    return _tokens(width, encode)._replace(null=null)


def _clip_xl(config: ConfigDict, classes: int) -> _Part:
    return _read_clips(make_clips(config), config.network.context_dim, added_shapes(config))


def _read_clips(
    nets: Mapping[str, CLIPText], width: int, shapes: Mapping[str, tuple[int, ...]]
) -> _Part:
    """XL's encoders' last layer but one, and the last one's pooled text (Podell et al. 2023, 2.1).

    Zeros in place of both say nothing. A refiner has the second encoder alone.
    """
    entries = {entry: name for entry, name in ENCODERS.items() if name in nets}

    def take(batch: Batch, key: jax.Array) -> dict[str, Any]:
        raw = {k: batch[k] for k in (*entries, "time_ids")}
        return {"said": jnp.ones(len(raw["time_ids"])), **raw}

    def null(raw: dict[str, Any]) -> dict[str, Any]:
        return {**raw, "said": jnp.zeros_like(raw["said"])}

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Any]:
        found: list[Any] = [
            nets[name].apply({"params": frozen[name]}, raw[text]) for text, name in entries.items()
        ]
        context = jnp.concatenate([out.hidden[-2] for out in found], axis=-1)
        said = raw["said"][:, None]
        pooled = {"text_embeds": found[-1].pooled * said, "time_ids": raw["time_ids"]}
        return jax.lax.stop_gradient({"context": context * said[..., None], "added": pooled})

    added = {k: jnp.zeros((1, *shape)) for k, shape in shapes.items()}
    example: dict[str, Any] = {"context": jnp.zeros((1, 1, width)), "added": added}
    return _Part("prompt", take, null, encode, example, (*entries, "time_ids"))


def make_text_condition(
    nets: Mapping[str, CLIPText],
    width: int,
    empty: tuple[int, ...],
    added: Mapping[str, tuple[int, ...]],
) -> Condition:
    """The condition of a published text-to-image model.

    Args:
        nets: text encoders by their names in `ENCODERS`; their parameters are ``frozen[name]``.
        width: of the network's context.
        empty: ids of the empty text: start, end, padding.
        added: shapes of what XL's networks are told beside the context; empty for others.
    """
    if added:
        return _join([_read_clips(nets, width, added)], True)
    return _join([_read_clip(nets["text_encoder"], width, empty)], True)


def _tokens(width: int, encode: Callable[..., dict[str, Array]]) -> _Part:
    """Token ids ``batch["text"]`` (B, M); zeros, the empty text, say nothing."""
    return _Part(
        "text",
        lambda batch, key: batch["text"],
        jnp.zeros_like,
        encode,
        {"context": jnp.zeros((1, 1, width))},
        ("text",),
    )


EMBEDDINGS = ("context", "text_embeds", "time_ids")  # the last two of Stable Diffusion XL


def added_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Shapes of what XL's networks are told of one image beside the context; empty for others."""
    section, added = config.cond, config.network.added_dim
    if not added:
        return {}
    pooled = section.text_2.projection if section.context == "clip_xl" else section.given.pooled
    ids = (added - pooled) // config.network.added_time_dim
    return {"text_embeds": (pooled,), "time_ids": (ids,)}


def embedding_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Shapes of the `EMBEDDINGS` of one image that ``cond.context=given`` asks for."""
    tokens = (config.cond.given.tokens, config.network.context_dim)
    return {"context": tokens, **added_shapes(config)}


def _given(config: ConfigDict, classes: int) -> _Part:
    """Embeddings made beforehand; zeros, as XL has them for the empty text, say nothing."""
    shapes = embedding_shapes(config)

    def null(raw: dict[str, Array]) -> dict[str, Array]:
        return {k: v if k == "time_ids" else jnp.zeros_like(v) for k, v in raw.items()}

    def read(raw: Mapping[str, Array]) -> dict[str, Any]:
        added = {k: v for k, v in raw.items() if k != "context"}
        return {"context": raw["context"], **({"added": added} if added else {})}

    example = read({k: jnp.zeros((1, *shape)) for k, shape in shapes.items()})
    return _Part(
        "embedding",
        lambda batch, key: {k: batch[k] for k in shapes},
        null,
        lambda params, frozen, extra, raw: read(raw),
        example,
        tuple(shapes),
    )


_CONTEXTS = {
    "label": _label_token,
    "text": _text,
    "clip": _clip,
    "clip_xl": _clip_xl,
    "given": _given,
}


# ---- channels -----------------------------------------------------------------------------------


def area(images: Array, shape: tuple[int, int, int]) -> Array:
    """Images (B, H, W, C) averaged to the height and width of ``shape``."""
    b, height, width, c = images.shape
    h, w, _ = shape
    return images.reshape(b, h, height // h, w, width // w, c).mean((2, 4))


def _superres(config: ConfigDict, space: Space) -> _Part:
    channels = config.data.channels
    return _Part(
        "low",
        lambda batch, key: area(batch["image"], space.shape),
        lambda low: low,
        _same("concat"),
        {"concat": jnp.zeros((1, *space.shape[:2], channels))},
        ("image",),
    )


def holes(key: jax.Array, images: Array) -> Array:
    """Rectangles (B, H, W, 1) of ones in images' shape, sides and places at random."""
    b, height, width, _ = images.shape
    u = jax.random.uniform(key, (4, b, 1, 1))
    sides = HOLE[0] + (HOLE[1] - HOLE[0]) * u[:2]
    starts = u[2:] * (1 - sides)
    y, x = (jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width
    rows = (y[:, None] >= starts[0]) & (y[:, None] < starts[0] + sides[0])
    columns = (x >= starts[1]) & (x < starts[1] + sides[1])
    return (rows & columns)[..., None].astype(jnp.float32)


def _cut(images: Array, hole: Array) -> dict[str, Array]:
    return {"image": images * (1 - hole), "hole": hole}


def _inpaint(config: ConfigDict, space: Space) -> _Part:
    def take(batch: Batch, key: jax.Array) -> dict[str, Array]:
        return _cut(batch["image"], holes(jax.random.fold_in(key, 4), batch["image"]))

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Array]:
        seen = space.encode(frozen, extra, raw["image"])
        return {"concat": jnp.concatenate([seen, area(raw["hole"], space.shape)], axis=-1)}

    h, w, c = space.shape
    return _Part(
        "hole", take, lambda raw: raw, encode, {"concat": jnp.zeros((1, h, w, c + 1))}, ("image",)
    )


def _fill(config: ConfigDict, space: Space) -> _Part:
    """Mask first, its pixels those at the corners of the latents', and some images all hole."""
    factor = space.net.factor if space.net else 1

    def take(batch: Batch, key: jax.Array) -> dict[str, Array]:
        hole = holes(jax.random.fold_in(key, 4), batch["image"])
        whole = jax.random.bernoulli(jax.random.fold_in(key, 6), WHOLE, (len(hole), 1, 1, 1))
        return _cut(batch["image"], jnp.maximum(hole, whole))

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Array]:
        seen = space.encode(frozen, extra, raw["image"])
        return {"concat": jnp.concatenate([raw["hole"][:, ::factor, ::factor], seen], axis=-1)}

    return _inpaint(config, space)._replace(take=take, encode=encode)


def _map(config: ConfigDict, space: Space) -> _Part:
    classes = config.cond.map_classes

    def take(batch: Batch, key: jax.Array) -> Array:
        return area(jax.nn.one_hot(batch["mask"], classes), space.shape)

    shape = (1, *space.shape[:2], classes)
    return _Part(
        "map", take, lambda value: value, _same("concat"), {"concat": jnp.zeros(shape)}, ("mask",)
    )


_CONCATS = {"superres": _superres, "inpaint": _inpaint, "fill": _fill, "map": _map}
