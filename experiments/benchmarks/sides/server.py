"""What a process of the speed suite does: it makes one call ready, and times it when asked to.

The commands are lines of stdin, the answers lines of JSON on stdout:

    run     {"seconds": 0.21, "cpu_seconds": 0.4}
    check   {"output": "FOLDER/SIDE.npy"}, what the sides of a row must agree in; null if nothing
    quit    {"peak_bytes": ...}, after which the process ends

The first line comes unasked when the first call is done. This file needs no more than numpy, so
that peers run it in environments of their own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """What a side does for a row.

    Attributes:
        run: does the work once, and returns when it is done.
        check: computes what is compared with other sides; None if they have nothing in common.
        facts: numbers and names that are known when the call is ready.
        peak: bytes of the accelerator at most so far; None on CPUs.
    """

    run: Callable[[], None]
    check: Callable[[], np.ndarray] | None
    facts: dict[str, Any]
    peak: Callable[[], int | None] = lambda: None


class Work(NamedTuple):
    """The work of a process, read from the folder of its row.

    Attributes:
        kind, batch, steps: see `rows.Row`.
        folder: has row.json, the networks as NAME.json and NAME.safetensors, and inputs.npz.
        side: name of the side that this process is.
        options: everything else in row.json.
    """

    kind: str
    batch: int
    steps: int
    folder: Path
    side: str
    options: dict[str, Any]

    def read_inputs(self) -> dict[str, np.ndarray]:
        """Read the arrays that all sides are given."""
        with np.load(self.folder / "inputs.npz") as file:
            return dict(file)

    def read_config(self, name: str) -> dict[str, Any]:
        """Read the description of a network, in diffusers' terms."""
        return dict(json.loads((self.folder / f"{name}.json").read_text()))


def read_work() -> Work:
    """Read the work that the command line names: a folder and a side."""
    folder, side = Path(sys.argv[1]), sys.argv[2]
    row = json.loads((folder / "row.json").read_text())
    known = {name: row.pop(name) for name in ("kind", "batch", "steps")}
    return Work(**known, folder=folder, side=side, options=row)


def _reset_peak() -> bool:
    """Let Linux count the peak of this process's memory anew; return whether it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _read_peak(since_reset: bool) -> int:
    """Read the peak of this process's memory in bytes.

    Args:
        since_reset: whether only what came after `_reset_peak` counts.
    """
    if since_reset:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(make_call: Callable[[Work], Call], started: float) -> None:
    """Make the call of this process ready, and answer the commands of stdin until it ends.

    Args:
        make_call: makes a side's call.
        started: `time.perf_counter` before the imports of the side.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    work = read_work()
    call = make_call(work)
    made = time.perf_counter()
    call.run()
    first = time.perf_counter() - made

    def answer(value: dict[str, Any]) -> None:
        """Write one line."""
        print(json.dumps(value), file=answers, flush=True)

    whole = _read_peak(False)
    answer({"load_seconds": made - started, "first_call_seconds": first, **call.facts})
    reset = _reset_peak()
    for line in sys.stdin:
        command = line.strip()
        if command == "run":
            begun, cpu = time.perf_counter(), time.process_time()
            call.run()
            took = time.perf_counter() - begun, time.process_time() - cpu
            answer(dict(zip(("seconds", "cpu_seconds"), took, strict=True)))
        elif command == "check":
            path = work.folder / f"{work.side}.npy"
            if call.check is not None:
                np.save(path, call.check())
            answer({"output": str(path) if call.check is not None else None})
        else:
            peak = call.peak() or _read_peak(reset)
            answer({"peak_bytes": peak, "process_peak_bytes": max(whole, peak, _read_peak(False))})
            return
