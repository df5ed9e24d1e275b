"""Readers of what comes from outside the program: JSON within bounds, with typed values in ranges.

Files of other people can be cut, edited or made to harm. Readers of JSON call `read_json` or
`parse_json`, and compare values with a table of `Spec` by `check`. Every error is a ValueError that
names the file, the key and the value.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # types imports JAX, which is slow
    from diffjax.types import JsonObject

JSON_BYTES = 32 * 2**20  # the largest real files, tokenizer.json and headers of weights, have 5 MB
JSON_DEPTH = 64
AXES = 16  # most axes of an array in a file; NumPy allows 32 or 64
SHOWN = 80  # longest foreign value in a message, in characters
NAMED = 8  # most names of a list in a message


def show(value: object) -> str:
    """Return a value for a message: one line of at most about 80 printable characters."""
    if isinstance(value, str):
        text = repr(value[: SHOWN + 1])
    elif isinstance(value, int | float | bool | None):
        text = _number_text(value)
    elif isinstance(value, list | tuple | dict):
        text = _few(value)
    else:
        text = type(value).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _number_text(value: object) -> str:
    """Return a number as text; Python refuses to write integers of thousands of digits."""
    # Python refuses to write integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _few(value: list | tuple | dict) -> str:
    """Return the first entries of a container as text; containers inside it by their type only."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    pairs = [pair for pair, _ in zip(items, range(NAMED), strict=False)]
    inner = [
        f"a {type(v).__name__}" if isinstance(v, list | tuple | dict) else show(v) for _, v in pairs
    ]
    if isinstance(value, dict):
        inner = [f"{show(k)}: {text}" for (k, _), text in zip(pairs, inner, strict=True)]
    more = ", ..." if len(value) > NAMED else ""
    if isinstance(value, tuple) and len(value) == 1:
        more = ","
    ends = "{}" if isinstance(value, dict) else "[]" if isinstance(value, list) else "()"
    return f"{ends[0]}{', '.join(inner)}{more}{ends[1]}"


def name_some(names: Collection[object], most: int = 3) -> str:
    """Return the first of some names for a message, and how many more there are.

    Args:
        names: of files, keys and so on; sets are sorted.
        most: how many are named.
    """
    ordered = sorted(names) if isinstance(names, Set) else list(names)
    texts = [str(name)[: 2 * SHOWN + 1] for name in ordered[:most]]
    texts = [text if text.isprintable() else ascii(text) for text in texts]
    texts = [text if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}..." for text in texts]
    more = len(ordered) - most
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def naming(where: object) -> Iterator[None]:
    """Put what is being read before the message of an error that does not name it yet.

    Args:
        where: usually the path of a file.

    Raises:
        FileNotFoundError, ValueError: one was raised inside.
    """
    try:
        yield
    except FileNotFoundError as error:
        if str(where) in str(error):
            raise
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        if str(where) in str(error):
            raise
        raise ValueError(f"{where}: {error}") from error


# ---- JSON ---------------------------------------------------------------------------------------


