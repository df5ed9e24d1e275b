"""`python -m experiments.train` under kills, signals, bad numbers and a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from configs.ddpm import get_config
from diffjax.runs import make_abstract_state
from diffjax.train import Checkpoints
from diffjax.train.sharding import with_sharding
from tests.train.test_checkpoint import small_disk
from tests.train.tiny import assert_same, make_task

ROOT = Path(__file__).parents[2]
TINY = {"TINY_TASK": "1"}


class Runs:
    """Runs of the entry point, one after the other."""

    def __init__(self, folder: Path, **env: str):
        self._folder = folder
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"
        cache["XLA_FLAGS"] = (  # to compile quickly, not to run quickly
            "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        )
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.train.runner"],
            cwd=ROOT,
            env={**os.environ, **cache, **env, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, workdir: Path, *overrides: str, flags: Sequence[str] = (), **env: str) -> int:
        """Start a run of the smoke config; its process id."""
        argv = [f"--config={ROOT}/configs/ddpm.py:digits,smoke", f"--workdir={workdir}"]
        argv += [f"--config.train.{item}" for item in ("sample_every=0", *overrides)] + [*flags]
        job = {"argv": argv, "env": env, "output": str(self._folder / "output")}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Exit code and output of the run that was started."""
        code = int(self._server.stdout.readline())
        return code, (self._folder / "output").read_text()

    def run(self, workdir: Path, *overrides: str, **env: str) -> tuple[int, str]:
        self.start(workdir, *overrides, **env)
        return self.end()

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    server = Runs(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def _steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def _state(workdir: Path):
    """Step and state of the tiny task, as the newest intact checkpoint has them."""
    shapes = make_abstract_state(get_config("digits,smoke"), make_task())
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = with_sharding(shapes, jax.tree.map(lambda _: place, shapes))
    return Checkpoints(workdir / "checkpoints").restore(abstract)


def _log(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def _wait_for(condition, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.002)


def _readable(output: str) -> str:
    assert "Traceback" not in output, output
    return " ".join(output.split())


@pytest.mark.parametrize("kills, total", [(2, 40), pytest.param(12, 240, marks=pytest.mark.slow)])
def test_killed_at_random_moments_of_a_save(runs, tmp_path, kills, total):
    options, broken = (f"steps={total}", "log_every=4"), tmp_path / "broken"
    steps = *options, "checkpoint_every=1"
    code, output = runs.run(tmp_path / "whole", *options, f"checkpoint_every={total}", **TINY)
    assert code == 0, output
    rng, reached = random.Random(0), 0
    for _ in range(kills):
        pid = runs.start(broken, *steps, STEP_SECONDS="0.02", **TINY)
        _wait_for(lambda past=reached + 1: max(_steps(broken), default=0) > past)
        time.sleep(rng.uniform(0, 0.12))  # about one save: anywhere in writing, sealing, deleting
        os.kill(pid, signal.SIGKILL)
        code, output = runs.end()
        assert code == -signal.SIGKILL
        newest = max(_steps(broken))
        assert reached < newest < total
        step, _ = _state(broken)
        assert step == newest, "a committed step did not come back"
        reached = newest
    code, output = runs.run(broken, *steps, **TINY)
    assert code == 0 and f"resumed at step {reached}" in output
    assert sorted(p.name for p in (broken / "checkpoints").iterdir()) == [
        str(total - 1),
        str(total),
    ]
    assert_same(_state(broken)[1], _state(tmp_path / "whole")[1])
    assert _log(broken) == _log(tmp_path / "whole")


@pytest.mark.parametrize("method", ["_remove", "_clear", "_commit"])
def test_killed_between_the_parts_of_a_save(runs, tmp_path, method):
    # _commit: written, not named; _remove: named, the oldest not yet deleted; _clear: on the way in
    options = "steps=6", "checkpoint_every=1", "log_every=1", "keep=1"
    assert runs.run(tmp_path, *options, "steps=2", **TINY)[0] == 0
    code, output = runs.run(tmp_path, *options, KILL_IN=method, **TINY)
    assert code == -signal.SIGKILL, output
    assert _steps(tmp_path) == ([2, 3] if method == "_remove" else [2])
    code, output = runs.run(tmp_path, *options, **TINY)
    assert code == 0 and f"resumed at step {3 if method == '_remove' else 2}" in output
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["6"]
    assert [line["step"] for line in _log(tmp_path)] == list(range(1, 7))


@pytest.mark.parametrize("signum, expected", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_leave(runs, tmp_path, signum, expected):
    options = "steps=400", "checkpoint_every=1000", "log_every=1"
    log = tmp_path / "metrics.jsonl"
    pid = runs.start(tmp_path, *options, STEP_SECONDS="0.02", **TINY)
    _wait_for(lambda: log.exists() and log.read_text().count("\n") >= 3)
    os.kill(pid, signum)
    # Impatience: more signals while the state is being saved.
    for _ in range(3):
        time.sleep(0.01)
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            break
    code, output = runs.end()
    (step,) = _steps(tmp_path)
    if code != -signum:  # else the last of them came after everything was done
        assert code == expected, output
        assert f"stopped by {signum.name}; the state of step {step} has" in _readable(output)
    assert int(_state(tmp_path)[1].step) == step >= 3
    assert _log(tmp_path)[-1]["step"] == step
    code, output = runs.run(tmp_path, f"steps={step + 2}", **TINY)
    assert code == 0 and f"resumed at step {step}" in output


def test_a_loss_that_is_not_finite_ends_with_a_message(runs, tmp_path):
    options = "steps=8", "checkpoint_every=2", "log_every=4"
    code, output = runs.run(tmp_path, *options, NAN_AT="6", **TINY)
    assert code == 1
    assert "error: the loss, its gradient or the updated parameters are not finite at step 6" in (
        _readable(output)
    )
    step, state = _state(tmp_path)
    assert step == 4 and all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_full_disk_ends_with_a_message(runs, tmp_path):
    options = "steps=9", "checkpoint_every=3", "log_every=1"
    with small_disk(tmp_path / "disk", "1M") as disk:
        run = disk / "run"
        assert runs.run(run, "steps=3", "checkpoint_every=3", "log_every=1", **TINY)[0] == 0
        (disk / "reserve").write_bytes(bytes(24 << 10))
        with open(disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        # Room for the log and for the start of a checkpoint.
        (disk / "reserve").unlink()
        code, output = runs.run(run, *options, **TINY)
        assert code == 1
        text = _readable(output)
        assert f"error: the checkpoint of step 6 could not be written to {run}/checkpoints" in text
        assert "No space left" in text and "the newest complete one is step 3" in text, text
        assert _steps(run) == [3] and int(_state(run)[1].step) == 3
        (disk / "ballast").unlink()
        code, output = runs.run(run, *options, **TINY)
        assert code == 0 and "resumed at step 3" in output
        assert [line["step"] for line in _log(run)] == list(range(1, 10))


def test_a_workdir_that_cannot_be_written_ends_with_a_message(runs, tmp_path):
    (tmp_path / "file").write_text("")
    code, output = runs.run(tmp_path / "file" / "run", **TINY)
    assert code == 1 and f"cannot write to workdir {tmp_path}/file/run" in _readable(output)


def test_a_read_only_workdir_ends_with_a_message(runs, tmp_path):
    with small_disk(tmp_path / "disk", "1M") as disk:
        remounted = ["mount", "-o", "remount,ro", str(disk)]
        if subprocess.run(remounted, capture_output=True).returncode:
            pytest.skip("remounting is not permitted")
        code, output = runs.run(disk / "run", **TINY)
        assert code == 1 and f"cannot write to workdir {disk}/run: Read-only" in _readable(output)
        assert "step/s" not in output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # where it was saved is fine
def test_the_real_model_resumes_bit_identically(runs, tmp_path):
    # The smoke form of configs/ddpm.py:digits with its own network, data and entry point. One
    # compilation serves all: the later runs find it in the cache.
    options = "steps=4", "checkpoint_every=2", "log_every=1"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, output = runs.run(whole, *options)
    assert code == 0, output
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")  # as if killed before it was complete
    code, output = runs.run(parts, *options)
    assert code == 0 and "resumed at step 2" in output
    assert _steps(parts) == _steps(whole) == [2, 4]
    again, state = (ocp.load_checkpointables(w / "checkpoints" / "4") for w in (parts, whole))
    assert len(jax.tree.leaves(state)) > 100  # parameters, average and moments of a UNet
    assert_same(again, state)
    assert _log(parts) == _log(whole) and len(_log(whole)) == 4
