"""Several processes of one run: they start together, decide together and wait within bounds.

With one process everything here returns at once.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from absl import logging

WAIT_SECONDS = 900.0  # longest wait at a barrier; more than the slowest checkpoint takes
Value = TypeVar("Value")
_numbers = itertools.count()  # every process counts the same decisions in the same order


class MissingProcess(RuntimeError):
    """A process of the run did not come in time."""


def start(
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    *,
    seconds: float = 300.0,
    heartbeat: float = 100.0,
) -> None:
    """Join the other processes of the run. Call it before anything touches a device.

    Without a coordinator, JAX detects Slurm steps of several tasks and TPU pods; everything else is
    a single process.

    Args:
        coordinator: host:port of process 0.
        processes: how many there are; 0 in a Slurm step: as many as it has tasks.
        process: number of this one, from 0; -1 in a Slurm step: that of its task.
        seconds: how long to wait for the others.
        heartbeat: after how many seconds of silence a process counts as dead; the others exit.

    Raises:
        MissingProcess: some processes did not come; the message names them.
        ValueError: incomplete or wrong arguments.
    """
    initialize = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=int(seconds),
        heartbeat_timeout_seconds=int(heartbeat),
    )
    if coordinator:
        processes = processes or int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))
        process = int(os.environ.get("SLURM_PROCID", -1)) if process < 0 else process
        if not 0 <= process < processes or ":" not in coordinator:
            raise ValueError(
                f"coordinator {coordinator!r}, process {process} of {processes}: needed are "
                "HOST:PORT, the number of processes, and a process from 0 to one less"
            )
        _meet(coordinator, processes, process, seconds)
        initialize(coordinator, processes, process)
    elif _is_in_cluster():
        initialize()
    else:
        return
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def _is_in_cluster() -> bool:
    """Return whether this process is a task of a larger Slurm step, or a host of a TPU pod."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or _is_in_tpu_cluster()


def _is_in_tpu_cluster() -> bool:
    """Return whether `jax.distributed.initialize` finds TPU hosts: JAX's tests on GCE and GKE."""
    from jax._src.clusters import cloud_tpu_cluster as tpu

    try:
        return any(one.is_env_present() for one in (tpu.GceTpuCluster, tpu.GkeTpuCluster))
    except Exception as error:  # there is no metadata server: a single TPU host
        logging.warning("TPU hosts are not looked for: %s", error)
        return False


def _meet(address: str, processes: int, process: int, seconds: float) -> None:
    """Meet at the coordinator's port before JAX does, which aborts without naming who is missing.

    Raises:
        MissingProcess: some processes did not come; the message names them.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    if process:
        _call((host, int(port)), process, end, seconds)
    else:
        _receive(int(port), processes, end, seconds)


def _receive(port: int, processes: int, end: float, seconds: float) -> None:
    """In process 0, collect a greeting from each of the others, then let all go.

    Args:
        port: on which they call.
        processes: how many there are.
        end: when to give up, as `time.monotonic` counts.
        seconds: the whole wait, for the message.

    Raises:
        MissingProcess: some did not call in time.
    """
    arrived: dict[int, socket.socket] = {}
    with socket.create_server(("", port), reuse_port=False) as server:
        server.setblocking(False)
        waiting = selectors.DefaultSelector()
        waiting.register(server, selectors.EVENT_READ)
        while len(arrived) < processes - 1:
            if not waiting.select(max(0.0, end - time.monotonic())):
                missing = sorted(set(range(1, processes)) - set(arrived))
                for peer in arrived.values():
                    peer.close()
                raise MissingProcess(_explain_late(missing, "start", seconds))
            peer, _ = server.accept()
            peer.settimeout(10)
            greeting = peer.recv(16)
            if greeting.isdigit():
                arrived[int(greeting)] = peer
            else:
                peer.close()  # the caller is not a process of this run
    for peer in arrived.values():
        peer.sendall(b"go")
        peer.close()


def _call(address: tuple[str, int], process: int, end: float, seconds: float) -> None:
    """In the other processes, greet process 0 until it answers.

    Raises:
        MissingProcess: it did not answer in time, or gave up because another process is missing.
    """
    while time.monotonic() < end:
        try:
            with socket.create_connection(address, timeout=5) as server:
                server.sendall(str(process).encode())
                server.settimeout(max(1.0, end - time.monotonic()))
                if server.recv(2) == b"go":
                    return
                raise MissingProcess("process 0 gave up: another process is missing")
        except OSError:
            time.sleep(0.2)
    raise MissingProcess(_explain_late([0], "start", seconds))


def _explain_late(missing: list[int], name: str, seconds: float) -> str:
    """Return the message that names the processes that did not come in time."""
    who = f"process {missing[0]}" if len(missing) == 1 else f"processes {missing}"
    return f"{who} did not reach {name!r} within {seconds:g} s; see what it logged"


def is_writer() -> bool:
    """Return whether this process writes what all share: logs, pictures, manifests."""
    return jax.process_index() == 0


def _get_client() -> Any:
    """Return JAX's client of the coordination service, which has barriers and a key-value store.

    Raises:
        RuntimeError: there are several processes, but `start` was not called.
    """
    # JAX has a barrier with a time-out, and its key-value store, in this private module only.
    from jax._src import distributed

    if distributed.global_state.client is None:
        raise RuntimeError(
            f"JAX counts {jax.process_count()} processes that have not been joined: call "
            "diffjax.train.hosts.start before anything touches a device"
        )
    return distributed.global_state.client


def barrier(name: str, *, seconds: float = WAIT_SECONDS) -> None:
    """Wait until every process is here.

    Args:
        name: what is waited for, for messages.
        seconds: how long to wait.

    Raises:
        MissingProcess: some did not come in time; the message names them.
    """
    if jax.process_count() == 1:
        return
    try:
        _get_client().wait_at_barrier(f"{name}/{next(_numbers)}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"task names:\s*([\d\s]+)", str(error))
        if not found:
            raise
        missing = sorted(map(int, found[1].split()))
        raise MissingProcess(_explain_late(missing, name, seconds)) from error


def run_in_turn(name: str, make: Callable[[], Value], *, seconds: float = WAIT_SECONDS) -> Value:
    """Return ``make()``, called by process 0 first, and by the others when it is done.

    It is for what one process writes and the others read, such as a download.

    Args:
        name: what is made, for messages.
        make: called once in every process.
        seconds: how long the others wait for process 0.

    Raises:
        RuntimeError: in the others, with what went wrong in process 0.
        MissingProcess: process 0 did not answer in time.
    """
    if is_writer():
        try:
            made = make()
        except Exception as error:
            agree(name, str(error) or repr(error), seconds=seconds)
            raise
        agree(name, "", seconds=seconds)
        return made
    if problem := agree(name, "", seconds=seconds):
        raise RuntimeError(f"process 0: {problem}")
    return make()


def agree(name: str, value: str, *, seconds: float = WAIT_SECONDS) -> str:
    """Return the value of process 0 on every process.

    Args:
        name: what is decided, for messages.
        value: this process's own value; only that of process 0 counts.
        seconds: how long to wait for it.

    Raises:
        MissingProcess: process 0 did not answer in time.
    """
    if jax.process_count() == 1:
        return value
    key = f"{name}/{next(_numbers)}"
    if is_writer():
        _get_client().key_value_set(key, value)
        return value
    try:
        return str(_get_client().blocking_key_value_get(key, int(1000 * seconds)))
    except jax.errors.JaxRuntimeError as error:
        raise MissingProcess(_explain_late([0], name, seconds)) from error
