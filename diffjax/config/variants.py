"""Config files, such as those in the folder configs of a checkout, by the name FILE.py:VARIANT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from diffjax.config.assemble import complete


def load_module(path: str) -> ModuleType:
    """A config file as a module, which has ``get_config(variant)``.

    Raises:
        ConfigError: there is no such file.
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
    """The complete config of ``FILE.py:VARIANT``, or of ``FILE.py`` its default.

    Raises:
        ConfigError: there is no such file.
        ValueError: it has no such variant, listing the choices.
    """
    path, _, variant = name.partition(":")
    return complete(load_module(path).get_config(variant or None))
