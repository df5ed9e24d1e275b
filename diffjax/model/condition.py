"""The condition of a model: taken from a batch, dropped for guidance, encoded for the network.

| ``cond.context`` | the network reads |
|---|---|
| (empty) | the label, if ``network.conditional``, as part of the time embedding |
| label | a learned token per class that it attends to (LDM's class-conditional ImageNet) |
| text | the tokens of a transformer trained with it (LDM's text-to-image) |
| clip | the tokens of a CLIP text encoder, ``frozen["text_encoder"]`` or of ``params`` |
| clip_xl | those of two (``frozen["text_encoder_2"]``), and XL's added vectors |
| given | embeddings made beforehand: tokens ``batch["context"]``, and for XL more (`EMBEDDINGS`) |

| ``cond.concat`` | joined to the channels of z (`diffjax.model.channel_conditions`) |
|---|---|
| superres | the image shrunk to the size of z: its average, or by ``data.degradation`` |
| inpaint | the image with a hole, encoded, and the hole |
| fill | the hole, and the image with it, encoded: as Stable Diffusion's inpainting has them |
| edit | the picture before an edit, encoded and not scaled (InstructPix2Pix) |
| map | one channel per class of ``batch["mask"]``, its share of each pixel of z |

With a section ``ip_adapter`` the network also attends to the picture itself
(`diffjax.model.image_prompt_condition`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffjax import guidance
from diffjax.model.channel_conditions import CONCATS, EDIT, Part, pass_through
from diffjax.model.image_prompt_condition import PICTURE, SECTION, make_image_prompt_part
from diffjax.model.space import Space
from diffjax.nets.initialisation import init_network
from diffjax.nets.text import CLIPText, TextTransformer
from diffjax.types import Array, Batch, Cond, Frozen, Params, Statistics, build, choose


class Condition(NamedTuple):
    """How a model is conditioned, from a batch of data to what its network reads.

    A raw condition is a mapping of arrays (B, ...), or None. It is taken from a batch, dropped by
    `null` for classifier-free guidance (Ho & Salimans 2022), and encoded once: outside of the
    sampling loop, and in training after dropping.

    Attributes:
        take: ``(batch, key) -> raw condition``; None if there is no condition at all.
        null: ``raw -> raw`` condition that says nothing; what is joined to the channels stays.
        init: ``key ->`` parameters that are trained beside those of the network.
        encode: ``(params, frozen, extra, raw) ->`` what the network reads.
        example: what the network reads, of batch size 1, for its initialisation.
        guided: whether `null` says less than the condition, so that guidance has an effect.
        names: entries of a raw condition.
        needs: entries of a batch, besides ``label``, that `take` reads.
        drop: ``(key, raw, rate) -> raw`` as training drops conditions for guidance.
    """

    take: Callable[[Batch, jax.Array], Cond]
    null: Callable[[Cond], Cond]
    init: Callable[[jax.Array], dict[str, Params]]
    encode: Callable[[Params, Frozen, Statistics, Cond], Cond]
    example: Cond
    guided: bool
    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    drop: Callable[[jax.Array, Cond, float], Cond] = lambda key, raw, rate: raw


def make_condition(config: ConfigDict, space: Space, num_classes: int) -> Condition:
    """Make the condition that ``config.cond`` describes; see the tables above.

    Args:
        space: of the model, to whose size pictures are brought.
        num_classes: classes of the data.

    Raises:
        ValueError: an unknown kind, or one that these data cannot have.
    """
    context, concat = config.cond.context, config.cond.concat
    choose("context", context, {"": 0, **_CONTEXTS})
    choose("concatenation", concat, {"": 0, **CONCATS})
    parts = []
    if config.network.conditional and num_classes:
        parts.append(_make_label_part(num_classes))
    if context:
        parts.append(_CONTEXTS[context](config, num_classes))
    if SECTION in config:
        parts.append(make_image_prompt_part(config))
    guided = bool(parts)
    if concat:
        parts.append(CONCATS[concat](config, space))
    joined = _join_parts(parts, guided)
    pictures = [part.name for part in parts if part.name in (EDIT, PICTURE)]
    if len(pictures) > 1:
        raise ValueError(f"cond.concat={EDIT} and config.{SECTION} cannot be trained together")
    return joined._replace(drop=partial(_drop_apart, joined, pictures[0])) if pictures else joined


def _drop_apart(condition: Condition, name: str, key: jax.Array, raw: Cond, rate: float) -> Cond:
    """Drop a text and a picture, each alone or both (Brooks et al. 2022, 3.2.1).

    Each of the three happens with probability ``rate / 2``.

    Args:
        name: the entry of the picture.
    """
    entry: dict[str, Array] = cast(Any, raw)[name]
    drawn = jax.random.uniform(key, entry["seen"].shape)
    silent = {**cast(Any, condition.null(raw)), name: entry}
    said = guidance.replace(raw, silent, drawn < rate)
    hidden = (drawn >= rate / 2) & (drawn < 1.5 * rate)
    return {**cast(Any, said), name: {**entry, "seen": jnp.where(hidden, 0.0, entry["seen"])}}


def _join_parts(parts: list[Part], guided: bool) -> Condition:
    """Join parts into a condition whose raw form has an entry for each of them."""

    def take(batch: Batch, key: jax.Array) -> Cond:
        return {p.name: p.take(batch, key) for p in parts} or None

    def null(raw: Cond) -> Cond:
        return {p.name: p.null((raw or {})[p.name]) for p in parts} or None

    def init(key: jax.Array) -> dict[str, Params]:
        return {k: v for p in parts for k, v in p.init(key).items()}

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Cond) -> Cond:
        encoded = [p.encode(params, frozen, extra, (raw or {})[p.name]) for p in parts]
        return {k: v for part in encoded for k, v in part.items()} or None

    example = {k: v for p in parts for k, v in p.example.items()} or None
    needs = tuple(n for p in parts for n in p.needs)
    names = tuple(p.name for p in parts)

    def drop(key: jax.Array, raw: Cond, rate: float) -> Cond:
        return guidance.drop(key, raw, null(raw), rate)

    return Condition(take, null, init, encode, example, guided, names, needs, drop)


UNCONDITIONAL = _join_parts([], False)  # that of a network that is given z and t alone


def make_label_condition(classes: int) -> Condition:
    """Make the condition on the class of an image, ``cond["label"]`` (B,) int32.

    Args:
        classes: number of classes; this number as a label stands for no class.
    """
    return _join_parts([_make_label_part(classes)], True)


def _make_label_part(classes: int) -> Part:
    """Make the part of a class label that the network adds to its time embedding."""
    return Part(
        "label",
        lambda batch, key: batch["label"],
        lambda label: jnp.full_like(label, classes),
        pass_through("label"),
        {"label": jnp.zeros(1, jnp.int32)},
        (),
    )


# ---- tokens -------------------------------------------------------------------------------------


def _make_label_token_part(config: ConfigDict, classes: int) -> Part:
    """Make the part of a class label that becomes one learned token (B, 1, width) to attend to.

    The label ``classes``, none of them, has a token of its own, or zeros with ``cond.null=zero``.

    Raises:
        ValueError: the data have no classes.
    """
    if not classes:
        raise ValueError("cond.context=label needs data with classes: set data.num_classes")
    width, learned = config.network.context_dim, config.cond.null == "learned"

    def init(key: jax.Array) -> dict[str, Params]:
        table = jax.random.normal(jax.random.fold_in(key, 3), (classes + learned, width))
        return {"label_encoder": {"embedding": table}}

    def encode(params: Params, frozen: Frozen, extra: Statistics, label: Array) -> dict[str, Array]:
        table = params["label_encoder"]["embedding"]
        if learned:
            return {"context": table[label][:, None]}
        tokens = jnp.where(label[:, None] < classes, table[jnp.minimum(label, classes - 1)], 0.0)
        return {"context": tokens[:, None]}

    example = {"context": jnp.zeros((1, 1, width))}
    return _make_label_part(classes)._replace(encode=encode, example=example, init=init)


def _make_text_part(config: ConfigDict, classes: int) -> Part:
    """Make the part of a text that a transformer encodes, which is trained with the network."""
    section, width = config.cond, config.network.context_dim
    options = dict(section.get("text", None) or {})
    net = build("text encoder", "text", {"text": TextTransformer}, {**options, "features": width})

    def init(key: jax.Array) -> dict[str, Params]:
        ids = jnp.zeros((1, net.positions), jnp.int32)
        variables = init_network(net, jax.random.fold_in(key, 3), ids)
        return {"text_encoder": variables["params"]}

    def encode(params: Params, frozen: Frozen, extra: Statistics, ids: Array) -> dict[str, Array]:
        tokens: Any = net.apply({"params": params["text_encoder"]}, ids)
        return {"context": tokens}

    return _make_tokens_part(width, encode)._replace(init=init)


ENCODERS = {"text": "text_encoder", "text_2": "text_encoder_2"}  # by section and entry of a batch


TABLE = "text_model.embeddings.token_embedding"  # of a text encoder's parameters


def make_clips(config: ConfigDict) -> dict[str, CLIPText]:
    """Make CLIP's text encoders of a config, by the names of their folders in diffusers.

    ``cond.text`` describes the first encoder, and ``cond.text_2`` that of Stable Diffusion XL. A
    single encoder is as wide as the context of the network.

    Returns:
        Modules without parameters; empty for a config without published text encoders.

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


