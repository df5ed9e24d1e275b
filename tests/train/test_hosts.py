"""Two processes on this machine, joined by gloo: they stop, save and resume as one."""

import os
import signal
import socket
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from diffjax.train import hosts
from diffjax.train.sharding import find_host_share
from tests.train.test_faults import TINY, Runs, _log, _readable, _state, _steps, _wait_for


def _free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


OPTIONS = "checkpoint_every=2", "log_every=1"


class Pair:
    """Runs of two processes, two devices each; process 1 is started first."""

    def __init__(self, folder):
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        self.servers = []
        for i in (0, 1):
            (folder / str(i)).mkdir()
            self.servers.append(Runs(folder / str(i), **flags))

    def start(self, workdir, *overrides, ranks=(1, 0), wait=120, heartbeat=100, **env):
        port = _free_port()
        flags = f"--coordinator=localhost:{port}", "--num_processes=2"
        flags = *flags, f"--wait={wait}", f"--heartbeat={heartbeat}"
        return {
            rank: self.servers[rank].start(
                workdir, *OPTIONS, *overrides, flags=(*flags, f"--process_id={rank}"), **TINY, **env
            )
            for rank in ranks
        }

    def end(self, *ranks):
        return [self.servers[rank].end() for rank in ranks or (0, 1)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    both = Pair(tmp_path_factory.mktemp("pair"))
    yield both
    for server in both.servers:
        server.close()


def _same_values(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-6)


def _stopped(pair, workdir, victim):
    """The step at which a signal to one process has stopped both."""
    pids = pair.start(workdir, "steps=300", "checkpoint_every=300", STEP_SECONDS="0.02")
    log = workdir / "metrics.jsonl"
    _wait_for(lambda: log.exists() and log.read_text().count("\n") >= 3)
    os.kill(pids[victim], signal.SIGTERM)
    (code, first), (other, second) = pair.end()
    assert (code, other) == (143, 143), first + second
    (step,) = _steps(workdir)
    for output in (first, second):
        assert f"stopped by SIGTERM; the state of step {step} has been" in _readable(output)
    assert 3 <= step < 300 and int(_state(workdir)[1].step) == step
    return step


def test_a_signal_to_one_stops_both_and_one_alone_goes_on(pair, tmp_path):
    step = _stopped(pair, tmp_path, victim=1)
    code, output = pair.servers[0].run(tmp_path, *OPTIONS, f"steps={step + 2}", **TINY)
    assert code == 0 and f"resumed at step {step}" in output, output
    assert [line["step"] for line in _log(tmp_path)] == list(range(1, step + 3))
    assert int(_state(tmp_path)[1].extra["seen"]) == (step + 2) * 4  # no batch twice or left out


@pytest.mark.slow
def test_two_processes_then_one_then_two_are_as_one(pair, tmp_path):
    alone, workdir = tmp_path / "alone", tmp_path / "pair"
    whole = "steps=60", "checkpoint_every=60"
    code, output = pair.servers[0].run(alone, *OPTIONS, *whole, **TINY)
    assert code == 0, output
    step = 0
    for processes in (2, 1, 2):  # each stopped on the way, but for the last
        if processes == 1:
            pid = pair.servers[0].start(workdir, *OPTIONS, *whole, STEP_SECONDS="0.1", **TINY)
            _wait_for(lambda past=step + 3: _log(workdir)[-1]["step"] > past)
            os.kill(pid, signal.SIGTERM)
            code, output = pair.servers[0].end()
            assert code == 143 and f"resumed at step {step}" in output
        else:
            pids = pair.start(workdir, *whole, STEP_SECONDS="0.1" if not step else "0")
            if not step:
                _wait_for(lambda: (workdir / "metrics.jsonl").exists() and len(_log(workdir)) > 3)
                os.kill(pids[0], signal.SIGTERM)
            codes = [code for code, _ in pair.end()]
            assert codes == ([0, 0] if step else [143, 143])
        step = max(_steps(workdir))
    assert step == 60
    for theirs, ours in zip(_log(alone), _log(workdir), strict=True):
        assert theirs["step"] == ours["step"]
        np.testing.assert_allclose(theirs["loss"], ours["loss"], rtol=1e-5)
    _same_values(_state(alone)[1], _state(workdir)[1])


def test_a_process_that_does_not_come_is_named(pair, tmp_path):
    for rank, missing in ((0, 1), (1, 0)):  # the one that waits, the one that calls
        pair.start(tmp_path / str(rank), ranks=(rank,), wait=2)
        ((code, output),) = pair.end(rank)
        assert code == 1
        assert f"process {missing} did not reach 'start' within 2 s" in _readable(output)
        assert not (tmp_path / str(rank)).exists()


@pytest.mark.slow
def test_the_survivor_of_a_killed_process_exits_and_a_restart_resumes(pair, tmp_path):
    options = "steps=60", "checkpoint_every=5"
    pair.start(tmp_path / "whole", *options)
    assert [code for code, _ in pair.end()] == [0, 0]
    for victim in (1, 0):
        workdir = tmp_path / f"victim-{victim}"
        pids = pair.start(workdir, *options, heartbeat=10, STEP_SECONDS="0.05")
        _wait_for(lambda w=workdir: len(_steps(w) if w.exists() else []) == 2)
        newest = max(_steps(workdir))
        os.kill(pids[victim], signal.SIGKILL)
        codes = [code for code, _ in pair.end()]
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 143)
        assert max(_steps(workdir)) >= newest
        pair.start(workdir, *options)
        (code, output), (other, _) = pair.end()
        assert (code, other) == (0, 0) and "resumed at step" in output, output
        assert _log(workdir) == _log(tmp_path / "whole")
        _same_values(_state(workdir)[1], _state(tmp_path / "whole")[1])


