"""Sources that read folders of image files when images are asked for.

A damaged file stops the run by name. With ``damaged="skip"`` image i is replaced by the next image
(of its shape) whose files can be read, the first one following the last. So the replacement is a
function of i and the data, every other image keeps its places in the order, and a label, caption or
hint stays with its image.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffjax.data import captions, folders, formats, metadata, pictures
from diffjax.data.captions import Buckets
from diffjax.data.pictures import DamagedImage
from diffjax.data.source import Arrays, Indices, Source
from diffjax.types import T

Sides = tuple[int, int]  # height and width
DAMAGED = ("stop", "skip")


class Reading(NamedTuple):
    """How the images of a folder are read.

    Attributes:
      size: (height, width) to which they are cropped and resized; None keeps their own.
      channels: 3 for RGB, 1 for grey.
      background: RGB of what shows through transparent pixels.
      classes: names in the order of the labels; none: those of the training split.
      caption_column: see `metadata.read_table`.
      damaged: stop or skip, see the module.
      texts: captions in place of those in files; a captioned folder has every image once with each.
    """

    size: Sides | None
    channels: int = 3
    background: pictures.Colour = pictures.WHITE
    classes: tuple[str, ...] = ()
    caption_column: str = ""
    damaged: str = "stop"
    texts: tuple[str, ...] = ()

    def read(self, path: Path) -> np.ndarray:
        """Read the image in a file, uint8 (H, W, C), cropped and resized.

        Raises:
          DamagedImage: the file is truncated or no image.
          ValueError, OSError: it cannot be read, see `diffjax.data.pictures`.
        """
        return fit_size(self.read_whole(path), self.size)

    def read_whole(self, path: Path) -> np.ndarray:
        """The same before it is cropped and resized."""
        return pictures.read_image(path, self.channels, background=self.background)

    def read_from(self, start: int, paths: Sequence[Path], read: Callable[[Path], T]) -> T:
        """Return what ``read`` makes of a file, or of the next one that it can read.

        Args:
          start: index of the file.
          paths: all files.
          read: reads one file.

        Raises:
          DamagedImage: the file is damaged and ``damaged`` is stop, or all files are damaged.
        """
        for k in range(start, start + len(paths)):
            try:
                return read(paths[k % len(paths)])
            except DamagedImage as error:
                if self.damaged != "skip" or k == start + len(paths) - 1:
                    raise
                logging.debug("%s", error)  # a warning follows when the image is read
        raise FileNotFoundError("there are no pictures")


def fit_size(image: np.ndarray, size: Sides | None) -> np.ndarray:
    """Crop and resize an image to (height, width); None keeps it."""
    return image if size is None else formats.center_crop_resize(image, size)


# ---- damaged files ------------------------------------------------------------------------------


def skip_damaged(source: Source) -> Source:
    """Show another image in place of a damaged one; the log names each damaged one once."""
    stand_ins = _StandIns(source)

    def redirect(read: Callable[[Indices], T]) -> Callable[[Indices], T]:
        return lambda indices: read(stand_ins.resolve(indices))

    return dataclasses.replace(
        source,
        read=redirect(source.read),
        more=redirect(source.more) if source.more else None,
        originals=redirect(source.originals) if source.originals else None,
        captions=redirect(source.captions) if source.captions else None,
    )


class _StandIns:
    """Which image is shown in place of each; images are tried when they are first asked for."""

    def __init__(self, source: Source):
        self._source = source
        self._chosen: dict[int, int] = {}
        self._bad: set[int] = set()
        self._lock = threading.Lock()

    def resolve(self, indices: Indices) -> np.ndarray:
        """Return the indices of the images that are shown for these indices."""
        with self._lock:
            return np.asarray([self._find(int(i)) for i in indices], np.int64)

    def _find(self, index: int) -> int:
        """Return the first readable image from an index on, among those of the same shape.

        Raises:
          ValueError: all of them are damaged.
        """
        if index not in self._chosen:
            others = self._find_same_shape(index)
            start = int(np.searchsorted(others, index))
            order = [*others[start:], *others[:start]]
            found = next((int(i) for i in order if self._is_readable(int(i))), None)
            if found is None:
                raise ValueError("all images are damaged, so that there is none to show")
            self._chosen[index] = found
        return self._chosen[index]

    def _find_same_shape(self, index: int) -> np.ndarray:
        groups = self._source.groups
        if groups is None:
            return np.arange(len(self._source))
        return np.flatnonzero(groups == groups[index])

    def _is_readable(self, index: int) -> bool:
        """Return whether the files of an image can be read; the result is remembered."""
        if index in self._bad or self._chosen.get(index) == index:
            return index not in self._bad
        try:
            self._source.take([index])
        except DamagedImage as error:
            logging.warning("another image takes the place of a damaged one: %s", error)
            self._bad.add(index)
            return False
        self._chosen[index] = index
        return True


# ---- pictures and classes -----------------------------------------------------------------------


class FoundPictures(NamedTuple):
    """The images of a split, with the class of each by its number.

    Attributes:
      root: the folder that names in messages and fingerprints are relative to.
      paths: in alphabetical order.
      labels: (N,) int32, the class of each.
      names: of the classes; none if there are no sub-folders.
    """

    root: Path
    paths: list[Path]
    labels: np.ndarray
    names: tuple[str, ...]


def find_pictures(root: Path, split: str, classes: Sequence[str] = ()) -> FoundPictures:
    """Find the images of a split of a folder; the class of each is its first sub-folder, if any.

    Hints of other images are left out, and so is the folder ``hints`` beside ``images``.

    Args:
      root: the folder.
      split: see `diffjax.data.folders`.
      classes: names in the order of the labels; none: those of the training split.

    Raises:
      FileNotFoundError: there is no image.
      ValueError: the split or a class is not known, or the folder is ambiguous.
    """
    files = folders.list_files(root)
    paths = folders.select_images(root, files)
    hints = metadata.find_hints(root, files)
    paths = [path for path in paths if path not in hints]
    if not paths:
        raise explain_no_image(root)
    if {path.relative_to(root).parts[0] for path in paths} == {"images", "hints"}:
        root = root / "images"
        paths = folders.select_below(paths, [root])
    parts = folders.split_folders(root, paths, split)
    chosen = folders.select_below(paths, parts)
    if not chosen:
        raise explain_no_image(parts[0])
    known = classes or _list_training_classes(root, paths)
    found = folders.find_classes(chosen, parts)
    labels, names = folders.number_classes(found, known, str(parts[0]))
    if names:
        folders.warn_of_empty_folders(parts, names)
    return FoundPictures(root, chosen, labels, names)


def explain_no_image(root: Path) -> FileNotFoundError:
    """Return the error for a folder without images."""
    return FileNotFoundError(f"{root} holds no image ({' '.join(formats.IMAGE_SUFFIXES)})")


def _list_training_classes(root: Path, paths: list[Path]) -> tuple[str, ...]:
    """List the classes of the training split, which number those of every split."""
    try:
        parts = folders.split_folders(root, paths, "train")
    except folders.NoSuchSplit:
        return ()
    below = folders.select_below(paths, parts)
    return tuple(sorted(set(folders.find_classes(below, parts)) - {""}))


def load_images(split: str, root: Path, how: Reading, buckets: Buckets | None) -> Source:
    """Load every image file of a split, with its sub-folder as the label; see `find_pictures`.

    Raises:
      ValueError: images differ in size and ``how.size`` is None; or as `find_pictures`.
    """
    base, paths, labels, names = find_pictures(root, split, how.classes)
    height, width, channels = how.read_from(0, paths, how.read).shape
    shape = (height, width, channels)

    def read_one(path: Path) -> np.ndarray:
        image = how.read(path)
        if image.shape != shape:
            raise ValueError(
                f"{path} is {image.shape} but {paths[0]} {shape}: image_size is needed"
            )
        return image

    def read(indices: Indices) -> Arrays:
        return np.stack([read_one(paths[i]) for i in indices]), labels[indices]

    return Source(
        *(shape, len(names), 256, len(paths), read),
        originals=lambda chosen: ([how.read_whole(paths[i]) for i in chosen], labels[chosen]),
        class_names=names,
        paths=paths,
        fingerprint=lambda: folders.make_fingerprint(base, paths),
    )


def load_captioned(split: str, root: Path, how: Reading, buckets: Buckets | None) -> Source:
    """Load every image file of a split with its caption; see `captions.read_folder`.

    With ``how.texts`` no caption is read: every image comes once with each of these.

    Raises:
      ValueError: ``how.size`` is None; or as `captions.read_folder`.
    """
    if how.texts:
        paths, texts = captions.give_captions(root, split, how.texts)
    else:
        paths, texts = captions.read_folder(root, split, caption_column=how.caption_column)
    if how.size is None:
        raise ValueError("captioned_folder needs image_size")
    sizes = [how.read_from(i, paths, pictures.read_size) for i in range(len(paths))]
    layout = captions.lay_out(sizes, how.size, buckets)

    def read(indices: Indices) -> Arrays:
        images = [how._replace(size=layout.target(i)).read(paths[i]) for i in indices]
        return np.stack(images), np.zeros(len(images), np.int32)

    return Source(
        (*how.size, how.channels),
        *(0, 256, len(paths), read),
        more=lambda indices: {"time_ids": layout.time_ids[np.asarray(indices)]},
        captions=lambda indices: [texts[i] for i in indices],
        groups=layout.groups if buckets else None,
        paths=paths,
        fingerprint=lambda: folders.make_fingerprint(root, paths, texts),
    )
