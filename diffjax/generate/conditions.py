"""Make the conditions of a network: embedded prompts and negative prompts, and the sizes of XL.

`stages` first calls `check_conditions`, which raises every error without running a text encoder,
and then `make_conditions`, which runs the encoders. Prompts may come as texts or as embeddings that
the caller made. Long prompts span several chunks of 77 tokens; the shorter one of prompt and
negative prompt is filled up with empty chunks, because guidance evaluates both in one batch.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import logging

from diffjax.generate.checks import RequestError, refuse
from diffjax.generate.fitting import choose_scale, list_adapters
from diffjax.generate.loaded import LoadedModel
from diffjax.generate.options import Size
from diffjax.generate.request import Request
from diffjax.generate.texts import Prompts
from diffjax.pretrained.components import HALF
from diffjax.pretrained.prompts import Embedding, Prompt, count_chunks

NOISE_DIM = 64  # cosines, and as many sines, of the noise of a latent upscaler's image
Cond = dict[str, Any]
Texts = Prompts | Embedding


def make_conditions(
    pipe: LoadedModel, request: Request, size: Size, *, guided: bool
) -> tuple[Cond, Cond]:
    """Embed the prompts and the negative prompts of a request and build the network's conditions.

    Args:
        pipe: the model whose text encoders embed the prompts.
        request: a request that `check_conditions` has accepted.
        size: the sizes that XL is conditioned on.
        guided: whether a step is guided, so that the second condition is needed.

    Returns:
        The condition of the prompts and that of the negative prompts. ``context`` has shape (B,
            tokens, D), where B counts images. The second condition is empty without guidance.

    Raises:
        RequestError: see `count_tokens`.
    """
    tokens = count_tokens(pipe, request, guided=guided)
    prompt = _embed_padded(pipe, request, request.list_prompts(), tokens, request.clip_skip)
    cond = _build_condition(pipe, prompt, request.num, size)
    both: Cond = {}
    if request.freeu is not None:
        both["freeu"] = jnp.tile(jnp.asarray(request.freeu), (request.count_images(), 1))
    if pipe.parts.unet.net.guidance_dim:
        w = choose_scale(pipe, request.read_guidance()) - 1
        both["guidance"] = jnp.full(request.count_images(), w, jnp.float32)
    cond |= both
    if not guided:
        return cond, {}
    listed = _find_negatives(pipe, request)
    if listed is None:
        nothing: Embedding = jax.tree.map(jnp.zeros_like, prompt)
    else:
        nothing = _embed_padded(pipe, request, listed, tokens)
    times = len(prompt.context) // len(nothing.context)
    nothing = jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), nothing)
    return cond, _build_condition(pipe, nothing, request.num, size.for_negative()) | both


def _find_negatives(pipe: LoadedModel, request: Request) -> Texts | None:
    """Return the negative prompts, or None if they are a zero embedding.

    Without a negative prompt, XL takes zeros in place of an embedding
    (``force_zeros_for_empty_prompt`` in model_index.json) and other models embed the empty text, as
    diffusers' pipelines do.
    """
    listed = cast(Texts | None, request.read_guidance().negative)
    if listed is None:
        zero = pipe.parts.manifest.get("force_zeros_for_empty_prompt", pipe.is_xl)
        return None if zero else ("",)
    return listed


def _embed_padded(
    pipe: LoadedModel, request: Request, texts: Texts, tokens: int, skip: int = 0
) -> Embedding:
    """Embed prompts, and fill them up with empty chunks to a number of tokens.

    Args:
        pipe: the model.
        texts: the prompts, or their embedding.
        tokens: a multiple of the length of a chunk.
        weighted: whether brackets in the texts are weights.
        skip: layers of the text encoder to leave out.

    Returns:
        An embedding whose context has shape (B, tokens, D).
    """
    length = _find_chunk_length(pipe)
    options: dict[str, Any] = dict(clip_skip=skip, adapters=list_adapters(request))
    if not isinstance(texts, Embedding):
        chunks = tokens // length
        return pipe.embed_checked(texts, weighted=request.weighted, chunks=chunks, **options)
    absent = (tokens - texts.context.shape[1]) // length
    if not absent:
        return texts
    empty = pipe.embed_checked([""], **options).context
    filling = jnp.tile(empty, (len(texts.context), absent, 1))
    return texts._replace(context=jnp.concatenate([texts.context, filling], axis=1))


def _find_chunk_length(pipe: LoadedModel) -> int:
    """Return the number of tokens of a chunk, 77 for CLIP."""
    return next(iter(pipe.parts.texts.values())).tokenizer.length


# ---- what is checked beforehand -----------------------------------------------------------------


def count_tokens(pipe: LoadedModel, request: Request, *, guided: bool) -> int:
    """Return the number of tokens, in whole chunks, to which prompts and negative prompts are
    filled up.

    Raises:
        RequestError: an embedding has a number of tokens that whole chunks cannot fill up to the
            longest prompt.
    """
    texts: dict[str, Texts] = {"prompt": request.list_prompts()}
    if guided and (listed := _find_negatives(pipe, request)) is not None:
        texts["guidance.negative"] = listed
    counts = {name: _count_text_tokens(pipe, one, request.weighted) for name, one in texts.items()}
    most, chunk = max(counts.values()), _find_chunk_length(pipe)
    for name, one in texts.items():
        if (most - counts[name]) % chunk:
            there = " and ".join(f"{n} has {count}" for n, count in counts.items())
            wrong = name if isinstance(one, Embedding) else next(iter(counts.keys() - {name}))
            raise RequestError(
                wrong,
                f"{there} tokens, but embeddings are filled up by chunks of {chunk}: make them "
                "with pipe.embed([...])",
            )
    return most


def _count_text_tokens(pipe: LoadedModel, texts: Texts, weighted: bool) -> int:
    if isinstance(texts, Embedding):
        return texts.context.shape[1]
    encoders = tuple(pipe.parts.texts.values())
    chunks = max(count_chunks(encoders, prompt) for prompt in texts) if weighted else 1
    return chunks * _find_chunk_length(pipe)


def check_conditions(pipe: LoadedModel, request: Request, *, guided: bool) -> None:
    """Check that a model can take the prompts of a request, without running its text encoders.

    Raises:
        RequestError: the number of negative prompts is neither 1 nor that of the prompts, an
            embedding has the wrong width, a `Prompt` has two texts but the model has one encoder,
            or ``clip_skip`` leaves no layer.
    """
    prompts, negative = request.list_prompts(), cast(Texts | None, request.read_guidance().negative)
    texts: dict[str, Texts] = {"prompt": prompts}
    if negative is not None:
        texts["guidance.negative"] = negative
        count, found = _count_texts(prompts), _count_texts(negative)
        if found not in (1, count):
            raise RequestError(
                "guidance.negative", f"{count} prompts have {found} negative prompts"
            )
        if not guided:
            logging.warning("guidance.negative changes nothing: no step is guided")
    for name, one in texts.items():
        if isinstance(one, Embedding):
            _check_embedding(pipe, name, one)
        elif not pipe.is_xl and any(isinstance(prompt, Prompt) for prompt in one):
            raise RequestError(
                name, f"{name}: this model has one text encoder: a prompt for two is for XL"
            )
    layers = min(text.model.net.layers for text in pipe.parts.texts.values())
    if request.clip_skip + pipe.is_xl >= layers:
        raise refuse("clip_skip", f"must leave a layer of {layers}, got {request.clip_skip}")
    told = request.read_size()._replace(height=0, width=0)
    if not pipe.is_xl and told != Size():
        given = [f"size.{k}" for k, v in told._asdict().items() if v != Size._field_defaults[k]]
        logging.warning("%s: no effect, since this model is told no sizes", ", ".join(given))
    count_tokens(pipe, request, guided=guided)


def _count_texts(texts: Texts) -> int:
    return len(texts.context if isinstance(texts, Embedding) else texts)


def _check_embedding(pipe: LoadedModel, name: str, embedding: Embedding) -> None:
    """Check that an embedding has the widths of this model's text encoders.

    The pooled embedding (B, P) of XL is followed by 5 or 6 size embeddings of ``added_time_dim``
    each, so the width of the network's added input says which P it takes.

    Raises:
        RequestError: the context or the pooled embedding has another width, or the latter is
            missing.
    """
    net, width = pipe.parts.unet.net, embedding.context.shape[-1]
    upscales = pipe.beside == HALF
    if width != net.token_dim:
        raise refuse(
            f"{name}.context",
            f"has a width of {width}, but this model takes {net.token_dim}: embed the texts with "
            "its own pipe.embed([...])",
        )
    if not (net.added_dim or upscales):
        return
    if embedding.pooled is None:
        raise refuse(
            f"{name}.pooled",
            "is None, but this model needs pooled embeddings beside the context",
        )
    pooled = embedding.pooled.shape[-1]
    if upscales:
        fits = pooled == net.vector_dim - 2 * NOISE_DIM
    else:
        fits = (net.added_dim - pooled) / net.added_time_dim in (5, 6)
    if not fits:
        raise refuse(
            f"{name}.pooled",
            f"has a width of {pooled}, which this model does not take: embed "
            "the texts with its own pipe.embed([...])",
        )


def _build_condition(pipe: LoadedModel, embedding: Embedding, num: int, size: Size) -> Cond:
    """Build the entries that the UNet reads, with ``num`` rows in a row for each prompt.

    ``context`` is (B num, M, D). XL also reads ``added``: the pooled embedding (B num, P) and the
    time ids (B num, 5 or 6), which are sizes in pixels (Podell et al. 2023, section 2.2). The
    latent upscaler reads ``vector``: cosines and sines for the noise of the image, which is 0, and
    the pooled embedding.

    Raises:
        ValueError: the network needs a pooled embedding and there is none.
    """
    embedding = jax.tree.map(lambda leaf: jnp.repeat(leaf, num, axis=0), embedding)
    cond: Cond = {"context": embedding.context}
    net, pooled = pipe.parts.unet.net, embedding.pooled
    upscales = pipe.beside == HALF
    if not (net.added_dim or upscales):
        return cond
    if pooled is None:
        raise ValueError("this model needs pooled embeddings beside the context")
    if upscales:
        none = jnp.repeat(jnp.array([1.0, 0.0]), NOISE_DIM)  # the image has no noise
        none = jnp.broadcast_to(none, (len(pooled), len(none)))
        cond["vector"] = jnp.concatenate([none, jnp.asarray(pooled)], axis=-1)
    else:
        ids = size.to_time_ids((net.added_dim - pooled.shape[-1]) // net.added_time_dim)
        times = jnp.broadcast_to(jnp.asarray(ids, jnp.float32), (len(pooled), len(ids)))
        cond["added"] = {"text_embeds": pooled, "time_ids": times}
    return cond
