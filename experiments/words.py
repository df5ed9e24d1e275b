"""Captions of one's own as tokens: one for each word of the training captions.

A config with ``cond.words="captions"`` has a tokenizer made of them, which its workdir keeps.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.pretrained.tokenizers import (
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from diffjax.train import hosts
from experiments import common

FOLDER = "tokenizer"
MOST_WORDS = 2000  # others are spelled
MOST_TOKENS = 77  # of a caption, with start and end


def are_own(cfg: ConfigDict) -> bool:
    """Whether a config's tokens are words of the captions of its data."""
    return bool(cfg.get("cond", {}).get("words", "") == "captions")


def settle(cfg: ConfigDict) -> None:
    """Set the vocabulary and the length that captions need, if the config leaves them open."""
    if not are_own(cfg) or (cfg.cond.text.vocabulary and cfg.cond.text.positions):
        return
    found = tokenizer_of(cfg)
    cfg.cond.text.update(vocabulary=found.backend.get_vocab_size(), positions=found.length)


def tokenizer_of(cfg: ConfigDict) -> Tokenizer:
    """The tokenizer that the workdir keeps, or else a new one.

    Raises:
        UsageError: the data have no captions.
    """
    trained = common.trained_workdir()
    if trained is not None and (trained / FOLDER).is_dir():
        return load_tokenizer(trained / FOLDER)
    source = common.load_source(cfg, cfg.data.split, (8, 8, 3))
    if source.captions is None:
        raise common.UsageError(f"{cfg.data.name} has no captions; captioned_folder has")
    return make_tokenizer(source.captions(np.arange(len(source))))


def make_tokenizer(captions: Sequence[str]) -> Tokenizer:
    """A token for each word of some captions, and as many positions as the longest has."""
    plain = train_tokenizer(["a"], length=3).backend
    counts: collections.Counter[str] = collections.Counter()
    for caption in captions:
        text = plain.normalizer.normalize_str(caption)
        counts.update(piece for piece, _ in plain.pre_tokenizer.pre_tokenize_str(text))
    words = [word for word, _ in counts.most_common(MOST_WORDS) if not word.startswith("<|")]
    letters = sorted({letter for word in counts for letter in word})
    found = train_tokenizer([*sorted(words), *letters], length=3)
    longest = max(len(found.ids(caption)) for caption in captions) + 2
    return found._replace(length=min(longest, MOST_TOKENS))


def keep(cfg: ConfigDict, folder: Path) -> None:
    """Store the tokenizer in a workdir, so that prompts are read as captions were."""
    if are_own(cfg) and hosts.is_writer():
        save_tokenizer(folder / FOLDER, tokenizer_of(cfg))


def with_words(cfg: ConfigDict, source: data.Source) -> data.Source:
    """The data with captions as tokens.

    Raises:
        UsageError: these data have no captions.
    """
    if source.captions is None:
        raise common.UsageError(f"{cfg.data.name} has no captions; captioned_folder has")
    told, more, found = source.captions, source.more, tokenizer_of(cfg)

    def read(indices: Any) -> dict[str, np.ndarray]:
        rest = more(indices) if more else {}
        ids = np.concatenate([found.plain(text).ids for text in told(indices)])
        return {**{k: v for k, v in rest.items() if k != "time_ids"}, "text": ids}

    return dataclasses.replace(source, more=read)


def tokens(cfg: ConfigDict, prompts: Sequence[str]) -> np.ndarray:
    """Prompts (N, M) as ids; words that no caption has are named in the log."""
    found = tokenizer_of(cfg)
    vocabulary = found.backend.get_vocab()
    for prompt in prompts:
        text = found.backend.normalizer.normalize_str(prompt)
        pieces = found.backend.pre_tokenizer.pre_tokenize_str(text)
        strange = [text[a:b] for piece, (a, b) in pieces if f"{piece}</w>" not in vocabulary]
        if strange:
            logging.warning("no caption has the words %s of %r", ", ".join(strange), prompt)
    return np.concatenate([found.plain(prompt).ids for prompt in prompts])
