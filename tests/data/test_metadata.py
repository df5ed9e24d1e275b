"""Metadata files as people have them, and what is said of those that cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image

from diffjax.data import folders, metadata, text_files

EXOTIC = "one\u2028two\u2029three\x85four\x0bfive\x1csix"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


def read(root, **options):
    return metadata.read_table(root, folders.list_files(root), **options)


def write(path, rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(lines.encode(encoding))


def named(table):
    return {path.name: caption for path, caption in table.captions.items()}


@pytest.fixture
def root(tmp_path):
    for name in ("a.png", "b.png", "deep/c.png"):
        picture(tmp_path / name)
    return tmp_path


def test_lines_end_at_a_line_feed_and_nowhere_else(tmp_path):
    (tmp_path / "x").write_bytes(f"{EXOTIC}\r\nlast".encode())
    assert text_files.read_lines(tmp_path / "x") == [EXOTIC, "last"]
    assert text_files.split_lines("") == [] and text_files.split_lines("\n") == [""]
    assert text_files.split_lines("a\n\nb\n") == ["a", "", "b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_hold_line_separators_and_no_byte_order_mark(root, encoding):
    write(root / "metadata.jsonl", [{"file_name": "a.png", "text": EXOTIC}], encoding)
    assert named(read(root)) == {"a.png": EXOTIC}


def test_joined_files_have_marks_inside(root):
    lines = [f'\ufeff{{"file_name": "{name}.png", "text": "\\ufeff{name}"}}\n' for name in "ab"]
    (root / "metadata.jsonl").write_text("".join(lines), "utf-8")
    assert named(read(root)) == {"a.png": "a", "b.png": "b"}


def test_an_encoding_is_named_with_file_and_line(root):
    (root / "metadata.jsonl").write_bytes(
        '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "text": "é"}'.encode("cp1252")
    )
    with pytest.raises(ValueError, match=r"line 2 of .*metadata\.jsonl is not UTF-8 .*save .* UTF"):
        read(root)
    (root / "metadata.jsonl").write_bytes('{"file_name": "a.png"}'.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"line 1 of .* zero byte.*UTF-16"):
        read(root)


def test_every_folder_may_have_its_own_file_with_names_relative_to_it(root):
    write(root / "metadata.jsonl", [{"file_name": "./a.png", "text": "A"}])
    rows = [{"file_name": "c.png", "caption": "C"}, {"file_name": "../b.png", "caption": "B"}]
    write(root / "deep" / "metadata.jsonl", rows)
    assert named(read(root)) == {"a.png": "A", "b.png": "B", "c.png": "C"}


def test_names_from_windows_and_macos_are_found(root):
    picture(root / "caf\u0065\u0301.png")
    rows = [{"file_name": "deep\\c.png", "text": "C"}, {"file_name": "caf\u00e9.png", "text": "D"}]
    write(root / "metadata.jsonl", rows)
    assert sorted(named(read(root)).values()) == ["C", "D"]


def test_csv_with_quotes_line_breaks_and_other_separators(root):
    (root / "metadata.csv").write_text(
        '\ufefffile_name,text\r\na.png,"a, ""b""\nc"\r\n\r\nb.png,é\r\n', "utf-8", newline=""
    )
    assert named(read(root)) == {"a.png": 'a, "b"\nc', "b.png": "é"}
    (root / "metadata.csv").write_text("file_name;prompt\na.png;one, two\n")
    assert named(read(root)) == {"a.png": "one, two"}
    (root / "metadata.csv").write_text("file_name\tcaption\na.png\tone, two; three\n")
    assert named(read(root)) == {"a.png": "one, two; three"}


@pytest.mark.parametrize(
    "content, message",
    [
        ("file_name,text\na.png,one, two\n", r"line 2 of .*csv has 3 values for 2 columns.*quotes"),
        ("file_name,text\na.png\n", r"line 2 of .*csv has 1 values for 2 columns"),
        ("a.png,one\n", r"line 1 of .*csv must name the columns.*file_name.*it has a.png, one"),
        ("file_name,text,text\n", r"line 1 of .*csv must name the columns, each once"),
        ('file_name,text\na.png,"x', r"of .*csv is not CSV: unexpected end"),
    ],
)
def test_csv_that_is_not_understood(root, content, message):
    (root / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(root)


def test_the_column_of_captions_is_found_or_chosen(root):
    row = {"file_name": "a.png", "text": "T", "caption": "C", "prompt": None}
    write(root / "metadata.jsonl", [row])
    with pytest.raises(ValueError, match=r"text and caption, which .*data\.caption_column"):
        read(root)
    assert named(read(root, caption_column="caption")) == {"a.png": "C"}
    with pytest.raises(ValueError, match=r"line 1 of .* lacks 'words'; it has file_name, text"):
        read(root, caption_column="words")
    write(root / "metadata.jsonl", [{"file_name": "a.png", "prompt": "P", "words": "W"}])
    assert named(read(root)) == {"a.png": "P"}
    assert named(read(root, caption_column="words")) == {"a.png": "W"}
    write(root / "metadata.jsonl", [{"file_name": "a.png", "words": "W"}])
    assert named(read(root)) == {} and read(root).columns == ["file_name", "words"]


def test_the_layout_of_hints(root):
    picture(root / "conditioning_images" / "a.png")
    rows = [{"image": "a.png", "conditioning_image": "conditioning_images/a.png", "text": "A"}]
    write(root / "metadata.jsonl", rows)
    table = read(root)
    assert table.hints == {root / "a.png": root / "conditioning_images" / "a.png"}
    paths = folders.list_images(root)
    assert root / "conditioning_images" / "a.png" in paths
    assert root / "conditioning_images" / "a.png" not in metadata.drop_hints(paths, table)
    write(root / "metadata.jsonl", [{**rows[0], "conditioning_image": "hints/a.png"}])
    with pytest.raises(ValueError, match=r"not there: hints/a\.png"):
        read(root)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 2]", r"line 1 of .*metadata\.jsonl is not a JSON object, but \[1, 2\]"),
        ('{"file_name": "a.png", "text": "x"}\n"x"', r"line 2 of .* is not a JSON object"),
        ('{"file_name": "a.png"', r"line 1 of .* is not JSON .*every line must be one object"),
        ("[\n", r"line 1 of .* is not JSON"),
        ("[" * 100_000, r"line 1 of .* is not JSON"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', r"line 1 .*'text' occurs twice"),
        ('{"text": "x"}', r"line 1 of .* lacks file_name; it has text"),
        ('{"file_name": 3, "text": "x"}', r"line 1 of .* has file_name=3: expected the name"),
        ('{"file_name": "a.png", "text": ["x", "y"]}', r"text=\['x', 'y'\]: a caption is one text"),
        ('{"file_name": "a.png", "text": "\\ud800"}', r"line 1 of .* not valid Unicode"),
        ('{"file_name": "/etc/a.png", "text": "x"}', r"not there: /etc/a\.png"),
        ('{"file_name": "../a.png", "text": "x"}', r"not there: \.\./a\.png"),
    ],
)
def test_rows_that_are_not_understood(root, content, message):
    (root / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(root)


def test_two_rows_of_one_picture_are_an_error(root):
    row = {"file_name": "a.png", "text": "A"}
    write(root / "metadata.jsonl", [row, {**row, "text": "B"}])
    with pytest.raises(
        ValueError, match=r"line 2 of .* describes .*a\.png, as line 1 of .*jsonl does"
    ):
        read(root)
    write(root / "metadata.jsonl", [row])
    (root / "metadata.csv").write_text("file_name,text\na.png,B\n")
    with pytest.raises(
        ValueError, match=r"line 1 of .*jsonl describes .*a\.png, as line 2 .*csv does"
    ):
        read(root)
