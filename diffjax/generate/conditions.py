"""What a network is told: prompts and negative prompts, and for XL sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffjax.generate.options import Request, Size
from diffjax.pretrained.prompts import Embedding, Prompt

if TYPE_CHECKING:
    from diffjax.generate.pipeline import Pipeline

Cond = dict[str, Any]


def make(pipe: Pipeline, request: Request, size: Size, *, guided: bool) -> tuple[Cond, Cond]:
    """The conditions of prompts and of negative prompts, the latter empty if there is no guidance.

    Raises:
        ValueError: there are not as many negative prompts as prompts, or embeddings do not fit.
    """
    prompt, negative = request.prompts(), request.guiding().negative
    listed = [negative] if isinstance(negative, str | Prompt) else negative
    length = next(iter(pipe.parts.texts.values())).tokenizer.length
    chunks = 1
    if guided and request.weighted and listed and not isinstance(listed, Embedding):
        # Prompts and negative prompts are filled up to the longest of both.
        chunks = pipe.embed(listed, weighted=True).context.shape[1] // length
    if not isinstance(prompt, Embedding):
        prompt = pipe.embed(
            prompt, clip_skip=request.clip_skip, weighted=request.weighted, chunks=chunks
        )
    cond = _condition(pipe, prompt, request.num, size)
    if not guided:
        return cond, {}
    if listed is None and pipe.parts.manifest.get("force_zeros_for_empty_prompt", pipe.is_xl):
        nothing: Embedding = jax.tree.map(jnp.zeros_like, prompt)
    elif isinstance(listed, Embedding):
        nothing = listed
    else:
        chunks = prompt.context.shape[1] // length
        nothing = pipe.embed(listed or [""], weighted=request.weighted, chunks=chunks)
    nothing = _as_many(nothing, len(prompt.context))
    return cond, _condition(pipe, nothing, request.num, size.negated())


def _as_many(embedding: Embedding, count: int) -> Embedding:
    if len(embedding.context) not in (1, count):
        raise ValueError(f"{count} prompts have {len(embedding.context)} negative prompts")
    times = count // len(embedding.context)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), embedding)


def _condition(pipe: Pipeline, embedding: Embedding, num: int, size: Size) -> Cond:
    embedding = jax.tree.map(lambda leaf: jnp.repeat(leaf, num, axis=0), embedding)
    cond: Cond = {"context": embedding.context}
    net, pooled = pipe.parts.unet.net, embedding.pooled
    if net.added_dim:
        if pooled is None:
            raise ValueError("this model needs pooled embeddings beside the context")
        ids = size.ids((net.added_dim - pooled.shape[-1]) // net.added_time_dim)
        times = jnp.broadcast_to(jnp.asarray(ids, jnp.float32), (len(pooled), len(ids)))
        cond["added"] = {"text_embeds": pooled, "time_ids": times}
    return cond
