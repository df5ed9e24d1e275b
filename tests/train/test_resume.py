"""What a workdir accepts: its own config and frozen weights, one writer, and numbers."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.base import base
from diffjax.config import resolve
from diffjax.train import (
    CheckpointError,
    CheckpointMismatch,
    Checkpoints,
    NonFiniteLoss,
    Preempted,
    resume,
    train,
)
from diffjax.train import frozen as frozen_weights
from diffjax.train.resume import find_data_differences, find_differences
from diffjax.train.sealed_files import LOCK, sole_writer
from diffjax.train.sharding import with_sharding
from tests.train.tiny import assert_same, batch_at, batches, batches_that, make_config, send
from tests.train.tiny import make_task as task

FROZEN = {"base": {"shift": np.full(4, 0.5, np.float32)}}


def _run(workdir, *, frozen=None, start=batches, make=task, **values):
    config = make_config()
    config.update_from_flattened_dict(values)
    return train(make(), config, workdir, start, frozen=frozen)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run stopped at step 6 of 12, with frozen weights."""
    workdir = tmp_path_factory.mktemp("half")
    with pytest.raises(Preempted):
        _run(workdir, frozen=FROZEN, start=batches_that(send(signal.SIGUSR2), at=6))
    return workdir


@pytest.fixture
def workdir(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("whole"), frozen=FROZEN)


def test_usr2_saves_and_resumes(half, workdir, whole):
    assert sorted(p.name for p in (half / "checkpoints").iterdir()) == ["4", "6"]
    assert_same(_run(workdir, frozen=FROZEN), whole)
    assert Preempted(signal.SIGUSR2, 1).exit_code == 140


@pytest.mark.parametrize(
    "key, value, shown",
    [
        ("optim.lr", 0.1, "optim.lr: 0.05 -> 0.1"),
        ("train.accumulate", 2, "train.accumulate: 1 -> 2"),
        ("seed", 5, "seed: 0 -> 5"),
    ],
)
def test_another_config_is_refused_with_a_diff(workdir, key, value, shown):
    with pytest.raises(CheckpointMismatch, match=rf"another config: {shown}\. .*override=true"):
        _run(workdir, frozen=FROZEN, **{key: value})
    assert int(_run(workdir, frozen=FROZEN, **{key: value, "train.override": True}).step) == 12


def test_what_a_config_leaves_open_is_compared_resolved():
    """A value that equals the default of what is chosen is no difference; another one is."""
    stored = {"config": resume.to_json_tree(base()), "frozen": ""}
    stored["config"]["schedule"].update(beta_start=1e-4, beta_end=0.02)
    resume.check_resume(stored, base(), "", resolve=resolve)
    p2 = base()
    p2.loss.weight = "p2"
    stored["config"]["loss"].update(weight="p2", gamma=5.0)
    with pytest.raises(CheckpointMismatch, match=r"loss.gamma: 5.0 -> 1.0"):
        resume.check_resume(stored, p2, "", resolve=resolve)


def test_more_steps_under_a_decay_are_warned_of(workdir, caplog):
    assert int(_run(workdir, frozen=FROZEN, **{"train.steps": 14}).step) == 14
    assert "train.steps: 12 -> 14: the learning rate, with optim.decay=cosine" in caplog.text


def test_what_changes_no_step_is_free(workdir):
    free = {"train.log_every": 1, "train.keep": 5, "sample.steps": 7, "data.dir": "/elsewhere"}
    assert int(_run(workdir, frozen=FROZEN, **free, **{"network.remat": "blocks"}).step) == 12


def test_another_shape_needs_the_override(workdir):
    wide = lambda: task(width=5)  # noqa: E731
    with pytest.raises(CheckpointMismatch, match=r"net\.w is stored as \(4, 3\)"):
        _run(workdir, frozen=FROZEN, make=wide)
    state = _run(workdir, frozen=FROZEN, make=wide, **{"train.override": True})
    assert int(state.step) == 12 and state.params["net"]["w"].shape == (4, 5)
    assert int(state.extra["seen"]) == 12 * 8  # what fits was kept


def test_differences_are_of_what_both_have():
    old = {"a": {"b": 1, "c": (1, 2)}, "train": {"steps": 3}, "gone": 1}
    new = {"a": {"b": 2, "c": (1, 2), "new": 0}, "train": {"steps": 4}}
    assert find_differences(old, new) == ["a.b: 1 -> 2"]
    assert find_differences(None, {"a": 1}) == []


