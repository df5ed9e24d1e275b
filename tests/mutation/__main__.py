"""Mutation tests of the maths: are there tests that fail if the code is changed?

    python -m tests.mutation --seed=1 --mutants=200 --results=docs/results/data/mutants.json
    python -m tests.mutation --seed=2 --mutants=20 --only=losses/ --results=...
    python -m tests.mutation --page
    python -m tests.mutation --seed=1 --mutants=200 --survivors=docs/results/data/mutants.json
    python -m tests.mutation --seed=1 --mutants=200 --number=17

The first writes docs/results/mutants.md, too. It adds to the results that are there, each as it
comes, so that a run that was stopped goes on: verdicts on code that has changed since are removed,
and mutants that have a verdict are not run again. The second draws from the modules with a text in
their path. The third writes the page again from its files, the fourth gives only the mutants that
survived an earlier run to the tests, and the fifth only that number.
cosmic-ray makes the mutants: pip install cosmic-ray.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Programs are compiled once for a single use.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.mutation import page, server


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--mutants", type=int, default=200, help="how many")
    parser.add_argument("--only", default="", help="draw from modules with this in their path")
    parser.add_argument("--tests", default="", help="run only test files with this in their path")
    parser.add_argument("--number", type=int, help="only the mutant of this number, from 0")
    parser.add_argument("--survivors", type=Path, help="only those that survived in this file")
    parser.add_argument("--lines", type=Path, help="keep in this file which test runs which line")
    parser.add_argument("--results", type=Path, help="file that the results are added to")
    parser.add_argument("--page", action="store_true", help=f"write {page.PAGE} from its files")
    return parser.parse_args()


def _chosen(args: argparse.Namespace) -> list[tuple[int, Any]]:
    """(number, mutant) of those that are asked for."""
    from tests.mutation import mutants  # needs cosmic-ray

    modules = tuple(module for module in mutants.MODULES if args.only in module)
    drawn = list(enumerate(mutants.sample_mutants(args.seed, args.mutants, modules)))
    if args.number is not None:
        return drawn[args.number : args.number + 1]
    if args.survivors:
        earlier = json.loads(args.survivors.read_text())["mutants"]
        left = {page.key_of(one) for one in earlier if one["verdict"] == "survived"}
        return [(n, m) for n, m in drawn if page.key_of(m._asdict()) in left]
    return drawn


def _lines(kept: Path, folder: Path, tests: list[str]) -> server.Lines:
    """Which test passes through which line; only files newer than what was kept are run."""
    from tests.mutation import mutants

    lines = json.loads(kept.read_text()) if kept.exists() else {}
    past = kept.stat().st_mtime if kept.exists() else 0.0
    known = {name.partition("::")[0] for name in lines}
    changed = [one for one in tests if one not in known or Path(one).stat().st_mtime > past]
    if changed:
        found = server.record_lines(mutants.MODULES, changed, folder / "lines.log")
        lines = {k: v for k, v in lines.items() if k.partition("::")[0] not in changed} | found
        kept.write_text(json.dumps(lines))
    return {k: v for k, v in lines.items() if k.partition("::")[0] in (*tests, server.IMPORT)}


def _judge(
    chosen: list[tuple[int, Any]], lines: server.Lines, folder: Path, results: page.Results
) -> list[dict[str, Any]]:
    found = []
    for number, mutant in chosen:
        if results.knows(mutant._asdict()):
            continue
        start = time.monotonic()
        verdict, test = server.judge(mutant, lines, folder / "mutant.log")
        kept = {k: v for k, v in mutant._asdict().items() if k not in ("source", "last")}
        found.append({**kept, "verdict": verdict, "test": test})
        results.add(found[-1], time.monotonic() - start)
        seconds = f"{time.monotonic() - start:.0f} s"
        place = f"{mutant.module}:{mutant.line}"
        print(number, verdict, seconds, place, test, sep=" | ", file=sys.stderr, flush=True)
        if verdict == "survived":
            print(f"  - {mutant.before}\n  + {mutant.after}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    args = _parse()
    if args.page:
        page.write_page()
        return 0
    server.warm_up()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    tried_again = args.survivors is not None or args.number is not None
    results = page.Results(
        args.results, args.seed, machine, server.SECONDS, only=args.only, again=tried_again
    )
    tests = [test for test in server.TESTS if args.tests in test]
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lines = _lines(args.lines or Path(folder) / "lines.json", Path(folder), tests)
        found = _judge(_chosen(args), lines, Path(folder), results)
    print(page.make_table(found))
    if args.results and args.results.resolve() == page.RESULTS.resolve():
        page.write_page()
    reasons = page.read_reasons()
    survived = [one for one in found if one["verdict"] == "survived"]
    return int(any(page.find_reason(one, reasons) == page.NOT_EXPLAINED for one in survived))


if __name__ == "__main__":
    sys.exit(main())
