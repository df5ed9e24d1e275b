"""Metrics of a run: JSON lines for programs, TensorBoard for the eye."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from diffjax.train.files import write_atomically

METRICS = "metrics.jsonl"
FLUSH_SECONDS = 30  # TensorBoard's file is synced to the disk, which takes time


class Reporter:
    """Metrics to JSON lines and TensorBoard; lines past the resumed step are dropped first.

    Everything is written by the calling thread, so that a full disk is an error at once.

    Args:
        workdir: where metrics.jsonl and tensorboard/ are.
        resumed: the last step whose lines stay.

    Raises:
        OSError: the files cannot be written.
    """

    def __init__(self, workdir: Path, *, resumed: int = 0):
        self._path = workdir / METRICS
        if self._path.exists():
            write_atomically(self._path, "".join(_lines_up_to(self._path, resumed)))
        self._stream = self._path.open("ab", buffering=0)
        board = workdir / "tensorboard"
        board.mkdir(exist_ok=True)
        self._board = EventsWriter(str(board / "events"), f".{os.getpid()}")
        # TensorBoard hides the steps from here on that an earlier run has written.
        self._event(resumed + 1, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Append one line of scalars.

        Raises:
            OSError: it cannot be written.
        """
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        with self._explained():
            while line:  # unbuffered: a write may take a part
                line = line[self._stream.write(line) :]
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def image(self, name: str, step: int, image: Any) -> None:
        """Add an (H, W, C) uint8 image to TensorBoard."""
        self._event(step, summary=summary.image(name, image, dataformats="HWC"))
        self._flush()

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

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # what went wrong first is what the caller should see

    def _event(self, step: int, **content: Any) -> None:
        with self._explained():
            self._board.write_event(Event(step=step, wall_time=time.time(), **content))

    def _flush(self) -> None:
        with self._explained():
            self._board.flush()
        self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"cannot write metrics under {self._path.parent}: {error.strerror}"
            raise OSError(error.errno, reason) from error


class NoReporter(Reporter):
    """Takes everything and writes nothing: of the processes that are not the first."""

    def __init__(self, workdir: Path, *, resumed: int = 0):
        pass

    def __call__(self, step: int, values: dict[str, float]) -> None:
        pass

    def image(self, name: str, step: int, image: Any) -> None:
        pass

    def close(self) -> None:
        pass


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] <= step:
                yield line + "\n"  # a killed run may have left the last one without
        except (ValueError, TypeError, KeyError):
            continue  # cut or garbled
