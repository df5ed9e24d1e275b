"""Folders of images with captions, and the shapes to which images of any aspect ratio are cropped.

Captions are in ``metadata.jsonl`` or ``metadata.csv`` as for diffusers, see
`diffjax.data.metadata`; or beside each image, in ``a.txt`` or ``a.caption`` for ``a.jpg``, as for
kohya's scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffjax.data import folders, formats, metadata, text_files
from diffjax.untrusted import name_some

SUFFIXES = (".txt", ".caption")
_SPELLINGS = (*SUFFIXES, *map(str.upper, SUFFIXES))


class Buckets(NamedTuple):
    """Shapes of about one area, for images of many aspect ratios (Podell et al. 2023, section 2.3).

    Attributes:
        step: sides are multiples of it, in pixels. It is a multiple of what the networks divide
            images by.
        ratio: the longer side is at most so many times the shorter one.
    """

    step: int = 64
    ratio: float = 2.0

    def shapes(self, size: formats.Size) -> list[tuple[int, int]]:
        """List all (height, width): for every width the largest height within ``size ** 2`` pixels.

        Args:
            size: side of the square with the area of the shapes.

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
    """The shape to which every image is cropped.

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
        """Return the (height, width) for an image."""
        return self.shapes[self.groups[index]]


def lay_out(
    sizes: Sequence[tuple[int, int]], size: formats.Size, buckets: Buckets | None
) -> Layout:
    """Choose for every image the shape whose aspect ratio is nearest, by its logarithm.

    Args:
        sizes: (height, width) of every image.
        size: of the result; with buckets, the side of the square that has their area.
        buckets: None crops every image to ``size``.

    Raises:
        ValueError: as `Buckets.shapes`.
    """
    shapes = buckets.shapes(size) if buckets else [formats.sides(size)]
    logs = np.log([h / w for h, w in shapes])
    groups = np.array([np.abs(logs - np.log(h / w)).argmin() for h, w in sizes], np.int32)
    ids = [_make_time_ids(found, shapes[group]) for found, group in zip(sizes, groups, strict=True)]
    return Layout(shapes, groups, np.array(ids, np.float32))


def _make_time_ids(found: tuple[int, int], target: tuple[int, int]) -> tuple[float, ...]:
    """Return the six time ids of XL in pixels: original size, crop corner and target size."""
    factor, (top, left), _ = formats.fit_central(found, target)
    return (*found, round(top / factor), round(left / factor), *target)


class CaptionedImages(NamedTuple):
    """The images of a folder and their captions.

    Attributes:
        paths: in alphabetical order.
        texts: the caption of each.
    """

    paths: list[Path]
    texts: list[str]


def has_captions(root: Path, files: Sequence[Path], table: metadata.Table) -> bool:
    """Return whether a folder has captions, or metadata that should have them.

    Args:
        root: the folder.
        files, table: what `folders.list_files` and `metadata.read_table` found in it.
    """
    if table.files and (table.captions or not table.hints):
        return True
    return any(map(_find_beside, folders.select_images(root, files)))


class _Found(NamedTuple):
    """The images of a split, all files of the folder, and its metadata."""

    paths: list[Path]
    files: list[Path]
    table: metadata.Table


def _find_images(root: Path, split: str, caption_column: str = "") -> _Found:
    """Find the images of a split; those that are only the hints of others are left out.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: a damaged line of metadata.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    files = folders.list_files(root)
    table = metadata.read_table(root, files, caption_column=caption_column)
    paths = metadata.drop_hints(folders.select_images(root, files), table)
    if not paths:
        raise FileNotFoundError(f"{root} holds no image ({' '.join(folders.IMAGE_SUFFIXES)})")
    return _Found(folders.select_below(paths, _find_parts(root, paths, split)), files, table)


