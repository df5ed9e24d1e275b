"""Config files, such as those in the folder configs of a checkout, by the name FILE.py:VARIANT.

A file may register things, such as a schedule of its own, when it is imported. So the workdir of a
run remembers its file, and sampling imports it again.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from absl import logging
from ml_collections import ConfigDict

from diffjax.config.assemble import complete
from diffjax.writing import write_atomically


def load_module(path: str) -> ModuleType:
    """Import a config file; it has ``get_config(variant)``.

    Raises:
        ConfigError: there is no such file; the message names a close one.
    """
    spec = importlib.util.spec_from_file_location("diffjax_config", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        from diffjax.types import ConfigError, suggest  # not before: it takes a second

        near = suggest(path, map(str, Path(path).parent.glob("*.py")))
        if not Path("configs").is_dir():
            near = f"; {Path.cwd()} has no folder configs: run from a checkout of diffjax"
        raise ConfigError(f"there is no config file {path!r}; a config is FILE.py:VARIANT{near}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(name: str) -> ConfigDict:
    """Load the complete config of ``FILE.py:VARIANT``, or the default one of ``FILE.py``.

    Raises:
        ConfigError: there is no such file.
        ValueError: the file has no such variant; the message lists those that it has.
    """
    path, _, variant = name.partition(":")
    return complete(load_module(path).get_config(variant or None))


# ---- what a run remembers ------------------------------------------------------------------------

KEPT = "config_file.txt"  # in a workdir: the path of the file of its config


def keep_file(name: str, folder: Path) -> None:
    """Write the path of a config's file into a workdir, unless it is `config.store`.

    Args:
        name: FILE.py:VARIANT.
        folder: the workdir.
    """
    path = Path(name.partition(":")[0])
    if path.resolve() != Path(__file__).with_name("store.py").resolve():
        write_atomically(folder / KEPT, f"{path}\n")


def load_kept_file(folder: Path) -> None:
    """Import the config file of a workdir again, so that what it registers can be chosen by name.

    A workdir may come from anyone and bring files with it, so only files in the folder configs of
    the current folder are imported; for others the log says what to do.
    """
    note = folder / KEPT
    if not note.is_file():
        return
    path = Path(note.read_text("utf-8").strip())
    inside = path.resolve().is_relative_to(Path("configs").resolve())
    if inside and path.suffix == ".py" and path.is_file():
        load_module(str(path))
    elif path.suffix == ".py":
        logging.info(
            "the config file %s of %s is not run, since it is not in the folder configs here: give "
            "--config if it registers something, such as a schedule",
            *(path, folder),
        )
