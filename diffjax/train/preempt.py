"""Stopping on request: every process of a run stops at the same step, with its state saved."""

from __future__ import annotations

import collections
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Schedulers and people send SIGTERM, Ctrl-C sends SIGINT, and submitit has Slurm send SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
OUT_OF_TIME = 1  # a reason to stop that is not one of SIGNALS
LAG = 2  # steps after which the processes know of each other's signals, without waiting for it


class Preempted(RuntimeError):
    """A signal asked the run to stop; its state has been saved.

    Attributes:
        exit_code: 128 + the signal's number: 143 for SIGTERM, 140 for SIGUSR2, 130 for Ctrl-C.
    """

    def __init__(self, signum: int, step: int):
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name}; the state of step {step} has been saved")
        self.exit_code = 128 + signum


class Stop:
    """Decides after each step whether to stop; the answer is the same on every process.

    A signal, or the end of the time, may be seen by one process only. So each contributes its own
    reason to a maximum over all devices every step, and reads the one of `LAG` steps ago, which is
    there already. One process alone answers at once. A second signal changes nothing.

    Args:
        mesh: all devices of the run.
        minutes: wall-clock after which to stop, 0 for no limit.
    """

    def __init__(self, mesh: Mesh, *, minutes: float = 0.0):
        self.received = 0
        self._end = time.monotonic() + 60 * minutes if minutes else math.inf
        self._old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._local = len(self._place.addressable_devices)
        self._alone = jax.process_count() == 1
        self._maximum = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: collections.deque[jax.Array] = collections.deque()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) != signal.SIG_IGN:  # as in `nohup command &`
                    self._old[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum

    @property
    def hurried(self) -> bool:
        """Whether to leave out what can wait; of several processes, none may decide that alone."""
        return self._alone and bool(self.received)

    def reason(self) -> int:
        """Return 0 to continue, or the number of a signal, or OUT_OF_TIME; call it once a step."""
        own = self.received or (OUT_OF_TIME if time.monotonic() >= self._end else 0)
        if self._alone:
            return own
        flags = np.full(self._local, own, np.int32)
        self._pending.append(
            self._maximum(jax.make_array_from_process_local_data(self._place, flags))
        )
        return int(self._pending.popleft()) if len(self._pending) > LAG else 0
