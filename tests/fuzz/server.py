"""Cases in processes of their own, forked from one that has imported all and started nothing.

A fork costs milliseconds where a fresh process would import for seconds. The parent has no threads
and no JAX backend, which a fork would not survive.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.train.sealed_files import CheckpointError
from tests.fuzz.formats import FORMATS, Format, Values, change

SECONDS, BYTES = 20, 2 * 2**30
VERDICTS = ("same", "as it says", "refused", "wrong", "traceback", "hang", "crash")
BAD = VERDICTS[3:]
_WORDS = 4  # of a reason that is a sentence


class Case(NamedTuple):
    """A case and what came of it."""

    format: str
    index: int
    verdict: str
    what: str
    said: str
    seconds: float


def _digest(values: Values) -> dict[str, Any]:
    """Values in a form that can be compared and kept."""
    return {
        key: [value.dtype.str, value.shape, value.tobytes().hex()]
        if isinstance(value, np.ndarray)
        else value
        for key, value in values.items()
    }


def _is_finite(values: Values) -> bool:
    arrays = [v for v in values.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    return all(np.isfinite(v.astype(np.float64)).all() for v in arrays)


def _read(form: Format, folder: Path, expected: Any, illegal: bool) -> tuple[str, str]:
    """(verdict, what was said) of reading a folder."""
    try:
        values = form.read(folder)
    except (ValueError, OSError, CheckpointError) as error:
        said = str(error)
        named = any(str(name) in said for name in (folder, *(p.name for p in folder.rglob("*"))))
        raw = isinstance(error, UnicodeError | json.JSONDecodeError)
        reason = len(said.split()) >= _WORDS and len(said) < 4000 and "\n" not in said
        if named and reason and not raw:
            return "refused", said
        return "traceback", f"no reason with a name: {error!r}"
    digest = json.loads(json.dumps(_digest(values)))
    if digest == expected:
        return "same", ""
    if illegal or form.sealed or not _is_finite(values):
        return "wrong", f"accepted: {sorted(k for k in digest if digest[k] != expected.get(k))}"
    said = form.says(folder) if form.says else None
    if said is not None and json.loads(json.dumps(_digest(said))) != digest:
        return "wrong", "another reader has other values"
    return "as it says", ""


def _child(name: str, index: int, seed: int, example: Path, folder: Path, pipe: int) -> None:
    """Change an example and read it; the answer goes into the pipe."""
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    form, expected = FORMATS[name], json.loads((example / "expected.json").read_text())
    rng = random.Random(f"{seed} {name} {index}")
    shutil.copytree(example / "files", folder)
    file, new = change(folder, form, rng)
    status = Path("/proc/self/status").read_text().splitlines()
    used = sum(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, used + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    what = f"{file.relative_to(folder)}: {new.what}"
    try:
        verdict, said = _read(form, folder, expected, new.illegal)
    except BaseException as error:
        verdict, said = "traceback", repr(error)[:300]
        if isinstance(error, MemoryError):
            verdict = "crash"
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        if trace:
            said += f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    answer = [verdict, what[:120], said[:400].replace(str(folder), "FOLDER")]
    os.write(pipe, json.dumps(answer).encode())


def _start(name: str, index: int, seed: int, root: Path) -> tuple[int, int]:
    """A process for one case, and the pipe of its answer."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        os.close(read)
        _child(name, index, seed, root / _safe(name), root / f"case{os.getpid()}", write)
    finally:
        os._exit(0)  # no handlers of the parent


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def write_examples(root: Path, names: list[str]) -> None:
    """Examples of formats and what they hold, by another process: it may start what it needs."""
    pid = os.fork()
    if pid:
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("an example could not be written, or read")
        return
    code = 1
    try:
        for name in names:
            folder = root / _safe(name) / "files"
            folder.mkdir(parents=True)
            FORMATS[name].write(folder)
            values = FORMATS[name].read(folder)
            (folder.parent / "expected.json").write_text(json.dumps(_digest(values)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_cases(
    seed: int, cases: list[tuple[str, int]], root: Path, processes: int = 2
) -> Iterator[Case]:
    """What becomes of cases (format, number), as they end."""
    gc.collect()
    gc.freeze()  # or the collector of every child copies the pages of all that is imported
    waiting, running = list(reversed(cases)), {}
    while waiting or running:
        while waiting and len(running) < processes:
            name, index = waiting.pop()
            pid, pipe = _start(name, index, seed, root)
            running[pid] = (name, index, pipe, time.monotonic())
        time.sleep(0.005)
        for pid, (name, index, pipe, begun) in list(running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            late = time.monotonic() - begun > SECONDS
            if late and not found:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if found or late:
                del running[pid]
                raw = b"" if late and not found else os.read(pipe, 2**16)
                os.close(pipe)
                shutil.rmtree(root / f"case{pid}", ignore_errors=True)
                seconds = time.monotonic() - begun
                if raw:
                    yield Case(name, index, *json.loads(raw), seconds)
                else:
                    verdict = "crash" if found else "hang"
                    yield Case(name, index, verdict, "", f"status {status}", seconds)
