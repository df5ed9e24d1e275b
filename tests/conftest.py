import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffjax.xla import choose_program_folder
from tests.cheap import ONE_LEVEL, SGD

ROOT = Path(__file__).parents[1]

# Tests compile hundreds of small programs once each: compile fast rather than run fast. Child
# processes inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Without optimisations, XLA's older code generator takes a quarter less time, and one part per
# program a tenth less than many.
for flag, value in {
    "--xla_cpu_use_fusion_emitters": "false",
    "--xla_cpu_parallel_codegen_split_count": "1",
}.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()
# Traces make many objects and little garbage.
gc.set_threshold(100_000, 50, 50)
# Tests, their child processes and later runs share compiled programs, which JAX finds by their
# content, so that a change of the code compiles what it changes again. `make clean` removes them.
os.environ["XDG_CACHE_HOME"] = str(ROOT / "build" / "cache")
PROGRAMS = choose_program_folder()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
KEPT_DAYS = 7
# No test asks the Hub; those of it have a server of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell ignores Ctrl-C for what it runs in the background, and so would the tests of Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session):
    """Remove the compiled programs that no run has read or written for a week."""
    if hasattr(session.config, "workerinput"):
        return  # the process that started this one has done it
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for program in PROGRAMS.parent.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # another session is quicker
            if max(program.stat().st_atime, program.stat().st_mtime) < oldest:
                program.unlink()


@pytest.fixture(scope="session")
def execute():
    """``execute("train", "--config=...", code=0) -> output``, each in a process of its own."""
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver.py"))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
    )

    def run(entry, *arguments, code=0):
        driver.stdin.write(json.dumps([entry, *map(str, arguments)]) + "\n")
        driver.stdin.flush()
        answer = json.loads(driver.stdout.readline())
        assert answer["code"] == code, answer["output"]
        return answer["output"]

    yield run
    driver.stdin.close()
    driver.wait(timeout=60)


@pytest.fixture(scope="session")
def trained_digits(execute, tmp_path_factory):
    """The workdir of a cheap smoke run of ``ddpm.py:digits``; tests take a copy: `digits_run`."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    config = "--config=configs/ddpm.py:digits,smoke"
    execute("train", config, f"--workdir={folder}", *ONE_LEVEL, *SGD)
    return folder


@pytest.fixture
def digits_run(trained_digits, tmp_path):
    """A workdir of the test's own with the smoke run of ``ddpm.py:digits``."""
    return Path(shutil.copytree(trained_digits, tmp_path / "digits"))
