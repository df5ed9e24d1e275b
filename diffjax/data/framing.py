"""Which part of a picture is kept, and how it is resized, where a paper says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.data.formats import RESIZERS
from diffjax.data.source import Arrays, Indices, Originals, Source
from diffjax.types import choose


class Framing(NamedTuple):
    """How pictures are cut and resized.

    Attributes:
        window: (top, left, height, width) in pixels of what is kept of every picture, before
            anything else; () for all.
        resize: a name in `formats.RESIZERS`.
    """

    window: tuple[int, ...] = ()
    resize: str = "bicubic"


USUAL = Framing()


def make_framing(window: Sequence[int], resize: str) -> Framing:
    """Make the framing of ``data.window`` and ``data.resize``.

    Raises:
        ValueError: a window that is not four whole numbers with positive sides, or an unknown name.
    """
    choose("data.resize", resize, RESIZERS)
    found = tuple(window)
    whole = all(isinstance(n, int | np.integer) and n >= 0 for n in found)
    if found and (len(found) != 4 or not whole or min(found[2:]) < 1):
        raise ValueError(
            f"data.window={found} must be (top, left, height, width) in pixels, or () for all"
        )
    return Framing(found, resize)


def check_framing(how: Framing, name: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError unless a framing is the usual one, or a data set is among those allowed.

    Those have pictures that are read one by one.
    """
    if how != USUAL and name not in allowed:
        raise ValueError(
            f"data.window={how.window} and data.resize={how.resize} are for pictures that are read "
            f"one by one, and not for {name}: use one of {', '.join(allowed)}"
        )


def frame(source: Source, how: Framing) -> Source:
    """Cut and resize the pictures of a source in another way than the usual one.

    Args:
        source: of pictures whose originals are read one by one: a folder of images, or a set that
            TFDS has prepared.
        how: the framing; the usual one returns the source itself.

    Raises:
        ValueError: reading, if the window leaves a picture.
    """
    if how == USUAL:
        return source
    take = source.originals
    assert take is not None, "callers frame sources that keep originals"
    size, resize = source.shape[:2], RESIZERS[how.resize]

    def read_originals(indices: Indices) -> Originals:
        pictures, labels = take(indices)
        return [_cut(picture, how.window) for picture in pictures], labels

    def read(indices: Indices) -> Arrays:
        pictures, labels = read_originals(indices)
        return np.stack([resize(picture, size) for picture in pictures]), labels

    return dataclasses.replace(source, read=read, originals=read_originals)


def _cut(picture: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """Cut a window out of a picture.

    Raises:
        ValueError: it leaves the picture.
    """
    if not window:
        return picture
    top, left, height, width = window
    if top + height > picture.shape[0] or left + width > picture.shape[1]:
        raise ValueError(
            f"data.window={window} (top, left, height, width) leaves a picture of "
            f"{picture.shape[0]}x{picture.shape[1]} pixels (height x width)"
        )
    return picture[top : top + height, left : left + width]
