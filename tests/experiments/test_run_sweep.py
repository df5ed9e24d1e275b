"""Sweeps of runs: manifest, resuming, retries, searches, comparison; the runs are fakes."""

import json
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from absl import flags

from configs import sweeps
from experiments import common, compare, executors, sweep
from experiments.sweep import Manifest, Run, Sweep

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
def fake(tmp_path, monkeypatch):
    """Runs are the script above; ``fake[lr]`` is what the run with that rate does."""
    script, behaviours = tmp_path / "fake.py", {}
    script.write_text(textwrap.dedent(FAKE))

    def command(config, folder, overrides):
        lr = overrides["optim.lr"]
        behaviour = behaviours.get(lr, "trains")
        return (sys.executable, str(script), str(folder), behaviour, str(lr))

    monkeypatch.setattr(executors, "train_command", command)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.02)
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
    for name in ("parallel", "trials", "search", "retries", "metric", "mode"):
        flags.FLAGS[name].value = saved[name]


class Module:
    """A config file with a sweep and a space."""

    def __init__(self, rates=(0.1, 0.2, 0.3)):
        self._rates = rates

    def sweep(self):
        yield from sweeps.grid({"optim.lr": self._rates})

    def space(self):
        return {"optim.lr": (0.01, 1.0, "log")}


def _sweep(folder: Path, module=None) -> Manifest:
    manifest = Manifest(folder, CONFIG, {})
    todo = sweep._unfinished(manifest, module or Module(), CONFIG)
    Sweep(manifest, CONFIG, executors.Local()).run_all(todo, lambda: None)
    return manifest


def _starts(folder: Path, manifest: Manifest) -> list[int]:
    return [len((folder / run.name / "starts").read_text()) for run in manifest.runs]


def test_a_sweep_runs_each_once_and_skips_what_is_finished(tmp_path, fake, flag):
    flag(parallel=2)
    folder = tmp_path / "sweep"
    folder.mkdir()
    manifest = _sweep(folder)
    assert [(r.name, r.status, r.code) for r in manifest.runs] == [
        (f"00{i}-lr={lr}", "done", 0) for i, lr in enumerate((0.1, 0.2, 0.3))
    ]
    again = _sweep(folder, Module((0.1, 0.2, 0.3, 0.4)))  # grown since
    assert [r.name for r in again.runs] == [r.name for r in manifest.runs] + ["003-lr=0.4"]
    assert _starts(folder, again) == [1, 1, 1, 1]
    stored = json.loads((folder / "sweep.json").read_text())
    assert [r["overrides"] for r in stored["runs"]][-1] == {"optim.lr": 0.4}
    with pytest.raises(common.UsageError, match="is a sweep of"):
        Manifest(folder, "configs/edm.py:cifar10", {})
    with pytest.raises(common.UsageError, match=r"started with nothing overridden, not .*steps"):
        Manifest(folder, CONFIG, {"train.steps": "9"})


def test_what_is_proposed_again_while_it_runs_is_not_started_twice(tmp_path, fake, flag):
    flag(parallel=2)
    manifest = _sweep(tmp_path, Module((0.1, 0.1, 0.2, 0.1)))
    assert [r.status for r in manifest.runs] == ["done", "done"]
    assert _starts(tmp_path, manifest) == [1, 1]


def test_runs_at_once_divide_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5,-1")
    assert executors.visible_gpus() == ["0", "1", "5"]
    own = [share["CUDA_VISIBLE_DEVICES"] for share in executors.shares(["0", "1", "5", "6"], 2)]
    assert own == ["0,1", "5,6"]
    crowded = executors.shares(["0", "1"], 3)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in crowded] == ["0", "1", "0"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in crowded} == {"0.45"}
    assert executors.shares(["0", "1"], 1) == [{}] and executors.shares([], 2) == [{}, {}]


def test_killed_and_preempted_runs_go_on_and_broken_ones_do_not(tmp_path, fake, flag):
    flag(parallel=2, retries=2)
    fake.update({0.1: "killed-once", 0.2: "preempted-once", 0.3: "fails", 0.4: "killed"})
    folder = tmp_path / "sweep"
    folder.mkdir()
    manifest = _sweep(folder, Module((0.1, 0.2, 0.3, 0.4, 0.5)))
    assert [r.status for r in manifest.runs] == ["done", "done", "failed", "failed", "done"]
    assert _starts(folder, manifest) == [2, 2, 1, 3, 1]
    assert [r.code for r in manifest.runs] == [0, 0, 1, -signal.SIGKILL, 0]
    fake.clear()  # mended: the next invocation resumes the failed ones only
    again = _sweep(folder, Module((0.1, 0.2, 0.3, 0.4, 0.5)))
    assert {r.status for r in again.runs} == {"done"}
    assert _starts(folder, again) == [2, 2, 2, 4, 1]


def test_no_more_than_parallel_runs_at_once(tmp_path, flag):
    flag(parallel=2)
    seen, running = [], []

    class Counting:
        def start(self, job):
            running.append(job.name)
            seen.append(len(running))
            return "1"

        def ended(self):
            return {running.pop(0): 0} if running else {}

    manifest = Manifest(tmp_path, CONFIG, {})
    for lr in range(5):
        manifest.add({"optim.lr": lr / 10})
    Sweep(manifest, CONFIG, Counting()).run_all(iter(manifest.runs), lambda: None)
    assert seen[0] == 1 and max(seen) == 2 and len(seen) == 5


def test_stopping_lets_the_runs_save(tmp_path, fake):
    fake[0.1] = "waits"
    local, folder = executors.Local(), tmp_path / "run"
    command = executors.train_command(CONFIG, folder, {"optim.lr": 0.1})
    local.start(executors.Job("a", command, folder))
    end = time.monotonic() + 300
    while not (folder / "ready").exists() and time.monotonic() < end:
        time.sleep(0.01)
    local.stop()
    assert local.ended() == {"a": 143}