def list_frozen_clips(config: ConfigDict) -> dict[str, CLIPText]:
    """List those of `make_clips` that are not trained with the network (``cond.train_text``)."""
    return {} if "cond" in config and config.cond.train_text else make_clips(config)


def _make_clip_part(config: ConfigDict, classes: int) -> Part:
    """Make the part of one text encoder, as the config describes it."""
    nets, empty = make_clips(config), tuple(config.cond.empty) or (0,)
    part = _make_encoder_part(nets["text_encoder"], config.network.context_dim, empty)
    return part._replace(init=_init_clips(config, nets))


def _init_clips(
    config: ConfigDict, nets: Mapping[str, CLIPText]
) -> Callable[[jax.Array], dict[str, Params]]:
    """Make the function that initialises the text encoders that are trained; none if frozen."""

    def init(key: jax.Array) -> dict[str, Params]:
        if not config.cond.train_text:
            return {}
        ids = jnp.zeros((1, 1), jnp.int32)
        made = {
            name: init_network(net, jax.random.fold_in(key, 3 + k), ids)
            for k, (name, net) in enumerate(nets.items())
        }
        return {name: variables["params"] for name, variables in made.items()}

    return init


def _apply_clip(net: CLIPText, name: str, params: Params, frozen: Frozen, ids: Array) -> Any:
    """Encode token ids by parameters that are trained, if there are any, or else by frozen ones.

    A table of embeddings with more rows than the config says has words that were added. Their ids
    are above that of the end token, which ``end=2`` takes for the largest of a text.
    """
    found = params.get(name) or frozen[name]
    rows = len(found[TABLE]["embedding"])
    if rows > net.vocabulary:
        end = net.vocabulary - 1 if net.end == 2 else net.end
        net = net.clone(vocabulary=rows, end=end)
    return net.apply({"params": found}, ids)


