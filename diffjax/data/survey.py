"""Surveys of a folder's pictures: their usual size, and whether they are grey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax.data import pictures

SIZES = 1000  # pictures whose headers are read
COLOURS = 64  # pictures whose pixels are looked at


class Survey(NamedTuple):
    """What is true of most pictures of a folder.

    Attributes:
        size: median (height, width) in pixels.
        equal: whether all that were looked at have that size.
        channels: 1 if none of those that were looked at has colours, else 3.
    """

    size: tuple[int, int]
    equal: bool
    channels: int


def survey_images(paths: Sequence[Path]) -> Survey:
    """Look at up to `SIZES` pictures, evenly spread; damaged ones are passed over.

    Args:
        paths: of all pictures.

    Raises:
        ValueError: all of them are damaged.
    """
    sizes = [size for path in _spread_evenly(paths, SIZES) if (size := _read_size(path))]
    if not sizes:
        raise pictures.DamagedImage(f"{paths[0]} and all others cannot be read as images")
    height, width = (int(side) for side in np.median(np.array(sizes), 0))
    colours = any(_has_colours(path) for path in _spread_evenly(paths, COLOURS))
    return Survey((height, width), len(set(sizes)) == 1, 3 if colours else 1)


def reduce_size(size: tuple[int, int], *, longest: int, step: int) -> tuple[int, int]:
    """Return a size of about the same ratio, with multiples of ``step`` as its sides.

    Args:
        size: (height, width) in pixels.
        longest: the most pixels that a side may have.
        step: what the sides are multiples of.

    Raises:
        ValueError: no multiple of the step is so small.
    """
    most = longest // step * step
    if most < 1:
        raise ValueError(f"no multiple of {step} pixels is at most {longest}")
    factor = min(1.0, most / max(size))
    height, width = (min(most, max(step, round(side * factor / step) * step)) for side in size)
    return height, width


def _spread_evenly(paths: Sequence[Path], count: int) -> list[Path]:
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[i] for i in chosen]


def _read_size(path: Path) -> tuple[int, int] | None:
    try:
        return pictures.read_size(path)
    except pictures.DamagedImage:
        return None


def _has_colours(path: Path) -> bool:
    try:
        image = pictures.read_image(path)
    except pictures.DamagedImage:
        return False
    return bool((image != image[..., :1]).any())
