"""The loop of a sweep: it starts runs, restarts those that were killed, and keeps the manifest."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from diffjax.launch.jobs import STOPPED, Executor, Job
from diffjax.launch.manifest import Manifest, SweepRun


class RunQueue:
    """Keeps as many runs going as are allowed, until none is left."""

    def __init__(
        self,
        manifest: Manifest,
        executor: Executor,
        make_job: Callable[[SweepRun], Job],
        *,
        parallel: int = 1,
        retries: int = 3,
        poll_seconds: float = 0.5,
    ):
        """Make a queue; nothing is started before `run_all`.

        Args:
            manifest: of the sweep; saved after every change.
            executor: starts the jobs.
            make_job: makes the job of a run.
            parallel: most runs at a time.
            retries: how often a run is started again after it was killed or preempted.
            poll_seconds: time between two looks at the executor.
        """
        self._manifest, self._executor, self._make_job = manifest, executor, make_job
        self._parallel, self._retries, self._poll_seconds = parallel, retries, poll_seconds
        self._running: list[SweepRun] = []
        self._again: list[SweepRun] = []

    def run_all(self, todo: Iterator[SweepRun], show: Callable[[], None]) -> None:
        """Run until there is nothing left to do.

        Args:
            todo: runs that are not finished.
            show: called after each look at the executor, to show progress.
        """
        while True:
            while len(self._running) < self._parallel:
                run = self._again.pop(0) if self._again else next(todo, None)
                if run is None:
                    break
                if run not in self._running:  # proposed again
                    self._start(run)
            if not self._running:
                return
            time.sleep(self._poll_seconds)
            for name, code in self._executor.take_ended().items():
                self._end(next(r for r in self._running if r.name == name), code)
            show()

    def _start(self, run: SweepRun) -> None:
        """Start a run, or take over the job that an earlier invocation started for it."""
        if not (run.job and self._executor.adopt(run.name, run.job)):
            run.job, run.tries = self._executor.start(self._make_job(run)), run.tries + 1
        run.status, run.code = "running", None
        self._running.append(run)
        self._manifest.save()

    def _end(self, run: SweepRun, code: int | None) -> None:
        """Record the end of a run; one that was killed or preempted is queued again.

        Args:
            code: its exit code, None if it is not known.
        """
        self._running.remove(run)
        run.code, run.job = code, ""
        if self._manifest.is_finished(run):
            run.status = "done"
        elif code is None or code in STOPPED or code < 0:  # killed or told to stop: go on
            run.status = "waiting" if run.tries <= self._retries else "failed"
            if run.status == "waiting":
                self._again.append(run)
        else:
            run.status = "failed"  # by itself: the same would happen again
        self._manifest.save()


def interrupt_on_signals() -> None:
    """Make SIGTERM and SIGHUP (the terminal is gone) raise KeyboardInterrupt, as Ctrl-C does.

    The number of the signal is the argument of the exception.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)
