"""Prompts to what a UNet attends to: tokenizers and text encoders together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.pretrained.files import StrPath, open_safetensors
from diffjax.pretrained.models import Model
from diffjax.pretrained.tokenizers import Tokenizer, Tokens, with_concept
from diffjax.types import Array, PyTree, summarize

_EMBEDDING = "text_model.embeddings.token_embedding"


class TextEncoder(NamedTuple):
    """A text encoder and its tokenizer."""

    tokenizer: Tokenizer
    model: Model

    def __repr__(self) -> str:
        return summarize(self)


class Prompt(NamedTuple):
    """What XL's two text encoders are told, where that is not the same.

    Attributes:
        first: of the first encoder, or of the only one (that of a refiner).
        second: of the second encoder, which gives the pooled embedding too.
    """

    first: str
    second: str


class Embedding(NamedTuple):
    """What text encoders say of prompts.

    Attributes:
        context: (B, M, D), the tokens a UNet attends to.
        pooled: (B, P) of the last encoder, or None if it has no projection.
    """

    context: Array
    pooled: Array | None = None

    def __repr__(self) -> str:
        return summarize(self)


def encode(
    encoders: Sequence[TextEncoder],
    prompt: str | Prompt,
    *,
    penultimate: bool = False,
    skip: int = 0,
    weighted: bool = False,
    chunks: int = 1,
) -> Embedding:
    """The embedding of one prompt, those of several encoders side by side.

    Args:
        prompt: a text, or a `Prompt` if encoders are told different ones.
        penultimate: take the output of the last layer but one as it is (XL) instead of that of the
            last with its norm.
        skip: layers left out beyond that.
        weighted: the prompt has weights and may be long; see `diffjax.pretrained.tokenizers`.
        chunks: how many there must be at least; a prompt of fewer is filled with empty ones.

    Raises:
        ValueError: an encoder does not have so many layers to skip.
    """
    parts = []
    for encoder, text in zip(encoders, _texts(encoders, prompt), strict=True):
        layers = encoder.model.net.layers
        if not 0 <= skip + penultimate < layers:
            raise ValueError(f"clip_skip must leave a layer of {layers}, got {skip}")
        make = encoder.tokenizer.weighted if weighted else encoder.tokenizer.plain
        tokens = _filled(make(text), encoder.tokenizer.plain(""), chunks)
        hidden = -(skip + penultimate + 1)
        # One chunk at a time: a single program for prompts of any length.
        done = [
            _encode(
                encoder.model.net,
                hidden,
                not penultimate,
                encoder.model.params,
                tokens.ids[k : k + 1],
                tokens.weights[k : k + 1],
            )
            for k in range(len(tokens.ids))
        ]
        parts.append((jnp.concatenate([context for context, _ in done], 1), done[0][1]))
    pooled = parts[-1][1] if encoders[-1].model.net.projection else None
    return Embedding(jnp.concatenate([context for context, _ in parts], -1), pooled)


def count_chunks(encoders: Sequence[TextEncoder], prompt: str | Prompt) -> int:
    """How many chunks a weighted prompt needs."""
    told = zip(encoders, _texts(encoders, prompt), strict=True)
    return max(len(encoder.tokenizer.weighted(text).ids) for encoder, text in told)


def _texts(encoders: Sequence[TextEncoder], prompt: str | Prompt) -> Sequence[str]:
    """What each encoder is told."""
    texts = prompt if isinstance(prompt, Prompt) else (prompt,) * len(encoders)
    return texts[: len(encoders)]


def _filled(tokens: Tokens, empty: Tokens, chunks: int) -> Tokens:
    absent = max(0, chunks - len(tokens.ids))
    return Tokens(*(np.concatenate([a, *[b] * absent]) for a, b in zip(tokens, empty, strict=True)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    net: Any, layer: int, normed: bool, params: PyTree, ids: Array, weights: Array
) -> tuple[Array, Array]:
    out = net.apply({"params": params}, ids)
    if layer == -1:
        context = out.last
    else:
        context = out.hidden[layer]
        context = net.normalise(params, context) if normed else context
    # Weights change how much tokens differ, not the mean over the chunk.
    context = context.astype(jnp.float32)
    scaled = context * weights[..., None]
    mean = scaled.mean((1, 2), keepdims=True)
    factor = jnp.where(jnp.all(weights == 1), 1.0, context.mean((1, 2), keepdims=True) / mean)
    return scaled * factor, out.pooled.astype(jnp.float32)


# ---- textual inversion --------------------------------------------------------------------------


def add_concept(
    encoders: Sequence[TextEncoder], path: StrPath, *, name: str | None = None
) -> tuple[TextEncoder, ...]:
    """Text encoders that know a word more: textual inversion (Gal et al. 2022).

    Args:
        path: .safetensors file of diffusers (the word is its key), or of web interfaces
            (``emb_params``; ``clip_l`` and ``clip_g`` for XL).
        name: the word; that in the file, or the name of the file, if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an encoder finds no embedding of its width, or knows the word already.
    """
    weights = open_safetensors(path)
    found = {key: np.atleast_2d(np.asarray(weights[key], np.float32)) for key in weights}
    known = {"emb_params", "clip_l", "clip_g"}
    stored = next((key for key in found if key not in known), Path(path).stem)
    return tuple(_with_rows(encoder, name or stored, found) for encoder in encoders)


def _with_rows(encoder: TextEncoder, name: str, found: dict[str, np.ndarray]) -> TextEncoder:
    net, params = encoder.model.net, encoder.model.params
    rows = next((v for v in found.values() if v.ndim == 2 and v.shape[1] == net.features), None)
    if rows is None:
        there = ", ".join(f"{key} {value.shape}" for key, value in found.items())
        raise ValueError(f"the encoder needs embeddings of width {net.features}; there are {there}")
    tokenizer, ids = with_concept(encoder.tokenizer, name, len(rows))
    table = params[_EMBEDDING]["embedding"]
    absent = max(0, max(ids) + 1 - len(table))
    table = jnp.pad(table, ((0, absent), (0, 0))).at[jnp.asarray(ids)].set(rows.astype(table.dtype))
    model = encoder.model._replace(
        net=net.clone(vocabulary=len(table)),
        params={**params, _EMBEDDING: {"embedding": table}},
        config={**encoder.model.config, "vocab_size": len(table)},
    )
    return TextEncoder(tokenizer, model)
