"""The classes of a run: how many, and their names, which its workdir keeps in classes.json."""

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
    """Whether a config's model is told the class of an image, or has to find it."""
    if find_task_kind(cfg).reads_labels:
        return True
    return "cond" in cfg and bool(cfg.network.conditional or cfg.cond.context == "label")


def check_classes(cfg: ConfigDict, source: data.Source) -> None:
    """See that the data have as many classes as the config says, if it uses them.

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
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def read_known_classes(cfg: ConfigDict, folder: Path | None) -> tuple[str, ...]:
    """Names of the classes that the run in a workdir was trained with; none if it has no file.

    Raises:
        ConfigError: the file is damaged.
    """
    if folder is None or not is_trained(folder) or cfg.train.override:
        return ()
    return read_classes(folder)


def read_classes(folder: Path) -> tuple[str, ...]:
    """The class names in a workdir; none if it has no file.

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
    """Store the class names of the training data in a workdir, and log them."""
    names = source.class_names
    if not names or not hosts.is_writer():
        return
    numbered = [f"{i} {name}" for i, name in enumerate(names)]
    used = "" if uses_labels(cfg) else ", which this model is not told"
    logging.info("%d classes%s: %s", len(names), used, _list_names(tuple(numbered)))
    if uses_labels(cfg):
        write_atomically(folder / CLASSES, json.dumps(list(names), ensure_ascii=False) + "\n")


def find_class(label: str, names: tuple[str, ...], count: int) -> int:
    """The number of a class that is called by its name or number.

    Args:
        names: of the classes, if they have any.
        count: of the classes.

    Raises:
        ConfigError: there is no such class.
    """
    if label in names:
        return names.index(label)
    if label.isascii() and label.isdigit() and int(label) < count:
        return int(label)
    known = _list_names(names) if names else f"0 to {count - 1}"
    raise ConfigError(f"there is no class {label!r}; choose from {known}")