class _Device(NamedTuple):
    id: int
    process_index: int


@pytest.mark.parametrize(
    ("rows", "expected"),  # of four devices, two on each host
    [
        (((0, 2), (2, 4), (4, 6), (6, 8)), [(0, 2), (1, 2)]),  # all split the batch
        (((0, 4), (0, 4), (4, 8), (4, 8)), [(0, 2), (1, 2)]),  # tensor within a host
        (((0, 4), (4, 8), (0, 4), (4, 8)), [(0, 1), (0, 1)]),  # tensor over the hosts
        (((None, None),) * 4, [(0, 1), (0, 1)]),  # not split at all
    ],
)
def test_hosts_read_what_their_devices_hold(monkeypatch, rows, expected):
    class Placement:
        def devices_indices_map(self, shape):
            return {_Device(i, i // 2): (slice(*own), slice(None)) for i, own in enumerate(rows)}

    for host, share in enumerate(expected):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        assert find_host_share(Placement(), 8) == share


def test_hosts_with_scattered_rows_are_refused(monkeypatch):
    class Placement:
        def devices_indices_map(self, shape):
            return {_Device(i, i % 2): (slice(2 * i, 2 * i + 2),) for i in range(4)}

    with pytest.raises(ValueError, match=r"process 0 has rows \[\(0, 2\), \(4, 6\)\] of a batch"):
        find_host_share(Placement(), 8)


def test_the_first_process_goes_first(monkeypatch):
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "agree", lambda name, value, **_: said.append(value) or value)
    assert hosts.run_in_turn("data", lambda: list(said)) == [] and said == [""]

    def broken():
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        hosts.run_in_turn("data", broken)
    assert said == ["", "no data"]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "agree", lambda name, value, **_: "no data")
    with pytest.raises(RuntimeError, match="process 0: no data"):
        hosts.run_in_turn("data", pytest.fail)


def test_tpu_hosts_are_joined(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(a))
    hosts.start()
    assert joined == []
    monkeypatch.setattr(cloud_tpu_cluster.GceTpuCluster, "is_env_present", lambda: True)
    hosts.start()
    assert joined == [()]


def test_processes_that_were_not_joined_are_told_so(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"call diffjax.train.hosts.start before"):
        hosts.barrier("checkpoint")


def test_one_process_decides_for_itself(monkeypatch):
    assert hosts.is_writer() and hosts.agree("anything", "mine") == "mine"
    hosts.barrier("nobody else")
    hosts.start()
    for coordinator, processes, process in (("here", 2, 0), ("h:1", 2, 2), ("h:1", 0, -1)):
        with pytest.raises(ValueError, match=f"process {process} of {processes}: needed are"):
            hosts.start(coordinator, processes, process)


def test_a_late_process_is_named_at_a_barrier(monkeypatch):
    class Client:
        def wait_at_barrier(self, name, milliseconds):
            assert name.startswith("checkpoint/") and milliseconds == 1500
            text = "Barrier timed out. # of tasks that reached the barrier: 1/3. The first task at "
            raise jax.errors.JaxRuntimeError(
                text + "the barrier: 0. Some timed out task names:\n1\n2\n\nRPC: /xla"
            )

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "_get_client", Client)
    with pytest.raises(hosts.MissingProcess, match=r"processes \[1, 2\] did not reach 'checkpoint"):
        hosts.barrier("checkpoint", seconds=1.5)


@pytest.mark.slow
def test_a_late_process_is_named_for_real(tmp_path):
    script = (
        "import sys, time\n"
        "from diffjax.train import hosts\n"
        "hosts.start(sys.argv[1], 2, int(sys.argv[2]), seconds=60)\n"
        "if sys.argv[2] == '1': time.sleep(8)\n"
        "else:\n"
        "    try: hosts.barrier('save', seconds=2)\n"
        "    except hosts.MissingProcess as error: print(error)\n"
    )
    port = _free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, f"localhost:{port}", str(rank)],
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
        )
        for rank in (0, 1)
    ]
    output = [process.communicate(timeout=120)[0] for process in both]
    assert "process 1 did not reach 'save' within 2 s" in output[0]
