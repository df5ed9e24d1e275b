"""What a person sees of a training while it runs: that it compiles, and how long it will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from absl import logging
from tqdm import tqdm

from diffjax.train import hosts
from diffjax.train.window import LOOK_AHEAD


@contextlib.contextmanager
def say_compiling(what: str, *, first: bool = True) -> Iterator[None]:
    """Say that something is compiled, and afterwards how long it took.

    Args:
        what: the program, such as "the training step".
        first: whether this is its first call, which compiles; nothing is said of others.
    """
    speaks = first and hosts.is_writer()
    if speaks:
        logging.info("compiling %s", what)
    begun = time.monotonic()
    yield
    if speaks:
        logging.info("%s is ready after %.1f s", what, time.monotonic() - begun)


class StepBar:
    """The progress bar of the step loop, which only the first process shows.

    It begins to count when as many steps are queued as the loop allows. From then on a call of
    `update` takes as long as a step, and the time that is left is a multiple of that. The first
    steps say nothing: one of them compiles, and the others are queued at once.
    """

    def __init__(self, steps: int, start: int):
        """Make the bar, without showing it yet.

        Args:
            steps: optimiser steps of the whole run.
            start: those that are done.
        """
        self._steps, self._done = steps, start
        self._first = start + 1 + LOOK_AHEAD
        self._bar: tqdm | None = None

    def update(self) -> bool:
        """Count a step; return whether the clock begins with it."""
        self._done += 1
        begins = self._bar is None and self._done >= min(self._first, self._steps)
        if self._bar is not None:
            self._bar.update()
        elif begins:
            self._bar = tqdm(
                total=self._steps,
                initial=self._done,
                unit="step",
                dynamic_ncols=True,
                mininterval=1.0,
                disable=not hosts.is_writer(),
            )
        return begins

    def show_loss(self, loss: float) -> None:
        """Show the mean loss of the last line of the log."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
