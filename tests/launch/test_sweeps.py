"""Sweeps of runs: manifest, resuming, retries, searches, comparison; the runs are fakes."""

import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from absl import flags

from configs import sweeps
from diffjax.config import load_config
from diffjax.launch import jobs, kubernetes, local, overrides, slurm
from diffjax.launch.manifest import Manifest
from diffjax.launch.run_queue import RunQueue
from diffjax.types import ConfigError
from experiments import sweep

CONFIG = "configs/ddpm.py:digits,smoke"

# Behaves as experiments.train does, to its folder: argv is FOLDER BEHAVIOUR LR.
FAKE = """
    import json, os, signal, sys, time
    from pathlib import Path
    folder, behaviour, lr = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "starts").open("a").write("x")
    config = {"optim": {"lr": lr}, "train": {"steps": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    first = (folder / "starts").read_text() == "x"
    if behaviour == "killed-once" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "preempted-once" and first:
        sys.exit(143)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "fails":
        sys.exit(1)
    if behaviour == "waits":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        (folder / "ready").touch()
        time.sleep(600)
    rows = [{"step": s, "loss": (lr - 0.3) ** 2 + 1 / s, "steps_per_second": 5.0} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in rows))
    (folder / "summary.json").write_text(json.dumps({"finished": True}))
"""


@pytest.fixture
def fake(tmp_path):
    """Runs are the script above; ``fake[lr]`` is what the run with that rate does."""
    script, behaviours = tmp_path / "fake.py", {}
    script.write_text(textwrap.dedent(FAKE))

    def make_job(folder, name, lr):
        behaviour = behaviours.get(lr, "trains")
        command = (sys.executable, str(script), str(folder), behaviour, str(lr))
        return jobs.Job(name, command, folder)

    behaviours["make_job"] = make_job
    return behaviours


@pytest.fixture
def flag():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    saved = flags.FLAGS.flag_values_dict()

    def change(**values):
        for name, value in values.items():
            flags.FLAGS[name].value = value

    yield change
    for name in ("trials", "search", "metric", "mode"):
        flags.FLAGS[name].value = saved[name]


class Module:
    """A config file with a sweep and a space."""

    def __init__(self, rates=(0.1, 0.2, 0.3)):
        self._rates = rates

    def sweep(self):
        yield from sweeps.grid({"optim.lr": self._rates})

    def space(self):
        return {"optim.lr": (0.01, 1.0, "log")}


def _sweep(folder: Path, fake, module=None, **options) -> Manifest:
    manifest = Manifest(folder, CONFIG, {})
    proposals = sweep.propose_overrides(module or Module(), manifest, CONFIG)
    todo = manifest.select_unfinished(
        proposals, lambda new: overrides.check_overrides(load_config(CONFIG), new)
    )

    def make_job(run):
        return fake["make_job"](folder / run.name, run.name, run.overrides["optim.lr"])

    queue = RunQueue(manifest, local.LocalExecutor(), make_job, poll_seconds=0.02, **options)
    queue.run_all(todo, lambda: None)
    return manifest


def _starts(folder: Path, manifest: Manifest) -> list[int]:
    return [len((folder / run.name / "starts").read_text()) for run in manifest.runs]


def test_a_sweep_runs_each_once_and_skips_what_is_finished(tmp_path, fake, flag):
    folder = tmp_path / "sweep"
    folder.mkdir()
    manifest = _sweep(folder, fake, parallel=2)
    assert [(r.name, r.status, r.code) for r in manifest.runs] == [
        (f"00{i}-lr={lr}", "done", 0) for i, lr in enumerate((0.1, 0.2, 0.3))
    ]
    again = _sweep(folder, fake, Module((0.1, 0.2, 0.3, 0.4)), parallel=2)  # grown since
    assert [r.name for r in again.runs] == [r.name for r in manifest.runs] + ["003-lr=0.4"]
    assert _starts(folder, again) == [1, 1, 1, 1]
    stored = json.loads((folder / "sweep.json").read_text())
    assert [r["overrides"] for r in stored["runs"]][-1] == {"optim.lr": 0.4}
    with pytest.raises(ConfigError, match="is a sweep of"):
        Manifest(folder, "configs/edm.py:cifar10", {})
    with pytest.raises(ConfigError, match=r"started with nothing overridden, not .*steps"):
        Manifest(folder, CONFIG, {"train.steps": "9"})


def test_what_is_proposed_again_while_it_runs_is_not_started_twice(tmp_path, fake, flag):
    manifest = _sweep(tmp_path, fake, Module((0.1, 0.1, 0.2, 0.1)), parallel=2)
    assert [r.status for r in manifest.runs] == ["done", "done"]
    assert _starts(tmp_path, manifest) == [1, 1]


