"""What --help and --helpfull print: the flags of a command in groups, the most used first."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

WIDTH = 100  # columns
MOST_LINES = 40  # of --help
INDENT = 25  # columns before the text of a flag
SHORT, FULL = ("help", "helpshort", "h", "?"), ("helpfull", "helpxml")
REST = "More"  # title of the flags that no group names

Groups = Mapping[str, Sequence[str]]  # title -> names of flags, the most used first
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
        """Names of all flags in their order."""
        return [name for names in self.groups.values() for name in names]


def describe_command(name: str, main: Callable[[], None], takes: Sequence[str] = ()) -> Command:
    """The command of a function ``main``.

    Its module may have ``FLAG_GROUPS``, whose order is kept. What the module defines, and what the
    command takes from other modules, follows if no group names it.

    Args:
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
    """The help flag among the arguments, if there is one."""
    names = (one.lstrip("-").partition("=")[0] for one in argv[1:] if one.startswith("-"))
    return next((name for name in names if name in (*SHORT, *FULL)), None)


def format_help(command: Command) -> str:
    """The help of a command in at most `MOST_LINES` lines.

    Texts of flags are cut to their first sentence if all of them do not fit. The last flags are
    only named if these do not fit either.
    """
    count = len(command.flags)
    page = _format_page(command, count, shorten=False)
    while len(page) > MOST_LINES and count >= 0:
        page = _format_page(command, count, shorten=True)
        count -= 1
    return "\n".join(page)


def format_full_help(command: Command) -> str:
    """All that is known: the whole docstring, the flags of the command, and those of libraries."""
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
    """The lines of --help with texts for the first ``count`` flags; the others are only named."""
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
    """The first paragraph of a docstring, and the indented lines of commands that follow it."""
    summary, _, rest = text.strip().partition("\n\n")
    example = []
    for line in rest.splitlines():
        if not line.startswith("    "):
            break
        example.append(line.rstrip())
    return " ".join(summary.split()), example


def _format_groups(groups: Groups, count: int, *, shorten: bool) -> list[str]:
    """Titles and flags of the groups, as far as the first ``count`` flags."""
    lines = []
    for title, names in groups.items():
        chosen, count = names[:count], max(0, count - len(names))
        if chosen:
            lines.append(f"{title}:")
        for name in chosen:
            lines += _format_flag(flags.FLAGS[name], shorten=shorten)
    return lines


def _format_flag(flag: flags.Flag[Any], *, shorten: bool) -> list[str]:
    """``  --name=N    text (default 5)``, wrapped; ``--[no]name`` is true if not set."""
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
    """The text of a flag in one line, without what absl adds about lists and choices."""
    text = " ".join((flag.help or "").split())
    text = re.sub(r";?\s*repeat this option to specify a list of values$", "", text)
    text = re.sub(r"\s*\(a comma separated list\)$", "", text)
    return re.sub(r"^<[^>]*>: ", "", text)


def _format_default(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
