"""Sets of images that are read or made when they are needed, whatever they come from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from diffjax import data, metrics
from diffjax.data.folders import list_images
from diffjax.data.pictures import read_size
from diffjax.evaluation.image_grids import to_uint8
from diffjax.types import Batch, ConfigError

StrPath = str | os.PathLike[str]
ARRAYS = ("images", "arr_0")  # names of the images in an npz file: ours, and ADM's
CHUNK = 1000  # images in memory at a time
_SLACK = 1e-4  # float images may exceed [-1, 1] by this much


class MakeImages(Protocol):
    """Makes images (num, H, W, C) in [-1, 1]; image k depends on ``seed`` and k only."""

    def __call__(self, *, num: int, first: int, seed: int) -> np.ndarray:
        """Make images ``first`` to ``first + num - 1``."""


class ImageSet(NamedTuple):
    """Images that are read or made when they are needed.

    Attributes:
        name: identifies them. Sets of equal names hold equal images: features are kept by the name.
        num: how many.
        read: ``(start, stop) ->`` images (stop - start, H, W, C), uint8 levels 0..255 or float in
            [-1, 1]. It depends on its arguments only.
    """

    name: str
    num: int
    read: Callable[[int, int], np.ndarray]

    def first(self, num: int | None) -> ImageSet:
        """Return the set of the first ``num`` of them, or of all if it is None or larger."""
        return self._replace(num=min(self.num, num or self.num))

    def read_all(self) -> np.ndarray:
        """Read all of them into memory, (num, H, W, C).

        Raises:
            ValueError: float images are not finite, or not in [-1, 1].
        """
        return _check_range(self.read(0, self.num))

    def read_chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield all of them in their order, at most ``size`` at a time.

        Raises:
            ValueError: as `read_all`.
        """
        for start in range(0, self.num, size):
            yield _check_range(self.read(start, min(start + size, self.num)))


def _check_range(images: np.ndarray) -> np.ndarray:
    """Return the images if float ones lie in [-1, 1]: rounding to 8 bits would hide wrong values.

    Raises:
        ValueError: they do not, or they are not finite.
    """
    if images.dtype != np.uint8:
        low, high = float(np.min(images)), float(np.max(images))
        if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # also catches NaN
            raise ValueError(
                f"float images must be finite and lie in [-1, 1], got {low:g} .. {high:g}; levels "
                "0..255 are given as uint8"
            )
    return images


def from_array(images: np.ndarray, name: str | None = None) -> ImageSet:
    """Make a set of the images of an array (N, H, W, C), uint8 levels or float in [-1, 1].

    Args:
        images: the array.
        name: default: a digest of the array.

    Raises:
        ConfigError: the array has another shape or type.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise ConfigError(
            f"images must be (N, H, W, C), uint8 or float in [-1, 1], got {images.dtype} "
            f"{images.shape}"
        )
    if name is None:
        about = f"{images.dtype} {images.shape} ".encode()
        name = hashlib.sha256(about + np.ascontiguousarray(images).tobytes()).hexdigest()
    return ImageSet(name, len(images), lambda start, stop: images[start:stop])


def from_file(path: StrPath) -> ImageSet:
    """Make a set of the images of an npz file or of a folder.

    The file has uint8 ``images``, or ADM's ``arr_0``. An npz file that is not compressed is mapped,
    not loaded. Images of a folder come in the order of their names, in RGB.

    Raises:
        ConfigError: there is neither, the file holds something else, or sizes in the folder differ.
    """
    try:
        if Path(path).is_dir():
            return _from_folder(Path(path))
        images = metrics.load_array(path, ARRAYS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read images from {path}: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ConfigError(
            f"{path} must hold uint8 images (N, H, W, C), got {images.dtype} {images.shape}"
        )
    return ImageSet(_stamp(path), len(images), lambda start, stop: np.asarray(images[start:stop]))


def _from_folder(folder: Path) -> ImageSet:
    """Make a set of the image files of a folder.

    Raises:
        OSError, ValueError: the folder cannot be read, or its images differ in size.
    """
    source = data.load("image_folder", split="all", data_dir=str(folder))
    _check_sizes(list_images(folder))

    def read(start: int, stop: int) -> np.ndarray:
        return source.take(np.arange(start, stop))["image"]

    return ImageSet(_stamp(folder), len(source), read)


def _check_sizes(files: list[Path]) -> None:
    """Check that all image files have one size.

    Raises:
        ValueError: two of them differ; the message names both.
    """
    first = read_size(files[0])
    for file in files:
        if (size := read_size(file)) != first:
            a, b = (f"{height}x{width} (height x width)" for height, width in (first, size))
            raise ValueError(f"images must have one size, but {files[0]} is {a} and {file} {b}")


def _stamp(path: StrPath) -> str:
    """Return a path with a digest of names, sizes and times of its file or images."""
    root = Path(path).resolve()
    digest = hashlib.sha256()
    for file in list_images(root) if root.is_dir() else [root]:
        stat = file.stat()
        digest.update(f"{file.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"{root} {digest.hexdigest()}"


def from_source(source: data.Source, name: str) -> ImageSet:
    """Make a set of the images of a data source in a fixed random order, float in [-1, 1].

    Args:
        source: without stored latents in place of its images.
        name: what tells these data from others.
    """
    order = _shuffle(source)

    def read(start: int, stop: int) -> np.ndarray:
        return data.to_float(source.take(order[start:stop])["image"], source.levels)

    return ImageSet(name, len(source), read)


def take_labelled(source: data.Source, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``num`` images of `from_source`, in [-1, 1], and their labels (num,)."""
    batch = source.take(_shuffle(source)[:num])
    return data.to_float(batch["image"], source.levels), batch["label"]


