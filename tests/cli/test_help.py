"""--help of every entry point: short, complete, without flags of libraries."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from absl import flags

from diffjax.cli import help_pages, run_flags

ROOT = Path(__file__).parents[2]


def _find_entry_points():
    """Modules of experiments that can be started, by the name that follows ``experiments.``."""
    folder = ROOT / "experiments"
    found = {}
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text("utf-8")
        if "__main__" in source and path.parent.name != "sides":  # which another command starts
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name] = source
    return found


ENTRY_POINTS = _find_entry_points()


def _list_flags(source):
    """The flags that a module defines or says that it uses, read from its source."""
    if moved := re.search(r"^from (diffjax\.cli\.\w+) import main$", source, re.M):
        source = (ROOT / (moved[1].replace(".", "/") + ".py")).read_text("utf-8")
    names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("USES", "FLAG_GROUPS"):
            parts = getattr(node.value, "values", [node.value])  # without titles of groups
            names |= {n.value for part in parts for n in ast.walk(part) if hasattr(n, "value")}
    names = {name for name in names if isinstance(name, str)}
    if "sampling" in names:
        names = (names - {"sampling"}) | set(run_flags.SAMPLING_FLAGS)
    return names


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_help_is_short_and_names_every_flag(execute, entry):
    if "\ntry:\n    import torch\n" in ENTRY_POINTS[entry] and not find_spec("diffusers"):
        said = execute(entry, "--help", code=1)
        assert "make parity installs" in said and "Traceback" not in said
        return
    out = execute(entry, "--help")
    lines = out.splitlines()
    assert 2 <= len(lines) <= 40 and max(map(len, lines)) <= 100
    wanted = _list_flags(ENTRY_POINTS[entry])
    named = set(re.findall(r"--(?:\[no\])?(\w+)", out))
    assert wanted - named == set()
    assert not named & {"alsologtostderr", "pdb", "verbosity", "logger_levels", "only_check_args"}
    assert not re.search(r"^ {4}\S.*\S {3}", out, re.M)  # a broken line of a command, joined
    first = ast.get_docstring(ast.parse(ENTRY_POINTS[entry])).partition("\n")[0]
    assert lines[0].startswith(first[:40]) or "diffjax" in first


@pytest.mark.parametrize("entry", ["train", "generate"])
def test_full_help_shows_all_texts_and_the_flags_of_libraries(execute, entry):
    out = execute(entry, "--helpfull")
    assert "--alsologtostderr" in " ".join(out.replace("[no]", "").split())
    for name in _list_flags(ENTRY_POINTS[entry]):
        assert re.search(rf"^  --{name}\b", out, re.M), name


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort", "-?", "--help=true"])
def test_every_form_of_help_exits_with_0_even_beside_wrong_flags(execute, flag):
    out = execute("train", "--config=no/such.py", "--wrong", flag)
    assert "--workdir" in out and "error" not in out


@pytest.fixture
def command():
    values = flags.FlagValues()
    flags.DEFINE_integer("steps", 5, "Number of steps. More are slower.", flag_values=values)
    flags.DEFINE_enum("kind", "a", ["a", "b"], "Kind of thing.", flag_values=values)
    flags.DEFINE_multi_string("word", [], "A word.", flag_values=values)
    flags.DEFINE_integer("num", 1, "Number of things.", flag_values=values)
    flags.DEFINE_bool("count", True, "Count them.", flag_values=values)
    flags.DEFINE_bool("quick", False, "Whether to " + "be quick " * 20, flag_values=values)
    return values


def test_a_flag_is_shown_with_its_default_and_choices(command):
    def show(name, shorten=False):
        return help_pages._format_flag(command[name], shorten=shorten)

    assert show("steps") == [
        "  --steps=N              Number of steps. More are slower (default 5)"
    ]
    assert show("steps", True) == ["  --steps=N              Number of steps (default 5)"]
    assert show("kind") == ["  --kind=NAME            Kind of thing: a, b (default a)"]
    assert show("num") == ["  --num=N                Number of things (default 1)"]
    assert show("count") == ["  --[no]count            Count them"]
    assert show("word") == ["  --word=TEXT            A word"]
    long = show("quick")
    assert len(long) > 1 and all(len(line) <= 100 for line in long)
    assert " ".join(" ".join(long).split()) == "--quick Whether to " + ("be quick " * 20).strip()


def test_flags_that_do_not_fit_are_named(monkeypatch, command):
    for k in range(60):
        flags.DEFINE_string(f"flag_{k}", None, f"Text {k}.", flag_values=command)
    monkeypatch.setattr(flags, "FLAGS", command)
    names = tuple(f"flag_{k}" for k in range(60))
    page = help_pages.format_help(help_pages.Command("x", "Do x.", {"All": names}))
    lines = page.splitlines()
    assert len(lines) <= 40 and lines[0] == "Do x."
    assert "  --flag_0=TEXT          Text 0" in lines and "Text 59" not in page
    assert set(re.findall(r"--(flag_\d+)", page)) == set(names)
