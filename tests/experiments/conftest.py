import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
