"""Two hundred damaged files, and the parts of the fuzzer itself."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import mutations
from tests.fuzz.__main__ import page, read_runs, spread, table


def test_damaged_files_are_read_or_refused():
    """In a process of its own, since a process that runs JAX cannot be forked."""
    command = [sys.executable, "-m", "tests.fuzz", "--seed=0", "--cases=200"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    assert "| all | 200 |" in done.stdout


def test_cases_are_spread_over_formats():
    cases = spread(["a", "b", "c"], 7)
    assert len(set(cases)) == 7
    assert sum(name == "a" for name, _ in cases) == 3


def test_changes_are_functions_of_the_seed():
    raw = b'{"eps": 1e-5, "name": "x", "list": [1, 2]}'
    for seed in range(200):
        made = [mutations.change_json(raw, random.Random(seed), {"eps": "p"}) for _ in range(2)]
        assert made[0] == made[1] and made[0].raw != raw


@pytest.mark.parametrize(
    ("value", "kind", "legal"),
    [
        (0, "p", False),
        (1e-5, "p", True),
        (float("nan"), "f", False),
        (float("inf"), "p", False),
        (1.5, "i", False),
        (True, "i", False),
        (None, "p", False),
        (None, "p?", True),
        ([], "t", False),
        ("", "t", False),
        ("", "te", True),
        (None, "te", False),
        (0.5, "nw", False),
        (0, "nw", True),
        (-1, "nw", False),
        (1.5, "s", False),
        (1, "s", True),
        (-0.5, "s", False),
        (10**30, "i", False),
        (10**30, "il", True),
        (0, "n", True),
    ],
)
def test_what_the_fuzzer_takes_for_legal(value, kind, legal):
    assert mutations._is_legal(value, kind) is legal


def test_the_page_is_made_of_the_results(tmp_path):
    counts = {"idx.gz": {"same": 3, "refused": 2}, "npz": {"wrong": 1}}
    assert "| all | 6 | 3 | 0 | 2 | 1 | 0 | 0 | 0 |" in table(counts)
    run = dict(seed=4, cases=6, machine="2 cores", counts=counts, minutes=3.2)
    text = page([run])
    assert "--seed=4 --cases=6" in text and "| npz | 1 |" in text
    assert "Further seeds" not in text
    (tmp_path / "fuzz.json").write_text(json.dumps(run))
    for seed in (11, 2):
        more = {**run, "seed": seed, "counts": {"idx.gz": {"same": seed}}}
        (tmp_path / f"fuzz-seed{seed}.json").write_text(json.dumps(more))
    runs = read_runs(tmp_path)
    assert [run["seed"] for run in runs] == [4, 2, 11]
    text = page(runs)
    assert "| 2 | 2 | 2 | 0 | 0 | 0 | 0 | 0 | 0 |\n| 11 | 11 | 11 | 0 |" in text
    assert "--seed=4 --cases=6" in text