def give_captions(root: Path, split: str, texts: Sequence[str]) -> CaptionedImages:
    """Give every image of a split each of some captions, in place of those in files.

    Raises:
        FileNotFoundError, ValueError: as `read_folder`, of images alone.
    """
    paths = _find_images(root, split).paths
    return CaptionedImages(paths * len(texts), [text for text in texts for _ in paths])


def read_folder(root: Path, split: str = "train", *, caption_column: str = "") -> CaptionedImages:
    """Read the images of a split of a folder with their captions.

    Metadata files with captions come before files beside the images. Images that are only the
    hints of others are left out. Where there are training images alone, they are every split.

    Args:
        root: the folder.
        split: ``train``, ``test`` and so on, see `diffjax.data.folders`.
        caption_column: see `metadata.read_table`.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: images without a caption, captions of no image, or a damaged line; the message
            names some.
    """
    paths, files, table = _find_images(root, split, caption_column)
    if table.captions:
        return CaptionedImages(paths, _read_table_captions(paths, table))
    return CaptionedImages(paths, _read_file_captions(root, paths, files, table))


def _find_parts(root: Path, paths: list[Path], split: str) -> list[Path]:
    """Find the folders of a split; a split that does not exist falls back to ``train``."""
    try:
        return folders.split_folders(root, paths, split)
    except folders.NoSuchSplit:
        return folders.split_folders(root, paths, "train")


def _read_table_captions(paths: list[Path], table: metadata.Table) -> list[str]:
    """Return the captions of images from metadata files.

    Raises:
        ValueError: some images have none.
    """
    if without := [path for path in paths if path not in table.captions]:
        names = [str(path) for path in without]
        raise ValueError(
            f"{table.files[0]}{' and others' if table.files[1:] else ''} has no captions for "
            f"{name_some(names)}"
        )
    return [table.captions[path] for path in paths]


def _read_file_captions(
    root: Path, paths: list[Path], files: list[Path], table: metadata.Table
) -> list[str]:
    """Return the captions of images from the text files beside them.

    Raises:
        ValueError: some images have none, or two that differ.
    """
    beside = [_find_beside(path) for path in paths]
    if without := [path.name for path, file in zip(paths, beside, strict=True) if file is None]:
        raise ValueError(_explain_absence(root, name_some(without), files, table))
    found = [file for file in beside if file is not None]
    stems = {path.with_suffix("") for path in folders.select_images(root, files)}
    alone = [f.name for f in files if f.suffix in _SPELLINGS and f.with_suffix("") not in stems]
    if alone:
        logging.warning(
            "%s: %d text files belong to no picture and are not read: %s",
            *(root, len(alone), name_some(alone)),
        )
    return [text_files.read_text(file).strip() for file in found]


def _explain_absence(root: Path, names: str, files: list[Path], table: metadata.Table) -> str:
    """Return the message for images without captions, which says where they were looked for."""
    beside = f"there is no {' or '.join(SUFFIXES)} beside them"
    if table.columns:
        return (
            f"{table.files[0]} has no captions for {names}: its columns are "
            f"{', '.join(dict.fromkeys(table.columns))}, and none of them is "
            f"{' or '.join(metadata.CAPTIONS)}; choose one with data.caption_column "
            "(caption_column in Python)"
        )
    if table.files:
        return f"{table.files[0]} has no captions for {names}, and {beside}"
    others = [file for file in files if file.stem == "metadata"]
    read = f"{' or '.join(metadata.FILES)}"
    why = f"{others[0]} is not read, only {read}" if others else f"there is no {read}"
    return f"{names} in {root} have no caption: {why}, and {beside}"


def _find_beside(path: Path) -> Path | None:
    """Return the caption file beside an image, or None.

    Raises:
        ValueError: there are two, which differ.
    """
    found = [file for s in _SPELLINGS if (file := path.with_suffix(s)).is_file()]
    if len(found) > 1 and len({text_files.read_text(file).strip() for file in found}) > 1:
        raise ValueError(f"{found[0]} and {found[1].name} are different captions; remove one")
    return found[0] if found else None
