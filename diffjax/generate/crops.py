"""Filling in a crop around the mask at the size of the output, and pasting it back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffjax.generate.images import Side, resize
from diffjax.types import Array


class Box(NamedTuple):
    """A rectangle of pixels, the ends left out."""

    top: int
    left: int
    bottom: int
    right: int


class Crop(NamedTuple):
    """What a crop was cut from.

    Attributes:
        box: where.
        pixels: the whole images (B, H, W, 3), float32 in [0, 1].
        mask: how much of each pixel is new (B, H, W, 1), in [0, 1].
    """

    box: Box
    pixels: np.ndarray
    mask: np.ndarray

    def paste(self, pixels: Array) -> np.ndarray:
        """The whole images in [-1, 1] with crops (B, h, w, 3) in [-1, 1] blended in by the mask.

        Crops are resized in 8 bits, as diffusers does: the filter overshoots, and is cut off there.
        """
        unit = np.clip(np.asarray(pixels, np.float32) / 2 + np.float32(0.5), 0, 1)
        grey = np.rint(unit * 255).astype(np.uint8)
        top, left, bottom, right = self.box
        whole = np.zeros_like(self.pixels)
        whole[:, top:bottom, left:right] = cover(grey, (bottom - top, right - left))
        whole /= 255
        return 2 * (self.mask * whole + (1 - self.mask) * self.pixels) - 1


def find_box(mask: np.ndarray, padding: int, size: Side) -> Box:
    """The rectangle around what is masked, widened to the shape of the output where there is room.

    Args:
        mask: (N, H, W, 1), 0 where nothing is new; one rectangle for all of them.
        padding: pixels around what is masked.
        size: height and width of the output.

    Raises:
        ValueError: the mask is black.
    """
    marked = (mask != 0).any((0, 3))
    if not marked.any():
        raise ValueError("mask is black everywhere: there is nothing to crop")
    (top, bottom), (left, right) = (
        (max(where[0] - padding, 0), min(where[-1] + 1 + padding, len(along)))
        for along in (marked.any(1), marked.any(0))
        for where in [np.flatnonzero(along)]
    )
    height, width = bottom - top, right - left
    if width / height > size[1] / size[0]:
        top, bottom = _widen(top, bottom, int(width / (size[1] / size[0])), marked.shape[0])
    else:
        left, right = _widen(left, right, int(height * (size[1] / size[0])), marked.shape[1])
    return Box(int(top), int(left), int(bottom), int(right))


def _widen(first: int, last: int, wanted: int, most: int) -> tuple[int, int]:
    """Widen a span on both sides; what has no room on one side is added on the other."""
    first -= (wanted - (last - first)) // 2
    last = first + wanted
    first -= max(0, last - most)
    return max(0, first), min(most, max(0, first) + wanted)


def cut(array: np.ndarray, box: Box, size: Side) -> np.ndarray:
    """The crop (N, h, w, C) of images (N, H, W, C), uint8 or float32.

    Another shape of the box keeps its aspect ratio: the edges are repeated on both sides.
    """
    part = array[:, box.top : box.bottom, box.left : box.right]
    height, width = part.shape[1:3]
    if size[1] / size[0] < width / height:
        inner = (height * size[1] // width, size[1])
    else:
        inner = (size[0], width * size[0] // height)
    inner = (max(1, inner[0]), max(1, inner[1]))
    before = [side // 2 - there // 2 for side, there in zip(size, inner, strict=True)]
    pads = [(b, s - i - b) for b, s, i in zip(before, size, inner, strict=True)]
    return np.pad(resize(part, inner), [(0, 0), *pads, (0, 0)], mode="edge")


def cover(array: np.ndarray, size: Side) -> np.ndarray:
    """Images (N, h, w, C) resized until they cover a rectangle, and cut to it around the centre."""
    height, width = array.shape[1:3]
    if size[1] / size[0] > width / height:
        outer = (height * size[1] // width, size[1])
    else:
        outer = (size[0], width * size[0] // height)
    outer = (max(outer[0], size[0]), max(outer[1], size[1]))
    top, left = (there // 2 - side // 2 for there, side in zip(outer, size, strict=True))
    return resize(array, outer)[:, top : top + size[0], left : left + size[1]]
