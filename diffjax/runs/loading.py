"""The data set of a config, read once and not yet compared with what the config says of it.

`runs.sources` compares them. `runs.data_settings` and `runs.tokens` read the data before that, in a
small size, to fill in what the config leaves open.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from diffjax import data
from diffjax.data import Framing, make_framing
from diffjax.runs.classes import read_known_classes
from diffjax.runs.hub_data import check_place, find_folder

# Config keys by the argument of `diffjax.data.load` that they are, for messages.
_KEYS = {"data_dir": "config.data.dir", "image_size": "config.data.image_size"}


class DataKey(NamedTuple):
    """All that the content of a data set depends on: the arguments of `diffjax.data.load`.

    Attributes:
        name: of the data set, or of a kind of folder (`diffjax.data.FOLDERS`).
        split: such as train or test.
        dir: folder of the data, or its name on the Hub; empty for the usual places.
        shape: (H, W, C) of the images.
        buckets: aspect ratios to crop to; None for one size.
        classes: names that a run knows, in the order of their labels. This and the fields below
            matter for folders alone.
        background: colour behind transparent pixels.
        caption_column: of metadata files.
        damaged: what is done about damaged images: stop or skip.
        captions: of all images, in place of those in files.
        framing: which part of pictures is kept, and how it is resized.
    """

    name: str
    split: str
    dir: str
    shape: tuple[int, int, int]
    buckets: data.Buckets | None
    classes: tuple[str, ...]
    background: str
    caption_column: str
    damaged: str
    captions: tuple[str, ...]
    framing: Framing


def load_unchecked(
    cfg: ConfigDict,
    split: str,
    shape: tuple[int, int, int],
    buckets: data.Buckets | None = None,
    *,
    folder: Path | None = None,
) -> data.Source:
    """Load the data set of a config with images of a given shape.

    Args:
        split: such as train or test.
        shape: (H, W, C) of the images.
        buckets: aspect ratios to crop to; None for one size.
        folder: workdir; the classes of a folder of images are those that a run there knows.

    Raises:
        ValueError, OSError: the data cannot be read; the message names keys of the config.
    """
    part = cfg.data
    classes = read_known_classes(cfg, folder) if part.name in data.FOLDERS else ()
    how = (part.background, part.caption_column, part.damaged, tuple(part.captions))
    framing = make_framing(part.window, part.resize)
    return load_once(DataKey(part.name, split, part.dir, shape, buckets, classes, *how, framing))


@functools.lru_cache(maxsize=3)  # training and test split, a survey; their images are read-only
def load_once(how: DataKey) -> data.Source:
    """Load a data set, or return the one that was loaded with the same arguments shortly before.

    Raises:
        ValueError, OSError: the data cannot be read.
    """
    check_place(how.name, how.dir)
    height, width, channels = how.shape
    with _name_keys():
        return data.load(
            how.name,
            split=how.split,
            data_dir=find_folder(how.dir, how.split) or None,
            image_size=(height, width),
            channels=channels if how.name in data.FOLDERS else None,
            buckets=how.buckets,
            classes=how.classes,
            background=how.background,
            caption_column=how.caption_column,
            damaged=how.damaged,
            captions=how.captions,
            framing=how.framing,
        )


@contextlib.contextmanager
def _name_keys() -> Iterator[None]:
    """Put keys of the config into messages, where `diffjax.data.load` names its arguments.

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
