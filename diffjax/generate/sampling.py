"""How a `Sampling` is read: its names, numbers and lists."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from diffjax.generate.checks import (
    check_name,
    is_mapping_of_text,
    is_whole,
    read_number,
    read_whole,
    refuse,
    show,
)
from diffjax.generate.options import GRIDS, Sampling, find_sampler
from diffjax.types import choose

STEPS = 10_000  # more than any schedule has


def read_sampling(value: object) -> Sampling:
    """Read a sampler from a `Sampling`, its name, or its number of steps.

    Raises:
        RequestError: the value is something else, the name or the grid is unknown, the options are
            not a mapping, or the steps or eta are out of range. Whether the sampler has the options
            is checked with the model.
    """
    if value is None:
        return Sampling()
    if isinstance(value, str):
        value = Sampling(value)
    elif is_whole(value):
        value = Sampling(steps=value)
    if not isinstance(value, Sampling):
        known = "a name, a whole number of steps, or Sampling(name, steps)"
        raise refuse("sampler", f"must be {known}, got {show(value)}")
    if value.name is not None:
        check_name("sampler.name", value.name, find_sampler)
    if value.grid is not None:
        check_name("sampler.grid", value.grid, lambda name: choose("grid", name, GRIDS))
    if not is_mapping_of_text(value.options):
        example = "{'lower_order_final': False}"
        raise refuse(
            "sampler.options", f"must be a dict such as {example}, got {show(value.options)}"
        )
    eta = value.eta
    # Lists in place of arrays: what is made for options is remembered by their repr.
    options = {key: getattr(v, "tolist", lambda v=v: v)() for key, v in value.options.items()}
    start, end = _read_part(value)
    return value._replace(
        options=options,
        steps=read_whole("sampler.steps", value.steps, 1, STEPS),
        eta=None if eta is None else read_number("sampler.eta", eta, 0),
        timesteps=_read_list("sampler.timesteps", value.timesteps),
        sigmas=_read_list("sampler.sigmas", value.sigmas),
        start=start,
        end=end,
    )


def _read_part(value: Sampling) -> tuple[float, float]:
    """The fractions of the denoising between which a run lies.

    Raises:
        RequestError: they are no numbers in [0, 1], or the first is not below the second.
    """
    start = read_number("sampler.start", value.start, 0, 1)
    end = read_number("sampler.end", value.end, 0, 1)
    if start >= end:
        raise refuse("sampler.start", f"must be below sampler.end, got {start:g} and {end:g}")
    return start, end


def _read_list(name: str, values: object) -> tuple[float, ...] | None:
    """A list of falling numbers as a tuple; None stays None.

    Raises:
        RequestError: it is no list, is empty or too long, or its numbers are negative, not finite
            or do not fall.
    """
    if values is None:
        return None
    if isinstance(values, np.ndarray | jax.Array) and values.ndim == 1:
        values = np.asarray(values).tolist()
    if not isinstance(values, list | tuple | range):
        raise refuse(name, f"must be a list of falling numbers, got {show(values)}")
    if not 1 <= len(values) <= STEPS:
        raise refuse(name, f"must have 1 to {STEPS} numbers, got {len(values)}")
    read = tuple(read_number(f"{name}[{k}]", one, 0) for k, one in enumerate(values))
    for k, (one, other) in enumerate(itertools.pairwise(read)):
        if other >= one:
            raise refuse(f"{name}[{k + 1}]", f"must be below {one:g} before it, got {other:g}")
    return read
