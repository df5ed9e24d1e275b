"""Encode prompts with tokenizers and text encoders, and add words by textual inversion.

The UNet attends to the hidden states of the text encoders. `encode` computes them for one prompt,
and `add_concept` puts the embeddings of new words into an encoder and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import lora
from diffjax.nets.text import CLIPText, TextFeatures
from diffjax.pretrained.files import StrPath
from diffjax.pretrained.hub import download
from diffjax.pretrained.models import Component
from diffjax.pretrained.pickles import open_weights
from diffjax.pretrained.recognise import WORD, describe_keys
from diffjax.pretrained.tokenizers import Tokenizer, Tokens, with_concept
from diffjax.types import Array, ArrayLike, Params, choose, summarize
from diffjax.untrusted import name_some

# Layers beyond the one that is taken, by its name.
LAYERS = {"last": 0, "penultimate": 1, "bare": 0}
_EMBEDDING = "text_model.embeddings.token_embedding"


class TextEncoder(NamedTuple):
    """A text encoder and its tokenizer.

    Attributes:
        tokenizer: texts to ids.
        model: the network, a `diffjax.nets.text.CLIPText`.
        adapters: low-rank adapters and their scales, which are added while it runs.
    """

    tokenizer: Tokenizer
    model: Component
    adapters: tuple[tuple[Params, float], ...] = ()

    def __repr__(self) -> str:
        return summarize(self)


class Prompt(NamedTuple):
    """A prompt with a text for each of XL's two encoders. A plain text goes to both.

    Attributes:
        first: text for the first encoder, or for the only one (that of a refiner).
        second: text for the second encoder, which also makes the pooled embedding.
    """

    first: str
    second: str


class Embedding(NamedTuple):
    """The output of the text encoders for B prompts.

    Attributes:
        context: (B, M, D), the embedded tokens that a UNet attends to. D joins the widths of the
            encoders.
        pooled: (B, P), the projected end token of the last encoder, or None if it has no
            projection. That of the latent upscaler is not projected.
    """

    context: Array
    pooled: Array | None = None

    def __repr__(self) -> str:
        return summarize(self)


def encode(
    encoders: Sequence[TextEncoder],
    prompt: str | Prompt,
    *,
    layer: str = "last",
    skip: int = 0,
    weighted: bool = False,
    chunks: int = 1,
) -> Embedding:
    """Encode one prompt, with the outputs of several encoders side by side.

    With weights w, each token is multiplied by its weight, and the chunk is then rescaled to the
    mean that it had before, so that weights change differences between tokens alone.

    Args:
        encoders: one encoder, or the two of XL.
        prompt: a text, or a `Prompt` with one text for each encoder.
        layer: a key of `LAYERS`: the ``last`` with the final norm; the ``penultimate`` without it,
            as XL reads it; or ``bare``, the last without it, as the latent upscaler reads it, which
            also takes the pooled embedding of an encoder without a projection.
        skip: layers to leave out beyond that (``clip_skip``).
        weighted: whether brackets are weights and the prompt may be long; see
            `diffjax.pretrained.tokenizers`.
        chunks: number of chunks to fill up to with empty ones.

    Returns:
        An embedding with context (1, M chunks, D), where M is the length of a chunk.

    Raises:
        ValueError: an encoder has no layer left, or lacks an embedding for a token.
    """
    parts, before = [], choose("layer", layer, LAYERS)
    for encoder, text in zip(encoders, _split_prompt(encoders, prompt), strict=True):
        layers = encoder.model.net.layers
        if not 0 <= skip + before < layers:
            raise ValueError(f"clip_skip must leave a layer of {layers}, got {skip}")
        make = encoder.tokenizer.weighted if weighted else encoder.tokenizer.plain
        tokens = _pad_chunks(make(text), encoder.tokenizer.plain(""), chunks)
        _check_ids(encoder, tokens.ids)
        # Configs of early models give another end token, and words that were added come after it.
        net = encoder.model.net.clone(end=encoder.tokenizer.end)
        hidden = -(skip + before + 1)
        # One chunk at a time: a single program for prompts of any length.
        done = [
            _encode(
                net,
                hidden,
                layer == "last",
                encoder.model.params,
                encoder.adapters,
                tokens.ids[k : k + 1],
                tokens.weights[k : k + 1],
            )
            for k in range(len(tokens.ids))
        ]
        parts.append((jnp.concatenate([context for context, _ in done], 1), done[0][1]))
    pooled = parts[-1][1] if encoders[-1].model.net.projection or layer == "bare" else None
    return Embedding(jnp.concatenate([context for context, _ in parts], -1), pooled)


def _check_ids(encoder: TextEncoder, ids: np.ndarray) -> None:
    """Check that an encoder has an embedding for every token.

    Raises:
        ValueError: it has not. The tokenizer is of another model, or knows words whose embeddings
            were not added.
    """
    rows = encoder.model.net.vocabulary
    if ids.max() >= rows:
        token = encoder.tokenizer.backend.id_to_token(int(ids.max()))
        raise ValueError(
            f"the tokenizer gives {token!r} the id {ids.max()}, but the text encoder has {rows} "
            "tokens; they are of different models, or the word's embedding is missing"
        )


def count_chunks(encoders: Sequence[TextEncoder], prompt: str | Prompt) -> int:
    """Return how many chunks a weighted prompt needs: the larger number of the encoders."""
    pairs = zip(encoders, _split_prompt(encoders, prompt), strict=True)
    return max(len(encoder.tokenizer.weighted(text).ids) for encoder, text in pairs)


def _split_prompt(encoders: Sequence[TextEncoder], prompt: str | Prompt) -> Sequence[str]:
    """Return the text for each encoder."""
    texts = prompt if isinstance(prompt, Prompt) else (prompt,) * len(encoders)
    return texts[: len(encoders)]


def _pad_chunks(tokens: Tokens, empty: Tokens, chunks: int) -> Tokens:
    """Append empty chunks to tokens until there are ``chunks`` of them."""
    absent = max(0, chunks - len(tokens.ids))
    return Tokens(*(np.concatenate([a, *[b] * absent]) for a, b in zip(tokens, empty, strict=True)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    net: CLIPText,
    layer: int,
    normed: bool,
    params: Params,
    adapters: Sequence[tuple[Params, ArrayLike]],
    ids: Array,
    weights: Array,
) -> tuple[Array, Array]:
    for tree, scale in adapters:
        params = lora.merge(params, tree, scale)
    """Return the context (1, M, D) and the pooled embedding (1, P) of a chunk, in float32.

    Args:
        net: the text encoder.
        layer: index of the hidden state, -1 for the output of the last layer.
        normed: whether to apply the final norm to it.
        params: parameters of the encoder.
        ids: (1, M) tokens.
        weights: (1, M) weights of the tokens.
    """
    out = cast(TextFeatures, net.apply({"params": params}, ids))
    if layer == -1 and normed:
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
    """Return text encoders that know more words, by textual inversion (Gal et al. 2022).

    A word is one or more embeddings. Each becomes a token of its own, added at the end of the
    vocabulary.

    Args:
        encoders: the text encoders of a model.
        path: a file of diffusers, whose keys are the words; or of web interfaces, which holds one
            word under ``emb_params`` or ``string_to_param``, and for XL under ``clip_l`` and
            ``clip_g``.
        name: the word to write in prompts, if the file holds one. None is the key in the file, or
            the name of the file.
        allow_legacy_pickle: whether to read pickles (.pt, .bin) too, without running their code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no embedding of an encoder's width, an encoder knows the word
            already, the file holds several words and ``name`` is set, or it holds something else.
    """
    file = download(path, pickles=allow_legacy_pickle)
    words = _read_words(file, name, allow_legacy_pickle)
    for word, rows in words.items():
        used: set[str] = set()
        new = []
        for encoder in encoders:
            key = _choose_key(encoder, rows, file)
            used.add(key)
            new.append(_add_rows(encoder, word, rows[key], file))
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
    """Read the embeddings of every word in a file.

    Returns:
        For each word, arrays (n, D) by their keys in the file; XL's two encoders have different
            widths D.

    Raises:
        ValueError: the file holds something else, or several words while ``name`` is set.
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
    """Choose the key of the embeddings that an encoder takes, by their width.

    Raises:
        ValueError: there is none; the file is for another model.
    """
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
    """Return an encoder with a word whose embeddings are rows (n, D) at the end of its table.

    Raises:
        ValueError: the tokenizer knows the word already.
    """
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