def test_frozen_weights_are_written_once_by_content(workdir):
    (stored,) = (workdir / "frozen").iterdir()
    assert stored.name == frozen_weights.hash_content(FROZEN)
    times = {p: p.stat().st_mtime_ns for p in stored.rglob("*")}
    _run(workdir, frozen=FROZEN)
    assert times == {p: p.stat().st_mtime_ns for p in stored.rglob("*")}
    size = sum(p.stat().st_size for p in (workdir / "checkpoints" / "12").rglob("*.json"))
    assert size and "shift" not in (workdir / "checkpoints/12/manifest.json").read_text()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: FROZEN)
    abstract = with_sharding(shapes, jax.tree.map(lambda _: place, shapes))
    assert_same(frozen_weights.read(workdir / "frozen", stored.name, abstract), FROZEN)
    with pytest.raises(CheckpointError, match="no frozen weights beef"):
        frozen_weights.read(workdir / "frozen", "beef", abstract)


def test_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, digest = Path("run/frozen"), frozen_weights.hash_content(FROZEN)
    frozen_weights.write_once(folder, digest, jax.device_put(FROZEN))
    abstract = jax.eval_shape(lambda: FROZEN)
    assert_same(frozen_weights.read(folder, digest, abstract), FROZEN)


def test_damaged_frozen_weights_are_noticed_and_written_again(workdir, whole):
    (stored,) = (workdir / "frozen").iterdir()
    data = max(stored.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        frozen_weights.read(workdir / "frozen", stored.name, None)
    assert_same(_run(workdir, frozen=FROZEN), whole)
    shapes = jax.eval_shape(lambda: FROZEN)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = with_sharding(shapes, jax.tree.map(lambda _: place, shapes))
    assert_same(frozen_weights.read(workdir / "frozen", stored.name, abstract), FROZEN)


def test_other_frozen_weights_are_refused(workdir):
    other = {"base": {"shift": np.full(4, 0.5000001, np.float32)}}
    with pytest.raises(CheckpointMismatch, match=r"frozen weights: \w{12} -> \w{12}\."):
        _run(workdir, frozen=other)
    with pytest.raises(CheckpointMismatch, match=r"frozen weights: \w{12} -> none"):
        _run(workdir)
    assert int(_run(workdir, frozen=other, **{"train.override": True}).step) == 12


def test_the_hash_is_of_content_alone():
    value = np.arange(6, dtype=np.float32)
    whole = frozen_weights.hash_content({"a": value, "b": {"c.d": value.reshape(2, 3)}})
    jaxed = {"b": {"c.d": jax.numpy.asarray(value).reshape(2, 3)}, "a": jax.numpy.asarray(value)}
    assert whole == frozen_weights.hash_content(jaxed)
    others = [
        {"a": value, "b": {"c.d": value.reshape(3, 2)}},
        {"a": value, "b": {"c.e": value.reshape(2, 3)}},
        {"a": value.astype(np.int32), "b": {"c.d": value.reshape(2, 3)}},
        {"a": np.where(value == 3, np.float32(3.0000002), value), "b": {"c.d": value}},
    ]
    assert len({whole, *map(frozen_weights.hash_content, others)}) == 5
    assert frozen_weights.hash_content(None) == frozen_weights.hash_content({}) == ""


def test_a_second_writer_is_refused_by_name(workdir):
    before = sorted(os.listdir(workdir / "checkpoints"))
    holder = (
        "import sys, time; from pathlib import Path; from diffjax.train.sealed_files import *\n"
    )
    holder += "with sole_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", holder, str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"is being written by process {other.pid} on"):
            _run(workdir, frozen=FROZEN)
        other.kill()  # however it ends, the lock goes with it
    assert sorted(os.listdir(workdir / "checkpoints")) == before
    assert int(_run(workdir, frozen=FROZEN).step) == 12
    with sole_writer(workdir):
        assert f"process {os.getpid()}" in (workdir / LOCK).read_text()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("diffjax.train.sealed_files.fcntl.flock", flock)
    with sole_writer(tmp_path):
        assert "cannot be locked" in caplog.text


def _log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def test_steps_that_are_not_finite_can_be_skipped(tmp_path):
    bad = lambda: task(nan_at=5)  # noqa: E731
    state = _run(tmp_path, make=bad, **{"train.nonfinite": "skip"})
    assert int(state.step) == 12 and int(state.extra["seen"]) == 11 * 8  # one was not applied
    assert [line["skipped"] for line in _log(tmp_path)] == [0, 1, 0, 0]
    assert all(np.isfinite(list(line.values())).all() for line in _log(tmp_path))
    always = lambda: task(nan_at=5, random=False, until=99)  # noqa: E731
    with pytest.raises(NonFiniteLoss, match="not finite at step 7"):
        _run(tmp_path / "all", make=always, **{"train.nonfinite": "skip"})


