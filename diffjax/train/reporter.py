"""Metrics of a run: JSON lines for programs, TensorBoard for the eye, trackers for services."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from diffjax.train.trackers import Tracker
from diffjax.train.window import Metrics, OnMetrics
from diffjax.writing import write_atomically

METRICS = "metrics.jsonl"
FLUSH_SECONDS = 30  # TensorBoard's file is synced to the disk, which takes time


class Reporter:
    """Metrics to JSON lines and TensorBoard; lines past the resumed step are dropped first.

    Everything is written by the calling thread, so that a full disk is an error at once.

    Args:
        workdir: where metrics.jsonl and tensorboard/ are.
        resumed: the last step whose lines stay.
        trackers: get the same metrics and pictures.
        on_metrics: is called with (step, metrics) after a line is written.

    Raises:
        OSError: the files cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resumed: int = 0,
        trackers: Sequence[Tracker] = (),
        on_metrics: OnMetrics | None = None,
    ):
        self._trackers, self._on_metrics = trackers, on_metrics
        self._path = workdir / METRICS
        if self._path.exists():
            _cut(self._path, resumed)
        self._stream = self._path.open("ab", buffering=0)
        board = workdir / "tensorboard"
        board.mkdir(exist_ok=True)
        self._board = EventsWriter(str(board / "events"), f".{os.getpid()}")
        # TensorBoard hides the steps from here on that an earlier run has written.
        self._event(resumed + 1, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def __call__(self, step: int, values: Metrics) -> None:
        """Append one line of scalars to the log, TensorBoard and the trackers.

        Args:
            step: of the last of the steps that the metrics are of.
            values: scalars by name.

        Raises:
            OSError: it cannot be written.
        """
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        with self._explained():
            while line:  # an unbuffered write may write only a part
                line = line[self._stream.write(line) :]
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()
        for tracker in self._trackers:
            tracker.log(step, values)
        if self._on_metrics is not None:
            self._on_metrics(step, dict(values))

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """Add an (H, W, C) uint8 image to TensorBoard and the trackers.

        Raises:
            OSError: it cannot be written.
        """
        self._event(step, summary=summary.image(name, image, dataformats="HWC"))
        self._flush()
        for tracker in self._trackers:
            tracker.image(name, step, image)

    def close(self) -> None:
        """Flush and close.

        Raises:
            OSError: the last lines could not be written.
        """
        try:
            self._flush()
        finally:
            self._stream.close()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the caller should see the first error

    def _event(self, step: int, **content: SessionLog | Summary) -> None:
        """Write one event to TensorBoard's file."""
        with self._explained():
            self._board.write_event(Event(step=step, wall_time=time.time(), **content))

    def _flush(self) -> None:
        """Sync TensorBoard's file to the disk."""
        with self._explained():
            self._board.flush()
        self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Add the folder to the message of an error of writing."""
        try:
            yield
        except OSError as error:
            reason = f"cannot write metrics under {self._path.parent}: {error.strerror}"
            raise OSError(error.errno, reason) from error


class NoReporter(Reporter):
    """A reporter that accepts everything and writes nothing, for all processes but the first."""

    def __init__(
        self,
        workdir: Path,
        *,
        resumed: int = 0,
        trackers: Sequence[Tracker] = (),
        on_metrics: OnMetrics | None = None,
    ):
        pass

    def __call__(self, step: int, values: Metrics) -> None:
        pass

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


def _cut(path: Path, resumed: int) -> None:
    """Drop the lines past a step, which are written again, and those that cannot be read.

    The other lines stay as they are, byte by byte. A killed run may have left its last line cut or
    without its end. If other lines cannot be read either, a copy of the whole file is kept.
    """
    *whole, last = path.read_bytes().split(b"\n")
    lines = [*whole, last] if last else whole
    steps = [_step_of(line) for line in lines]
    kept = [n for n, step in enumerate(steps) if step is not None and step <= resumed]
    lost = [n for n, step in enumerate(steps) if step is None and lines[n].strip()]
    if last and lost[-1:] == [len(whole)]:
        lost.pop()
        _warn_of_a_cut_line(path, last, resumed)
    if lost:
        copy = _free_name(path)
        shutil.copyfile(path, copy)
        logging.warning(
            "%d lines of %s are no lines of a log, the first of them line %d; they are left out, "
            "and %s keeps the file as it was",
            *(len(lost), path, lost[0] + 1, copy),
        )
    write_atomically(path, b"".join(lines[n] + b"\n" for n in kept))


def _step_of(line: bytes) -> int | None:
    """Return the step of a line of the log; None if it is no such line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def _warn_of_a_cut_line(path: Path, line: bytes, resumed: int) -> None:
    """Warn that the last line is cut, unless the resumed run comes to its step again."""
    found = re.match(rb'\{"step": (\d+),', line)
    if found and int(found[1]) > resumed:
        return  # the resumed run takes this step again
    what = f"the metrics of step {int(found[1])}" if found else "the metrics of a step"
    logging.warning("the last line of %s is cut: %s are lost", path, what)


def _free_name(path: Path) -> Path:
    """Return the first name ``PATH.N.old`` that does not exist."""
    names = (path.with_name(f"{path.name}.{number}.old") for number in itertools.count(1))
    return next(name for name in names if not name.exists())
