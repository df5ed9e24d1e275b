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


def find_standing(mutants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the mutants whose code is still as it was when it was changed."""
    sources: dict[str, str] = {}
    for module in {one["module"] for one in mutants}:
        path = Path(module)
        sources[module] = " ".join(path.read_text().split()) if path.exists() else ""
    return [one for one in mutants if one["before"] in sources[one["module"]]]


class Results:
    """The file of the results, written after every verdict, so that a run can be stopped.

    Args:
        path: None keeps nothing.
        only: mutants were drawn from modules with this in their path.
        again: give mutants that have a verdict to the tests again.
    """

    def __init__(
        self,
        path: Path | None,
        seed: int,
        machine: str,
        seconds: int,
        *,
        only: str = "",
        again: bool = False,
    ) -> None:
        self.path, self.again = path, again
        stored = json.loads(path.read_text()) if path and path.exists() else {}
        kept = find_standing(stored.get("mutants", []))
        self.mutants = {key_of(one): one for one in kept}
        same = dict(seed=seed, only=only, machine=machine, seconds=seconds)
        runs = stored.get("runs", [])
        self.runs = [run for run in runs if same != {name: run[name] for name in same}]
        self.run = dict(same, minutes=0.0, mutants=0)
        for run in runs:
            if run not in self.runs:
                self.run["minutes"] += run["minutes"]
                self.run["mutants"] += run["mutants"]

    def knows(self, mutant: dict[str, Any]) -> bool:
        """Whether the tests need not be run on a mutant."""
        return not self.again and key_of(mutant) in self.mutants

    def add(self, mutant: dict[str, Any], seconds: float) -> None:
        """Write the verdict on a mutant, which took so long."""
        self.mutants[key_of(mutant)] = mutant
        self.run["mutants"] += 1
        self.run["minutes"] += seconds / 60
        if self.path:
            stored = {"runs": [*self.runs, self.run], "mutants": list(self.mutants.values())}
            self.path.write_text(json.dumps(stored, indent=1) + "\n")


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
    runs = "\n".join(map(_describe_run, results["runs"]))
    described = "\n\n".join(_describe(one, reasons) for one in survivors) or "There are none."
    return f"""# Mutants of the maths

Written from `data/mutants.json` and `data/mutants-equivalent.json` by
`python -m tests.mutation --page`. A mutant is the code with one change:
another operator, number, comparison or keyword, as cosmic-ray makes them. A test that fails kills
it. A mutant that no test kills shows what the tests do not check, unless it computes the same as
the original.

The mutants are drawn at random from all places of the modules below that can be changed. Left out
are changes of type annotations, docstrings and texts of errors, and operators on bits in the place
of arithmetic ones. Each mutant runs in a process of its own with those tests of the maths that pass
through the changed line (`tests/mutation/server.py` lists the files), until one fails. A timeout
counts as killed. `python -m tests.mutation --results={RESULTS}` adds mutants and removes those of
code that has changed since. So far it gave a mutant to
the tests, some of them again after a test was added,

{runs}

{make_table(mutants)}

{share:.1%} are killed.

## Survivors

{described}
"""


def _describe_run(run: dict[str, Any]) -> str:
    only = f" --only={run['only']}" if run["only"] else ""
    return (
        f"- with `--seed={run['seed']}{only}`, {run['mutants']} times: "
        f"{run['minutes']:.1f} minutes on {run['machine']}, at most {run['seconds']} seconds each"
    )


def write_page() -> None:
    """Write the page from the files."""
    PAGE.write_text(make_page(json.loads(RESULTS.read_text()), read_reasons()))
