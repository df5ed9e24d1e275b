"""The loop: stopping changes nothing, errors are loud, and the host stays out of the way."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from diffjax.train import (
    CheckpointError,
    NonFiniteLoss,
    Preempted,
    Reporter,
    train,
    training_loop,
    window,
)
from diffjax.train.checkpoint import CheckpointMismatch
from tests.train.test_checkpoint import small_disk
from tests.train.tiny import assert_same, batches, batches_that, make_config, make_task, send


def _log(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("steps_per_second") >= 0
    return lines


def _steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 12 steps: its state and its log."""
    workdir = tmp_path_factory.mktemp("unbroken")
    state = train(make_task(), make_config(), workdir, batches)
    return state, _log(workdir), workdir


def test_a_run_writes_what_it_promises(unbroken):
    state, log, workdir = unbroken
    assert int(state.step) == 12 and int(state.extra["seen"]) == 12 * 8
    assert [line["step"] for line in log] == [3, 6, 9, 12]
    assert set(log[0]) == {"step", "loss", "bias", "grad_norm", "lr"}
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[0]["lr"] == pytest.approx(0.05)  # the warm-up ends with step 3
    assert _steps(workdir) == [8, 12]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [6, 7])
def test_stop_and_resume_is_bit_identical(unbroken, tmp_path, at, signum):
    # 6 is where a line is due, 7 is in the middle of a line and of a checkpoint interval.
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted, match=f"{signal.Signals(signum).name}; .*step {at} has") as stop:
        train(make_task(), make_config(), tmp_path, batches_that(send(signum), at=at))
    assert stop.value.exit_code == 128 + signum
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert _steps(tmp_path) == [4, at]
    assert _log(tmp_path)[-1]["step"] == at  # nothing that was measured is missing meanwhile
    state = train(make_task(), make_config(), tmp_path, batches)
    assert_same(state, unbroken[0])
    assert _log(tmp_path) == unbroken[1]


def test_a_second_signal_during_the_final_save_changes_nothing(unbroken, tmp_path, monkeypatch):
    def save(self, step, *args, original=training_loop.Checkpoints.save):
        original(self, step, *args)
        if step == 7:
            for signum in (signal.SIGTERM, signal.SIGINT):
                send(signum)()

    monkeypatch.setattr(training_loop.Checkpoints, "save", save)
    with pytest.raises(Preempted, match="SIGTERM; the state of step 7"):
        train(make_task(), make_config(), tmp_path, batches_that(send(signal.SIGTERM), at=7))
    assert_same(train(make_task(), make_config(), tmp_path, batches), unbroken[0])


def test_parameters_to_begin_with_are_asked_for_once(tmp_path):
    calls, width = [], 3

    def given(width=width):
        calls.append(width)
        return {"net": {"w": np.full((4, width), 0.3, "f4"), "b": np.zeros(4, "f4")}}

    config = make_config(steps=0)
    config.optim.decay = "constant"
    state = train(make_task(), config, tmp_path / "run", batches, initial=given)
    assert_same(state.params, jax.tree.map(jax.numpy.asarray, given()))
    assert_same(state.params, state.ema)
    calls.clear()
    config.train.steps = 3
    state = train(make_task(), config, tmp_path / "run", batches, initial=given)
    assert int(state.step) == 3 and not calls
    with pytest.raises(ValueError, match=r"\['w'\]: \(4, 2\) where the task has \(4, 3\)"):
        train(make_task(), config, tmp_path / "other", batches, initial=lambda: given(2))


def test_a_finished_run_is_left_alone(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[2], tmp_path / "copy")
    assert_same(train(make_task(), make_config(), workdir, batches), unbroken[0])
    assert _log(workdir) == unbroken[1]


def test_time_limit_saves_and_goes_on_later(unbroken, tmp_path):
    config = make_config(minutes=1e-9)
    assert int(train(make_task(), config, tmp_path, batches).step) == 0
    assert_same(train(make_task(), make_config(), tmp_path, batches), unbroken[0])


