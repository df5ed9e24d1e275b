"""The tokenizers of a config, which turn captions and prompts into token ids.

There is a mapping from entries of a batch (``text``, and ``text_2`` of Stable Diffusion XL) to
tokenizers:

| the config has | its tokenizer |
|---|---|
| ``cond.words="captions"`` | one with a token for each word of the training captions |
| a section ``model`` | those of that model, or ``model.tokenizer``; XL has two |
| ``cond.context="text"`` alone | the words of the data set shapes, whose captions are ids already |

A run keeps the first two kinds in its workdir, so that sampling needs neither the captions nor the
published model.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.data import shapes
from diffjax.model.condition import ENCODERS, make_clips
from diffjax.nets.text import CLIPText
from diffjax.pretrained import download
from diffjax.pretrained.tokenizers import (
    OPEN_CLIP_PAD,
    Tokenizer,
    Tokens,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    with_concept,
)
from diffjax.runs.batches import NOISE
from diffjax.runs.loading import load_unchecked
from diffjax.runs.record import is_trained
from diffjax.tasks import find_task_kind
from diffjax.train import hosts
from diffjax.types import ConfigError

RANDOM = "random"  # in place of a model: untrained
SHAPES = "shapes"  # in place of a tokenizer: one for the captions of that data set
MOST_WORDS = 2000  # others are spelled
MOST_TOKENS = 77  # of a caption, with start and end
MOST_READ = 1000  # captions that are searched for a word


class ShapeWords(NamedTuple):
    """The words of the data set shapes, used in the place of a `Tokenizer`.

    Attributes:
        length: number of token ids of a text.
    """

    length: int = shapes.LENGTH

    def plain(self, text: str) -> Tokens:
        """Tokenize a text into one chunk (1, length), without tokens for start and end.

        Raises:
            ValueError: a word is not in the vocabulary, or there are too many words.
        """
        ids = shapes.tokenize([text])
        return Tokens(ids, np.ones(ids.shape, np.float32))


Tokenizers = Mapping[str, Tokenizer | ShapeWords]


def uses_own_words(cfg: ConfigDict) -> bool:
    """Whether the tokens of a config are the words of the captions of its data."""
    return "cond" in cfg and cfg.cond.words == "captions"


def find_model_path(cfg: ConfigDict) -> str:
    """Find the path of the published model that a config begins with; empty if it begins with none.

    Raises:
        ConfigError: the config has a section ``model`` without a path.
    """
    if "model" not in cfg:
        return ""
    if not cfg.model.path:
        raise ConfigError(
            "config.model.path is needed: a diffusers folder of a text-to-image model, its "
            f"single .safetensors file (with config.model.tokenizer), or {RANDOM!r}"
        )
    return str(cfg.model.path)


def make_tokenizers(cfg: ConfigDict, folder: Path | None = None) -> Tokenizers:
    """Make the tokenizers of a config, by the entry of a batch.

    Args:
        folder: workdir; the tokenizers that a run there kept are used.

    Returns:
        The tokenizers; empty for a model without captions. Those of a run that learns a word
        (``task=concept``) know it.

    Raises:
        ConfigError: there are none, or they do not fit the text encoders of the config.
        ValueError, OSError: captions or files cannot be read.
    """
    found = _make_plain_tokenizers(cfg, folder)
    return _add_word(cfg, found) if find_task_kind(cfg).learns_word else found


def _add_word(cfg: ConfigDict, found: Tokenizers) -> Tokenizers:
    """Add the word of ``config.concept`` to tokenizers.

    Raises:
        ConfigError: there is no word, or the tokenizers know it.
    """
    section = cfg.concept
    if not section.word:
        raise ConfigError("config.concept.word is needed: the new word, such as <cat-toy>")
    try:
        return {
            entry: with_concept(one, section.word, section.vectors)[0]
            for entry, one in found.items()
            if isinstance(one, Tokenizer)
        }
    except ValueError as error:
        raise ConfigError(f"config.concept.word={section.word!r}: {error}") from error


def _make_plain_tokenizers(cfg: ConfigDict, folder: Path | None) -> Tokenizers:
    """Make the tokenizers without words that are being learned; see `make_tokenizers`."""
    if uses_own_words(cfg):
        return {"text": find_own_words(cfg, folder)}
    if "model" in cfg:
        nets = make_clips(cfg)
        found = {
            entry: _find_published(cfg, entry, nets[name], folder)
            for entry, name in ENCODERS.items()
            if name in nets
        }
        for entry, one in found.items():
            _check_published(cfg, entry, one)
        return found
    return {"text": ShapeWords()} if "cond" in cfg and cfg.cond.context == "text" else {}


def keep_tokenizers(cfg: ConfigDict, folder: Path) -> None:
    """Store the tokenizers in a workdir, which then needs neither the captions nor the model.

    Only the first process writes.
    """
    if cfg.data.name == NOISE or not hosts.is_writer():
        return
    for entry, one in _make_plain_tokenizers(cfg, folder).items():
        if isinstance(one, Tokenizer):
            save_tokenizer(folder / _name_folder(entry), one)


def _name_folder(entry: str) -> str:
    """Name the folder of a tokenizer as diffusers does: tokenizer or tokenizer_2."""
    return ENCODERS[entry].replace("text_encoder", "tokenizer")


def _find_kept(entry: str, folder: Path | None) -> Path | None:
    """Find the folder in which a trained run kept a tokenizer; None if there is none."""
    kept = None if folder is None else folder / _name_folder(entry)
    return kept if kept and kept.is_dir() and is_trained(folder) else None


# ---- words of one's own -------------------------------------------------------------------------


def find_own_words(cfg: ConfigDict, folder: Path | None) -> Tokenizer:
    """Read the tokenizer of the captions that a run kept, or learn it from the training captions.

    Raises:
        ConfigError: the data have no captions.
    """
    if kept := _find_kept("text", folder):
        return load_tokenizer(kept)
    source = load_unchecked(cfg, cfg.data.split, (8, 8, 3), folder=folder)
    check_captions(cfg, source)
    assert source.captions is not None
    return learn_words(source.captions(np.arange(len(source))))


def learn_words(captions: Sequence[str]) -> Tokenizer:
    """Make a tokenizer with a token for each of the `MOST_WORDS` most frequent words of captions.

    Other words are spelled by letters. There are as many positions as the longest caption needs,
    with start and end, and at most `MOST_TOKENS`.
    """
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


def _warn_of_unknown(tokenizer: Tokenizer, prompt: str) -> None:
    """Log a warning with the words of a prompt that no training caption has."""
    vocabulary = tokenizer.backend.get_vocab()
    text = tokenizer.backend.normalizer.normalize_str(prompt)
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)
    strange = [text[a:b] for piece, (a, b) in pieces if f"{piece}</w>" not in vocabulary]
    if strange:
        logging.warning("no caption has the words %s of %r", ", ".join(strange), prompt)


# ---- those of published models ------------------------------------------------------------------


def _find_published(cfg: ConfigDict, entry: str, net: CLIPText, folder: Path | None) -> Tokenizer:
    """Find the tokenizer of a published text encoder.

    It is looked for in the workdir, in ``model.tokenizer`` and in the folder of the model, in this
    order.

    Args:
        entry: ``text`` or ``text_2``.
        net: the text encoder that reads its ids.
        folder: workdir, or None.

    Raises:
        ConfigError: there is none.
    """
    if kept := _find_kept(entry, folder):
        return load_tokenizer(kept)
    chosen = cfg.model.tokenizer
    if chosen == SHAPES:
        return train_tokenizer(shapes.VOCABULARY[1:], length=net.positions)
    if chosen:
        return load_tokenizer(chosen, pad=OPEN_CLIP_PAD if net.activation == "gelu" else None)
    path = download(find_model_path(cfg), parts=(_name_folder(entry),))
    if not (path / _name_folder(entry)).is_dir():
        raise ConfigError(
            f"{path} has no {_name_folder(entry)}: config.model.tokenizer is needed, a folder with "
            f"tokenizer.json or vocab.json and merges.txt (or {SHAPES!r} for that data set)"
        )
    return load_tokenizer(path / _name_folder(entry))


def _check_published(cfg: ConfigDict, entry: str, found: Tokenizer) -> None:
    """Check that a tokenizer fits its text encoder: length, vocabulary, end token and empty text.

    Raises:
        ConfigError: it does not.
    """
    section, size = cfg.cond[entry], found.backend.get_vocab_size()
    if found.length != section.positions or size > section.vocabulary:
        raise ConfigError(
            f"the tokenizer has {size} tokens and texts of {found.length}, but config.cond.{entry} "
            f"has a vocabulary of {section.vocabulary} and {section.positions} positions"
        )
    if entry == "text_2" and found.end != size - 1:
        raise ConfigError(
            f"the tokenizer's end token has the id {found.end} of {size}: words were added to it, "
            "after which training of XL would look; give one without them (config.model.tokenizer)"
        )
    empty = (found.start, found.end, found.pad)
    if cfg.cond.context == "clip" and tuple(cfg.cond.empty) != empty:
        raise ConfigError(
            f"the empty text of the tokenizer is {empty}, but config.cond.empty={cfg.cond.empty}"
        )


# ---- what they do -------------------------------------------------------------------------------


def check_captions(cfg: ConfigDict, source: data.Source) -> None:
    """Check that the data have captions, if the tokens of the config are made of captions.

    Raises:
        ConfigError: they have none, or none with the word that is to be learned.
    """
    if source.captions is None and (uses_own_words(cfg) or "model" in cfg):
        raise ConfigError(f"{cfg.data.name} has no captions; captioned_folder and shapes do")
    if find_task_kind(cfg).learns_word and source.captions is not None:
        word, texts = cfg.concept.word, source.captions(np.arange(min(len(source), MOST_READ)))
        if not any(word.lower() in text.lower() for text in texts):
            raise ConfigError(
                f"no caption has the word {word!r} (config.concept.word), such as {texts[0]!r}: "
                f"write it there, or set config.data.captions, such as \"('a photo of {word}',)\""
            )


def add_tokens(
    source: data.Source, tokenizers: Tokenizers, image_shape: tuple[int, int, int]
) -> data.Source:
    """Add token ids of the captions to a data set and, for two text encoders, the sizes of images.

    Args:
        tokenizers: by the entry of a batch. The data set shapes has token ids already.
        image_shape: (H, W, C) of images that do not say their own size.

    Returns:
        The data set with entries (B, M) int32 by the names of the tokenizers, and ``time_ids``
        (B, 6) float32 for Stable Diffusion XL.

    Raises:
        ValueError: these data have no captions.
    """
    if not tokenizers or any(isinstance(one, ShapeWords) for one in tokenizers.values()):
        return source
    if source.captions is None:
        raise ValueError("data without captions have no tokens")
    read_captions, more = source.captions, source.more
    height, width, _ = image_shape
    plain = np.array([height, width, 0, 0, height, width], np.float32)

    def read(indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        texts, rest = read_captions(indices), more(indices) if more else {}
        ids = {k: np.concatenate([t.plain(s).ids for s in texts]) for k, t in tokenizers.items()}
        if len(tokenizers) == 1:
            return {**{k: v for k, v in rest.items() if k != "time_ids"}, **ids}
        return {"time_ids": np.tile(plain, (len(texts), 1)), **rest, **ids}

    return dataclasses.replace(source, more=read)


def tokenize(cfg: ConfigDict, tokenizers: Tokenizers, prompts: Sequence[str]) -> np.ndarray:
    """Tokenize prompts for a model of one text encoder.

    Words that no training caption has are named in the log.

    Returns:
        Token ids (N, M) of N prompts.

    Raises:
        ConfigError: the model reads no text, or has two text encoders.
        ValueError: the data set shapes has no such words.
    """
    if not tokenizers:
        raise ConfigError("prompts have no effect: this model was not trained on captions")
    if len(tokenizers) > 1:
        raise ConfigError(
            "prompts are for models of one text encoder here; use experiments.export --out=FOLDER "
            "and experiments.generate"
        )
    (tokenizer,) = tokenizers.values()
    if uses_own_words(cfg) and isinstance(tokenizer, Tokenizer):
        for prompt in prompts:
            _warn_of_unknown(tokenizer, prompt)
    return np.concatenate([tokenizer.plain(prompt).ids for prompt in prompts])
