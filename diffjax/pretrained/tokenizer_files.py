"""The files of a tokenizer, checked before the tokenizers library is given them.

The library is told what to do by the file: it may build any pipeline, with any regular expression,
and it ends the program's thread where tables do not fit each other. What is read here is a byte
pair encoding of bounded size whose tables fit, with expressions that take a time linear in a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers as hf

from diffjax.untrusted import integer, name_some, read_json, show

TOKENS = 2**20  # CLIP has 49,408
_LONGEST = 256  # characters of a token
_BYTES = 32 * 2**20
_ID = integer(0, 2**24)
_QUANTIFIED_GROUP = re.compile(r"\)[*+?{]")
_SPECIAL_GROUP = re.compile(r"\(\?(?!:)|\\[1-9k]")
_MOST = 1000  # characters of a regular expression


def read_vocabulary(path: Path) -> dict[str, int]:
    """vocab.json: ids by token.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or ids are no numbers, or come twice.
    """
    return _check_vocabulary(read_json(path), path)


def _check_vocabulary(found: Any, path: Path) -> dict[str, int]:
    if not isinstance(found, dict) or not 1 <= len(found) <= TOKENS:
        raise ValueError(f"{path} has no vocabulary of 1 to {TOKENS} tokens")
    if wrong := [token for token, i in found.items() if not _ID.holds(i)]:
        raise ValueError(
            f"{path} gives {show(wrong[0])} the id {show(found[wrong[0]])}, but it must be "
            f"{_ID.says}"
        )
    if long := [token for token in found if not 0 < len(token) <= _LONGEST]:
        raise ValueError(f"{path} has a token of {len(long[0])} characters: {show(long[0])}")
    if len(set(found.values())) < len(found):
        raise ValueError(f"{path} gives one id to several tokens")
    if max(found.values()) > 2 * len(found) + 1000:
        raise ValueError(f"{path} has ids up to {max(found.values())} for {len(found)} tokens")
    return found


def read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """merges.txt: pairs of tokens, one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no pair, or of tokens that the vocabulary lacks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        raw = file.read(_BYTES + 1)
    if len(raw) > _BYTES:
        raise ValueError(f"{path} has more than {_BYTES} bytes, too many for merges")
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    return _check_merges(pairs, vocabulary, path)


def _check_merges(pairs: Any, vocabulary: dict[str, int], path: Path) -> list[tuple[str, str]]:
    if not isinstance(pairs, list) or len(pairs) > TOKENS:
        raise ValueError(f"{path} has no list of at most {TOKENS} merges")
    out = []
    for given in pairs:
        pair = given.split(" ") if isinstance(given, str) else given
        texts = isinstance(pair, list) and all(isinstance(part, str) for part in pair)
        if not texts or len(pair) != 2:
            raise ValueError(f"{path} has a line that is no pair: {show(pair)}")
        a, b = pair
        if absent := [part for part in (a, b, a + b) if part not in vocabulary]:
            raise ValueError(f"{path} merges {name_some(absent)}, which the vocabulary lacks")
        out.append((a, b))
    return out


def read_backend(path: Path) -> hf.Tokenizer:
    """tokenizer.json: byte pairs, with neither padding nor truncation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another kind, or has expressions that may take any time.
    """
    found = read_json(path)
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"{path} is no byte pair encoding (model.type BPE), which CLIP needs")
    if model.get("dropout"):
        raise ValueError(f"{path} has model.dropout={show(model['dropout'])}: it must be null")
    _check_merges(model.get("merges"), _check_vocabulary(model.get("vocab"), path), path)
    for entry in _read_entries(found.get("added_tokens"), path):
        _check_added(entry, path)
    for pattern in _find_patterns(found):
        check_pattern(pattern, path)
    try:
        backend = hf.Tokenizer.from_file(str(path))
    # The library raises bare exceptions, and a BaseException of its own where it panics.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise ValueError(f"{path} is no tokenizer that can be read: {name_some([error])}") from None
    backend.no_padding()
    backend.no_truncation()
    return backend


def list_added(decoder: Any, more: dict[str, Any], path: Path) -> dict[str, int]:
    """Words beside a vocabulary, with their ids.

    Args:
        decoder: ``added_tokens_decoder`` of tokenizer_config.json: entries by id, or None.
        more: added_tokens.json, ids by word.

    Raises:
        ValueError: an entry has no content, or an id is no number.
    """
    entries = {} if decoder is None else decoder
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ValueError(
            f"{path / 'tokenizer_config.json'} has added_tokens_decoder without entries"
        )
    out: dict[str, int] = {}
    for place, entry in entries.items():
        number = int(place) if place.isascii() and place.isdigit() and len(place) < 9 else None
        _check_added({**entry, "id": number}, path / "tokenizer_config.json")
        if not entry.get("special"):
            out[entry["content"]] = int(place)
    for word, number in more.items():
        _check_added({"content": word, "id": number}, path / "added_tokens.json")
        out[word] = number
    return out


def _read_entries(found: Any, path: Path) -> list[dict[str, Any]]:
    entries = [] if found is None else found
    wrong = not isinstance(entries, list) or len(entries) > TOKENS
    if wrong or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} has added_tokens that are no list of entries")
    return entries


def _check_added(entry: dict[str, Any], path: Path) -> None:
    content = entry.get("content")
    named = isinstance(content, str) and 0 < len(content) <= _LONGEST
    if not named or not _ID.holds(entry.get("id")):
        raise ValueError(
            f"{path} adds the token {show(content)} with the id {show(entry.get('id'))}, but needs "
            f"text and {_ID.says}"
        )


def _find_patterns(found: dict[str, Any]) -> Iterator[Any]:
    """Yield every regular expression of a pipeline."""
    parts: list[Any] = [found.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "Regex" in part:
                yield part["Regex"]
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def check_pattern(pattern: Any, where: object) -> None:
    """See that a regular expression has no groups that repeat, look around or refer back.

    Each alternative may repeat one thing, so that no text takes more than a time of its length
    times that of the expression at each place.

    Raises:
        ValueError: it has.
    """
    if not isinstance(pattern, str) or len(pattern) > _MOST:
        raise ValueError(f"{where} has a regular expression that is no short text")
    bare = re.sub(
        r"\\p\{\w+\}|\\.|\[(?:\\.|[^\]\\])*\]", "x", pattern
    )  # escapes and sets as one letter
    repeats = max(len(re.findall(r"[*+{]|(?<!\()\?", part)) for part in bare.split("|"))
    grouped = _QUANTIFIED_GROUP.search(bare) or _SPECIAL_GROUP.search(pattern)
    if grouped or repeats > 1:
        raise ValueError(
            f"{where} has the regular expression {show(pattern)}, which may take any time: only "
            "alternatives that each repeat one letter or set are read"
        )
