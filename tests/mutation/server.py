"""Runs the tests of the maths on mutants, each in a fork of one process that has JAX imported.

A first run notes which test passes through which line. A mutant is then given to the tests of its
line, the fastest first.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import jax
import pytest

TESTS = (
    "tests/test_schedules.py",
    "tests/test_options.py",
    "tests/test_grids.py",
    "tests/test_parameterization.py",
    "tests/test_guidance.py",
    "tests/test_losses.py",
    "tests/test_likelihood.py",
    "tests/test_control.py",
    "tests/test_lora.py",
    "tests/test_properties.py",
    "tests/test_golden_schedulers.py",
    "tests/samplers/test_adaptive.py",
    "tests/samplers/test_ancestral.py",
    "tests/samplers/test_interpolants.py",
    "tests/samplers/test_loop.py",
    "tests/samplers/test_oracles.py",
    "tests/samplers/test_orders.py",
    "tests/samplers/test_solvers.py",
    "tests/train/test_optimizer.py",
    "tests/train/test_step.py",
)
# Modules that the tests need and that start no thread when they are imported.
WARM = (
    "jax",
    "jax.numpy",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "scipy.special",
    "hypothesis",
)
SECONDS = 300  # for all tests together, which take 80
BYTES = 16 * 2**30  # of address space

IMPORT = "import"  # stands for a test: what runs when the modules are imported
Lines = dict[str, dict[str, Any]]  # test -> {"seconds": s, "lines": [[file, line], ...]}


def warm_up() -> None:
    """Import what is not ours, without starting a backend: threads do not survive a fork."""
    for name in WARM:
        importlib.import_module(name)


def fork(work: Callable[[], Any], log: Path, seconds: float) -> Any:
    """What ``work`` returns in a child process, or None if it dies or takes longer."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    return _wait(pid, reader, seconds)


def _wait(pid: int, reader: int, seconds: float) -> Any:
    def kill(*_: Any) -> None:
        os.killpg(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return json.loads(text) if text else None


class _Failures:
    """Notes which test or file failed first."""

    def __init__(self) -> None:
        self.first: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.first is None:
            self.first = report.nodeid

    pytest_collectreport = pytest_runtest_logreport


class _Lines:
    """Notes the lines of our files that every test passes through."""

    def __init__(self, files: set[str]) -> None:
        self.files, self.found = files, {}
        self.here: set[tuple[str, int]] = set()

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self.files:
            return None
        self.here.add((name, frame.f_lineno))
        return self._trace

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self, session: Any) -> Any:
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.found[IMPORT] = {"seconds": 0.0, "lines": sorted(self.here)}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        jax.clear_caches()  # or a program that an earlier test compiled would not be traced again
        self.here, begun = set(), time.process_time()
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            seconds = time.process_time() - begun
            self.found[item.nodeid] = {"seconds": seconds, "lines": sorted(self.here)}


def _run_pytest(tests: list[str], plugin: Any) -> int:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    return int(pytest.main([*options, *tests], plugins=[plugin]))


def record_lines(modules: tuple[str, ...], tests: Sequence[str], log: Path) -> Lines:
    """The lines of the modules that each test of some files passes through.

    Raises:
        RuntimeError: a test fails without any mutation.
    """

    def work() -> Any:
        plugin = _Lines({str(Path(module).resolve()) for module in modules})
        return plugin.found if _run_pytest(list(tests), plugin) == 0 else None

    found = fork(work, log, 10 * SECONDS)
    if found is None:
        raise RuntimeError(f"the tests do not pass without a mutation: {log.read_text()[-2000:]}")
    return found


def _replace_source(module: str, source: str) -> None:
    """Let the importer find ``source`` in place of a file of ours."""
    path, original = str(Path(module).resolve()), SourceFileLoader.get_code

    def get_code(self: Any, name: str) -> Any:
        if str(Path(self.path).resolve()) == path:
            return compile(source, path, "exec", dont_inherit=True)
        return original(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def choose_tests(lines: Lines, module: str, first: int, last: int) -> list[str]:
    """Tests that pass through lines ``first`` to ``last`` of a module, the fastest first.

    Of a line that runs when the module is imported: all tests that pass through the module. So too
    of a line that no test passes through: Python reports no line inside of a constant.
    """
    path = str(Path(module).resolve())
    hit = {
        name: [line for file, line in test["lines"] if file == path] for name, test in lines.items()
    }
    chosen = [name for name, own in hit.items() if any(first <= line <= last for line in own)]
    if IMPORT in chosen or not chosen:
        chosen = [name for name, own in hit.items() if own and name != IMPORT]
    return sorted(chosen, key=lambda name: lines[name]["seconds"])


def run_tests(module: str, source: str, tests: list[str], log: Path) -> tuple[str, str | None]:
    """``(killed, survived or timeout; the test that failed)`` of a mutant under some tests."""

    def work() -> Any:
        _replace_source(module, source)
        plugin = _Failures()
        code = _run_pytest(tests, plugin)
        return {"code": code, "test": plugin.first}

    begun = time.monotonic()
    found = fork(work, log, SECONDS)
    if found is None:
        late = time.monotonic() - begun >= SECONDS
        return ("timeout", None) if late else ("killed", "the process died")
    return ("survived", None) if found["code"] == 0 else ("killed", found["test"] or "collection")


def judge(mutant: Any, lines: Lines, log: Path) -> tuple[str, str | None]:
    """The verdict of the tests on a mutant, and the test that failed."""
    near = choose_tests(lines, mutant.module, mutant.line, mutant.last)
    if not near:
        return "survived", "no test passes through this line"
    return run_tests(mutant.module, mutant.source, near, log)