def test_log_is_cut_to_the_resumed_step(unbroken, tmp_path):
    # Killed after the line of step 9, while writing another; the newest checkpoint is of step 8.
    workdir = shutil.copytree(unbroken[2], tmp_path / "copy")
    shutil.rmtree(workdir / "checkpoints" / "12")
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + '{"step": 12, "lo')
    assert_same(train(make_task(), make_config(), workdir, batches), unbroken[0])
    assert _log(workdir) == unbroken[1]


@pytest.mark.parametrize(
    "tail", ['{"step": 5, "loss": 1.0}', '{"step": 5,', "5\n", "\xff\x00\n", "[]\n"]
)
def test_log_with_a_cut_last_line(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 4, "loss": 2.0}\n' + tail.encode("latin-1"))
    reporter = Reporter(tmp_path, resumed=5)
    reporter(6, {"loss": 0.5})
    reporter.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == ([4, 5, 6] if tail.endswith("}") else [4, 6])


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(
        "diffjax.train.reporter.logging.warning", lambda text, *a: lines.append(text % a)
    )
    return lines


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (b'{"step": 5, "loss": 1.0}', None),  # whole, but for the end of the line
        (b'{"step": 5, "lo', "is cut: the metrics of step 5 are lost"),
        (b'{"step": 5, "loss": 1.0', "the metrics of step 5 are lost"),
        (b'{"step": 7, "lo', None),  # the run comes to it again
        (b'{"step": 5', "the metrics of a step are lost"),  # or 50
        (b'{"st', "the metrics of a step are lost"),
        (b"\xff\x00", "the metrics of a step are lost"),
        (b"[" * 100_000, "the metrics of a step are lost"),
        (b"\n\n", None),
    ],
)
def test_a_lost_step_of_the_log_is_said(tmp_path, warnings, tail, said):
    path = tmp_path / "metrics.jsonl"
    # Signs that end a line elsewhere end none of JSON lines.
    head = '{"step": 3, "note": "\u2028\x85"}\n{"step": 4,"loss": NaN}\n'.encode()
    path.write_bytes(head + tail)
    Reporter(tmp_path, resumed=5).close()
    whole = tail + b"\n" if tail.endswith(b"}") else b""
    assert path.read_bytes() == head + whole
    assert len(warnings) == (said is not None) and all(said in line for line in warnings)
    assert not list(tmp_path.glob("metrics.jsonl.*"))


def test_a_log_of_somebody_else_is_kept(tmp_path, warnings):
    path = tmp_path / "metrics.jsonl"
    theirs = b'{"epoch": 1, "loss": 2}\n{"step": 2}\n{"step": "3"}\n{"epoch": 4, "lo'
    path.write_bytes(theirs)
    (tmp_path / "metrics.jsonl.1.old").write_text("older")
    Reporter(tmp_path, resumed=2).close()
    assert path.read_bytes() == b'{"step": 2}\n'
    assert (tmp_path / "metrics.jsonl.2.old").read_bytes() == theirs
    assert (tmp_path / "metrics.jsonl.1.old").read_text() == "older"
    assert any("2 lines of" in line and "metrics.jsonl.2.old keeps" in line for line in warnings)