def test_runs_at_once_divide_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5,-1")
    assert local.find_gpus() == ["0", "1", "5"]
    own = [share["CUDA_VISIBLE_DEVICES"] for share in local.share_gpus(["0", "1", "5", "6"], 2)]
    assert own == ["0,1", "5,6"]
    crowded = local.share_gpus(["0", "1"], 3)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in crowded] == ["0", "1", "0"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in crowded} == {"0.45"}
    assert local.share_gpus(["0", "1"], 1) == [{}] and local.share_gpus([], 2) == [{}, {}]


def test_killed_and_preempted_runs_go_on_and_broken_ones_do_not(tmp_path, fake, flag):
    limits = {"parallel": 2, "retries": 2}
    fake.update({0.1: "killed-once", 0.2: "preempted-once", 0.3: "fails", 0.4: "killed"})
    folder = tmp_path / "sweep"
    folder.mkdir()
    manifest = _sweep(folder, fake, Module((0.1, 0.2, 0.3, 0.4, 0.5)), **limits)
    assert [r.status for r in manifest.runs] == ["done", "done", "failed", "failed", "done"]
    assert _starts(folder, manifest) == [2, 2, 1, 3, 1]
    assert [r.code for r in manifest.runs] == [0, 0, 1, -signal.SIGKILL, 0]
    for lr in (0.1, 0.2, 0.3, 0.4):
        del fake[lr]  # mended: the next invocation resumes the failed ones only
    again = _sweep(folder, fake, Module((0.1, 0.2, 0.3, 0.4, 0.5)), **limits)
    assert {r.status for r in again.runs} == {"done"}
    assert _starts(folder, again) == [2, 2, 2, 4, 1]


def test_no_more_than_parallel_runs_at_once(tmp_path):
    seen, running = [], []

    class Counting:
        def start(self, job):
            running.append(job.name)
            seen.append(len(running))
            return "1"

        def take_ended(self):
            return {running.pop(0): 0} if running else {}

    manifest = Manifest(tmp_path, CONFIG, {})
    for lr in range(5):
        manifest.add({"optim.lr": lr / 10})
    queue = RunQueue(manifest, Counting(), lambda run: run, parallel=2, poll_seconds=0)
    queue.run_all(iter(manifest.runs), lambda: None)
    assert seen[0] == 1 and max(seen) == 2 and len(seen) == 5


def test_stopping_lets_the_runs_save(tmp_path, fake):
    fake[0.1] = "waits"
    executor, folder = local.LocalExecutor(), tmp_path / "run"
    executor.start(fake["make_job"](folder, "a", 0.1))
    end = time.monotonic() + 300
    while not (folder / "ready").exists() and time.monotonic() < end:
        time.sleep(0.01)
    executor.stop()
    assert executor.take_ended() == {"a": 143}


def test_jobs_of_an_earlier_sweep_are_found_again(tmp_path, monkeypatch):
    # Of two jobs that were running, Slurm still has one; the other ended in the meantime.
    queue, submitted = [{"41"}, {"41"}, {"43"}, None], []

    class Cluster(slurm.SlurmExecutor):
        def __init__(self):
            self._running = {}

        def start(self, job):
            submitted.append(job.name)
            (tmp_path / job.name).mkdir(exist_ok=True)
            (tmp_path / job.name / "summary.json").write_text('{"finished": true}')
            self._running[job.name] = "43"
            return "43"

    monkeypatch.setattr(slurm, "_list_queue", lambda: queue.pop(0) if queue else set())
    manifest = Manifest(tmp_path, CONFIG, {})
    for lr, number in ((0.1, "41"), (0.2, "42")):
        run = manifest.add({"optim.lr": lr})
        run.status, run.job = "running", number
    kept, lost = manifest.runs
    (tmp_path / kept.name).mkdir()
    (tmp_path / kept.name / "summary.json").write_text('{"finished": true}')
    runs = RunQueue(manifest, Cluster(), lambda run: run, parallel=2, poll_seconds=0)
    runs.run_all(iter(manifest.runs), lambda: None)
    assert submitted == [lost.name]
    assert [run.status for run in manifest.runs] == ["done", "done"]


def test_random_trials_are_a_function_of_their_number():
    space = {"a": (1e-4, 1e-1, "log"), "b": [1, "x"], "c": (2, 5), "d": (0.0, 1.0)}
    trials = [sweeps.draw(space, i) for i in range(200)]
    assert trials == [sweeps.draw(space, i) for i in range(200)] != trials[::-1]
    assert trials[0] != sweeps.draw(space, 0, seed=1)
    assert {t["b"] for t in trials} == {1, "x"} and {t["c"] for t in trials} == {2, 3, 4, 5}
    assert all(1e-4 <= t["a"] <= 1e-1 and 0 <= t["d"] <= 1 for t in trials)
    assert 0.25 < sum(t["a"] < 10**-2.5 for t in trials) / 200 < 0.75  # the middle of the log


