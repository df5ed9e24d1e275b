"""The processes that are timed by turns: one for each side of a row of the speed suites."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffjax.types import JsonObject
from diffjax.xla import FLAG
from experiments.benchmarks.sides.rows import OURS, Row

# The root of the checkout, where processes are started.
ROOT = Path(__file__).parents[3]
# Outputs of sides agree to this share of the largest number.
TOLERANCE = 1e-3
# Sides of ours differ in their environment only.
MODULES = {"torch": "by_torch", "torch_compile": "by_torch", "flax": "by_flax"}


class Setup(NamedTuple):
    """How rows are measured.

    Attributes:
        python: the interpreter of ours.
        torch, flax: folders of the peers' environments.
        repeats: number of turns.
        tiny: whether this is a dry run.
        flags: XLA_FLAGS of one more side of ours; None for no such side.
    """

    python: Path
    torch: Path
    flax: Path
    repeats: int
    tiny: bool
    flags: str | None

    def find_python(self, side: str) -> Path:
        """Return the interpreter of a side."""
        if side not in MODULES:
            return self.python
        return (self.flax if side == "flax" else self.torch) / "bin" / "python"


class SideFailed(RuntimeError):
    """A side ended with an error, whose last line is the message."""


class Side:
    """A process that is ready to be timed.

    Attributes:
        facts: what its first line says.
        start_seconds: from the start of the process to the end of the first call.
    """

    def __init__(self, name: str, folder: Path, setup: Setup):
        """Start the process, and wait until it is ready.

        Raises:
            SideFailed: it ended before.
        """
        module = f"experiments.benchmarks.sides.{MODULES.get(name, 'by_diffjax')}"
        command = [str(setup.find_python(name)), "-m", module, str(folder), name]
        self._errors = (folder / f"{name}.log").open("w+")
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=make_environment(name, folder, setup),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.facts = self._read()
        self.start_seconds = time.perf_counter() - begun

    def _read(self) -> JsonObject:
        """Read one answer.

        Raises:
            SideFailed: the process ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self._errors.seek(0)
        raise SideFailed(f"exit code {code}: {find_error(self._errors.read())}")

    def ask(self, command: str) -> JsonObject:
        """Send a command, and return the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said is read instead
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def find_error(said: str) -> str:
    """Find the last error in what a process wrote, or its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["nothing was said"])[-1][:300]


def make_environment(name: str, folder: Path, setup: Setup) -> dict[str, str]:
    """Make the environment of a side: compilation caches are off, or of this row alone.

    Args:
        name: of the side.
        folder: of the row.
    """
    cache = folder / ("cache" if name == "diffjax_warm" else f"cache-{time.monotonic_ns()}")
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the sides share a card
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    if name == "diffjax_flags":
        variables["XLA_FLAGS"] = setup.flags or f"{FLAG}="
    elif name == "flax":
        variables.pop("XLA_FLAGS", None)
    return variables


def prepare_row(row: Row, folder: Path, setup: Setup) -> None:
    """Write what all sides of a row read to its folder.

    Raises:
        SideFailed: the weights and inputs could not be drawn.
    """
    batch, steps = (min(row.batch, 64), min(row.steps, 4)) if setup.tiny else (row.batch, row.steps)
    if setup.tiny and row.kind != "matmul":
        batch = min(batch, 2)
    changes = {**row.changes, **(row.tiny if setup.tiny else {})}
    work = {
        "kind": row.kind,
        "batch": batch,
        "steps": steps,
        "config": row.config,
        "changes": changes,
        "dtype": changes.get("network.dtype", "float32"),
        "described": bool(row.goals),
        "checked": bool(row.goals) and not row.fresh,
        "optimizer": "adamw" if "stable_diffusion" in row.config else "adam",
        "lr": 1e-4,
        "clip": 1.0,
    }
    (folder / "row.json").write_text(json.dumps(work))
    module = "experiments.benchmarks.sides.by_diffjax"
    command = [str(setup.python), "-m", module, str(folder), "prepare"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SideFailed(f"exit code {done.returncode}: {find_error(done.stderr)}")


def measure_row(row: Row, setup: Setup) -> JsonObject:
    """Measure all sides of a row by turns.

    Returns:
        ``sides`` with seconds of each turn and facts by the name of the side, ``missing`` with the
        reason why a side was not measured, ``errors`` of outputs, ``ratios``, ``spreads`` of the
        ratios of single turns, and ``goals``.
    """
    names = [OURS, *row.goals, *(["diffjax_flags"] if setup.flags is not None else [])]
    missing = {n: "not installed: make peers" for n in names if not setup.find_python(n).exists()}
    sides: dict[str, JsonObject] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="speed-") as temporary:
        folder = Path(temporary)
        prepare_row(row, folder, setup)
        measure = _time_starts if row.fresh else _time_calls
        there = [name for name in names if name not in missing]
        for name, found in measure(there, folder, setup).items():
            if "failed" in found:
                missing[name] = found["failed"]
                logging.warning("%s failed: %s", name, found["failed"])
            else:
                sides[name] = found
        errors = compare_outputs(sides)
    tolerance = TOLERANCE if row.changes.get("network.dtype") != "bfloat16" else None
    return {
        "title": row.title,
        "sides": sides,
        "missing": missing,
        "errors": errors,
        "agree": all(e <= tolerance for e in errors.values()) if tolerance and errors else None,
        **compute_ratios(sides),
        "goals": {name: goal for name, goal in row.goals.items() if goal is not None},
        "load_average": [load, os.getloadavg()[0]],
    }


