"""Parquet tables of pictures with captions, unpacked to a folder that training reads.

The Hub stores a picture as a column of ``{bytes, path}``. The bytes become files as they are, and
columns of texts become those of ``metadata.jsonl``. So a table is read as any folder is: in
buckets, with damaged pictures skipped, with the same order in every run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from diffjax.data.metadata import FILES, HINTS, PICTURES
from diffjax.types import ConfigError
from diffjax.untrusted import name_some

_ROWS = 64  # that are in memory at a time
_PICTURE = "image"  # the column that is taken if there are several with pictures
_KINDS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}
_OTHER = ".bmp"


def unpack(files: Sequence[Path], folder: Path) -> Path:
    """Unpack tables into a folder with ``metadata.jsonl``, if that has not been done.

    Args:
        files: the tables, in their order.
        folder: to write, as a whole or not at all.

    Returns:
        The folder.

    Raises:
        ConfigError: pyarrow is not installed.
        ValueError: a table is damaged, or has no column of pictures, or several.
    """
    if (folder / FILES[0]).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        count = 0
        with (partial / FILES[0]).open("w", encoding="utf-8") as lines:
            for row in _write_pictures(files, partial):
                lines.write(json.dumps(row) + "\n")
                count += 1
        if not count:
            raise ValueError(f"{files[0]} has no rows")
        partial.chmod(0o755)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logging.info("%d pictures of %d tables are in %s", count, len(files), folder)
    return folder


def _write_pictures(files: Sequence[Path], folder: Path) -> Iterator[dict[str, str]]:
    """Write the pictures of tables, and yield a line of metadata for each row.

    Raises:
        ConfigError, ValueError: as `unpack`.
    """
    number = 0
    for rows, columns in _read_tables(files):
        pictures, texts = columns
        for row in rows:
            line = {}
            for key, column in pictures.items():
                beside = "" if key == PICTURES[0] else f"-{key}"
                data = (row[column] or {}).get("bytes") if row[column] else None
                if not data:
                    raise ValueError(
                        f"row {number} has no picture in the column {column!r}; pictures that lie "
                        "elsewhere are not fetched"
                    )
                name = f"{number:08d}{beside}{_find_suffix(data)}"
                (folder / name).write_bytes(data)
                line[key] = name
            yield line | {name: row[name] or "" for name in texts}
            number += 1


Columns = tuple[dict[str, str], list[str]]


def _read_tables(files: Sequence[Path]) -> Iterator[tuple[list[dict[str, Any]], Columns]]:
    """Yield rows of tables a few at a time, with the columns that are read.

    Raises:
        ConfigError: pyarrow is not installed.
        ValueError: a table is damaged, or has no column of pictures, or several.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{files[0]} is a parquet table, which pyarrow reads: pip install 'diffjax[parquet]'"
        ) from error
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                columns = _choose_columns(table.schema_arrow, file)
                wanted = [*columns[0].values(), *columns[1]]
                for batch in table.iter_batches(_ROWS, columns=wanted):
                    yield batch.to_pylist(), columns
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is no parquet table, or a damaged one: {error}") from error


def _choose_columns(schema: Any, file: Path) -> Columns:
    """Choose the columns of pictures, by what they are in metadata, and those of texts.

    Raises:
        ValueError: there is no column of pictures, or nothing says which of several it is.
    """
    import pyarrow

    found = [f.name for f in schema if pyarrow.types.is_struct(f.type) and
             f.type.get_field_index("bytes") >= 0]  # fmt: skip
    hints = [name for name in found if name in HINTS]
    rest = [name for name in found if name not in HINTS]
    if _PICTURE in rest:
        rest = [_PICTURE]
    if len(rest) != 1:
        says = f"columns of pictures: {name_some(rest)}" if rest else "no column of pictures"
        raise ValueError(
            f"{file} has {says}; one that is called {_PICTURE!r}, or is the only one, is read, and "
            f"its hint from {HINTS[0]!r}"
        )
    strings = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    texts = [f.name for f in schema if any(is_text(f.type) for is_text in strings)]
    pictures = {PICTURES[0]: rest[0], **({HINTS[0]: hints[0]} if hints else {})}
    return pictures, [name for name in texts if name not in (*PICTURES, *HINTS)]


def _find_suffix(data: bytes) -> str:
    """The suffix of a picture by its first bytes; readers look at the bytes, too."""
    return next((kind for start, kind in _KINDS.items() if data.startswith(start)), _OTHER)
