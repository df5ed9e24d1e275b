"""Folders of images with captions, and the shapes to which images of any aspect ratio are cropped.

Captions stand in ``metadata.jsonl``, one ``{"file_name": ..., "text": ...}`` a line, as for
diffusers; or beside each image, in ``a.txt`` or ``a.caption`` for ``a.jpg``, as for kohya's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax.data import formats

METADATA = "metadata.jsonl"
_KEYS = ("text", "caption")
_SUFFIXES = (".txt", ".caption")
SHOWN = 3


class Buckets(NamedTuple):
    """Shapes of about one area for images of many aspect ratios.

    Attributes:
        step: sides are multiples of it; a multiple of what the networks divide images by.
        ratio: the longer side is at most so many times the shorter one.
    """

    step: int = 64
    ratio: float = 2.0

    def shapes(self, size: formats.Size) -> list[tuple[int, int]]:
        """All (height, width): for every width the largest height within ``size ** 2`` pixels.

        Raises:
            ValueError: the size is (height, width), or no multiple of the step, or the ratio is
                below 1.
        """
        height, width = formats.sides(size)
        if height != width:
            raise ValueError(
                f"buckets of aspect ratios need one number as image_size, not {size}; without "
                "buckets (data.bucket_step=0) images are cropped to it"
            )
        size = height
        if self.step < 1 or size % self.step or self.ratio < 1:
            raise ValueError(
                f"buckets need a size that is a multiple of their step and a ratio of at least 1, "
                f"got size {size}, step {self.step}, ratio {self.ratio}"
            )
        widths = range(self.step, int(size * self.ratio) + 1, self.step)
        found = [(size * size // w // self.step * self.step, w) for w in widths]
        return [(h, w) for h, w in found if h and max(h, w) <= self.ratio * min(h, w)]


class Layout(NamedTuple):
    """To which shape every image is cropped.

    Attributes:
        shapes: (height, width) of every group.
        groups: (N,) int, the group of every image.
        time_ids: (N, 6) float32 for Stable Diffusion XL: height and width of the original, top
            and left of the crop in pixels of the result, height and width of the result
            (Podell et al. 2023, section 2.2).
    """

    shapes: list[tuple[int, int]]
    groups: np.ndarray
    time_ids: np.ndarray

    def target(self, index: int) -> tuple[int, int]:
        """The shape for an image."""
        return self.shapes[self.groups[index]]


def lay_out(
    sizes: Sequence[tuple[int, int]], size: formats.Size, buckets: Buckets | None
) -> Layout:
    """The shape with the nearest aspect ratio, by its logarithm, for images of (height, width).

    Raises:
        ValueError: as `Buckets.shapes`.
    """
    shapes = buckets.shapes(size) if buckets else [formats.sides(size)]
    logs = np.log([h / w for h, w in shapes])
    groups = np.array([np.abs(logs - np.log(h / w)).argmin() for h, w in sizes], np.int32)
    ids = [_time_ids(found, shapes[group]) for found, group in zip(sizes, groups, strict=True)]
    return Layout(shapes, groups, np.array(ids, np.float32))


def _time_ids(found: tuple[int, int], target: tuple[int, int]) -> tuple[float, ...]:
    factor, (top, left), _ = formats.central(found, target)
    return (*found, round(top / factor), round(left / factor), *target)


def has_captions(root: Path) -> bool:
    """Whether any image in a folder or below it has one."""
    return any(root.rglob(METADATA)) or any(map(_beside, formats.list_images(root)))


def read_folder(root: Path) -> tuple[list[Path], list[str]]:
    """The images below a folder in alphabetical order, and their captions.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: images without a caption, captions of no image, or a damaged line; some are
            named.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder")
    paths = formats.list_images(root)
    if not paths:
        raise FileNotFoundError(f"{root} holds no image ({' '.join(formats.IMAGE_SUFFIXES)})")
    if (root / METADATA).is_file():
        return paths, _from_metadata(root, paths)
    return paths, _from_files(paths)


def _from_metadata(root: Path, paths: list[Path]) -> list[str]:
    found = {}
    for number, line in enumerate((root / METADATA).read_text("utf-8").splitlines(), 1):
        if line.strip():
            name, text = _entry(line, f"line {number} of {root / METADATA}")
            found[name] = text
    names = [path.relative_to(root).as_posix() for path in paths]
    if missing := sorted(set(found) - set(names)):
        raise ValueError(f"{root / METADATA} names files that are not there: {_some(missing)}")
    if without := [name for name in names if name not in found]:
        raise ValueError(f"{root / METADATA} has no captions for {_some(without)}")
    return [found[name] for name in names]


def _entry(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    text = next((entry[key] for key in _KEYS if isinstance(entry.get(key), str)), None)
    if not isinstance(entry.get("file_name"), str) or text is None:
        raise ValueError(f"{where} lacks file_name, or {' or '.join(_KEYS)}: {line[:80]}")
    return Path(entry["file_name"]).as_posix(), text


def _from_files(paths: list[Path]) -> list[str]:
    files = [_beside(path) for path in paths]
    if without := [path.name for path, file in zip(paths, files, strict=True) if file is None]:
        raise ValueError(
            f"{_some(without)} in {paths[0].parent} have no caption: there is no {METADATA}, and "
            f"no {' or '.join(_SUFFIXES)} beside them"
        )
    return [file.read_text("utf-8").strip() for file in files if file is not None]


def _beside(path: Path) -> Path | None:
    return next((f for s in _SUFFIXES if (f := path.with_suffix(s)).is_file()), None)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