def _make_encoder_part(net: CLIPText, width: int, empty: tuple[int, ...]) -> Part:
    """Make the part of one text encoder, whose parameters are called ``text_encoder``.

    Args:
        width: of its tokens.
        empty: token ids of the empty text, the last of which fills the remaining positions. It
            stands in place of a text that is dropped.
    """

    def null(ids: Array) -> Array:
        some = jnp.arange(ids.shape[1])
        row = jnp.asarray(empty, ids.dtype)[jnp.minimum(some, len(empty) - 1)]
        return jnp.broadcast_to(row, ids.shape)

    def encode(params: Params, frozen: Frozen, extra: Statistics, ids: Array) -> dict[str, Array]:
        return {"context": _apply_clip(net, "text_encoder", params, frozen, ids).last}

    return _make_tokens_part(width, encode)._replace(null=null)


def _make_clip_xl_part(config: ConfigDict, classes: int) -> Part:
    """Make the part of the two text encoders of Stable Diffusion XL that a config describes."""
    nets = make_clips(config)
    part = _make_encoders_part(nets, config.network.context_dim, list_added_shapes(config))
    return part._replace(init=_init_clips(config, nets))


def _make_encoders_part(
    nets: Mapping[str, CLIPText], width: int, shapes: Mapping[str, tuple[int, ...]]
) -> Part:
    """Make the part of the text encoders of Stable Diffusion XL (Podell et al. 2023, section 2.1).

    The network attends to the last hidden layer but one of each encoder, side by side, and is told
    the pooled text of the last encoder and six sizes. Zeros in place of tokens and pooled text say
    nothing. A refiner has the second encoder alone.

    Args:
        nets: encoders by the names in `ENCODERS`.
        width: of the network's context.
        shapes: of ``text_embeds`` and ``time_ids``, for one image.
    """
    entries = {entry: name for entry, name in ENCODERS.items() if name in nets}

    def take(batch: Batch, key: jax.Array) -> dict[str, Any]:
        raw = {k: batch[k] for k in (*entries, "time_ids")}
        return {"said": jnp.ones(len(raw["time_ids"])), **raw}

    def null(raw: dict[str, Any]) -> dict[str, Any]:
        return {**raw, "said": jnp.zeros_like(raw["said"])}

    def encode(params: Params, frozen: Frozen, extra: Statistics, raw: Any) -> dict[str, Any]:
        found: list[Any] = [
            _apply_clip(nets[name], name, params, frozen, raw[text])
            for text, name in entries.items()
        ]
        context = jnp.concatenate([out.hidden[-2] for out in found], axis=-1)
        said = raw["said"][:, None]
        pooled = {"text_embeds": found[-1].pooled * said, "time_ids": raw["time_ids"]}
        return {"context": context * said[..., None], "added": pooled}

    added = {k: jnp.zeros((1, *shape)) for k, shape in shapes.items()}
    example: dict[str, Any] = {"context": jnp.zeros((1, 1, width)), "added": added}
    return Part("prompt", take, null, encode, example, (*entries, "time_ids"))


