"""The data set of a config in any shape, not compared with what the config says of it."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from diffjax import data
from diffjax.runs.classes import read_known_classes

# Config keys by the argument of `diffjax.data.load` that they are, for messages.
_KEYS = {"data_dir": "config.data.dir", "image_size": "config.data.image_size"}


class DataKey(NamedTuple):
    """How a data set is read; the last four hold for folders. See `diffjax.data.load`."""

    name: str
    split: str
    dir: str
    shape: tuple[int, int, int]
    buckets: data.Buckets | None
    classes: tuple[str, ...]
    background: str
    caption_column: str
    damaged: str


def load_unchecked(
    cfg: ConfigDict,
    split: str,
    shape: tuple[int, int, int],
    buckets: data.Buckets | None = None,
    *,
    folder: Path | None = None,
) -> data.Source:
    """The data set of a config with images (H, W, C).

    Args:
        folder: workdir; of folders of images, the classes are those that a run there knows.

    Raises:
        ValueError, OSError: the data cannot be read.
    """
    part = cfg.data
    classes = read_known_classes(cfg, folder) if part.name in data.FOLDERS else ()
    how = (part.background, part.caption_column, part.damaged)
    return load_once(DataKey(part.name, split, part.dir, shape, buckets, classes, *how))


@functools.lru_cache(maxsize=3)  # training and test split, a survey; their images are read-only
def load_once(how: DataKey) -> data.Source:
    """The same data are read again only when others came between."""
    height, width, channels = how.shape
    with _name_keys():
        return data.load(
            how.name,
            split=how.split,
            data_dir=how.dir or None,
            image_size=(height, width),
            channels=channels if how.name in data.FOLDERS else None,
            buckets=how.buckets,
            classes=how.classes,
            background=how.background,
            caption_column=how.caption_column,
            damaged=how.damaged,
        )


@contextlib.contextmanager
def _name_keys() -> Iterator[None]:
    """Messages that name keys of the config in place of arguments.

    Raises:
        ValueError, OSError: those of the context, with the names replaced.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        for argument, key in _KEYS.items():
            text = re.sub(rf"(?<![\w.-]){argument}\b", key, text)
        if len(error.args) != 1 or text == str(error):
            raise
        raise type(error)(text) from error