def test_a_config_of_somebody_else_is_not_replaced(tmp_path):
    for text in ('{"_class_name": "UNet2DModel"}', "no JSON", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(FileExistsError, match=r"config\.json is not the config of a run"):
            train(make_task(), make_config(), tmp_path, batches)
        assert (tmp_path / "config.json").read_text() == text


def test_tensorboard_gets_scalars_and_images(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with Reporter(tmp_path, resumed=3) as reporter:
        reporter(4, {"loss": 0.25})
        reporter.image("samples", 4, np.zeros((2, 2, 3), np.uint8))
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:  # length, checksum, event, checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert [(e.step, e.session_log.status) for e in events if e.HasField("session_log")] == [(4, 1)]
    values = {v.tag: v for e in events for v in e.summary.value if e.step == 4}
    assert values["loss"].simple_value == 0.25
    assert values["samples"].image.height == 2


@pytest.mark.parametrize("bad", [5, 7])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    with pytest.raises(NonFiniteLoss, match=rf"not finite at step {bad} \(loss nan.*optim.lr"):
        train(make_task(nan_at=bad), make_config(), tmp_path, batches)
    assert _steps(tmp_path) == [4]
    assert [line["step"] for line in _log(tmp_path)] == [3] + [6] * (bad > 6)
    # What is left is good: the same run without the fault goes on from it, to the same end.
    state = train(make_task(), make_config(), tmp_path, batches)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_loss_that_is_not_finite_before_any_checkpoint_saves_nothing(tmp_path):
    with pytest.raises(NonFiniteLoss, match="at step 1 "):
        train(make_task(nan_at=1), make_config(), tmp_path, batches)
    assert _steps(tmp_path) == []


def test_a_damaged_newest_checkpoint_costs_its_interval_only(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[2], tmp_path / "copy")
    (workdir / "checkpoints" / "12" / "state" / "_METADATA").unlink()
    assert_same(train(make_task(), make_config(), workdir, batches), unbroken[0])
    assert _log(workdir) == unbroken[1]
    # Step 12 has been written anew: it is what the next start finds.
    assert_same(train(make_task(), make_config(), workdir, batches_that(pytest.fail, at=2)),
                unbroken[0])  # fmt: skip


def test_checkpoints_of_another_config_or_all_damaged_stop_the_run(unbroken, tmp_path):
    workdir = shutil.copytree(unbroken[2], tmp_path / "copy")
    with pytest.raises(CheckpointMismatch, match=r"params\.net\.w is stored as \(4, 3\)"):
        train(make_task(width=5), make_config(), workdir, batches)
    for step in (workdir / "checkpoints").iterdir():
        (step / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint under"):
        train(make_task(), make_config(), workdir, batches)
    assert _log(workdir) == unbroken[1]


def test_the_stored_config_is_the_one_that_fits_the_checkpoints(unbroken, tmp_path):
    def stored():
        return json.loads((tmp_path / "config.json").read_text())

    with pytest.raises(NonFiniteLoss):  # nothing is saved: what comes next may differ
        train(make_task(nan_at=1), make_config(), tmp_path, batches)
    other = make_config(override=True)
    other.optim.clip = 0.25
    train(make_task(), other, tmp_path, batches)
    assert stored()["optim"]["clip"] == 0.25 and not stored()["train"]["override"]
    with pytest.raises(CheckpointMismatch):
        train(make_task(), make_config(), tmp_path, batches)
    assert stored()["optim"]["clip"] == 0.25


def test_a_run_that_only_skips_saves_when_it_is_told_to_stop(tmp_path):
    config = make_config(nonfinite="skip", log_every=12)
    with pytest.raises(Preempted, match="the state of step 5 has been saved"):
        train(make_task(nan_at=1, until=12), config, tmp_path,
              batches_that(send(signal.SIGTERM), at=5))  # fmt: skip
    assert _steps(tmp_path) == [4, 5]


def test_a_workdir_that_cannot_be_written_fails_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to workdir .*file/run: Not a directory"):
        train(make_task(), make_config(), tmp_path / "file" / "run", pytest.fail)


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every"])
def test_intervals_are_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"train.{name}=0"):
        train(make_task(), make_config(**{name: 0}), tmp_path / "run", pytest.fail)


def test_full_disk_stops_the_log_loudly(tmp_path):
    with small_disk(tmp_path / "disk", "1M") as disk:
        reporter = Reporter(disk)
        reporter(1, {"loss": 1.0})
        with open(disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(OSError, match=f"cannot write metrics under {disk}: No space left"):
            for step in range(2, 200):
                reporter(step, {"loss": 1.0})
        (disk / "ballast").unlink()
        with Reporter(disk, resumed=1) as reporter:
            reporter(2, {"loss": 0.5})
        lines = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
        assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_failed_save_stops_the_run_at_once(tmp_path, monkeypatch):
    done = []

    def commit(self, step, response):
        response.result()
        done.append(step)
        raise OSError(28, "No space left on device")

    def start(step, sharding):
        for number, batch in enumerate(batches(step, sharding), step + 1):
            end = time.monotonic() + 300
            while number > 5 and not done and time.monotonic() < end:
                time.sleep(0.01)
            asked.append(number)
            yield batch

    asked = []
    monkeypatch.setattr(training_loop.Checkpoints, "_commit", commit)
    with pytest.raises(CheckpointError, match=r"step 4 could not be written.*No space left"):
        train(make_task(), make_config(steps=500), tmp_path, start)
    assert max(asked) < 10  # not at the next save, nor at the end


def test_previews_come_on_time_and_not_after_a_signal(tmp_path):
    seen = []
    config = make_config(sample_every=2, steps=6)
    with pytest.raises(Preempted):
        train(
            make_task(),
            config,
            tmp_path,
            batches_that(send(signal.SIGTERM), at=4),
            on_sample=lambda state, frozen, step, reporter: seen.append((int(state.step), step)),
        )
    assert seen == [(2, 2)]


def test_nothing_is_compiled_after_the_first_line(tmp_path):
    times = []
    counts = {}

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            times.append(name)

    def counting(step, sharding):
        for number, batch in enumerate(batches(step, sharding), step):
            counts[number] = len(times)
            yield batch

    config = make_config(steps=30, log_every=2, checkpoint_every=6)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(make_task(), config, tmp_path, counting)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[1] > 0
    # The learning rate of a line is computed eagerly: its few scalars compile until the warm-up
    # has ended; the step itself was compiled once.
    assert counts[8] == counts[29]


def test_the_host_runs_a_bounded_number_of_steps_ahead(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x))
    lines = window.Window(lambda step, line: None, 0, [])
    for step in range(6):
        lines.add({"loss": step})
        assert waited == list(range(step - window.LOOK_AHEAD + 1))


# ---- evaluation ----------------------------------------------------------------------------


def _measure(state, frozen, step):
    """A value that is best in the middle of the run."""
    return {"distance": abs(step - 6.5) + float(state.step) * 0, "precision": 0.5}


def test_evaluations_stand_in_the_log_and_the_best_state_is_kept(unbroken, tmp_path):
    config = make_config(evaluate_every=3)
    state = train(make_task(), config, tmp_path, batches, on_evaluate=_measure)
    assert_same(state, unbroken[0])  # looking changes nothing
    log = _log(tmp_path)
    assert [line["distance"] for line in log] == [3.5, 0.5, 2.5, 5.5]
    assert [{k: line[k] for k in line if k not in ("distance", "precision")} for line in log] == (
        unbroken[1]
    )
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["6"]
    assert _steps(tmp_path) == [8, 12]


def test_evaluations_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path):
    config = make_config(evaluate_every=6)
    logs = []
    for name, at in (("whole", None), ("stopped", 7)):
        folder = tmp_path / name
        if at:
            with pytest.raises(Preempted):
                stopping = batches_that(send(signal.SIGTERM), at=at)
                train(make_task(), config, folder, stopping, on_evaluate=_measure)
        train(make_task(), config, folder, batches, on_evaluate=_measure)
        logs.append(_log(folder))
        assert [p.name for p in (folder / "best").iterdir()] == ["6"]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0] if "distance" in line] == [6, 12]


def test_wrong_evaluation_settings(tmp_path):
    with pytest.raises(ValueError, match="evaluate_every=4 must be a multiple"):
        train(make_task(), make_config(evaluate_every=4), tmp_path, batches, on_evaluate=_measure)
    config = make_config(evaluate_every=3)
    config.eval.best = "fid"
    with pytest.raises(ValueError, match="'fid' was not measured, but distance, precision"):
        train(make_task(), config, tmp_path, batches, on_evaluate=_measure)
