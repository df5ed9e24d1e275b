"""Check the files of a tokenizer before the tokenizers library reads them.

That library does what the file says: it may build any pipeline, with any regular expression, and it
ends the thread where tables do not fit each other. The files that pass here describe a byte pair
encoding of bounded size whose tables fit, and have regular expressions that take a time linear in a
text. `tokenizers` builds the tokenizer from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import tokenizers as hf

from diffjax.types import JsonObject
from diffjax.untrusted import integer, name_some, read_json, show

TOKENS = 2**20  # CLIP has 49,408
_LONGEST = 256  # characters of a token
_BYTES = 32 * 2**20
_ID = integer(0, 2**24)
_QUANTIFIED_GROUP = re.compile(r"\)[*+?{]")
_SPECIAL_GROUP = re.compile(r"\(\?(?!:)|\\[1-9k]")
_MOST = 1000  # characters of a regular expression


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read vocab.json: ids by token.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or an id is not a number or belongs to two tokens.
    """
    return _check_vocabulary(read_json(path), path)


def _check_vocabulary(found: object, path: Path) -> dict[str, int]:
    """Check the number of tokens, their lengths and their ids, and return the vocabulary.

    Raises:
        ValueError: one of them is out of range, or an id belongs to two tokens.
    """
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
    """Read merges.txt: pairs of tokens, one a line, in the order in which they are merged.

    Args:
        path: the file.
        vocabulary: ids by token.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a pair, or the vocabulary lacks one of its tokens or what they
            merge to.
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


def _check_merges(pairs: object, vocabulary: dict[str, int], path: Path) -> list[tuple[str, str]]:
    """Check that merges are pairs of known tokens with a known result, and return them as tuples.

    tokenizer.json has them as texts with a space or as lists of two, depending on its version.

    Raises:
        ValueError: one is something else.
    """
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
    """Read tokenizer.json as a tokenizer with neither padding nor truncation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is not a byte pair encoding, or has a regular expression that may
            take any time.
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


def list_added(decoder: object, more: JsonObject, path: Path) -> dict[str, int]:
    """Return the words that older files keep beside the vocabulary, with their ids.

    Args:
        decoder: ``added_tokens_decoder`` of tokenizer_config.json: entries by id, or None. Special
            tokens are left out.
        more: added_tokens.json: ids by word.
        path: the folder, for messages.

    Raises:
        ValueError: an entry has no content, or an id is not a number.
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


def _read_entries(found: object, path: Path) -> list[JsonObject]:
    """Return ``added_tokens`` of tokenizer.json as a list of objects.

    Raises:
        ValueError: it is something else.
    """
    entries = [] if found is None else found
    if (
        not isinstance(entries, list)
        or len(entries) > TOKENS
        or not all(isinstance(entry, dict) for entry in entries)
    ):
        raise ValueError(f"{path} has added_tokens that are not a list of entries")
    return entries


def _check_added(entry: JsonObject, path: Path) -> None:
    """Check the content and the id of an added token.

    Raises:
        ValueError: the content is not a short text, or the id is not a number in range.
    """
    content = entry.get("content")
    named = isinstance(content, str) and 0 < len(content) <= _LONGEST
    if not named or not _ID.holds(entry.get("id")):
        raise ValueError(
            f"{path} adds the token {show(content)} with the id {show(entry.get('id'))}, but needs "
            f"text and {_ID.says}"
        )


def _find_patterns(found: JsonObject) -> Iterator[object]:
    """Yield every regular expression of tokenizer.json, at any depth of its pipeline."""
    parts: list[object] = [found.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "Regex" in part:
                yield part["Regex"]
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def check_pattern(pattern: object, where: object) -> None:
    """Check that a regular expression has no groups that repeat, look around or refer back.

    Each alternative may repeat one thing, so that matching takes at most the length of the text
    times that of the expression at each place.

    Args:
        pattern: the expression, from a file.
        where: the file, for messages.

    Raises:
        ValueError: the expression could take longer, or is not a short text.
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
