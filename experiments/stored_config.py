"""The config a run was trained with: ``--config=experiments/stored_config.py:WORKDIR/config.json``.

Entry points use it by themselves when --workdir or --weights is given without --config.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.base import make_size_field
from experiments import weights


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def get_config(path: str) -> ConfigDict:
    """The config in a JSON file, or in a file of experiments.export.

    Raises:
        ValueError: the file is not JSON, or holds no config.
    """
    if path.endswith(".safetensors"):
        return _config(weights.config_of(Path(path)))
    try:
        return _config(json.loads(Path(path).read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a config: {error}") from error


def _config(stored: Any) -> ConfigDict:
    """A config whose image size can be overridden by a number or by (height, width)."""
    values = _tuples(stored)
    if "image_size" in values.get("data", {}):
        values["data"]["image_size"] = make_size_field(values["data"]["image_size"])
    return ConfigDict(values)
