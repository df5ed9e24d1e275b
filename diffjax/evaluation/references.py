"""What images are compared with: other images, or published statistics of features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax import metrics
from diffjax.evaluation.image_sets import ARRAYS, ImageSet, StrPath, from_any, from_file
from diffjax.types import ConfigError


class Reference(NamedTuple):
    """The images or statistics that images are compared with.

    Attributes:
        images: real images, or originals; None if only their statistics are known.
        statistics: moments of Inception's features. Where they are known, they are used in place of
            the images: those in ADM's files are of more images than the files hold.
    """

    images: ImageSet | None = None
    statistics: metrics.Statistics | None = None


def read_reference(path: StrPath, num: int | None = None) -> Reference:
    """Read the reference in a file or folder: an npz file of statistics, or images.

    Args:
        path: an npz file of the pytorch-fid or ADM layout (``mu``, ``sigma``, ``mu_s``,
            ``sigma_s``), of images (``images`` or ``arr_0``), or a folder of images.
        num: how many of the images; statistics in the file are then left out. None for all.

    Raises:
        ConfigError: the file holds neither, or ``num`` is given and there are no images.
        ValueError: the file is damaged.
    """
    names = metrics.list_arrays(path) if Path(path).is_file() else set()
    statistics = metrics.load_statistics(path) if "mu" in names else None
    if statistics is None or names & set(ARRAYS):
        return Reference(from_file(path).first(num), None if num else statistics)
    if num:
        raise ConfigError(f"num={num} of the images, but {path} holds only their statistics")
    return Reference(statistics=statistics)


def reference_from_any(
    reference: Reference | metrics.Statistics | ImageSet | np.ndarray | StrPath,
) -> Reference:
    """Make a reference of statistics, a path, an array or a set of images; a reference is returned.

    Raises:
        ConfigError, ValueError: as `read_reference` and `from_any`.
    """
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, metrics.Statistics):
        return Reference(statistics=reference)
    if isinstance(reference, str | os.PathLike):
        return read_reference(reference)
    return Reference(from_any(reference))


def require_images(reference: Reference) -> ImageSet:
    """Return the images of a reference.

    Raises:
        ConfigError: it has statistics only.
    """
    if reference.images is None:
        raise ConfigError("the reference needs images, not only their statistics")
    return reference.images
