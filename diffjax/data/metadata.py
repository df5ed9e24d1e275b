"""The files ``metadata.jsonl`` and ``metadata.csv``, which describe the pictures in a folder.

| column | holds |
|---|---|
| file_name (or image, image_file_name) | the picture, relative to the folder of the metadata file |
| text, caption or prompt, or the one that is asked for | its caption |
| conditioning_image (or conditioning_image_file_name) | the picture of its hint |

Other columns are not read. Sub-folders may have files of their own.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffjax.data import text_files
from diffjax.types import JsonObject
from diffjax.untrusted import name_some

FILES = ("metadata.jsonl", "metadata.csv")
PICTURES = ("file_name", "image", "image_file_name")
HINTS = ("conditioning_image", "conditioning_image_file_name")
CAPTIONS = ("text", "caption", "prompt")
_DELIMITERS = ",;\t"


class Row(NamedTuple):
    """One line of a metadata file.

    Attributes:
        where: file and line, for messages.
        values: by column.
    """

    where: str
    values: Mapping[str, object]


class Table(NamedTuple):
    """The content of the metadata files of a folder.

    Attributes:
        files: the metadata files.
        captions: of pictures that have one.
        hints: the hint's picture of pictures that have one.
        rows: file and line that describe each picture, for messages.
        columns: those of the files that have no captions.
    """

    files: list[Path]
    captions: dict[Path, str]
    hints: dict[Path, Path]
    rows: dict[Path, str]
    columns: list[str]


def read_table(root: Path, files: Sequence[Path], *, caption_column: str = "") -> Table:
    """Read all metadata files in a folder and its sub-folders.

    Args:
        root: the folder.
        files: what `folders.list_files` found in it.
        caption_column: the column of the captions; empty: the one of text, caption and prompt that
            there is.

    Raises:
        ValueError: a damaged line, two rows of one picture, a picture that is not there, or
            several columns that may be the captions.
    """
    known = {_normalise_name(path.relative_to(root).as_posix()): path for path in files}
    table = Table([file for file in files if file.name in FILES], {}, {}, {}, [])
    missing: list[str] = []
    for file in table.files:
        _add(table, file, (root, known), caption_column, missing)
    if missing:
        raise ValueError(
            f"{name_some(table.files)} names files that are not there: {name_some(missing)}"
        )
    return table


def find_hints(root: Path, files: Sequence[Path]) -> set[Path]:
    """Return the pictures that metadata files name as hints only, without reading captions.

    Raises:
        ValueError: a line of a file with hints is damaged.
    """
    known = {_normalise_name(path.relative_to(root).as_posix()): path for path in files}
    hints: set[Path | None] = set()
    pictures: set[Path | None] = set()
    for file in files:
        if file.name not in FILES or HINTS[0] not in text_files.read_text(file):
            continue
        for row in read_rows(file):
            for columns, found in ((HINTS, hints), (PICTURES, pictures)):
                name = _find_text(row, columns)
                found.add(_locate(file, name, (root, known)) if name else None)
    return {path for path in hints - pictures if path}


def drop_hints(paths: Sequence[Path], table: Table) -> list[Path]:
    """Return the pictures without those that only serve as hints of others."""
    hints = set(table.hints.values()) - table.rows.keys()
    return [path for path in paths if path not in hints]


def _add(
    table: Table,
    file: Path,
    below: tuple[Path, Mapping[str, Path]],
    caption_column: str,
    missing: list[str],
) -> None:
    """Add the rows of a file to a table.

    Args:
        table: changed in place.
        file: the metadata file.
        below: the folder, and all files in it by their normalised names.
        caption_column: see `read_table`.
        missing: names of files that are not there; changed in place.

    Raises:
        ValueError: a line is damaged, lacks the picture, or describes one for the second time.
    """
    rows = list(read_rows(file))
    column = caption_column or find_caption_column(rows, file)
    if rows and not column:
        table.columns.extend(_list_columns(rows))
    for row in rows:
        name = _find_text(row, PICTURES)
        if name is None:
            raise ValueError(f"{row.where} lacks file_name; it has {_join_names(row.values)}")
        path = _locate(file, name, below)
        if path is None:
            missing.append(name)
            continue
        if path in table.rows:
            raise ValueError(
                f"{row.where} describes {path}, as {table.rows[path]} does; remove one"
            )
        table.rows[path] = row.where
        if column and (caption := _read_caption(row, column)) is not None:
            table.captions[path] = caption
        if (hint := _find_text(row, HINTS)) is not None:
            located = _locate(file, hint, below)
            if located is None:
                missing.append(hint)
            else:
                table.hints[path] = located


def _locate(file: Path, name: str, below: tuple[Path, Mapping[str, Path]]) -> Path | None:
    """Return the file that a metadata file calls by a name, or None.

    Names may be from Windows, with backslashes, or in another form of Unicode, as macOS writes
    them.
    """
    root, known = below
    folder = file.parent.relative_to(root).as_posix()
    for spelling in (name, name.replace("\\", "/")):
        if found := known.get(
            _normalise_name(posixpath.normpath(posixpath.join(folder, spelling)))
        ):
            return found
    return None


def _normalise_name(name: str) -> str:
    """Normalise a file name to Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def _find_text(row: Row, columns: Sequence[str]) -> str | None:
    """Return the text of the first of some columns that a row has.

    Raises:
        ValueError: it holds no text.
    """
    for column in columns:
        value = row.values.get(column)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise ValueError(
                f"{row.where} has {column}={str(value)[:40]}: expected the name of a file"
            )
        return value
    return None