@contextlib.contextmanager
def _start_all(names: list[str], folder: Path, setup: Setup) -> Iterator[dict[str, Side | str]]:
    """Start the processes of all sides one after another; a text says why one failed."""
    started: dict[str, Side | str] = {}
    try:
        for name in names:
            try:
                started[name] = Side(name, folder, setup)
            except SideFailed as error:
                started[name] = str(error)
        yield started
    finally:
        for side in started.values():
            if isinstance(side, Side):
                side.close()


def _time_calls(names: list[str], folder: Path, setup: Setup) -> dict[str, JsonObject]:
    """Time one call of each side by turns, after one turn that warms up."""
    found: dict[str, JsonObject] = {}
    with _start_all(names, folder, setup) as started:
        ready = {name: side for name, side in started.items() if isinstance(side, Side)}
        found |= {name: {"failed": why} for name, why in started.items() if isinstance(why, str)}
        for name, side in ready.items():
            found[name] = {**side.facts, "seconds": [], "cpu_seconds": []}
        for turn in range(setup.repeats + 1):
            for name, side in ready.items():
                took = side.ask("run")
                for key in ("seconds", "cpu_seconds") if turn else ():
                    found[name][key].append(took[key])
        for name, side in ready.items():
            output = side.ask("check")["output"]
            found[name] |= {"output": output, **side.ask("quit")}
    return found


def _time_starts(names: list[str], folder: Path, setup: Setup) -> dict[str, JsonObject]:
    """Time new processes to the end of their first call, by turns, after filling the warm cache."""
    found: dict[str, JsonObject] = {}
    for turn in range(setup.repeats + 1):
        for name in names:
            if "failed" in found.get(name, {}) or (not turn and name != "diffjax_warm"):
                continue
            try:
                side = Side(name, folder, setup)
            except SideFailed as error:
                found[name] = {"failed": str(error)}
                continue
            seconds = found.get(name, {}).get("seconds", [])
            seconds += [side.start_seconds] if turn else []
            found[name] = {**side.facts, "seconds": seconds, **side.ask("quit")}
            side.close()
    return found


def compare_outputs(sides: dict[str, JsonObject]) -> dict[str, float]:
    """Compare the outputs of peers with ours: the largest difference over the largest number."""
    outputs = {n: np.load(path) for n, s in sides.items() if (path := s.pop("output", None))}
    ours = outputs.pop(OURS, None)
    if ours is None:
        return {}
    return {
        name: float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for name, theirs in outputs.items()
        if ours.shape == theirs.shape
    }


def compute_ratios(sides: dict[str, JsonObject]) -> JsonObject:
    """Compute ours over each peer: of medians, and the quartiles of the ratios of single turns."""
    if OURS not in sides:
        return {"ratios": {}, "spreads": {}, "memory_ratios": {}}
    ours = np.asarray(sides[OURS]["seconds"])
    ratios, spreads, memory = {}, {}, {}
    for name, side in sides.items():
        theirs = np.asarray(side["seconds"])
        if name != OURS:
            ratios[name] = float(np.median(ours) / np.median(theirs))
            spreads[name] = [float(q) for q in np.quantile(ours / theirs, [0.25, 0.75])]
            memory[name] = sides[OURS]["peak_bytes"] / side["peak_bytes"]
    return {"ratios": ratios, "spreads": spreads, "memory_ratios": memory}
