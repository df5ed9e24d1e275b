"""Damage files on purpose and see what reading them ends in.

    python -m tests.fuzz --seed=1 --cases=5000
    python -m tests.fuzz --seed=1 --cases=5000 --results=docs/results/data/fuzz.json
    python -m tests.fuzz --seed=2 --cases=5000 --results=docs/results/data/fuzz-seed2.json
    python -m tests.fuzz --page
    python -m tests.fuzz --seed=1 --formats=UNet --case=17

The second also writes docs/results/fuzz.md from its results, the third adds the row of another seed
to it, and the fourth writes the page again from all of these files. Cases are spread evenly over
the formats; each is a function of seed, format and number.
"""

from __future__ import annotations

import argparse
import collections
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

from tests.fuzz import server
from tests.fuzz.formats import FORMATS

RESULTS, PAGE = Path("docs/results/data/fuzz.json"), Path("docs/results/fuzz.md")


def spread(names: list[str], count: int) -> list[tuple[str, int]]:
    """Cases (format, number), evenly over formats."""
    return [(names[i % len(names)], i // len(names)) for i in range(count)]


def table(counts: dict[str, dict[str, int]]) -> str:
    """Markdown, a row a format."""
    head = ["format", "cases", *server.VERDICTS]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    total: collections.Counter[str] = collections.Counter()
    for name, found in counts.items():
        total.update(found)
        lines.append([name, *_numbers(found)])
    lines.append(["all", *_numbers(total)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _numbers(found: Any) -> list[str]:
    return [str(sum(found.values())), *(str(found.get(v, 0)) for v in server.VERDICTS)]


def table_of_seeds(runs: list[dict[str, Any]]) -> str:
    """Markdown, a row a run: the sums over all formats."""
    lines = [["seed", "cases", *server.VERDICTS], ["--:"] * (2 + len(server.VERDICTS))]
    for run in runs:
        total: collections.Counter[str] = collections.Counter()
        for found in run["counts"].values():
            total.update(found)
        lines.append([str(run["seed"]), *_numbers(total)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The stored results: those of the page's main table, then of further seeds by their number."""
    main, *_ = paths = [folder / RESULTS.name, *folder.glob(f"{RESULTS.stem}-seed*.json")]
    runs = {path: json.loads(path.read_text()) for path in paths}
    return sorted(runs.values(), key=lambda run: (run is not runs[main], run["seed"]))


def page(runs: list[dict[str, Any]]) -> str:
    """docs/results/fuzz.md.

    Args:
        runs: see `read_runs`.
    """
    results, further = runs[0], runs[1:]
    command = f"python -m tests.fuzz --seed={results['seed']} --cases={results['cases']}"
    return f"""# Damaged files

Written from `data/fuzz.json` by `python -m tests.fuzz --page`. Measured by

    {command} --results={RESULTS}

in {results["minutes"]:.0f} minutes on {results["machine"]}. Each case changes one file of a valid
example and reads it in a process of its own, with {server.BYTES // 2**30} GiB of memory and
{server.SECONDS} seconds. The examples are the small ones of the tests. A change is one of bytes, or
of what they mean: a value, key or level of JSON, an entry of a safetensors header, a member of an
archive with a right checksum, a number that is not finite.

| column | what reading ended in |
|---|---|
| same | the values of the example: the change does not matter |
| as it says | other values, which the changed file holds, and which are legal |
| refused | an error that names the file and gives a reason |
| wrong | values that the file does not hold, are illegal, or have another checksum |
| traceback | another exception, or a message without a name or a reason |
| hang, crash | neither values nor an error in time, or within the memory |

"As it says" means: another reader of safetensors agrees; numbers of a pickle stand in the file;
values of JSON that the test knows a range of lie within it. Where neither is known, it only means
that all numbers are finite.

{table(results["counts"])}
{_describe_further(further)}"""


def _describe_further(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    return f"""
## Further seeds

Other seeds damage the same examples in other ways. Each row is a run of

    python -m tests.fuzz --seed=SEED --cases=CASES --results={RESULTS.parent}/fuzz-seedSEED.json

{table_of_seeds(runs)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--formats", default="", help=f"of {', '.join(FORMATS)}; default: all")
    parser.add_argument("--case", type=int, help="only the case of this number, of each format")
    parser.add_argument("--all", action="store_true", help="print every case, not the bad ones")
    parser.add_argument("--results", type=Path, help=f"file for the results; {PAGE} too")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE} from {RESULTS}")
    args = parser.parse_args()
    names = args.formats.split(",") if args.formats else list(FORMATS)
    if unknown := set(names) - set(FORMATS):
        parser.error(f"unknown formats {sorted(unknown)}; choose from {', '.join(FORMATS)}")
    if args.page:
        PAGE.write_text(page(read_runs(RESULTS.parent)))
        return 0
    cases = spread(names, args.cases)
    if args.case is not None:
        cases = [(name, args.case) for name in names]
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz") as root:
        server.write_examples(Path(root), names)
        for case in server.run_cases(args.seed, cases, Path(root)):
            found = counts[case.format]
            found[case.verdict] = found.get(case.verdict, 0) + 1
            if args.all or case.verdict in server.BAD or args.case is not None:
                print(*case[:5], f"{case.seconds:.1f} s", sep=" | ", file=sys.stderr, flush=True)
    print(table(counts))
    if args.results:
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        results = dict(seed=args.seed, cases=len(cases), machine=machine, counts=counts)
        results["minutes"] = (time.monotonic() - begun) / 60
        args.results.write_text(json.dumps(results, indent=1) + "\n")
        if args.results.parent.resolve() == RESULTS.parent.resolve():
            PAGE.write_text(page(read_runs(RESULTS.parent)))
    return int(any(found.get(v) for found in counts.values() for v in server.BAD))


if __name__ == "__main__":
    sys.exit(main())
