"""CLIP tokenizers from the files of transformers, and prompts with weights.

A prompt may weight its parts, in the syntax of most web pages for Stable Diffusion:

| text | weight |
|---|---|
| ``(word)``, ``((word))`` | 1.1, 1.21 |
| ``[word]`` | 1 / 1.1 |
| ``(word:1.4)`` | 1.4 |
| ``\\(``, ``\\)``, ``\\[``, ``\\]`` | the sign itself |
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers

from diffjax.pretrained.config_specs import TOKENIZER
from diffjax.pretrained.files import StrPath, resolve_inside, write_json
from diffjax.pretrained.hub import download
from diffjax.pretrained.tokenizer_files import (
    list_added,
    read_backend,
    read_merges,
    read_vocabulary,
)
from diffjax.types import Config, JsonObject
from diffjax.untrusted import check, name_some, read_json

EMPHASIS = 1.1
OPEN_CLIP_PAD = "!"  # in place of the end token, in SD 2 and the second encoder of XL
_START, _END = "<|startoftext|>", "<|endoftext|>"
# Radford et al. 2021: special tokens, English contractions, words, single digits, other signs.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_LENGTH = 77
_UNBOUNDED = 10**6  # transformers writes about 1e30 where no length was set


class Tokens(NamedTuple):
    """A prompt in chunks of M tokens.

    Attributes:
        ids: (chunks, M) int32, each chunk with its start token, end token and padding.
        weights: (chunks, M) float32; 1 unless the prompt sets another weight.
    """

    ids: np.ndarray
    weights: np.ndarray


class Tokenizer(NamedTuple):
    """A CLIP tokenizer: texts to ids.

    Attributes:
        backend: tokenizer of the tokenizers library, with neither padding nor truncation.
        length: M, tokens of a chunk with start and end; 77 for CLIP.
        start: id of the token that begins a chunk.
        end: id of the token that ends a text.
        pad: id of the token that fills a chunk up.
        concepts: ids of added words, by the word in the tokenizer's normal form. A word matches
            where no letter or digit is next to it, and the longest match counts.
    """

    backend: hf.Tokenizer
    length: int
    start: int
    end: int
    pad: int
    concepts: Mapping[str, tuple[int, ...]] = {}

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without start, end and padding. Added words are found first."""
        if not self.concepts:
            return self.backend.encode(text, add_special_tokens=False).ids
        out: list[int] = []
        # Every other piece is a word that was added.
        for k, piece in enumerate(_compile_words(tuple(self.concepts)).split(self.normalise(text))):
            if k % 2:
                out += self.concepts[piece]
            else:
                out += self.backend.encode(piece, add_special_tokens=False).ids
        return out

    def normalise(self, text: str) -> str:
        """Return a text in the tokenizer's normal form; CLIP's is lower case."""
        rule = self.backend.normalizer
        return text if rule is None else rule.normalize_str(text)

    def plain(self, text: str) -> Tokens:
        """Tokenize a text to one chunk, as transformers does.

        A warning names the words that are cut off.
        """
        ids = self.ids(text)
        room = self.length - 2
        if len(ids) > room:
            lost = self.backend.decode(ids[room:]).replace("</w>", " ").strip()
            warnings.warn(
                f"the prompt has {len(ids)} tokens, {room} fit; cut off: {lost!r}", stacklevel=2
            )
        return self._split_chunks([(i, 1.0) for i in ids[:room]])

    def weighted(self, text: str) -> Tokens:
        """Tokenize a text with weights, as in ``(word:1.3)``, to as many chunks as it needs."""
        return self._split_chunks(
            [(i, w) for part, w in parse_weights(text) for i in self.ids(part)]
        )

    def _split_chunks(self, tokens: list[tuple[int, float]]) -> Tokens:
        """Split (id, weight) pairs into chunks (N, length) with start, end and padding."""
        room = self.length - 2
        count = max(1, -(-len(tokens) // room))
        ids = np.full((count, self.length), self.pad, np.int32)
        weights = np.ones((count, self.length), np.float32)
        for k in range(count):
            some = tokens[k * room : (k + 1) * room]
            ids[k, : len(some) + 2] = [self.start, *(i for i, _ in some), self.end]
            weights[k, 1 : len(some) + 1] = [w for _, w in some]
        return Tokens(ids, weights)


@lru_cache(maxsize=16)
def _compile_words(names: tuple[str, ...]) -> re.Pattern[str]:
    """Compile a pattern that finds added words, the longest first, where they are not parts of
    others.
    """
    longest = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(f"({'|'.join(map(_bound_word, longest))})")


def _bound_word(name: str) -> str:
    """Return a pattern for a word, with word boundaries at ends that are letters or digits."""
    before, after = (r"\b" if re.match(r"\w", sign) else "" for sign in (name[0], name[-1]))
    return f"{before}{re.escape(name)}{after}"


def load_tokenizer(folder: StrPath, *, pad: str | None = None) -> Tokenizer:
    """Load the tokenizer in a folder: tokenizer.json, or vocab.json with merges.txt.

    The folder may be a name on the Hub, see `diffjax.pretrained.hub`.

    Args:
        folder: a folder as transformers writes it.
        pad: padding token in place of that of the files.

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: a file is damaged, or the vocabulary lacks a special token.
    """
    path = download(folder)
    config = _read_special(path)
    check(config, TOKENIZER, path / "tokenizer_config.json")
    backend = _load_backend(path)
    names = [
        _read_content(config.get(f"{k}_token"), d) for k, d in (("bos", _START), ("eos", _END))
    ]
    names.append(pad or _read_content(config.get("pad_token"), names[1]))
    if absent := [name for name in names if backend.token_to_id(name) is None]:
        raise ValueError(f"the vocabulary in {path} lacks {name_some(absent)}")
    # A prompt may hold them: then they are one token, as in transformers.
    backend.add_special_tokens(list(dict.fromkeys(names)))
    length = config.get("model_max_length") or _LENGTH
    vocabulary = backend.get_vocab()
    start, end, padding = (vocabulary[name] for name in names)
    length = length if length < _UNBOUNDED else _LENGTH
    return _learn_added_words(Tokenizer(backend, length, start, end, padding))


def _learn_added_words(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the words that its files have added.

    A word of several tokens has the others as ``word_1``, ``word_2`` and so on, as in diffusers.
    """
    known = tokenizer.backend.get_added_tokens_decoder()
    added = {token.content: i for i, token in known.items() if not token.special}
    chains = {name: _follow_chain(name, added) for name in added}
    later = {other for chain in chains.values() for other in chain[1:]}
    concepts = {
        tokenizer.normalise(name): tuple(added[other] for other in chain)
        for name, chain in chains.items()
        if name not in later
    }
    return tokenizer._replace(concepts=concepts)


def _follow_chain(name: str, added: Collection[str]) -> list[str]:
    """Return a word with its further tokens, as far as they were added."""
    chain = [name]
    while (following := f"{name}_{len(chain)}") in added:
        chain.append(following)
    return chain


def save_tokenizer(folder: StrPath, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and tokenizer_config.json, for transformers or `load_tokenizer`.

    Args:
        folder: the folder, which is made if it does not exist.
        tokenizer: the tokenizer.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(path / "tokenizer.json"))
    tokens = {"bos": tokenizer.start, "eos": tokenizer.end, "unk": tokenizer.end}
    tokens["pad"] = tokenizer.pad
    config: JsonObject = {
        f"{name}_token": tokenizer.backend.id_to_token(i) for name, i in tokens.items()
    }
    config |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length}
    write_json(path / "tokenizer_config.json", config)


def _read_special(path: Path) -> JsonObject:
    """Read special tokens and the length of texts.

    Older files keep them in special_tokens_map.json.
    """
    config = _read_optional(path, "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config.update(_read_optional(path, "special_tokens_map.json"))
    return config


def _read_optional(path: Path, name: str) -> JsonObject:
    return read_json(resolve_inside(path, name)) if (path / name).exists() else {}


def _read_content(token: JsonObject | str | None, default: str) -> str:
    return (token["content"] if isinstance(token, dict) else token) or default


def _load_backend(path: Path) -> hf.Tokenizer:
    """Load the tokenizer of the tokenizers library from either form of files.

    Raises:
        FileNotFoundError: neither form is there.
        ValueError: a file is damaged.
    """
    if (path / "tokenizer.json").exists():
        return read_backend(resolve_inside(path, "tokenizer.json"))
    if not ((path / "vocab.json").exists() and (path / "merges.txt").exists()):
        raise FileNotFoundError(f"{path} has neither tokenizer.json nor vocab.json and merges.txt")
    vocabulary = read_vocabulary(resolve_inside(path, "vocab.json"))
    backend = build(vocabulary, read_merges(resolve_inside(path, "merges.txt"), vocabulary))
    listed = _read_optional(path, "tokenizer_config.json").get("added_tokens_decoder")
    more = _read_optional(path, "added_tokens.json")
    _add_words(backend, list_added(listed, more, path), path)
    return backend


def _add_words(backend: hf.Tokenizer, added: Config, path: Path) -> None:
    """Add the words that older files keep beside the vocabulary.

    Raises:
        ValueError: their ids do not continue those of the vocabulary.
    """
    new = [word for word in added if backend.token_to_id(word) is None]
    for word in sorted(new, key=lambda word: added[word]):
        backend.add_tokens([hf.AddedToken(word)])
        if backend.token_to_id(word) != added[word]:
            raise ValueError(
                f"an added token of {path}, {word!r}, has the id {added[word]}, but the "
                f"vocabulary continues at {backend.token_to_id(word)}"
            )


def build(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> hf.Tokenizer:
    """Build CLIP's lower-case byte pair encoding (Radford et al. 2021, section 2.4).

    Args:
        vocabulary: ids by token.
        merges: pairs of tokens in the order in which they are merged.
    """
    backend = hf.Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=_END,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(hf.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(hf.Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = hf.decoders.ByteLevel()
    return backend


def train_tokenizer(words: Sequence[str], *, length: int) -> Tokenizer:
    """Train a tokenizer that has one token for each of some words, for small models.

    Args:
        words: the words, in lower case.
        length: tokens of a chunk with start and end.
    """
    letters = sorted({letter for word in words for letter in word})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        # The longest part that is known grows by a letter at a time; a merge that another word
        # makes first would stop that, so words are joined from what merges make of them.
        pieces = _merge_pieces([*word[:-1], f"{word[-1]}</w>"], list(merges))
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens += list(dict.fromkeys(a + b for a, b in merges))
    tokens += [_START, _END]
    backend = build({token: i for i, token in enumerate(dict.fromkeys(tokens))}, list(merges))
    backend.add_special_tokens([_START, _END])
    vocabulary = backend.get_vocab()
    return Tokenizer(backend, length, vocabulary[_START], vocabulary[_END], vocabulary[_END])


def _merge_pieces(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply merges in their order to the pieces of a word, and return the pieces that are left."""
    for a, b in merges:
        k = 0
        while k < len(pieces) - 1:
            if (pieces[k], pieces[k + 1]) == (a, b):
                pieces[k : k + 2] = [a + b]
            k += 1
    return pieces


def with_concept(tokenizer: Tokenizer, name: str, count: int) -> tuple[Tokenizer, list[int]]:
    """Return a tokenizer with a word for ``count`` new tokens, and the ids of these.

    Args:
        tokenizer: the tokenizer, which is not changed.
        name: the word.
        count: number of tokens. Those after the first are called ``name_1``, ``name_2`` and so on.

    Raises:
        ValueError: the word is a token already, is empty, or ``count`` is less than 1.
    """
    word = tokenizer.normalise(name.strip())
    if not word or count < 1:
        raise ValueError(f"a concept needs a name and a token, got {name!r} and {count}")
    backend = hf.Tokenizer.from_str(tokenizer.backend.to_str())
    tokens = [name.strip(), *(f"{name.strip()}_{k}" for k in range(1, count))]
    taken = [token for token in tokens if backend.token_to_id(token) is not None]
    if word in tokenizer.concepts:
        taken = taken or [name]
    if taken:
        raise ValueError(f"the tokenizer knows {', '.join(taken)} already; choose another name")
    for token in tokens:
        # Otherwise it would be found inside other words too.
        whole = bool(re.match(r"\w", token[0]) or re.match(r"\w", token[-1]))
        backend.add_tokens([hf.AddedToken(token, single_word=whole)])
    vocabulary = backend.get_vocab()
    ids = [vocabulary[token] for token in tokens]
    concepts = {**tokenizer.concepts, word: tuple(ids)}
    return tokenizer._replace(backend=backend, concepts=concepts), ids


# ---- weights ------------------------------------------------------------------------------------

_PIECES = re.compile(
    r"\\[()\[\]\\]|[(\[]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[)\]]|[^\\()\[\]:]+|[\\:]"
)


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Split a prompt into parts with weights. Brackets that are not closed count to the end.

    ``parse_weights("a (red:1.5) cat") == [("a ", 1.0), ("red", 1.5), (" cat", 1.0)]``
    """
    parts: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # bracket, and the first part inside it

    def weigh(factor: float, bracket: str) -> bool:
        """Multiply the weights since the last open bracket, if it is of this kind; return
        whether it was.
        """
        if not opened or opened[-1][0] != bracket:
            return False
        start = opened.pop()[1]
        parts[start:] = [(part, weight * factor) for part, weight in parts[start:]]
        return True

    for piece in _PIECES.findall(text):
        if piece in ("(", "["):
            opened.append((piece, len(parts)))
        elif piece.startswith(":") and piece.endswith(")"):
            if not weigh(float(piece[1:-1]), "("):
                parts.append((piece, 1.0))
        elif piece in (")", "]"):
            factor, bracket = (EMPHASIS, "(") if piece == ")" else (1 / EMPHASIS, "[")
            if not weigh(factor, bracket):
                parts.append((piece, 1.0))
        else:
            parts.append((piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece, 1.0))
    for bracket in [bracket for bracket, _ in reversed(opened)]:
        weigh(EMPHASIS if bracket == "(" else 1 / EMPHASIS, bracket)
    return _join_equal_weights(parts) or [("", 1.0)]


def _join_equal_weights(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Join neighbours of equal weight, so that words are not cut where a sign stood."""
    out: list[tuple[str, float]] = []
    for part, weight in parts:
        if out and out[-1][1] == weight:
            out[-1] = (out[-1][0] + part, weight)
        else:
            out.append((part, weight))
    return out
