"""docs/results/mutants.md, a function of its data files."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

RESULTS = Path("docs/results/data/mutants.json")
REASONS = Path("docs/results/data/mutants-equivalent.json")
PAGE = Path("docs/results/mutants.md")
VERDICTS = ("killed", "survived", "timeout")
NOT_EXPLAINED = "**not explained**"


def read_reasons() -> dict[tuple[str, str, str], str]:
    """Why a mutant that survives is as good as the original, by (module, before, after)."""
    found = json.loads(REASONS.read_text()) if REASONS.exists() else []
    return {key_of(one): one["why"] for one in found}


def key_of(mutant: dict[str, Any]) -> tuple[str, str, str]:
    """(module, before, after): what tells mutants apart, wherever their lines have moved."""
    return mutant["module"], mutant["before"], mutant["after"]


def find_reason(mutant: dict[str, Any], reasons: dict[tuple[str, str, str], str]) -> str:
    """The reason for a surviving mutant, or that there is none."""
    return reasons.get(key_of(mutant), NOT_EXPLAINED)


def make_table(mutants: list[dict[str, Any]]) -> str:
    """Markdown, a row a module."""
    counts: dict[str, collections.Counter[str]] = {}
    for one in mutants:
        counts.setdefault(one["module"], collections.Counter())[one["verdict"]] += 1
    rows = [["module", "mutants", "killed", "survived", "timeouts"], ["---", *["--:"] * 4]]
    rows += [_row(f"`{name}`", counts[name]) for name in sorted(counts)]
    rows.append(_row("all", sum(counts.values(), collections.Counter())))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, count: collections.Counter[str]) -> list[str]:
    return [name, str(count.total()), *(str(count[verdict]) for verdict in VERDICTS)]


def _describe(mutant: dict[str, Any], reasons: dict[tuple[str, str, str], str]) -> str:
    return (
        f"`{mutant['module']}`, line {mutant['line']}:\n\n"
        f"    - {mutant['before']}\n    + {mutant['after']}\n\n{find_reason(mutant, reasons)}"
    )


def make_page(results: dict[str, Any], reasons: dict[tuple[str, str, str], str]) -> str:
    """The page of a result file."""
    mutants = results["mutants"]
    survivors = [one for one in mutants if one["verdict"] == "survived"]
    share = 1 - len(survivors) / len(mutants)
    command = f"python -m tests.mutation --seed={results['seed']} --mutants={len(mutants)}"
    described = "\n\n".join(_describe(one, reasons) for one in survivors) or "There are none."
    return f"""# Mutants of the maths

Written from `data/mutants.json` and `data/mutants-equivalent.json` by
`python -m tests.mutation --page`. Measured by

    {command} --results={RESULTS}

in {results["minutes"]:.0f} minutes on {results["machine"]}. A mutant is the code with one change:
another operator, number, comparison or keyword, as cosmic-ray makes them. A test that fails kills
it. A mutant that no test kills shows what the tests do not check, unless it computes the same as
the original.

The mutants are drawn at random from all places of the modules below that can be changed. Left out
are changes of type annotations, docstrings and texts of errors, and operators on bits in the place
of arithmetic ones. Each mutant runs in a process of its own with those tests of the maths that pass
through the changed line (`tests/mutation/server.py` lists the files), until one fails. A timeout
({results["seconds"]} seconds) counts as killed.

{make_table(mutants)}

{share:.1%} are killed.

## Survivors

{described}
"""


def write_page() -> None:
    """Write the page from the files."""
    PAGE.write_text(make_page(json.loads(RESULTS.read_text()), read_reasons()))
