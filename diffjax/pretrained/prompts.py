"""Prompts to what a UNet attends to: tokenizers and text encoders together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import lora
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.models import Component
from diffjax.pretrained.pickles import open_weights
from diffjax.pretrained.recognise import WORD, describe_keys
from diffjax.pretrained.tokenizers import Tokenizer, Tokens, with_concept
from diffjax.types import Array, ArrayLike, PyTree, summarize
from diffjax.untrusted import name_some

_EMBEDDING = "text_model.embeddings.token_embedding"


class TextEncoder(NamedTuple):
    """A text encoder and its tokenizer.

    Attributes:
        adapters: low-rank adapters and their scales, added while it runs.
    """

    tokenizer: Tokenizer
    model: Component
    adapters: tuple[tuple[PyTree, float], ...] = ()

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
    for encoder, text in zip(encoders, _split_prompt(encoders, prompt), strict=True):
        layers = encoder.model.net.layers
        if not 0 <= skip + penultimate < layers:
            raise ValueError(f"clip_skip must leave a layer of {layers}, got {skip}")
        make = encoder.tokenizer.weighted if weighted else encoder.tokenizer.plain
        tokens = _pad_chunks(make(text), encoder.tokenizer.plain(""), chunks)
        _check_ids(encoder, tokens.ids)
        # Configs of early models give another end token, and words that were added come after it.
        net = encoder.model.net.clone(end=encoder.tokenizer.end)
        hidden = -(skip + penultimate + 1)
        # One chunk at a time: a single program for prompts of any length.
        done = [
            _encode(
                net,
                hidden,
                not penultimate,
                encoder.model.params,
                encoder.adapters,
                tokens.ids[k : k + 1],
                tokens.weights[k : k + 1],
            )
            for k in range(len(tokens.ids))
        ]
        parts.append((jnp.concatenate([context for context, _ in done], 1), done[0][1]))
    pooled = parts[-1][1] if encoders[-1].model.net.projection else None
    return Embedding(jnp.concatenate([context for context, _ in parts], -1), pooled)


def _check_ids(encoder: TextEncoder, ids: np.ndarray) -> None:
    """See that an encoder has a row for every token.

    Raises:
        ValueError: it has not: the tokenizer is of another model, or knows words that it does not.
    """
    rows = encoder.model.net.vocabulary
    if ids.max() >= rows:
        token = encoder.tokenizer.backend.id_to_token(int(ids.max()))
        raise ValueError(
            f"the tokenizer gives {token!r} the id {ids.max()}, but the text encoder has {rows} "
            "tokens; they are of different models, or the word's embedding is missing"
        )


def count_chunks(encoders: Sequence[TextEncoder], prompt: str | Prompt) -> int:
    """How many chunks a weighted prompt needs."""
    told = zip(encoders, _split_prompt(encoders, prompt), strict=True)
    return max(len(encoder.tokenizer.weighted(text).ids) for encoder, text in told)


def _split_prompt(encoders: Sequence[TextEncoder], prompt: str | Prompt) -> Sequence[str]:
    """Return the text for each encoder."""
    texts = prompt if isinstance(prompt, Prompt) else (prompt,) * len(encoders)
    return texts[: len(encoders)]


def _pad_chunks(tokens: Tokens, empty: Tokens, chunks: int) -> Tokens:
    """Append empty chunks to tokens until there are ``chunks``."""
    absent = max(0, chunks - len(tokens.ids))
    return Tokens(*(np.concatenate([a, *[b] * absent]) for a, b in zip(tokens, empty, strict=True)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    net: Any,
    layer: int,
    normed: bool,
    params: PyTree,
    adapters: Sequence[tuple[PyTree, ArrayLike]],
    ids: Array,
    weights: Array,
) -> tuple[Array, Array]:
    for tree, scale in adapters:
        params = lora.merge(params, tree, scale)
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

# Keys of files that hold one word, which is called as the file is: of web pages, of XL's encoders.
_ONE_WORD = ("emb_params", "*", "clip_l", "clip_g", "text_encoders_0", "text_encoders_1")
Rows = dict[str, np.ndarray]  # embeddings (n, D) of a word by their keys in the file


def add_concept(
    encoders: Sequence[TextEncoder],
    path: StrPath,
    *,
    name: str | None = None,
    allow_legacy_pickle: bool = False,
) -> tuple[TextEncoder, ...]:
    """Text encoders that know more words: textual inversion (Gal et al. 2022).

    Args:
        path: file of diffusers (its keys are the words), or of web interfaces, which holds one word
            (``emb_params`` or ``string_to_param``; ``clip_l`` and ``clip_g`` for XL).
        name: the word, if the file holds one; that in the file, or the name of the file, if None.
        allow_legacy_pickle: read pickles (.pt, .bin) too, without running their code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an encoder finds no embedding of its width, or knows a word already, or the file
            holds several words or something else.
    """
    words = _read_words(Path(path), name, allow_legacy_pickle)
    for word, rows in words.items():
        used: set[str] = set()
        new = []
        for encoder in encoders:
            key = _choose_key(encoder, rows, Path(path))
            used.add(key)
            new.append(_add_rows(encoder, word, rows[key], Path(path)))
        # A refiner has the second encoder only.
        spare = {key for key in rows if key not in used and not (key == "clip_l" and used)}
        if spare:
            raise ValueError(
                f"{path} is for another model: of {word!r} no text encoder takes "
                + ", ".join(f"{key} {rows[key].shape}" for key in sorted(spare))
            )
        encoders = new
    return tuple(encoders)


def _read_words(path: Path, name: str | None, allow_legacy_pickle: bool) -> dict[str, Rows]:
    """The embeddings of every word in a file.

    Raises:
        ValueError: it holds something else, or several words and a name for one.
    """
    weights = open_weights(path, allow_legacy_pickle=allow_legacy_pickle)
    what = describe_keys(weights.keys())
    if what not in (None, WORD):
        raise ValueError(f"{path} is no textual inversion, but {what}")
    words: dict[str, Rows] = {}
    for key in weights:
        shape = weights.shape(key)
        if len(shape) not in (1, 2) or 0 in shape:
            raise ValueError(
                f"{path} is no textual inversion: {key} has shape {shape}, not a row for each "
                "token of a word"
            )
        rows = np.atleast_2d(np.asarray(weights[key], np.float32))
        if not np.isfinite(rows).all():
            raise ValueError(f"{key} in {path} holds values that are not finite: it is damaged")
        words.setdefault(path.stem if key in _ONE_WORD else key, {})[key] = rows
    if not words:
        raise ValueError(f"{path} holds no word")
    if name is not None and len(words) > 1:
        raise ValueError(
            f"{path} holds {len(words)} words ({name_some(words)}): they keep their names, so "
            f"leave out {name!r}"
        )
    return words if name is None else dict.fromkeys((name,), *words.values())


def _choose_key(encoder: TextEncoder, rows: Rows, path: Path) -> str:
    """Choose the key of the embeddings that an encoder takes, by their width."""
    width = encoder.model.net.features
    keys = [key for key, value in rows.items() if value.shape[1] == width]
    if not keys:
        there = ", ".join(f"{key} {value.shape}" for key, value in rows.items())
        raise ValueError(
            f"the encoder needs embeddings of width {width}; there are {there} in {path}, which is "
            "for another model"
        )
    return keys[0]


def _add_rows(encoder: TextEncoder, name: str, rows: np.ndarray, path: Path) -> TextEncoder:
    net, params = encoder.model.net, encoder.model.params
    try:
        tokenizer, ids = with_concept(encoder.tokenizer, name, len(rows))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    table = params[_EMBEDDING]["embedding"]
    absent = max(0, max(ids) + 1 - len(table))
    table = jnp.pad(table, ((0, absent), (0, 0))).at[jnp.asarray(ids)].set(rows.astype(table.dtype))
    # Added words have larger ids than the end token, which early configs take to be the largest.
    config = {**encoder.model.config, "vocab_size": len(table), "eos_token_id": tokenizer.end}
    model = encoder.model._replace(
        net=net.clone(vocabulary=len(table), end=tokenizer.end),
        params={**params, _EMBEDDING: {"embedding": table}},
        config=config,
    )
    return encoder._replace(tokenizer=tokenizer, model=model)
