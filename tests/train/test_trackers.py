"""Trackers with a fake package, whose calls are looked at, and with the real ones if installed."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optax
import pytest

from diffjax.train import Preempted, Reporter, train
from diffjax.train.trackers import ID_FILE, TRACKERS, check_trackers, start_trackers
from diffjax.types import ConfigError
from tests.train.tiny import batches, batches_that, make_config, make_task, send

FAKE_WANDB = """
calls, fail = [], set()

def note(kind, /, **what):
    calls.append((kind, what))
    if kind in fail:
        raise RuntimeError(f"no network in {kind}\\nand more")

class Run:
    def define_metric(self, name, step_metric):
        note("define", name=name, step=step_metric)
    def log(self, values):
        note("log", **values)
    def finish(self):
        note("finish")

def init(**options):
    note("init", **options)
    return Run()

def Settings(**options):
    return options

def Image(picture):
    return picture.mode, picture.size
"""
FAKE_TRACKIO = """
calls = []

class Run:
    def log(self, values, step):
        calls.append(("log", {"step": step, **values}))

def init(**options):
    calls.append(("init", options))
    return Run()

def finish():
    calls.append(("finish", {}))

def Image(picture):
    return picture.mode, picture.size
"""


@pytest.fixture
def packages(tmp_path_factory, monkeypatch):
    """Packages wandb and trackio that note what they are called with, by name."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "wandb.py").write_text(FAKE_WANDB)
    (folder / "trackio.py").write_text(FAKE_TRACKIO)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("wandb", "trackio"):
        for loaded in [key for key in sys.modules if key.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    found = {name: importlib.import_module(name) for name in ("wandb", "trackio")}
    yield found
    for name in found:
        sys.modules.pop(name, None)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        "diffjax.train.trackers.logging.warning", lambda text, *a: lines.append(text % a)
    )
    return lines


def _select(package, name):
    return [what for kind, what in package.calls if kind == name]


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _config(*names, **values):
    return make_config(trackers=names, **values)


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_tracker_gets_the_lines_of_the_log_and_the_pictures(packages, tmp_path, name):
    def draw(state, frozen, step, reporter):
        reporter.image("samples", step, np.zeros((4, 6, 1), np.uint8))
        reporter.image("hints", step, np.zeros((4, 6, 3), np.uint8))

    workdir = tmp_path / "sweep" / "digits"
    config = _config(name, sample_every=6)
    train(make_task(), config, workdir, batches, on_sample=draw)
    package = packages[name]
    (begun,) = _select(package, "init")
    code = (workdir / ID_FILE).read_text().strip()
    assert begun["project"] == "sweep" and begun["resume"] == "allow"
    assert begun["config"]["optim"]["lr"] == 0.05 and begun["config"]["train"]["trackers"] == [name]
    if name == "wandb":
        assert (begun["name"], begun["id"], begun["dir"]) == ("digits", code, str(workdir))
        assert _select(package, "define") == [{"name": "*", "step": "step"}]
    else:
        assert begun["name"] == f"digits-{code}"
    logged = _select(package, "log")
    assert [line for line in logged if "loss" in line] == _lines(workdir)
    assert [line for line in logged if "loss" not in line] == [
        {"step": step, key: (mode, (6, 4))}
        for step in (6, 12)
        for key, mode in (("samples", "L"), ("hints", "RGB"))
    ]
    assert package.calls[-1][0] == "finish"
    other = packages["trackio" if name == "wandb" else "wandb"]
    assert not other.calls


def test_a_resumed_run_goes_on_under_its_id(packages, tmp_path):
    config = _config("wandb", "trackio")
    with pytest.raises(Preempted):
        train(make_task(), config, tmp_path, batches_that(send(signal.SIGTERM), at=7))
    assert _select(packages["wandb"], "finish")  # closed though the run was stopped
    train(make_task(), config, tmp_path, batches)
    for package, key in ((packages["wandb"], "id"), (packages["trackio"], "name")):
        first, second = _select(package, "init")
        assert first[key] == second[key]
        assert {line["step"] for line in _select(package, "log")} == {3, 6, 7, 9, 12}
    train(make_task(), config, tmp_path / "other", batches)
    assert _select(packages["wandb"], "init")[-1]["id"] != first["name"].rpartition("-")[2]


def test_a_rollback_keeps_the_tracker_open(packages, tmp_path):
    config = _config("wandb", nonfinite="rollback")
    config.train.steps = 9
    task = make_task(nan_at=6, until=6)  # the loss of one step, whatever its batch
    with pytest.raises(RuntimeError, match="not finite at step 6"):
        train(task, config, tmp_path, batches)
    assert [kind for kind, _ in packages["wandb"].calls].count("init") == 1


@pytest.mark.parametrize("where", ["init", "define", "log", "finish"])
def test_a_tracker_that_fails_warns_once(packages, tmp_path, warnings, where):
    packages["wandb"].fail.add(where)
    names = ["wandb", "trackio"]
    with (
        start_trackers(names, tmp_path, make_config()) as trackers,
        Reporter(tmp_path, trackers=trackers) as reporter,
    ):
        for step in (1, 2):
            reporter(step, {"loss": 0.5})
            reporter.image("samples", step, np.zeros((4, 6, 3), np.uint8))
    (warning,) = warnings
    assert warning.startswith(f"wandb does not track this run any further: no network in {where}.")
    assert "and more" not in warning and "metrics.jsonl" in warning
    assert len(_select(packages["wandb"], where)) == 1
    assert len(_select(packages["trackio"], "log")) == 4  # the others go on
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_a_tracker_that_fails_never_stops_the_training(packages, tmp_path, warnings):
    packages["wandb"].fail.update(["log", "finish"])
    state = train(make_task(), _config("wandb"), tmp_path, batches)
    assert int(state.step) == 12 and len(_lines(tmp_path)) == 4 and len(warnings) == 1


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = r"train\.trackers has 'wandb'.*pip install 'diffjax\[wandb\]'"
    with pytest.raises(ConfigError, match=wanted):
        train(make_task(), _config("wandb"), tmp_path / "run", batches)
    assert not (tmp_path / "run").exists()  # before anything is written


