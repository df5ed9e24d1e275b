"""Tables for a terminal and for an HTML page."""

from __future__ import annotations

import html
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence

# A row of a table: values by title.
Row = Mapping[str, object]
# Time between two tables where the output is not a terminal.
SECONDS = 10.0


def format_value(value: object) -> str:
    """Format a value of a table: four digits for numbers that are not whole."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_table(rows: Sequence[Row]) -> str:
    """Format rows as aligned columns under their keys; a missing value is left empty."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    grid = [keys, *[[format_value(row.get(key, "")) for key in keys] for row in rows]]
    widths = [max(len(line[i]) for line in grid) for i in range(len(keys))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )


class LiveTable:
    """A table that is updated while a command runs.

    On a terminal it is drawn over in place. Elsewhere it is printed again if it has changed, at
    most every `SECONDS`.
    """

    def __init__(self, make_rows: Callable[[], Sequence[Row]]):
        """Make a table that has not been shown yet.

        Args:
            make_rows: returns the rows as they are now.
        """
        self._make_rows = make_rows
        self._lines, self._time, self._text = 0, -math.inf, ""

    def show(self, *, last: bool = False) -> None:
        """Show the table if the last time was long enough ago; with ``last``, in any case."""
        terminal = sys.stdout.isatty()
        if not last and time.monotonic() - self._time < (1.0 if terminal else SECONDS):
            return
        text = format_table(self._make_rows())
        if text == self._text and not last:
            return
        # These escape codes move the cursor up over the last table and clear what is below.
        up = f"\x1b[{self._lines}A\x1b[J" if terminal and self._lines else ""
        print(f"{up}{text}" + ("" if terminal else "\n"), flush=True)
        self._lines, self._time, self._text = text.count("\n") + 1, time.monotonic(), text


def format_html_table(rows: Sequence[Row], winner: Row | None) -> str:
    """Format rows as an HTML table, the row of the winner in bold.

    Args:
        rows: values by title; titles come in the order in which they first occur.
        winner: one of the rows, or None.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
    lines = []
    for row in rows:
        mark = ("<b>", "</b>") if row is winner else ("", "")
        cells = (html.escape(format_value(row.get(key, ""))) for key in keys)
        lines.append("".join(f"<td>{mark[0]}{text}{mark[1]}</td>" for text in cells))
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
