"""What --help and --helpfull print: the flags of a command in groups, the most used first.

An entry point has ``FLAG_GROUPS`` in its module: titles to names of flags. The help is the first
paragraph of the module's docstring, its examples, and these groups, in at most `MOST_LINES` lines.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

# Columns of the page.
WIDTH = 100
# The most lines of --help.
MOST_LINES = 40
# Columns before the text of a flag.
INDENT = 25
# Names of the flags that ask for the help, and for the full help.
SHORT, FULL = ("help", "helpshort", "h", "?"), ("helpfull", "helpxml")
# Title of the flags that no group names.
REST = "More"

# Titles to names of flags, the most used first.
Groups = Mapping[str, Sequence[str]]
# What stands for a value, by absl's name of the type.
_PLACEHOLDERS = {"int": "N", "float": "X", "bool": "", "string enum": "NAME", "comma list": "A,B"}


class Command(NamedTuple):
    """What is known of a command.

    Attributes:
        name: as the user typed it.
        text: docstring of its module.
        groups: every flag that the command takes, by title of its group.
    """

    name: str
    text: str
    groups: Groups

    @property
    def flags(self) -> list[str]:
        """Names of all flags, in their order."""
        return [name for names in self.groups.values() for name in names]


def describe_command(name: str, main: Callable[[], None], takes: Sequence[str] = ()) -> Command:
    """Describe the command whose entry point is a function ``main``.

    The order of ``FLAG_GROUPS`` in its module is kept. Flags of the module and of ``takes`` that
    are in no group follow in a last one.

    Args:
        name: as the user typed it.
        takes: flags of other modules that the command uses.
    """
    module = sys.modules[main.__module__]
    defined_by = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    groups: dict[str, Sequence[str]] = {
        title: tuple(name for name in names if name in flags.FLAGS)
        for title, names in getattr(module, "FLAG_GROUPS", {}).items()
    }
    named = {name for names in groups.values() for name in names}
    own = [flag.name for flag in flags.FLAGS.get_flags_for_module(defined_by)]
    rest = [name for name in dict.fromkeys((*own, *takes)) if name not in named]
    if rest := [name for name in rest if name in flags.FLAGS]:
        groups[REST if groups else "Flags"] = rest
    return Command(name, module.__doc__ or "", groups)


def find_help(argv: Sequence[str]) -> str | None:
    """Find the help flag among the arguments; None if there is none."""
    names = (one.lstrip("-").partition("=")[0] for one in argv[1:] if one.startswith("-"))
    return next((name for name in names if name in (*SHORT, *FULL)), None)


def format_help(command: Command) -> str:
    """Format the help of a command in at most `MOST_LINES` lines.

    If the texts of flags do not fit, they are cut to their first sentences. If that does not fit
    either, the last flags are only named.
    """
    count = len(command.flags)
    page = _format_page(command, count, shorten=False)
    # One text after the other is dropped, from the end, until the page fits.
    while len(page) > MOST_LINES and count >= 0:
        page = _format_page(command, count, shorten=True)
        count -= 1
    return "\n".join(page)


def format_full_help(command: Command) -> str:
    """Format the whole docstring, the flags of the command, and those of libraries."""
    lines = [command.text.strip(), ""]
    lines += _format_groups(command.groups, len(command.flags), shorten=False)
    lines += ["", "Flags of the libraries:"]
    modules = flags.FLAGS.flags_by_module_dict()
    lines += [
        flags.FLAGS.module_help(str(module))
        for module in sorted(map(str, modules))
        if module.partition(".")[0] in ("absl", "ml_collections", "jax")
    ]
    return "\n".join(lines)


def _format_page(command: Command, count: int, *, shorten: bool) -> list[str]:
    """Format the lines of --help.

    Args:
        count: number of flags that have a text; those after them are only named.
        shorten: whether texts are cut to their first sentence.
    """
    summary, example = _split_docstring(command.text)
    lines = [*textwrap.wrap(summary, WIDTH), "", *example, ""]
    lines += _format_groups(command.groups, count, shorten=shorten)
    names = ", ".join(f"--{name}" for name in command.flags[count:])
    also = f"Also: {names}. " if names else ""
    lines += textwrap.wrap(
        f"{also}--helpfull shows all texts in full.",
        WIDTH,
        subsequent_indent="  ",
        break_on_hyphens=False,
    )
    return lines


def _split_docstring(text: str) -> tuple[str, list[str]]:
    """Split a docstring into its first paragraph and the indented examples that follow it."""
    summary, _, rest = text.strip().partition("\n\n")
    example = []
    for line in rest.splitlines():
        if not line.startswith("    "):
            break
        example.append(line.rstrip())
    return " ".join(summary.split()), example


def _format_groups(groups: Groups, count: int, *, shorten: bool) -> list[str]:
    """Format titles and flags of the groups, as far as the first ``count`` flags."""
    lines = []
    for title, names in groups.items():
        chosen, count = names[:count], max(0, count - len(names))
        if chosen:
            lines.append(f"{title}:")
        for name in chosen:
            lines += _format_flag(flags.FLAGS[name], shorten=shorten)
    return lines


def _format_flag(flag: flags.Flag[Any], *, shorten: bool) -> list[str]:
    """Format a flag as ``  --name=N    text (default 5)``, wrapped into lines.

    A flag that is true if not set is written ``--[no]name``. Choices follow the text.
    """
    placeholder = _PLACEHOLDERS.get(flag.flag_type(), "TEXT")
    negated = "[no]" if flag.default is True else ""
    head = f"  --{negated}{flag.name}" + (f"={placeholder}" if placeholder else "")
    text = _read_text(flag)
    text = re.split(r"(?<!e\.g)\. (?=[A-Z-])", text)[0] if shorten else text
    text = text.rstrip(".")
    if choices := getattr(flag.parser, "enum_values", None):
        text += f": {', '.join(choices)}"
    if flag.default not in (None, "", 0, []) and not isinstance(flag.default, bool):
        text += f" (default {_format_default(flag.default)})"
    body = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False) or [""]
    first = f"{head:<{INDENT}}{body[0]}" if len(head) < INDENT - 1 else f"{head}  {body[0]}"
    if len(first) > WIDTH:
        body, first = ["", *body], head
    return [first, *(" " * INDENT + line for line in body[1:])]


def _read_text(flag: flags.Flag[Any]) -> str:
    """Read the text of a flag as one line, without what absl adds about lists and choices."""
    text = " ".join((flag.help or "").split())
    text = re.sub(r";?\s*repeat this option to specify a list of values$", "", text)
    text = re.sub(r"\s*\(a comma separated list\)$", "", text)
    return re.sub(r"^<[^>]*>: ", "", text)


def _format_default(value: object) -> str:
    """Format a default as it would be typed; lists with commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
