"""The classes of a run: their number and names, which the workdir keeps in classes.json.

A run that was trained on a folder of images knows its classes by the names of the sub-folders.
Sampling and evaluation read them from the workdir, so that label 3 stays the class that it was
even if the folder has changed since.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from diffjax import data
from diffjax.runs.record import is_trained
from diffjax.tasks import find_task_kind
from diffjax.train import hosts
from diffjax.types import ConfigError
from diffjax.writing import write_atomically

CLASSES = "classes.json"  # in a workdir: the names of the labels, in their order
NAMED = 20  # classes in a message


def uses_labels(cfg: ConfigDict) -> bool:
    """Whether the model of a config reads the class of an image, or has to predict it."""
    if find_task_kind(cfg).reads_labels:
        return True
    return "cond" in cfg and bool(cfg.network.conditional or cfg.cond.context == "label")


def check_classes(cfg: ConfigDict, source: data.Source) -> None:
    """Check that the data have as many classes as the config says, if the model uses classes.

    Args:
        source: the data set that was loaded for the config.

    Raises:
        ConfigError: they have more or fewer.
    """
    found, wanted = source.num_classes, cfg.data.num_classes
    none = found == wanted == 0
    if not uses_labels(cfg) or (found == wanted and not none):
        return
    if none and cfg.data.name not in data.FOLDERS:
        return
    named = f" ({_list_names(source.class_names)})" if source.class_names else ""
    hint = "" if found else "; the classes of a folder are its sub-folders"
    but = "the config uses classes" if none else f"config.data.num_classes={wanted}"
    raise ConfigError(
        f"{cfg.data.dir or cfg.data.name} has {found} classes{named}, but {but}{hint}"
    )


def _list_names(names: tuple[str, ...]) -> str:
    """Join names for a message, at most `NAMED` of them."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def read_known_classes(cfg: ConfigDict, folder: Path | None) -> tuple[str, ...]:
    """Read the class names that the run in a workdir was trained with.

    Returns:
        The names in the order of their labels; empty if there is no workdir, nothing was trained
        there, the run has no names, or ``train.override`` lets the data differ.

    Raises:
        ConfigError: classes.json is damaged.
    """
    if folder is None or not is_trained(folder) or cfg.train.override:
        return ()
    return read_classes(folder)


def read_classes(folder: Path) -> tuple[str, ...]:
    """Read classes.json of a workdir: names in the order of their labels, or none without the file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / CLASSES
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path} is damaged: it must be a list of names")
    return tuple(names)


def keep_classes(cfg: ConfigDict, folder: Path, source: data.Source) -> None:
    """Log the class names of the training data, and store them if the model uses them.

    Only the first process writes. Data without class names write nothing.
    """
    names = source.class_names
    if not names or not hosts.is_writer():
        return
    numbered = [f"{i} {name}" for i, name in enumerate(names)]
    used = "" if uses_labels(cfg) else ", which this model is not told"
    logging.info("%d classes%s: %s", len(names), used, _list_names(tuple(numbered)))
    if uses_labels(cfg):
        write_atomically(folder / CLASSES, json.dumps(list(names), ensure_ascii=False) + "\n")


def find_class(label: str, names: tuple[str, ...], count: int) -> int:
    """Find the label of a class that a user named.

    Args:
        label: the name of the class, or its number in decimal digits. A name takes precedence.
        names: names of the classes in the order of their labels; empty if they have none.
        count: number of classes.

    Returns:
        The label, in ``0 .. count - 1``.

    Raises:
        ConfigError: there is no such class; the message lists those that there are.
    """
    if label in names:
        return names.index(label)
    if label.isascii() and label.isdigit() and int(label) < count:
        return int(label)
    known = _list_names(names) if names else f"0 to {count - 1}"
    raise ConfigError(f"there is no class {label!r}; choose from {known}")