def test_a_folder_that_wandb_left_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="not installed"):
        check_trackers(["wandb"])


def test_an_unknown_tracker_lists_the_choices():
    with pytest.raises(ConfigError, match=r"'wandbb'; choose one of trackio, wandb.*mean 'wandb'"):
        check_trackers(["wandbb"])


def test_a_damaged_id_is_replaced_with_a_warning(packages, tmp_path, warnings):
    (tmp_path / ID_FILE).write_text("../../etc\n")
    with start_trackers(["wandb"], tmp_path, make_config()):
        pass
    (line,) = warnings
    assert str(tmp_path / ID_FILE) in line
    (begun,) = _select(packages["wandb"], "init")
    assert begun["id"] == (tmp_path / ID_FILE).read_text().strip() and len(begun["id"]) == 8


def test_ones_own_callback_gets_every_line(tmp_path):
    lines = []
    config = make_config(evaluate_every=6)
    train(
        make_task(),
        config,
        tmp_path,
        batches,
        on_evaluate=lambda state, frozen, step: {"distance": 1.0 / step},
        on_metrics=lambda step, metrics: lines.append({"step": step, **metrics}),
    )
    assert lines == _lines(tmp_path) and [line["step"] for line in lines] == [3, 6, 9, 12]
    assert "distance" in lines[1] and "distance" not in lines[0]
    assert not (tmp_path / ID_FILE).exists()  # which only trackers need


def test_an_error_of_ones_own_callback_is_not_hidden(tmp_path):
    def stop(step, metrics):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(make_task(), make_config(), tmp_path, batches, on_metrics=stop)


def test_an_optimizer_by_value_takes_the_place_of_the_configs(tmp_path):
    config = make_config(steps=6, log_every=6)
    config.optim.name = "nothing of optax"
    still = train(make_task(), config, tmp_path, batches, optimizer=optax.sgd(0.0))
    (line,) = _lines(tmp_path)
    assert "lr" not in line  # which the config would be wrong about
    np.testing.assert_array_equal(still.params["net"]["b"], 0.0)
    assert int(still.step) == 6


# ---- the real packages, each in a process of its own ----------------------------------------


def _train_twice(workdir, name):
    """A run that is stopped at step 7 and goes on."""

    def draw(state, frozen, step, reporter):
        reporter.image("samples", step, np.full((8, 8, 1), 128, np.uint8))

    config = _config(name, sample_every=6)
    with pytest.raises(Preempted):
        train(
            *(make_task(), config, workdir, batches_that(send(signal.SIGTERM), at=7)),
            on_sample=draw,
        )
    train(make_task(), config, workdir, batches, on_sample=draw)


def _run_real(workdir, name, more="", **env):
    """`_train_twice` in a process that uses the installed package; gives what it wrote."""
    code = "import sys; from pathlib import Path; from tests.train import test_trackers as t; "
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}t._train_twice(Path(sys.argv[1]), {name!r}); {more}",
            workdir,
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HOME": str(workdir.parent), "PYTHONPATH": os.pathsep.join(sys.path)}
        | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr
    steps = [line["step"] for line in _lines(workdir)]
    assert steps == [3, 6, 9, 12]
    return out.stdout, out.stderr


def test_wandb_itself_offline(tmp_path):
    pytest.importorskip("wandb")
    workdir = tmp_path / "runs" / "digits"
    _, log = _run_real(workdir, "wandb", WANDB_MODE="offline")
    assert "does not track" not in log
    folders = list((workdir / "wandb").glob("offline-run-*"))
    code = (workdir / ID_FILE).read_text().strip()
    assert len(folders) == 2 and all(folder.name.endswith(f"-{code}") for folder in folders)
    assert all(list(folder.rglob("samples_*.png")) for folder in folders)


def test_wandb_itself_where_nobody_is_logged_in(tmp_path):
    pytest.importorskip("wandb")
    workdir = tmp_path / "runs" / "digits"
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online", "WANDB_API_KEY": ""}
    _, log = _run_real(workdir, "wandb", **env)
    assert "wandb does not track this run any further" in log


def test_trackio_itself(tmp_path):
    pytest.importorskip("trackio")
    workdir = tmp_path / "runs" / "digits"
    show = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as s; "
        "n, = s.get_runs('runs'); print(json.dumps([n, s.get_logs('runs', n)]))"
    )
    out, log = _run_real(workdir, "trackio", show, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert "does not track" not in log
    name, logs = json.loads(out.splitlines()[-1])
    assert name == f"digits-{(workdir / ID_FILE).read_text().strip()}"
    assert sorted(line["step"] for line in logs if "loss" in line) == [3, 6, 7, 9, 12]
    assert [line["step"] for line in logs if "samples" in line] == [6, 12]