@pytest.mark.parametrize("axis", [(), [], (2, 1), (0, 1, "log"), (1, 2, "square"), "abc"])
def test_axes_of_no_kind_are_named(axis):
    with pytest.raises(ValueError, match=r"axis 'optim.lr' of the sweep's space"):
        sweeps.draw({"optim.lr": axis}, 0)


def test_grids_take_every_combination():
    axes = {"a": (1, 2), "b": ("x", "y")}
    assert list(sweeps.grid(axes))[1:3] == [{"a": 1, "b": "y"}, {"a": 2, "b": "x"}]
    with pytest.raises(ValueError, match="'a' has no values"):
        list(sweeps.grid({"a": ()}))


def test_optuna_goes_where_the_metric_is_good(tmp_path, fake, flag):
    pytest.importorskip("optuna")
    flag(trials=14, search="optuna")
    folder = tmp_path / "sweep"
    folder.mkdir()
    manifest = _sweep(folder, fake)
    rates = [run.overrides["optim.lr"] for run in manifest.runs]
    assert len(set(rates)) == 14 and all(0.01 <= lr <= 1 for lr in rates)
    late = sorted(abs(lr - 0.3) for lr in rates[-5:])
    assert late[2] < 0.15, rates  # the fake's loss is best at 0.3; a uniform draw gives 0.25
    assert [r.overrides for r in _sweep(folder, fake).runs] == [r.overrides for r in manifest.runs]


def test_overrides_are_checked_before_anything_runs():
    def check(new):
        overrides.check_overrides(load_config(CONFIG), new)

    check({"optim.lr": 0.1, "network.multipliers": (1, 2)})
    with pytest.raises(ConfigError, match=r"overrides optim.rate=0.1: .*rate"):
        check({"optim.rate": 0.1})
    with pytest.raises(ConfigError, match=r"overrides train.steps='many'"):
        check({"train.steps": "many"})
    with pytest.raises(ConfigError, match=r"has no sweep\(\)"):
        list(sweep.propose_overrides(overrides, None, CONFIG))


def test_overrides_are_arguments_and_back():
    given = {"optim.lr": 0.1, "data.name": "a b", "network.multipliers": [1, 2]}
    arguments = overrides.format_overrides(given)
    assert arguments[-1] == "--config.network.multipliers=(1, 2)"
    found = overrides.parse_overrides(["x", "--config=a.py", *arguments, "--configs.a=2"])
    assert found == {"optim.lr": "0.1", "data.name": "a b", "network.multipliers": "(1, 2)"}


@pytest.mark.parametrize("change, said", [
    (["--claim=My_Claim"], "--claim='My_Claim' is not a name"),
    (["--image=a b"], "--image='a b' must name a container"),
    (["--resources=cpu=many"], "--resources=cpu=many: must be NAME=AMOUNT"),
    (["--workdir=runs/x"], "--workdir=runs/x is where the pods have the volume"),
])  # fmt: skip
def test_messages_for_kubernetes_name_flags(execute, tmp_path, change, said):
    asked = [f"--config={CONFIG}", f"--workdir={tmp_path}", "--trials=1"]
    asked.append("--executor=kubernetes-manifest")
    if change[0].startswith("--workdir"):
        change = [f"--workdir={os.path.relpath(tmp_path)}"]
        said = f"{change[0]} is where the pods have the volume"
    assert said in execute("sweep", *asked, *change, code=2)


def test_kubernetes_jobs_survive_preemption(tmp_path):
    command = sweep.make_train_command(CONFIG, Path("/runs/a"), {"network.multipliers": [1, 2]})
    assert command[-1] == "--config.network.multipliers=(1, 2)"
    job = jobs.Job("000-lr=0.001_A", command, Path("/runs/a"))
    other = job._replace(folder=Path("/runs/b"))
    options = {"image": "me/diffjax:1", "claim": "disk", "workdir": Path("/runs")}
    text = kubernetes.format_manifest([job, other], **options, resources={"nvidia.com/gpu": "8"})
    item, second = json.loads(text)["items"]
    assert item["kind"] == "Job" and item["metadata"]["name"].startswith("000-lr-0-001-a-")
    assert item["metadata"]["name"] != second["metadata"]["name"]
    pod = item["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][:3] == ["python", "-m", "experiments.train"]
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/runs"
    rules = item["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [140, 143] and rules[0]["action"] == "Ignore"


@pytest.mark.slow
def test_a_real_sweep_ends_in_a_report(execute, tmp_path):
    arguments = f"--config={CONFIG}", f"--workdir={tmp_path}", "--trials=2", "--parallel=2"
    output = execute("sweep", *arguments)
    assert "2 runs done" in output
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["done", "done"]
    output = execute("report", f"--workdir={tmp_path}", "--metric=loss")
    assert "best by loss (min): 00" in output and "<svg" not in output
    assert "Best by loss" in (tmp_path / "report.html").read_text()
    assert "2 runs done" in execute("sweep", *arguments)
