"""What a config leaves to its data: sizes, channels and classes; and the classes that a run knows.

``data.image_size=0``, ``data.channels=0``, ``data.levels=0``, ``data.num_classes=-1`` and, of
captions, ``cond.text.vocabulary=0`` and ``cond.text.positions=0`` stand for what the data have.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.data.survey import reduce_size, survey_images
from diffjax.train import hosts
from diffjax.train.files import write_atomically
from experiments import common, words

CLASSES = "classes.json"  # in a workdir: the names of the labels, in their order
NAMED = 20  # classes in a message


def settle(cfg: ConfigDict) -> None:
    """Replace what a config leaves to its data by what they have.

    Raises:
        UsageError: the data do not have what the config asks for.
        ValueError, OSError: the data cannot be read.
    """
    section = cfg.data
    if section.image_size and section.channels and section.levels and section.num_classes >= 0:
        words.settle(cfg)
        return
    if section.name in data.FOLDERS:
        _settle_folder(cfg)
    else:
        _settle_set(cfg)
    words.settle(cfg)


def _settle_folder(cfg: ConfigDict) -> None:
    section = cfg.data
    try:
        source = common.load_source(cfg, section.split, (8, 8, 3))
    except ValueError as error:
        if section.dir:
            raise
        raise common.UsageError(f"--config.data.dir=FOLDER is needed: {error}") from error
    found = survey_images(source.paths or ())
    section.channels = section.channels or found.channels
    section.levels = section.levels or source.levels
    if section.num_classes < 0:
        section.num_classes = source.num_classes
    if not section.image_size:
        step = cfg.network.get("patch", 1) * 2 ** (len(cfg.network.multipliers) - 1)
        size = reduce_size(found.size, longest=section.get("longest_side", 64), step=step)
        section.image_size = size
        sizes = "{}x{}".format(*found.size) if found.equal else "different sizes"
        logging.info(
            "%s: %d %s pictures of %s; they are read as %dx%d (height x width), which "
            "--config.data.image_size or --config.data.longest_side changes",
            *(section.dir, len(source), "grey" if found.channels == 1 else "RGB", sizes, *size),
        )


def _settle_set(cfg: ConfigDict) -> None:
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


# ---- classes ------------------------------------------------------------------------------------


def uses_labels(cfg: ConfigDict) -> bool:
    """Whether a config's model is told the class of an image, or has to find it."""
    told = cfg.network.get("conditional", False) or cfg.get("cond", {}).get("context") == "label"
    return bool(cfg.task == "classifier" or told)


def check_classes(cfg: ConfigDict, source: data.Source) -> None:
    """See that the data have as many classes as the config says, if it uses them.

    Raises:
        UsageError: they have more or fewer.
    """
    found, wanted = source.num_classes, cfg.data.num_classes
    none = found == wanted == 0
    if not uses_labels(cfg) or (found == wanted and not none):
        return
    if none and cfg.data.name not in data.FOLDERS:
        return
    named = f" ({_listed(source.class_names)})" if source.class_names else ""
    hint = "" if found else "; the classes of a folder are its sub-folders"
    but = "the config uses classes" if none else f"config.data.num_classes={wanted}"
    raise common.UsageError(
        f"{cfg.data.dir or cfg.data.name} has {found} classes{named}, but {but}{hint}"
    )


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def known_classes(cfg: ConfigDict) -> tuple[str, ...]:
    """Names of the classes that the run in the workdir was trained with; none if it has no file.

    Raises:
        UsageError: the file is damaged.
    """
    folder = common.trained_workdir()
    return () if folder is None or cfg.train.get("override", False) else read_classes(folder)


def read_classes(folder: Path) -> tuple[str, ...]:
    """The class names in a workdir; none if it has no file.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / CLASSES
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise common.UsageError(f"{path} is damaged: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise common.UsageError(f"{path} is damaged: it must be a list of names")
    return tuple(names)


def keep_classes(cfg: ConfigDict, folder: Path, source: data.Source) -> None:
    """Store the class names of the training data in a workdir, and log them."""
    names = source.class_names
    if not names or not hosts.is_writer():
        return
    numbered = [f"{i} {name}" for i, name in enumerate(names)]
    used = "" if uses_labels(cfg) else ", which this model is not told"
    logging.info("%d classes%s: %s", len(names), used, _listed(tuple(numbered)))
    if uses_labels(cfg):
        write_atomically(folder / CLASSES, json.dumps(list(names), ensure_ascii=False) + "\n")


def class_number(label: str, names: tuple[str, ...], count: int) -> int:
    """The number of a class that is called by its name or number.

    Raises:
        UsageError: there is no such class.
    """
    if label in names:
        return names.index(label)
    if label.isascii() and label.isdigit() and int(label) < count:
        return int(label)
    known = _listed(names) if names else f"0 to {count - 1}"
    raise common.UsageError(f"there is no class {label!r}; choose from {known}")
