"""summary.json: sessions add up, and the first process writes it alone."""

import json

import pytest

from diffjax.config import make
from diffjax.runs import Record, is_trained
from diffjax.train import hosts

CONFIG = make({"data.batch_size": 4, "seed": 3})


def read(folder):
    return json.loads((folder / "summary.json").read_text())


def test_sessions_of_a_run_are_added(tmp_path):
    first = Record(tmp_path, CONFIG, 1234)
    assert 0 <= first.count_minutes() < 1
    first.write_session(10)
    found = read(tmp_path)
    assert (found["parameters"], found["steps"], found["images"]) == (1234, 10, 40)
    assert (found["finished"], found["seed"]) == (False, 3) and found["devices"]
    Record(tmp_path, CONFIG, 1234).write_session(25, finished=True)
    found = read(tmp_path)
    assert [s["to_step"] for s in found["sessions"]] == [10, 25] and found["finished"]
    for key in ("wall_seconds", "cpu_seconds"):
        assert found[key] == pytest.approx(sum(s[key] for s in found["sessions"]))


def test_the_step_is_that_of_the_newest_checkpoint(tmp_path):
    for step in ("2", "10"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    Record(tmp_path, CONFIG, 1).write_session()
    assert read(tmp_path)["steps"] == 10


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_writer", lambda: False)
    Record(tmp_path, CONFIG, 1).write_session(3)
    assert not any(tmp_path.iterdir())


def test_a_run_is_trained_once_it_has_a_checkpoint(tmp_path):
    assert not is_trained(None) and not is_trained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert not is_trained(tmp_path)
    (tmp_path / "best" / "7").mkdir(parents=True)
    assert is_trained(tmp_path)
