"""A real Slurm of two nodes on this machine: a sweep with a killed job, a stopped training of two.

apt-get install slurm-wlm munge; pytest -m slow tests/launch/test_slurm.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from diffjax.launch.jobs import Job
from diffjax.launch.manifest import Manifest
from diffjax.launch.run_queue import RunQueue
from diffjax.launch.slurm import SlurmExecutor
from experiments.sweep import make_train_command
from tests.train.test_faults import _log, _state, _steps, _wait_for

ROOT = Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/ddpm.py:digits,smoke"
ENV = {"TINY_TASK": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("slurmctld") or not shutil.which("munged") or os.geteuid() != 0,
        reason="needs root and Debian's slurm-wlm and munge",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "tests/slurm.sh")
    subprocess.run([script, "start", str(folder)], check=True, timeout=120, stdout=subprocess.PIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name, value in ENV.items():
            patch.setenv(name, value)
        yield
        subprocess.run([script, "stop", str(folder)], check=True)


def _command(config, folder, overrides):
    options = {"train.steps": 40, "train.checkpoint_every": 5, "train.log_every": 5}
    options = {**options, "train.sample_every": 0, **overrides}
    real = make_train_command(config, folder, options)
    return (sys.executable, "-m", "tests.train.entry", *real[3:])


def test_a_sweep_finishes_with_one_job_killed_and_one_preempted(cluster, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("STEP_SECONDS", "0.2")
    manifest = Manifest(tmp_path, CONFIG, {})
    for seed in range(6):
        manifest.add({"seed": seed})
    executor = SlurmExecutor(tmp_path / "slurm", {"mem_gb": 1})
    to_signal = {1: "KILL", 2: "USR2"}

    def disturb():
        for index, name in list(to_signal.items()):
            run = manifest.runs[index]
            folder = tmp_path / run.name
            if run.status == "running" and _steps(folder):
                subprocess.run(["scancel", f"--signal={name}", run.job], check=True)
                del to_signal[index]

    def make_job(run):
        folder = tmp_path / run.name
        return Job(run.name, _command(CONFIG, folder, run.overrides), folder)

    queue = RunQueue(manifest, executor, make_job, parallel=3)
    queue.run_all(iter(manifest.runs), disturb)
    assert not to_signal
    assert [run.status for run in manifest.runs] == ["done"] * 6
    assert manifest.runs[1].tries == 2  # killed: submitted again
    for run in manifest.runs:
        folder = tmp_path / run.name
        assert max(_steps(folder)) == 40
        assert [line["step"] for line in _log(folder)] == list(range(5, 45, 5))
    sessions = [
        len(json.loads((tmp_path / run.name / "summary.json").read_text())["sessions"])
        for run in manifest.runs
    ]
    assert sessions[2] >= 2 and sessions[0] == 1  # the preempted one saved, and was requeued


SCRIPT = """\
    #!/bin/bash
    #SBATCH --nodes=2 --ntasks=2 --ntasks-per-node=1 --mem=1000 --output={folder}/job-%j.txt
    srun --kill-on-bad-exit=0 {command} --coordinator=127.0.0.1:{port}
    echo "exit code $?"
"""


def _submit(folder, port):
    command = _command(CONFIG, folder / "run", {"train.steps": 100, "train.log_every": 1})
    text = textwrap.dedent(SCRIPT).format(folder=folder, command=" ".join(command), port=port)
    (folder / "job.sh").write_text(text)
    done = subprocess.run(
        ["sbatch", "--parsable", str(folder / "job.sh")], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _ended(folder, job):
    path = folder / f"job-{job}.txt"
    return path.exists() and "exit code" in path.read_text()


def test_a_training_on_two_nodes_resumes_after_sigterm(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("STEP_SECONDS", "0.1")
    job, log = _submit(tmp_path, 21871), tmp_path / "run" / "metrics.jsonl"
    _wait_for(lambda: log.exists() and log.read_text().count("\n") > 5, seconds=240)
    subprocess.run(["scancel", f"--signal={signal.SIGTERM.name}", job], check=True)
    _wait_for(lambda: _ended(tmp_path, job), seconds=120)
    text = (tmp_path / f"job-{job}.txt").read_text()
    assert "exit code 143" in text and "process 1 of 2" in text, text
    step = max(_steps(tmp_path / "run"))
    assert 5 <= step < 100 and int(_state(tmp_path / "run")[1].step) == step
    assert text.count(f"stopped by SIGTERM; the state of step {step} has been saved") == 2
    monkeypatch.setenv("STEP_SECONDS", "0")
    time.sleep(1)
    job = _submit(tmp_path, 21872)
    _wait_for(lambda: _ended(tmp_path, job), seconds=240)
    text = (tmp_path / f"job-{job}.txt").read_text()
    assert f"resumed at step {step}" in text and "exit code 0" in text, text
    assert [line["step"] for line in _log(tmp_path / "run")] == list(range(1, 101))
