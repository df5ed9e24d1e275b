"""Time several calls in turns, so that a machine which slows down does so for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Time calls in turns, in the reverse order in every second turn.

    A turn before those that count warms up.

    Args:
        calls: functions by name; what they return is waited for.
        repeats: number of turns, at least 1.

    Returns:
        Seconds by clock, ``wall`` or ``cpu`` (of this process, all threads), and by name, one for
        each turn: entries of the same turn are pairs.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    seconds: dict[str, dict[str, list[float]]] = {c: {n: [] for n in calls} for c in CLOCKS}
    for turn in range(repeats + 1):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            started = {clock: now() for clock, now in CLOCKS.items()}
            jax.block_until_ready(calls[name]())
            for clock, now in CLOCKS.items():
                seconds[clock][name].append(now() - started[clock])
    return {c: {n: times[1:] for n, times in found.items()} for c, found in seconds.items()}
