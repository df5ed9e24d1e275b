"""The values that a config leaves to its data: sizes, channels, grey levels, classes, words.

A config leaves a value open by ``data.image_size=0``, ``data.channels=0``, ``data.levels=0``,
``data.num_classes=-1`` and, for captions, ``cond.text.vocabulary=0`` and
``cond.text.positions=0``. `fill_from_data` is called once, where a config enters a command, so that
all other code sees complete values.
"""

from __future__ import annotations

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.survey import reduce_size, survey_images
from diffjax.runs.loading import load_unchecked
from diffjax.runs.tokens import find_own_words, uses_own_words
from diffjax.types import ConfigError


def fill_from_data(cfg: ConfigDict, folder: Path | None = None) -> None:
    """Fill in, in place, the values that a config leaves to its data.

    Args:
        folder: workdir; classes and words are those of a run that was trained there.

    Raises:
        ConfigError: the data lack something that the config asks for.
        ValueError, OSError: the data cannot be read.
    """
    part = cfg.data
    if not (part.image_size and part.channels and part.levels and part.num_classes >= 0):
        if part.name in data.FOLDERS:
            _fill_from_folder(cfg, folder)
        else:
            _fill_from_set(cfg)
    if uses_own_words(cfg) and not (cfg.cond.text.vocabulary and cfg.cond.text.positions):
        found = find_own_words(cfg, folder)
        cfg.cond.text.update(vocabulary=found.backend.get_vocab_size(), positions=found.length)


def _fill_from_folder(cfg: ConfigDict, folder: Path | None) -> None:
    """Fill in the values of a folder of images, from a sample of its files.

    The size becomes the median size of the images, reduced to ``data.longest_side`` and to sides
    that the network can halve as often as it does.
    """
    section = cfg.data
    try:
        source = load_unchecked(cfg, section.split, (8, 8, 3), folder=folder)
    except ValueError as error:
        if section.dir:
            raise
        raise ConfigError(f"config.data.dir=FOLDER is needed: {error}") from error
    found = survey_images(source.paths or ())
    section.channels = section.channels or found.channels
    section.levels = section.levels or source.levels
    if section.num_classes < 0:
        section.num_classes = source.num_classes
    if not section.image_size:
        patch = cfg.network.get("patch", 1)  # which not every network has
        step = patch * 2 ** (len(cfg.network.multipliers) - 1)
        size = reduce_size(found.size, longest=section.longest_side, step=step)
        section.image_size = size
        sizes = "{}x{}".format(*found.size) if found.equal else "different sizes"
        logging.info(
            "%s: %d %s pictures of %s; they are read as %dx%d (height x width), which "
            "config.data.image_size or config.data.longest_side changes",
            *(section.dir, len(source), "grey" if found.channels == 1 else "RGB", sizes, *size),
        )


def _fill_from_set(cfg: ConfigDict) -> None:
    """Fill in the values of a data set that is known by its name."""
    section = cfg.data
    size = section.image_size or None
    source = data.load(
        section.name, split=section.split, data_dir=section.dir or None, image_size=size
    )
    section.image_size = section.image_size or source.shape[:2]
    section.channels = section.channels or source.shape[2]
    section.levels = section.levels or source.levels
    if section.num_classes < 0:
        section.num_classes = source.num_classes
