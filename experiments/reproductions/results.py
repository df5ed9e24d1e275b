"""How many claims of each paper held, from the files under docs/results; the table in README.md."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from experiments.reproductions import PAPERS, pieces
from experiments.reproductions.claims import Claim

# Markers around the table in README.md.
BEGIN, END = "<!-- results: python -m experiments.report --results -->", "<!-- end of results -->"


class PaperResults(NamedTuple):
    """What docs/results holds of a paper.

    Attributes:
        title: the docstring of its module; its first line is the heading.
        missing: names of the pieces that have not run.
        claims: its claims; empty as long as any piece is missing.
    """

    title: str
    missing: list[str]
    claims: list[Claim]

    @property
    def heading(self) -> str:
        """The first line of the title, without its full stop."""
        return self.title.partition("\n")[0].rstrip(".")


def read_results(name: str, results: Path) -> PaperResults:
    """Read what a folder holds of a paper, and judge its claims if it is complete.

    Args:
        name: a key of `PAPERS`.
        results: docs/results.
    """
    paper = PAPERS[name]
    missing = [piece.name for piece in paper.PIECES if not pieces.is_done(piece, results)]
    claims = [] if missing else paper.judge_claims(results / "data")
    return PaperResults((paper.__doc__ or name).strip(), missing, claims)


def format_table(results: Path) -> str:
    """Format a Markdown table with a row for each paper: how many of its claims held."""
    lines = ["| results | claims held | not held | not run |", "|---|---|---|---|"]
    for name in PAPERS:
        one = read_results(name, results)
        if one.missing:
            share = f"{len(one.missing)} of {len(PAPERS[name].PIECES)} pieces"
            lines.append(f"| {one.heading} | - | - | {share} |")
            continue
        counts = [sum(c.held is held for c in one.claims) for held in (True, False, None)]
        heading = f"[{one.heading}](docs/results/{name}.md)"
        lines.append(f"| {heading} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def insert_table(text: str, results: Path) -> str:
    """Insert the table of a folder between the two markers in a text.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} must stand around the table")
    return f"{before}{BEGIN}\n{format_table(results)}\n{END}{after}"
