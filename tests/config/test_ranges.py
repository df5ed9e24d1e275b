"""What the values of configs may be: the same for flags and for files of strangers."""

import json

import pytest

from diffjax import config
from diffjax.config.assemble import find_type
from diffjax.config.defaults import DEFAULTS
from diffjax.config.optional_sections import OPTIONAL
from diffjax.config.ranges import SPECS, check_values, flatten
from diffjax.types import ConfigError

WRONG = [
    ("network.dtype", "float31", "float16"),
    ("data.batch_size", 0, "a whole number in 1 .. 16777216"),
    ("data.levels", 1, "0 or a whole number in 2 .. 65536"),
    ("data.image_size", (8, 0), "a list of 1 to 2 entries"),
    ("ema.decay", 1.0, "at least 0 and less than 1"),
    ("sample.gamma", 2.0, "a finite number from 0 to 1"),
    ("network.dropout", 1.0, "at least 0 and less than 1"),
    ("optim.lr", 0.0, "a finite number above 0"),
    ("task", 3, "text"),
]


def _with(path, value):
    plain = config.make().to_dict()
    parent, _, key = path.rpartition(".")
    (config.find(plain, parent) if parent else plain)[key] = value
    return plain


@pytest.mark.parametrize("path, value, says", WRONG)
def test_flags_and_files_are_told_the_same(path, value, says):
    plain = _with(path, value)
    with pytest.raises(ConfigError) as ours:
        check_values(plain)
    assert f"config.{path} must be" in str(ours.value) and says in str(ours.value)
    assert f"got {value!r}" in str(ours.value)
    with pytest.raises(ValueError) as theirs:
        check_values(plain, "FILE")
    assert str(theirs.value) == f"FILE: {ours.value}"
    assert not isinstance(theirs.value, ConfigError)


@pytest.mark.parametrize("path", [
    key for key, default in flatten(DEFAULTS) if key not in SPECS and find_type(default) is not str
])  # fmt: skip
def test_every_value_has_a_type(path):
    check_values(_with(path, None))
    with pytest.raises(ConfigError, match=rf"config\.{path} must be of type \w+, got 'x'"):
        check_values(_with(path, "x"))


@pytest.mark.parametrize("path", [k for k, _ in flatten(DEFAULTS)])
def test_no_value_is_a_section(path):
    with pytest.raises(ConfigError, match=rf"config\.{path} must be a value, but is a section"):
        check_values(_with(path, {"x": 1}))


@pytest.mark.parametrize("path", ["data", "cond.given", "mesh"])
def test_no_section_is_a_value(path):
    with pytest.raises(ConfigError, match=rf"config\.{path} must be a section, got 3"):
        check_values(_with(path, 3))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
@pytest.mark.parametrize("path", ["optim.lr", "mine", "mesh.data", "cond.empty"])
def test_numbers_are_finite(path, text):
    value = json.loads(text)
    with pytest.raises(ValueError, match=rf"config\.{path} is not a number that can be stored"):
        check_values(_with(path, value), "FILE")


def test_the_table_names_keys_that_configs_have():
    known = {key for key, _ in flatten({**OPTIONAL, **DEFAULTS})} | {"network.depth"}
    assert {key for key in SPECS if not key.startswith("autoencoder.")} <= known