def make_text_condition(
    nets: Mapping[str, CLIPText],
    width: int,
    empty: tuple[int, ...],
    added: Mapping[str, tuple[int, ...]],
) -> Condition:
    """Make the condition of a published text-to-image model.

    Args:
        nets: text encoders by their names in `ENCODERS`; their parameters are ``frozen[name]``.
        width: of the network's context.
        empty: token ids of the empty text: start, end, padding.
        added: shapes of what the networks of Stable Diffusion XL read besides the context; empty
            for other models.
    """
    if added:
        return _join_parts([_make_encoders_part(nets, width, added)], True)
    return _join_parts([_make_encoder_part(nets["text_encoder"], width, empty)], True)


def _make_tokens_part(width: int, encode: Callable[..., dict[str, Array]]) -> Part:
    """Make the part of token ids ``batch["text"]`` (B, M); zeros stand for the empty text."""
    return Part(
        "text",
        lambda batch, key: batch["text"],
        jnp.zeros_like,
        encode,
        {"context": jnp.zeros((1, 1, width))},
        ("text",),
    )


EMBEDDINGS = ("context", "text_embeds", "time_ids")  # the last two of Stable Diffusion XL


def list_added_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """List the shapes of what Stable Diffusion XL reads of an image besides the context.

    Returns:
        Shapes of ``text_embeds`` and ``time_ids`` without the batch; empty for other models.
    """
    section, added = config.cond, config.network.added_dim
    if not added:
        return {}
    pooled = section.text_2.projection if section.context == "clip_xl" else section.given.pooled
    ids = (added - pooled) // config.network.added_time_dim
    return {"text_embeds": (pooled,), "time_ids": (ids,)}


def list_embedding_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """List the shapes, without the batch, of the `EMBEDDINGS` that ``cond.context=given`` reads."""
    tokens = (config.cond.given.tokens, config.network.context_dim)
    return {"context": tokens, **list_added_shapes(config)}


def _make_embedding_part(config: ConfigDict, classes: int) -> Part:
    """Make the part of embeddings that were made beforehand.

    Zeros say nothing, as Stable Diffusion XL has them for the empty text; ``time_ids`` stay.
    """
    shapes = list_embedding_shapes(config)

    def null(raw: dict[str, Array]) -> dict[str, Array]:
        return {k: v if k == "time_ids" else jnp.zeros_like(v) for k, v in raw.items()}

    def read(raw: Mapping[str, Array]) -> dict[str, Any]:
        added = {k: v for k, v in raw.items() if k != "context"}
        return {"context": raw["context"], **({"added": added} if added else {})}

    example = read({k: jnp.zeros((1, *shape)) for k, shape in shapes.items()})
    return Part(
        "embedding",
        lambda batch, key: {k: batch[k] for k in shapes},
        null,
        lambda params, frozen, extra, raw: read(raw),
        example,
        tuple(shapes),
    )


_CONTEXTS = {
    "label": _make_label_token_part,
    "text": _make_text_part,
    "clip": _make_clip_part,
    "clip_xl": _make_clip_xl_part,
    "given": _make_embedding_part,
}