def take_each(source: data.Source, num: int) -> Iterator[Batch]:
    """Take the first ``num`` images of `from_source` one at a time, as batches of one.

    So they may differ in size.
    """
    return (source.take([index]) for index in _shuffle(source)[:num])


def _shuffle(source: data.Source) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(source))


def from_maker(
    make: MakeImages, num: int, *, seed: int, settings: Mapping[str, object]
) -> ImageSet:
    """Samples of a model.

    Args:
        settings: what tells the model and its sampler from others, as JSON can hold it.
    """

    def read(start: int, stop: int) -> np.ndarray:
        return make(num=stop - start, first=start, seed=seed)

    return ImageSet(json.dumps({**settings, "seed": seed}, sort_keys=True), num, read)


def from_any(images: ImageSet | np.ndarray | StrPath) -> ImageSet:
    """Make a set of images from a set, an array (`from_array`), or a path (`from_file`).

    Raises:
        ConfigError: as `from_array` and `from_file`, or there is no image.
    """
    if isinstance(images, data.Source):
        raise ConfigError("a data source has no name: give from_source(source, NAME) in its place")
    if isinstance(images, str | os.PathLike):
        found = from_file(images)
    else:
        found = images if isinstance(images, ImageSet) else from_array(images)
    if not found.num:
        raise ConfigError("there is no image to measure or to compare with")
    return found


def save_images(images: ImageSet, path: Path) -> None:
    """Write an npz file with uint8 ``images``, as `from_file` reads it; folders are made."""
    parts = [to_uint8(part) for part in images.read_chunks()]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=np.concatenate(parts))


def match_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Convert grey images (N, H, W, 1) to RGB, or RGB images without colour to grey.

    Args:
        images: (N, H, W, C).
        channels: 1 or 3.

    Returns:
        (N, H, W, channels).

    Raises:
        ConfigError: the images have colour, or another number of channels.
    """
    found = images.shape[-1]
    if found == 1 or found == channels:
        return np.broadcast_to(images, (*images.shape[:3], channels))
    if channels != 1 or (images != images[..., :1]).any():
        raise ConfigError(
            f"images in colour cannot be measured as images of {channels} channel(s), which the "
            "feature network takes"
        )
    return images[..., :1]


def to_float(images: np.ndarray) -> np.ndarray:
    """Convert uint8 levels 0..255 to images in [-1, 1]; float images are kept."""
    return data.to_float(images, 256) if images.dtype == np.uint8 else images