def test_jobs_of_an_earlier_sweep_are_found_again(tmp_path, flag, monkeypatch):
    # Of two jobs that were running, Slurm still has one; the other ended in the meantime.
    flag(parallel=2)
    queue, submitted = [{"41"}, {"41"}, {"43"}, None], []

    class Cluster(executors.Slurm):
        def __init__(self):
            self._running = {}

        def start(self, job):
            submitted.append(job.name)
            (tmp_path / job.name).mkdir(exist_ok=True)
            (tmp_path / job.name / "summary.json").write_text('{"finished": true}')
            self._running[job.name] = "43"
            return "43"

    monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
    monkeypatch.setattr(executors, "_queue", lambda: queue.pop(0) if queue else set())
    manifest = Manifest(tmp_path, CONFIG, {})
    for lr, number in ((0.1, "41"), (0.2, "42")):
        run = manifest.add({"optim.lr": lr})
        run.status, run.job = "running", number
    kept, lost = manifest.runs
    (tmp_path / kept.name).mkdir()
    (tmp_path / kept.name / "summary.json").write_text('{"finished": true}')
    Sweep(manifest, CONFIG, Cluster()).run_all(iter(manifest.runs), lambda: None)
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
    manifest = _sweep(folder)
    rates = [run.overrides["optim.lr"] for run in manifest.runs]
    assert len(set(rates)) == 14 and all(0.01 <= lr <= 1 for lr in rates)
    late = sorted(abs(lr - 0.3) for lr in rates[-5:])
    assert late[2] < 0.15, rates  # the fake's loss is best at 0.3; a uniform draw gives 0.25
    assert [r.overrides for r in _sweep(folder).runs] == [r.overrides for r in manifest.runs]


def test_overrides_are_checked_before_anything_runs():
    sweep.check_overrides(CONFIG, {"optim.lr": 0.1, "network.multipliers": (1, 2)})
    with pytest.raises(common.UsageError, match=r"overrides optim.rate=0.1: .*rate"):
        sweep.check_overrides(CONFIG, {"optim.rate": 0.1})
    with pytest.raises(common.UsageError, match=r"overrides train.steps='many'"):
        sweep.check_overrides(CONFIG, {"train.steps": "many"})
    with pytest.raises(common.UsageError, match=r"has no sweep\(\)"):
        list(sweep.proposals(common, None, CONFIG))


def test_kubernetes_jobs_survive_preemption(tmp_path):
    command = executors.train_command(CONFIG, Path("/runs/a"), {"network.multipliers": [1, 2]})
    assert command[-1] == "--config.network.multipliers=(1, 2)"
    job = executors.Job("000-lr=0.001_A", command, Path("/runs/a"))
    other = job._replace(folder=Path("/runs/b"))
    options = {"image": "me/diffjax:1", "claim": "disk", "workdir": Path("/runs")}
    text = executors.kubernetes([job, other], **options, resources={"nvidia.com/gpu": "8"})
    item, second = json.loads(text)["items"]
    assert item["kind"] == "Job" and item["metadata"]["name"].startswith("000-lr-0-001-a-")
    assert item["metadata"]["name"] != second["metadata"]["name"]
    pod = item["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][:3] == ["python", "-m", "experiments.train"]
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/runs"
    rules = item["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [140, 143] and rules[0]["action"] == "Ignore"


def _made_up(folder: Path, **losses: float) -> list[Path]:
    for i, (name, loss) in enumerate(losses.items()):
        run = folder / name
        run.mkdir(parents=True)
        config = {"seed": 0, "optim": {"lr": 0.1 * i}, "train": {"steps": 8}}
        (run / "config.json").write_text(json.dumps(config))
        line = json.dumps({"step": 8, "loss": loss, "steps_per_second": 2.0})
        (run / "metrics.jsonl").write_text(f"{line}\n" + '{"step": 9, "lo')  # being written
    return [folder / name for name in losses]


def test_runs_are_compared_by_what_differs(tmp_path):
    runs = _made_up(tmp_path, a=3.0, b=1.0, c=float("nan"))
    measured = {"precision": 0.5, "note": "text", "inception": {"fid": 7.5, "precision": 0.6}}
    (runs[0] / "evaluation.json").write_text(json.dumps(measured))
    rows = compare.collect(runs)
    numbers = ["precision", "fid", "inception.precision"]
    assert list(rows[0]) == ["run", "optim.lr", "step", "loss", "steps_per_second", *numbers]
    assert compare.best(rows, "loss", "min")["run"] == "b"
    assert compare.best(rows, "loss", "max")["run"] == "a"
    assert compare.best(rows, "fid", "min")["run"] == "a"
    assert compare.best(rows, "kid", "min") is None
    table = compare.text_table(rows).splitlines()
    assert table[0].split() == list(rows[0]) and len({len(t.split()) for t in table[2:]}) == 1
    assert "<b>b</b>" in compare.html_table(rows, rows[1])
    with pytest.raises(common.UsageError, match=r"has no config.json"):
        compare.collect([tmp_path])


def test_progress_shows_every_run(tmp_path, capsys):
    _made_up(tmp_path, a=3.0, b=1.0)
    runs = [Run("a", {}, "running", tries=1), Run("b", {}, "done"), Run("new", {})]
    show = compare.progress_table(tmp_path, runs)
    show()
    show()  # too early for another
    lines = capsys.readouterr().out.split("\n")
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["a", "running", "8/8"],
        ["b", "done", "8/8"],
        ["new", "waiting", "0/?"],
    ]
    assert len(lines) == 6
    show(last=True)
    assert "running" in capsys.readouterr().out


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
