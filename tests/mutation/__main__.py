"""Mutation tests of the maths: are there tests that fail if the code is changed?

    python -m tests.mutation --seed=1 --mutants=200 --results=docs/results/data/mutants.json
    python -m tests.mutation --page
    python -m tests.mutation --seed=1 --mutants=200 --survivors=docs/results/data/mutants.json
    python -m tests.mutation --seed=1 --mutants=200 --number=17

The first writes docs/results/mutants.md, too; the second writes it again from its files. The third
gives only the mutants that survived an earlier run to the tests (with --results, the others keep
their verdicts), the fourth only that number.
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
    parser.add_argument("--number", type=int, help="only the mutant of this number, from 0")
    parser.add_argument("--survivors", type=Path, help="only those that survived in this file")
    parser.add_argument("--lines", type=Path, help="keep in this file which test runs which line")
    parser.add_argument("--results", type=Path, help="file for the results; writes the page too")
    parser.add_argument("--page", action="store_true", help=f"write {page.PAGE} from its files")
    return parser.parse_args()


def _chosen(args: argparse.Namespace) -> list[tuple[int, Any]]:
    """(number, mutant) of those that are asked for."""
    from tests.mutation import mutants  # needs cosmic-ray

    drawn = list(enumerate(mutants.sample_mutants(args.seed, args.mutants)))
    if args.number is not None:
        return drawn[args.number : args.number + 1]
    if args.survivors:
        earlier = json.loads(args.survivors.read_text())["mutants"]
        left = {page.key_of(one) for one in earlier if one["verdict"] == "survived"}
        return [(n, m) for n, m in drawn if page.key_of(m._asdict()) in left]
    return drawn


def _lines(kept: Path, folder: Path) -> server.Lines:
    """Which test passes through which line; only files newer than what was kept are run."""
    from tests.mutation import mutants

    lines = json.loads(kept.read_text()) if kept.exists() else {}
    past = kept.stat().st_mtime if kept.exists() else 0.0
    changed = [test for test in server.TESTS if Path(test).stat().st_mtime > past]
    if changed:
        found = server.record_lines(mutants.MODULES, changed, folder / "lines.log")
        lines = {k: v for k, v in lines.items() if k.partition("::")[0] not in changed} | found
        kept.write_text(json.dumps(lines))
    return lines


def _judge(
    chosen: list[tuple[int, Any]], lines: server.Lines, folder: Path
) -> list[dict[str, Any]]:
    found = []
    for number, mutant in chosen:
        start = time.monotonic()
        verdict, test = server.judge(mutant, lines, folder / "mutant.log")
        kept = {k: v for k, v in mutant._asdict().items() if k not in ("source", "last")}
        found.append({**kept, "verdict": verdict, "test": test})
        seconds = f"{time.monotonic() - start:.0f} s"
        place = f"{mutant.module}:{mutant.line}"
        print(number, verdict, seconds, place, test, sep=" | ", file=sys.stderr, flush=True)
        if verdict == "survived":
            print(f"  - {mutant.before}\n  + {mutant.after}", file=sys.stderr, flush=True)
    return found


def _replace(earlier: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The earlier results with the new ones of the same mutants in their places."""
    new = {page.key_of(one): one for one in found}
    return [new.get(page.key_of(one), one) for one in earlier]


def main() -> int:
    args = _parse()
    if args.page:
        page.write_page()
        return 0
    server.warm_up()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lines = _lines(args.lines or Path(folder) / "lines.json", Path(folder))
        found = _judge(_chosen(args), lines, Path(folder))
    minutes = (time.monotonic() - begun) / 60
    if args.survivors:
        earlier = json.loads(args.survivors.read_text())
        minutes, found = minutes + earlier["minutes"], _replace(earlier["mutants"], found)
    print(page.make_table(found))
    if args.results:
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        results = dict(seed=args.seed, machine=machine, minutes=minutes, seconds=server.SECONDS)
        args.results.write_text(json.dumps({**results, "mutants": found}, indent=1) + "\n")
        if args.results.resolve() == page.RESULTS.resolve():
            page.write_page()
    reasons = page.read_reasons()
    survived = [one for one in found if one["verdict"] == "survived"]
    return int(any(page.find_reason(one, reasons) == page.NOT_EXPLAINED for one in survived))


if __name__ == "__main__":
    sys.exit(main())
