"""Overrides for the `sweep()` of a config: grids and random draws.

    def sweep():
        yield from grid({"optim.lr": (1e-4, 3e-4), "seed": (0, 1, 2)})

    def space():  # for --trials=N, drawn at random or proposed by Optuna
        return {"optim.lr": (1e-5, 1e-2, "log"), "ema.decay": [0.99, 0.999, 0.9999]}

An axis of a space is a list of choices, or (low, high) or (low, high, "log"); whole numbers for
both bounds draw whole numbers.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def grid(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination; the last axis changes fastest.

    Raises:
        ValueError: an axis is empty.
    """
    for key, values in axes.items():
        if not list(values):
            raise ValueError(f"the sweep's axis {key!r} has no values")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def draw(space: Mapping[str, Any], trial: int, *, seed: int = 0) -> dict[str, Any]:
    """The overrides of one random trial, a function of (seed, trial).

    Raises:
        ValueError: an axis is none of the kinds above.
    """
    rng = random.Random(f"{seed}/{trial}")
    return {key: _draw(rng, *parse(key, axis)) for key, axis in space.items()}


def parse(key: str, axis: Any) -> tuple[str, tuple[Any, ...]]:
    """("choice", choices), or ("int", "float" or "log" and the bounds) of an axis.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(axis, list) and axis:
        return "choice", tuple(axis)
    if isinstance(axis, tuple) and len(axis) in (2, 3) and axis[0] < axis[1]:
        low, high = axis[:2]
        if axis[2:] == ("log",) and low > 0:
            return "log", (low, high)
        if len(axis) == 2:
            whole = isinstance(low, int) and isinstance(high, int)
            return ("int" if whole else "float"), (low, high)
    raise ValueError(
        f"axis {key!r} of the sweep's space is {axis!r}; needed is a list of choices, "
        "(low, high), or (low, high, 'log') with 0 < low < high"
    )


def _draw(rng: random.Random, kind: str, values: tuple[Any, ...]) -> Any:
    if kind == "choice":
        return rng.choice(values)
    low, high = values
    if kind == "int":
        return rng.randint(low, high)
    if kind == "log":
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return rng.uniform(low, high)
