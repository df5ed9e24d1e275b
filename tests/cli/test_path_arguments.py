"""Values of flags that join paths and numbers with colons; paths may hold colons themselves."""

import pytest

from diffjax.cli.path_arguments import (
    ControlArgument,
    parse_concept,
    parse_control,
    parse_image_prompt,
    parse_lora,
    split_kind,
    split_path,
)
from diffjax.types import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("net", "net:1", "edges.png", "a:b.png", "0.5"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text, wanted", [
    ("net:edges.png", ("net", "edges.png", 1.0, 0.0, 1.0)),
    ("net:edges.png:0.5", ("net", "edges.png", 0.5, 0.0, 1.0)),
    ("net:edges.png:0.5:0:0.7", ("net", "edges.png", 0.5, 0.0, 0.7)),
    ("net:edges.png:1e-1:.25:1", ("net", "edges.png", 0.1, 0.25, 1.0)),
    ("net:1:edges.png", ("net:1", "edges.png", 1.0, 0.0, 1.0)),
    ("net:1:a:b.png:2", ("net:1", "a:b.png", 2.0, 0.0, 1.0)),
    ("net:0.5", ("net", "0.5", 1.0, 0.0, 1.0)),  # a file of that name
    ("net:0.5:0.5", ("net", "0.5", 0.5, 0.0, 1.0)),
    ("net#3:edges.png", ("net", "edges.png", 1.0, 0.0, 1.0, 3)),
    ("owner/name#12:edges.png:0.5", ("owner/name", "edges.png", 0.5, 0.0, 1.0, 12)),
    ("net:edges.png:-1", ("net", "edges.png", -1.0, 0.0, 1.0)),  # the request says what is wrong
])  # fmt: skip
def test_a_control_is_read(folder, text, wanted):
    assert parse_control(text) == ControlArgument(*wanted)


@pytest.mark.parametrize("text", [
    "", ":", "net", "net:", ":edges.png", "net:no.png", "no:edges.png", "net:edges.png:",
    "net:edges.png:x", "net:edges.png:1:2", "net:edges.png:1:2:3:4", "net:edges.png:nan",
    "net:edges.png:inf:0:1", "edges.png:net:a", "net: edges.png",
    "net#:edges.png", "net#x:edges.png", "#3:edges.png",
])  # fmt: skip
def test_what_names_no_network_and_image_is_refused(folder, text):
    with pytest.raises(ConfigError, match=r"^--control=.*: must be NET\[#KIND\]:IMAGE"):
        parse_control(text)


def test_a_kind_is_split_from_what_is_no_file(folder):
    (folder / "c#4").write_bytes(b"")
    assert split_kind("owner/name#3") == ("owner/name", 3)
    assert split_kind("c#4") == ("c#4", None)
    assert split_kind("net") == ("net", None)


@pytest.mark.parametrize("text, wanted", [
    ("x.safetensors", ("x.safetensors", 1.0)), ("x.safetensors:0.5", ("x.safetensors", 0.5)),
    ("net:1", ("net:1", 1.0)), ("net:1:2", ("net:1", 2.0)), ("a:-3e-1", ("a", -0.3)),
])  # fmt: skip
def test_an_adapter_is_read(folder, text, wanted):
    assert parse_lora(text) == wanted


@pytest.mark.parametrize("text", ["x:", "x:high", "x:nan", "x:-inf", "x:1:y", ":1", ":"])
def test_a_scale_that_is_no_number_is_refused(folder, text):
    with pytest.raises(ConfigError, match="must be FILE or FILE:SCALE"):
        parse_lora(text)


def test_a_concept_is_read(folder):
    assert parse_concept("cat.bin") == ("cat.bin", None)
    assert parse_concept("cat.bin:<cat>") == ("cat.bin", "<cat>")
    assert parse_concept("a:b.png") == ("a:b.png", None)
    for text in (":cat", "cat.bin:", ":"):
        with pytest.raises(ConfigError, match=f"--concept={text}: must be FILE or FILE:WORD"):
            parse_concept(text)


def test_an_existing_path_stays_whole(folder):
    assert split_path("a:b.png") == ("a:b.png", None)
    assert split_path("a:c.png") == ("a", "c.png")
    assert split_path("a") == ("a", None)


@pytest.mark.parametrize("text, wanted", [
    ("net:edges.png", ("net", "edges.png", 1.0)),
    ("net:edges.png:0.5", ("net", "edges.png", 0.5)),
    ("net:1:a:b.png:-2", ("net:1", "a:b.png", -2.0)),
    ("net:0.5", ("net", "0.5", 1.0)),  # a file of that name
    ("owner/name/a.safetensors:edges.png", ("owner/name/a.safetensors", "edges.png", 1.0)),
])  # fmt: skip
def test_an_image_prompt_is_read(folder, text, wanted):
    assert parse_image_prompt(text) == wanted


@pytest.mark.parametrize("text", ["", "net", "net:no.png", ":edges.png", "net:edges.png:x"])
def test_an_image_prompt_without_its_parts_is_refused(folder, text):
    with pytest.raises(ConfigError, match="must be ADAPTER:IMAGE"):
        parse_image_prompt(text)
