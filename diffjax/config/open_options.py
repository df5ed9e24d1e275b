"""What stands in a table of defaults in place of a value."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

# A config as nested dicts of its own, which may be changed: sections or values by key.
Sections: TypeAlias = dict[str, Any]


class OpenOption(NamedTuple):
    """An option without a value: it has the default of what is chosen until somebody sets it.

    Attributes:
        kind: the type of its values.
    """

    kind: type


class SizeOption(NamedTuple):
    """A number of pixels that may be replaced by (height, width).

    Attributes:
        pixels: the default.
    """

    pixels: int


def leave_open(kind: type, *names: str) -> dict[str, OpenOption]:
    """Make entries of a table for options of one type that are left open."""
    return {name: OpenOption(kind) for name in names}