def _read_caption(row: Row, column: str) -> str | None:
    """Return the caption of a row, or None if the row has none.

    Raises:
        ValueError: the column is absent, or holds no valid text.
    """
    if column not in row.values:
        raise ValueError(f"{row.where} lacks {column!r}; it has {_join_names(row.values)}")
    value = row.values[column]
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{row.where} has {column}={str(value)[:40]}: a caption is one text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{row.where} has a caption that is not valid Unicode: {error}") from error
    return value.replace("\ufeff", "")


def find_caption_column(rows: Sequence[Row], file: Path) -> str:
    """Return the column of the captions among those that are customary; empty if there is none.

    Raises:
        ValueError: there are several.
    """
    found = [c for c in CAPTIONS if any(row.values.get(c) is not None for row in rows)]
    if len(found) > 1:
        raise ValueError(
            f"{file} has the columns {' and '.join(found)}, which may both be captions: choose "
            f"with data.caption_column (caption_column={found[0]!r} in Python)"
        )
    return found[0] if found else ""


def _list_columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row.values))


def _join_names(values: Mapping[str, object]) -> str:
    return ", ".join(map(str, values)) or "nothing"


# ---- files --------------------------------------------------------------------------------------


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of ``metadata.jsonl`` or ``metadata.csv``.

    Raises:
        ValueError: a line is no JSON object, or does not have the columns of the first line; the
            message names file and line.
    """
    return _read_csv_rows(file) if file.suffix == ".csv" else _read_json_rows(file)


def _read_json_rows(file: Path) -> Iterator[Row]:
    for number, line in enumerate(text_files.read_lines(file), 1):
        if line.strip():
            where = f"line {number} of {file}"
            yield Row(where, _parse(line, where))


def _parse(line: str, where: str) -> JsonObject:
    """Parse one line of JSON.

    Raises:
        ValueError: it is no object, or has a key twice.
    """
    try:
        value = json.loads(line, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}): every line must be one object, such as "
            '{"file_name": "a.png", "text": "a cat"}'
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object, but {line.strip()[:80]}")
    return value


def _refuse_repeats(pairs: list[tuple[str, object]]) -> JsonObject:
    """Make a dictionary of pairs."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return found


def _read_csv_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file, whose delimiter is the most frequent one of its first line.

    Raises:
        ValueError: a line is no CSV, or has another number of values than there are columns.
    """
    content = text_files.read_text(file)
    first = content.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)  # the first one wins a tie
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {file} is not CSV: {error}") from error
        where = f"line {reader.line_num} of {file}"
        if not values:  # an empty line
            continue
        if not columns:
            columns = _check_header([value.strip() for value in values], where)
        elif len(values) != len(columns):
            raise ValueError(
                f"{where} has {len(values)} values for {len(columns)} columns; a caption with "
                f"{delimiter!r} in it must be in double quotes"
            )
        else:
            yield Row(where, dict(zip(columns, values, strict=True)))


def _check_header(columns: list[str], where: str) -> list[str]:
    """Return the columns of a CSV file.

    Raises:
        ValueError: one comes twice, or none names the picture.
    """
    if not set(columns) & set(PICTURES) or len(set(columns)) < len(columns):
        raise ValueError(
            f"{where} must name the columns, each once and file_name among them; it has "
            f"{', '.join(columns) or 'nothing'}"
        )
    return columns