def read_json(path: Path, *, limit: int = JSON_BYTES) -> JsonObject:
    """Read a JSON object from a file.

    Args:
        path: of the file.
        limit: bytes that the file may have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too large, or holds no JSON object; see `parse_json`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        text = file.read(limit + 1)
    return parse_json(text, path, limit=limit)


def parse_json(text: str | bytes, where: object, *, limit: int = JSON_BYTES) -> JsonObject:
    """Parse a JSON object of at most 64 levels, with every key once.

    NaN and infinities are allowed, as Python writes them.

    Args:
        text: the JSON, as text or as UTF-8.
        where: what the text is from, for messages.
        limit: bytes, or characters, that it may have.

    Raises:
        ValueError: the text is no such object.
    """
    if len(text) > limit:
        raise ValueError(f"{where} has more than {limit} bytes, the most that is read as JSON")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{where} is not JSON that can be read: {_NESTED}") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"{where} holds no JSON object, but a value of type {kind}")
    _check_text(value, where)
    return value


_NESTED = f"it is too deeply nested, in more than {JSON_DEPTH} levels"


def _unique(pairs: list[tuple[str, object]]) -> JsonObject:
    """Make a dictionary of pairs, in linear time.

    Raises:
        ValueError: a key comes twice.
    """
    out: JsonObject = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {show(key)} occurs twice")
        out[key] = value
    return out


def _check_text(value: JsonObject, where: object) -> None:
    """Check that JSON is not too deep, and that its text can be written again.

    Raises:
        ValueError: it is nested too deeply, or holds half of a surrogate pair.
    """
    level: list[dict | list] = [value]
    for _ in range(JSON_DEPTH):
        parts = [p for v in level for p in ([*v, *v.values()] if isinstance(v, dict) else v)]
        for part in parts:
            if isinstance(part, str) and not part.isascii():
                try:
                    part.encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{where} holds text that is not valid Unicode: {show(part)}"
                    ) from None
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"{where} is not JSON that can be read: {_NESTED}")


# ---- types and ranges ---------------------------------------------------------------------------


class Spec(NamedTuple):
    """What a value may be.

    Attributes:
        says: the values that are allowed, as in "must be {says}".
        holds: whether a value is one of them; it accepts anything that JSON can hold.
    """

    says: str
    holds: Callable[[Any], bool]


def integer(low: int, high: int) -> Spec:
    """Allow a whole number in low .. high, but neither True nor False."""
    return Spec(
        f"a whole number in {low} .. {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def number(low: float, high: float, *, above: bool = False) -> Spec:
    """Allow a finite number in low .. high; low itself is left out if ``above``."""
    start = f"above {low:g} and at most" if above else f"from {low:g} to"

    def holds(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        # Nothing is converted before it is compared: integers may be too large for a float.
        return low <= value <= high and not (above and value == low)

    return Spec(f"a finite number {start} {high:g}", holds)


def exactly(*values: object) -> Spec:
    """Allow one of some values, of the same type: 1 is not True."""
    return Spec(
        " or ".join(show(value) for value in values),
        lambda v: any(type(v) is type(value) and v == value for value in values),
    )


def text(most: int = 4096) -> Spec:
    """Allow text of 1 to ``most`` characters."""
    return Spec("text", lambda v: isinstance(v, str) and 1 <= len(v) <= most)


def listed(entry: Spec, most: int, *, least: int = 1) -> Spec:
    """Allow a list, or tuple, of ``least`` to ``most`` entries that another spec allows."""
    return Spec(
        f"a list of {least} to {most} entries that are each {entry.says}",
        lambda v: (
            isinstance(v, list | tuple) and least <= len(v) <= most and all(map(entry.holds, v))
        ),
    )


def either(*specs: Spec) -> Spec:
    """Allow whatever one of several specs allows."""
    return Spec(
        " or ".join(spec.says for spec in specs), lambda v: any(spec.holds(v) for spec in specs)
    )


FLAG = exactly(True, False)
NOTHING = Spec("null", lambda v: v is None)
ANYTHING = Spec("anything", lambda v: True)
TEXT = text(256)


def check(values: Mapping[str, object], specs: Mapping[str, Spec], where: object) -> None:
    """Compare the values of a table's keys with it; other keys are ignored.

    Args:
        values: by key.
        specs: what each may be.
        where: the file, for messages.

    Raises:
        ValueError: some are wrong; the message has each with its value and what it must be.
    """
    wrong = [
        f"{key} is {show(values[key])}, but must be {spec.says}"
        for key, spec in specs.items()
        if key in values and not spec.holds(values[key])
    ]
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong[:NAMED])}")


def is_finite(value: object) -> bool:
    """Return whether a value is a number, neither True nor False, and finite as a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
