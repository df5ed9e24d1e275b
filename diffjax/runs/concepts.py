"""The embeddings of a word that is learned: what it begins with, and the file it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from diffjax.model.condition import ENCODERS, TABLE
from diffjax.pretrained.tokenizers import Tokenizer
from diffjax.runs.tokens import Tokenizers
from diffjax.tasks.concept_task import ROWS
from diffjax.types import ConfigError, Params
from diffjax.writing import replace_file

WORD_FILE = "learned_embeds.safetensors"  # as diffusers calls it
# Names of XL's two encoders in files with the word of both.
_OF_TWO = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def choose_rows(
    cfg: ConfigDict, tokenizers: Tokenizers, frozen: Mapping[str, Params]
) -> Callable[[], Params] | None:
    """Choose the embeddings that the word begins with: those of the text ``concept.initial``.

    If the text has fewer tokens than the word has embeddings, they are repeated.

    Args:
        tokenizers: by the entry of a batch.
        frozen: the text encoders by name.

    Returns:
        A function that makes the parameters of `tasks.concept_task`; None if no text is given.

    Raises:
        ConfigError: the text has more tokens than the word has embeddings.
    """
    text, count = cfg.concept.initial, cfg.concept.vectors
    if not text:
        return None
    rows = {}
    for entry, one in tokenizers.items():
        assert isinstance(one, Tokenizer)
        ids = one.ids(text)
        if not 0 < len(ids) <= count:
            raise ConfigError(
                f"config.concept.initial={text!r} has {len(ids)} tokens, and the word has {count} "
                "embeddings: set config.concept.vectors or choose another text"
            )
        table = np.asarray(frozen[ENCODERS[entry]][TABLE]["embedding"], np.float32)
        rows[ENCODERS[entry]] = {ROWS: jnp.asarray(table[np.resize(ids, count)])}
    return lambda: rows


def save_word(path: Path, params: Params, word: str) -> None:
    """Write the embeddings of a word as `pipe.with_concept` and diffusers read them.

    A file for one text encoder has the word as its key. One for the two of Stable Diffusion XL has
    ``clip_l`` and ``clip_g``, as files of web interfaces have, and is given its word on loading.

    Args:
        params: what `tasks.concept_task` trained.
    """
    keys = _OF_TWO if len(params) > 1 else dict.fromkeys(params, word)
    rows = {keys[name]: np.asarray(part[ROWS], np.float32) for name, part in params.items()}
    with replace_file(path) as partial:
        save_file(rows, partial, {"format": "pt"})
