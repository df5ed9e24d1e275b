"""The config a run was trained with: ``--config=experiments/stored_config.py:WORKDIR/config.json``.

Entry points use it by themselves when --workdir or --weights is given without --config.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.base import base, make_size_field
from diffjax.config import CHOICES
from diffjax.untrusted import read_json
from experiments import weights
from experiments.config_values import check_values


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _typed(stored: dict[str, Any]) -> ConfigDict:
    """A stored config whose size and unset options can be set, by flags too, as those of `base`."""
    values, like = _tuples(stored), base()
    if "image_size" in values.get("data", {}):
        values["data"]["image_size"] = make_size_field(values["data"]["image_size"])
    out = ConfigDict(values)
    for choice in CHOICES:
        section, defaults = (_find(config, choice.section) for config in (out, like))
        if section is None or defaults is None or choice.key not in section:
            continue
        for path in choice.owns():
            parent, _, key = path.rpartition(".")
            if parent == choice.section and key in defaults and section.get(key) is None:
                if key in section:
                    del section[key]
                section[key] = placeholder(defaults.get_type(key))
    return out


def _find(config: ConfigDict, path: str) -> ConfigDict | None:
    for key in path.split("."):
        config = config.get(key)
        if not isinstance(config, ConfigDict):
            return None
    return config


def get_config(path: str) -> ConfigDict:
    """The config in a JSON file, or in a file of experiments.export.

    Raises:
        ValueError: the file is not JSON, or holds no config.
    """
    if path.endswith(".safetensors"):
        return _typed(weights.config_of(Path(path)))
    found = read_json(Path(path))
    check_values(found, path)
    return _typed(found)