def test_rolling_back_leaves_the_bad_batches_out(tmp_path):
    seen = []

    def start(step, sharding):
        while True:
            batch = batch_at(step)
            if step == 5:
                batch["image"][:] = np.inf  # the sixth batch is bad, whenever it comes
            seen.append(step)
            yield jax.device_put(batch, sharding)
            step += 1

    state = _run(tmp_path, start=start, **{"train.nonfinite": "rollback"})
    assert int(state.step) == 12 and all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    # Back to the checkpoint of step 4: batches 4 and 5 are left out from there on.
    restart = seen.index(6, seen.index(5))
    assert seen[-8:] == list(range(6, 14)), seen[restart:]
    assert [line["step"] for line in _log(tmp_path)] == [3, 6, 9, 12]
    resumed = _run(tmp_path, start=start, **{"train.nonfinite": "rollback", "train.steps": 14})
    assert int(resumed.step) == 14 and seen[-2:] == [14, 15]  # the offset is remembered


def test_rolling_back_ends_where_it_does_not_help(tmp_path):
    with pytest.raises(NonFiniteLoss, match="at step 6"):
        _run(tmp_path, make=lambda: task(nan_at=6), **{"train.nonfinite": "rollback"})
    with pytest.raises(ValueError, match=r"unknown train.nonfinite 'retry'"):
        _run(tmp_path, **{"train.nonfinite": "retry"})


PICTURES = {
    "count": 3,
    "bytes": 60,
    "digest": "abc",
    "files": [["a.png", 10], ["b.png", 20], ["c.png", 30]],
}


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A run on known pictures, stopped at step 6 of 12."""
    workdir = tmp_path_factory.mktemp("pictured")
    with pytest.raises(Preempted):
        train(
            task(), make_config(), workdir,
            batches_that(send(signal.SIGUSR2), at=6), data=PICTURES,
        )  # fmt: skip
    return workdir


def _resume(workdir, data, **values):
    return train(task(), make_config(**values), workdir, batches, data=data)


def test_a_checkpoint_says_which_data_it_saw_and_goes_on_with_them(pictured, tmp_path):
    checkpoints = Checkpoints(pictured / "checkpoints")
    assert checkpoints.metadata(6)["data"] == PICTURES
    workdir = shutil.copytree(pictured, tmp_path / "run")
    assert int(_resume(workdir, PICTURES).step) == 12


def test_other_data_are_refused_with_what_differs_and_can_be_overridden(pictured, tmp_path, caplog):
    workdir = shutil.copytree(pictured, tmp_path / "run")
    files = [["a.png", 10], ["b.png", 21], ["d.png", 5], ["e.png", 5]]
    other = {"count": 4, "bytes": 41, "digest": "def", "files": files}
    shown = (
        "other data, which differ in 3 -> 4 images; 2 new files, d.png, e.png; "
        "1 missing files, c.png; 1 files of another size, b.png"
    )
    with pytest.raises(CheckpointMismatch, match=f"{re.escape(shown)}.*train.override=true"):
        _resume(workdir, other)
    assert int(_resume(workdir, other, override=True).step) == 12
    assert shown in caplog.text
    assert Checkpoints(workdir / "checkpoints").metadata(12)["data"] == other


def test_checkpoints_that_do_not_know_their_data_go_on(half, tmp_path):
    workdir = shutil.copytree(half, tmp_path / "run")
    state = train(task(), make_config(), workdir, batches, frozen=FROZEN, data=PICTURES)
    assert int(state.step) == 12


@pytest.mark.parametrize(
    "change, shown",
    [
        ({"digest": "x"}, ["the images, or files beyond those that a checkpoint lists"]),
        ({"captions": "x"}, ["the captions"]),
        ({"classes": "x"}, []),
        ({}, []),
    ],
)
def test_data_differ_by_what_both_fingerprints_know(change, shown):
    known = {**PICTURES, "captions": "of old"}
    assert find_data_differences(known, known | change) == shown
    assert find_data_differences(None, known) == find_data_differences(known, None) == []


def test_pictures_may_be_left_out_when_a_run_goes_on(workdir):
    config = make_config()
    config.data.damaged = "skip"
    assert int(train(task(), config, workdir, batches, frozen=FROZEN).step) == 12
