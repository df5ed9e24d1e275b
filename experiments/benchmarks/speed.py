"""The speed of diffjax beside what a user would take instead, on a CPU, a GPU, a TPU, and at start.

    make peers
    python -m experiments.benchmarks.speed --suite=cpu --json=docs/results/data/speed-cpu.json
    python -m experiments.benchmarks.speed --suite=gpu --tiny --json=dry-run.json
    python -m experiments.benchmarks.speed --page

Every side of a row is a process of its own with the same weights and inputs, and the sides take
turns, so that a machine which slows down does so for all. A figure is the ratio of the medians.
Outputs must agree within 1e-3. A row is written when it is done, and rows of the file are kept, so
an interrupted run goes on. --tiny is a dry run with small networks, whose times say nothing. Peers
that are not installed are left out. --page writes docs/results/speed.md from the files there.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

from absl import flags, logging

from diffjax.cli import run_flags
from diffjax.cli.command_line import UsageError
from diffjax.types import JsonObject
from diffjax.writing import write_atomically, write_json
from experiments.benchmarks.sides import speed_page
from experiments.benchmarks.sides.measure import Setup, measure_row
from experiments.benchmarks.sides.rows import ROWS, SUITES

SUITE = flags.DEFINE_enum("suite", None, SUITES, "Which rows.")
ONLY = flags.DEFINE_list("only", [], "Names of rows, or the start of them; all if not set.")
TINY = flags.DEFINE_bool("tiny", False, "A dry run: small networks, and times that say nothing.")
REPEATS = flags.DEFINE_integer("repeats", 7, "Number of turns.", 1)
JSON = flags.DEFINE_string("json", None, "File of the figures; rows that it has are kept.")
AGAIN = flags.DEFINE_bool("again", False, "Measure rows again that the file has.")
PAGE = flags.DEFINE_bool("page", False, "Write the page from the files, and stop.")
RESULTS = flags.DEFINE_string("results", "docs/results", "Folder of the page and of its data.")
PEERS = flags.DEFINE_string(
    "peers", ".venv-peers,.venv-peers-flax", "Environments of torch's peers and of Flax's."
)
FLAGS = flags.DEFINE_string(
    "flags", None, "Adds a side: diffjax with these XLA_FLAGS in place of its own."
)


def describe_machine() -> JsonObject:
    """Describe the machine that is measured on: processor, cores and instructions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    known = pairs.get("flags", "").split()
    widest = [name for name in ("avx512f", "avx2", "avx") if name in known]
    return {
        "processor": pairs.get("model name", platform.processor()),
        "instructions": widest[0] if widest else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
    }


def select_rows() -> list[str]:
    """Select the names of the rows that the flags name.

    Raises:
        UsageError: no suite, or no row of this name.
    """
    if not SUITE.value:
        raise UsageError(f"--suite is one of {', '.join(SUITES)}; or give --page")
    names = [name for name, row in ROWS.items() if row.suite == SUITE.value]
    for prefix in ONLY.value:
        if not any(name.startswith(prefix) for name in names):
            raise UsageError(f"--only: no row {prefix!r}; choose from {', '.join(names)}")
    return [n for n in names if not ONLY.value or n.startswith(tuple(ONLY.value))]


def main() -> None:
    """Measure the rows of a suite, or write the page.

    Raises:
        UsageError: a flag is missing or wrong, or the file is of a dry run and this is none.
    """
    if PAGE.value:
        page = Path(RESULTS.value) / "speed.md"
        write_atomically(page, speed_page.make_page(Path(RESULTS.value) / "data"))
        print(f"wrote {page}")
        return
    names = select_rows()
    path = Path(JSON.value) if JSON.value else None
    found: JsonObject = {"suite": SUITE.value, "tiny": TINY.value, "rows": {}}
    if path and path.exists():
        found = json.loads(path.read_text())
        if (found.get("suite"), found.get("tiny")) != (SUITE.value, TINY.value):
            raise UsageError(f"--json: {path} is of another suite or kind of run; name a new file")
    torch, flax = map(Path, PEERS.value.split(","))
    setup = Setup(Path(sys.executable), torch, flax, REPEATS.value, TINY.value, FLAGS.value)
    left = [name for name in names if AGAIN.value or name not in found["rows"]]
    minutes = sum(ROWS[name].minutes for name in left)
    if SUITE.value == "gpu" and not TINY.value:
        logging.info("about %.0f minutes on one H100; other cards take longer", minutes)
    for name in left:
        logging.info("measuring %s", name)
        row = measure_row(ROWS[name], setup)
        found["rows"][name] = {**row, "machine": describe_machine()}
        print(speed_page.format_line(name, row))
        if path:
            write_json(path, found)


if __name__ == "__main__":
    run_flags.run(main)
