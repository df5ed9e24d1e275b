"""What of the papers' claims has been judged, from the files under docs/results."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from experiments.reproductions import PAPERS, pieces
from experiments.reproductions.claims import Claim

BEGIN, END = "<!-- results: python -m experiments.report --results -->", "<!-- end of results -->"


class PaperResults(NamedTuple):
    """What there is of a paper.

    Attributes:
        title: the docstring of its module; its first line is the heading.
        missing: names of the pieces that have not run.
        claims: empty as long as any is missing.
    """

    title: str
    missing: list[str]
    claims: list[Claim]

    @property
    def heading(self) -> str:
        """One line."""
        return self.title.partition("\n")[0].rstrip(".")


def read_results(name: str, results: Path) -> PaperResults:
    """What there is of a paper in a folder."""
    paper = PAPERS[name]
    missing = [piece.name for piece in paper.PIECES if not pieces.is_done(piece, results)]
    claims = [] if missing else paper.judge_claims(results / "data")
    return PaperResults((paper.__doc__ or name).strip(), missing, claims)


def format_table(results: Path) -> str:
    """Markdown: a row a paper, how many of its claims held."""
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
    """A text with the table of a folder between its two markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} must stand around the table")
    return f"{before}{BEGIN}\n{format_table(results)}\n{END}{after}"
