"""Text files as people have them: UTF-8 or UTF-16, with or without a byte-order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

_MARK = "\ufeff"  # the byte-order mark, once it is decoded
# UTF-32 comes first, because its mark begins with that of UTF-16.
_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | Path) -> str:
    """Read a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark; marks are left out.

    Raises:
        ValueError: the file is in another encoding; the message names the file and the line.
        OSError: the file cannot be read.
    """
    raw = Path(path).read_bytes()
    encoding = next((name for mark, name in _ENCODINGS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise ValueError(
            f"line {line} of {path} is not {encoding.upper()} ({error.reason}); save the file as "
            "UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"line {line} of {path} holds a zero byte: the file may be UTF-16 without a byte-order "
            "mark, or it is no text; save it as UTF-8"
        )
    # Files that were joined have marks inside, too.
    return text.replace(_MARK, "")


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a text file, which end at a line feed and nowhere else.

    `str.splitlines` also cuts at signs such as U+2028 and U+0085, which may be part of a caption
    or a JSON string.

    Raises:
        ValueError, OSError: as `read_text`.
    """
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text as `read_lines` gives them, without ``\\n`` or ``\\r\\n``."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]
