"""Every command and block of Python in README and docs: modules, flags, configs and keys exist.

The commands are read, not run; the tour, docs/library.md and docs/stable_diffusion.md are run by
tests of their own.
"""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from diffjax.cli import run_flags

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tour").glob("*.md")),
]
COMMAND = re.compile(
    r"^\s*(?:\S*python -m (experiments\.[\w.]+)|diffjax (evaluate|export|generate|web))\b(.*)$",
    re.M,
)


def find_commands(page):
    """Commands of a page: (entry point, arguments); lines that end in a backslash are joined."""
    text = re.sub(r"\\\n\s*", " ", page)
    for match in COMMAND.finditer(text):
        line = match[3].partition(" # ")[0]
        try:
            arguments = shlex.split(line)
        except ValueError:  # a sentence that begins like a command
            continue
        yield match[1] or f"diffjax {match[2]}", [a for a in arguments if a.startswith("-")]


def read_flags(entry):
    """The flags that an entry point defines or says that it uses."""
    name = entry.removeprefix("diffjax ")
    path = ROOT / (name.replace(".", "/") + ".py")
    if entry.startswith("diffjax "):
        path = ROOT / "diffjax" / "cli" / f"{name}_command.py"
    assert path.exists(), f"there is no {entry}"
    source = path.read_text("utf-8")
    if moved := re.search(r"^from (diffjax\.cli\.\w+) import .*\bmain\b", source, re.M):
        source = (ROOT / (moved[1].replace(".", "/") + ".py")).read_text("utf-8")
    names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("USES", "FLAG_GROUPS"):
            names |= {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)}
    return names | set(run_flags.SAMPLING_FLAGS if "sampling" in names else ())


def read_config(value):
    """The config that --config names, or None for those that a page leaves open."""
    match = re.fullmatch(r"configs/(\w+)\.py(?::([\w,]+))?", value)
    if match is None:
        return None
    return importlib.import_module(f"configs.{match[1]}").get_config(match[2])


def has_key(config, path):
    for key in path:
        if not hasattr(config, "keys") or key not in config:
            return False
        config = config[key]
    return True


def check(entry, arguments):
    """What is wrong with a command; empty if nothing is."""
    known = read_flags(entry) | {"help", "helpfull"}
    config, faults = None, []
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config" and value:
            config = read_config(value)
    for argument in arguments:
        name = re.match(r"-*([\w.]*)", argument)[1]
        if name.startswith("config."):
            path = name.split(".")[1:]
            if config is not None and not has_key(config, path):
                faults.append(f"{entry}: no --{name}")
        elif name and not {name, name.removeprefix("no")} & known:
            faults.append(f"{entry}: no flag --{name}")
    return faults


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_name_what_exists(path):
    faults = [f for command in find_commands(path.read_text("utf-8")) for f in check(*command)]
    assert faults == []


def test_wrong_commands_are_found():
    page = (
        "    python -m experiments.train --config=configs/ddpm.py:digits --workdri=a \\\n"
        "        --config.optim.speed=1 --config.optim.lr=1  # what\n"
    )
    ((entry, arguments),) = find_commands(page)
    assert entry == "experiments.train" and len(arguments) == 4
    assert check(entry, arguments) == [
        "experiments.train: no flag --workdri",
        "experiments.train: no --config.optim.speed",
    ]
    with pytest.raises(AssertionError, match=r"there is no experiments\.trian"):
        check("experiments.trian", [])


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_of_python_can_be_read(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.S):
        ast.parse(block)


def test_commands_are_found_in_most_pages():
    counts = {path.name: len(list(find_commands(path.read_text("utf-8")))) for path in PAGES}
    assert counts["README.md"] >= 5 and counts["scaling.md"] >= 5 and sum(counts.values()) > 60
