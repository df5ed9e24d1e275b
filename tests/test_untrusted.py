"""JSON within bounds, and the types and ranges of its values."""

import json
import math

import pytest

from diffjax import untrusted
from diffjax.untrusted import check, either, exactly, integer, listed, number, parse_json, show


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("[1]", "holds no JSON object, but a value of type list"),
        ("null", "holds no JSON object, but a value of type null"),
        ("", "FILE is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ('{"a":' * 65 + "1" + "}" * 65, "too deeply nested, in more than 64"),
        ('{"a":' * 100_000, "too deeply nested, in more than 64"),
        (
            '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "too deeply nested, in more than 64",
        ),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        (r'{"a": "\ud800"}', "text that is not valid Unicode"),
        (r'{"\udfff": 1}', "text that is not valid Unicode"),
        (b'{"a": "\xff"}', "is not JSON"),
        ('{"a": "' + "x" * 1000 + '"}', "has more than 1000 bytes"),
    ],
)
def test_bad_json_is_refused_with_its_file(raw, message):
    limit = 1000 if "1000" in message else untrusted.JSON_BYTES
    with pytest.raises(ValueError, match=message) as error:
        parse_json(raw, "FILE", limit=limit)
    assert str(error.value).startswith("FILE ") and len(str(error.value)) < 300


def test_json_is_read():
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": -math.inf}}
    assert parse_json(json.dumps(value), "FILE") == value
    assert parse_json(b"\xef\xbb\xbf{}", "FILE") == {}  # as some editors write it
    deep = '{"a":' * 64 + "1" + "}" * 64
    assert parse_json(deep, "FILE")


def test_many_keys_are_read():
    # A reader that compared every key with every other one would take minutes.
    raw = json.dumps({f"key{i}": [i] for i in range(120_000)})
    assert len(parse_json(raw, "FILE")) == 120_000
    with pytest.raises(ValueError, match="twice"):
        parse_json(raw[:-1] + ', "key5": 1}', "FILE")


@pytest.mark.parametrize(
    ("spec", "right", "wrong"),
    [
        (integer(0, 5), [0, 5], [True, 2.0, "2", None, -1, 6, 10**400, [1]]),
        (number(0, 1), [0, 1, 0.5], [True, math.nan, math.inf, -1e-9, 10**400, "0.5", None]),
        (number(0, 1, above=True), [1e-9, 1], [0, 0.0, -0.0, math.nan]),
        (exactly(True, False), [True, False], [0, 1, "true", None]),
        (exactly("a", 1), ["a", 1], [True, "b", 1.0]),
        (listed(integer(0, 5), 2), [[1], (1, 2)], [[], [1, 2, 3], ["1"], 1, "ab", {}]),
        (either(untrusted.NOTHING, untrusted.TEXT), [None, "a"], ["", 0, [], "x" * 300]),
    ],
)
def test_types_and_ranges(spec, right, wrong):
    assert all(map(spec.holds, right))
    assert not any(map(spec.holds, wrong))
    with pytest.raises(ValueError, match=r"^FILE: key is .*, but must be "):
        check({"key": wrong[0], "other": wrong[0]}, {"key": spec}, "FILE")
    check({"key": right[0], "other": wrong[0]}, {"key": spec}, "FILE")


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        "\x1b[2J\n\r" * 50,
        10**5000,
        [[[]] * 1000] * 1000,
        {"a" * 1000: ["b" * 1000] * 1000},
        "\ud800",
        object(),
        math.nan,
        (1,),
    ],
    ids=lambda value: type(value).__name__,
)
def test_foreign_values_are_shown_in_a_line(value):
    text = show(value)
    assert len(text) <= untrusted.SHOWN + 3 and text.isprintable()
    assert len(untrusted.name_some([str(type(value)) + "\n"] * 10**5)) < 2000


def test_a_file_is_named_once():
    with pytest.raises(ValueError, match=r"^FILE: it is bad$"), untrusted.naming("FILE"):
        raise ValueError("it is bad")
    with pytest.raises(ValueError, match=r"^FILE is bad$"), untrusted.naming("FILE"):
        raise ValueError("FILE is bad")
