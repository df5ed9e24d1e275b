"""How many claims of each paper held, from files under docs/results; the table in README.md."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from experiments.reproductions import PAPERS, pieces
from experiments.reproductions.claims import Claim
from experiments.reproductions.verdicts import RULE, VERDICTS

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
    """Format a Markdown table with a row for each paper, its verdicts counted, and the rule."""
    lines = [f"| results | {' | '.join(VERDICTS)} |", "|---" * (len(VERDICTS) + 1) + "|"]
    total = dict.fromkeys(VERDICTS, 0)
    for name in PAPERS:
        one = read_results(name, results)
        if one.missing:
            share = f"{len(one.missing)} of {len(PAPERS[name].PIECES)} pieces"
            lines.append(f"| {one.heading} {'| - ' * (len(VERDICTS) - 1)}| {share} |")
            continue
        counts = {v: sum(c.verdict == v for c in one.claims) for v in VERDICTS}
        total = {v: total[v] + counts[v] for v in VERDICTS}
        heading = f"[{one.heading}](docs/results/{name}.md)"
        lines.append(f"| {heading} | {' | '.join(map(str, counts.values()))} |")
    lines.append(f"| all | {' | '.join(map(str, total.values()))} |")
    return "\n".join([*lines, "", RULE])


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
